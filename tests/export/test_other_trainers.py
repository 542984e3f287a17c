"""Megatron's arguments and torchtitan's module, against the trainers' own classes.

The rate is also worked out from the arguments by Megatron's documented rule, written here anew; the argument names are held
against those of Megatron-LM core_v0.16 that a plan may use.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import shlex
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from export_cases import design_spec
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from app.export import Question, build_plan, plan_files
from app.export.for_torchtitan import VERSION
from app.export.plan import Stage, TrainingPlan
from app.export.stages import ModelDetails

MEGATRON_NUMBERS = """
    num-layers hidden-size ffn-hidden-size num-attention-heads kv-channels num-query-groups seq-length
    max-position-embeddings vocab-size norm-epsilon rotary-base attention-dropout hidden-dropout micro-batch-size
    global-batch-size train-samples exit-interval weight-decay adam-beta1 adam-beta2 adam-eps clip-grad lr min-lr
    lr-decay-samples lr-warmup-init lr-warmup-samples lr-wsd-decay-samples save-interval log-interval
"""
MEGATRON_WORDS = """
    normalization position-embedding-type optimizer lr-decay-style lr-wsd-decay-style save load tensorboard-dir
    pretrained-checkpoint
"""
MEGATRON_FLAGS = "group-query-attention swiglu disable-bias-linear untie-embeddings-and-output-weights bf16"


def plan_for(trainer: Any, schedule: Any) -> TrainingPlan:
    spec = design_spec()
    spec = replace(spec, training=replace(spec.training, schedule=schedule))
    return build_plan(trainer, Question(spec=spec, details=ModelDetails(), source="test"))


def megatron_arguments(plan: TrainingPlan, stage: Stage) -> tuple[int, argparse.Namespace]:
    """The offset and the arguments of the stage's script, read as bash and argparse would."""
    script = plan_files(plan)[f"{stage.name}.sh"]
    words = shlex.split(script[script.index("start_at_sample.py") :].replace("\\\n", " "))
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in MEGATRON_NUMBERS.split():
        parser.add_argument(f"--{name}", type=float)
    for name in MEGATRON_WORDS.split():
        parser.add_argument(f"--{name}")
    for name in MEGATRON_FLAGS.split():
        parser.add_argument(f"--{name}", action="store_true")
    return int(words[1]), parser.parse_args(words[3:-1])


def megatron_rate(given: argparse.Namespace, samples: float) -> float:
    """The rate after ``samples``, by Megatron's rule."""
    warmup = given.lr_warmup_samples or 0
    if warmup and samples <= warmup:
        return given.lr_warmup_init + (given.lr - given.lr_warmup_init) * samples / warmup
    if given.lr_decay_style == "constant":
        return given.lr
    if given.lr_decay_style == "WSD":
        left = (
            1 - max(0.0, samples - (given.lr_decay_samples - given.lr_wsd_decay_samples)) / given.lr_wsd_decay_samples
        )
    else:
        left = (1 + math.cos(math.pi * (samples - warmup) / (given.lr_decay_samples - warmup))) / 2
    return given.min_lr + left * (given.lr - given.min_lr)


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_megatron_is_told_the_plan(schedule: Any) -> None:
    plan = plan_for("megatron", schedule)
    for stage in plan.stages:
        start, given = megatron_arguments(plan, stage)
        assert start == stage.data_offset.sequences
        assert given.exit_interval * given.global_batch_size * given.seq_length == stage.num_tokens
        assert given.train_samples * given.seq_length == plan.total_tokens
        assert (given.num_layers, given.num_query_groups, given.group_query_attention) == (
            stage.model.num_layers,
            2,
            True,
        )
        for step in range(1, stage.num_steps + 1):
            rate = megatron_rate(given, (step - 1) * given.global_batch_size)
            assert rate == pytest.approx(stage.schedule.learning_rate(step), rel=1e-12), (stage.name, step)
    assert megatron_arguments(plan, plan.grown)[1].pretrained_checkpoint == "checkpoints/grown-start-megatron"
    ast.parse(plan_files(plan)["start_at_sample.py"])


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_megatrons_own_scheduler_has_the_plans_rate(schedule: Any) -> None:
    plan = plan_for("megatron", schedule)
    for stage in plan.stages:
        _, given = megatron_arguments(plan, stage)

        class Groups:
            param_groups: list[dict[str, Any]] = [{}]  # noqa: RUF012

        own = OptimizerParamScheduler(
            Groups, init_lr=given.lr_warmup_init or 0.0, max_lr=given.lr, min_lr=given.min_lr,
            lr_warmup_steps=given.lr_warmup_samples or 0, lr_decay_steps=given.lr_decay_samples,
            lr_decay_style=given.lr_decay_style, start_wd=0.1, end_wd=0.1, wd_incr_steps=given.train_samples,
            wd_incr_style="constant", use_checkpoint_opt_param_scheduler=False,
            wsd_decay_steps=given.lr_wsd_decay_samples, lr_wsd_decay_style=given.lr_wsd_decay_style,
        )  # fmt: skip
        for step in range(1, stage.num_steps + 1):
            assert Groups.param_groups[0]["lr"] == pytest.approx(stage.schedule.learning_rate(step), rel=1e-12)
            own.step(given.global_batch_size)


def test_a_cosine_without_warm_up_is_megatrons_of_up_to_one_step_earlier() -> None:
    spec = design_spec()
    spec = replace(spec, training=replace(spec.training, schedule="cosine", warmup_tokens=0))
    plan = build_plan("megatron", Question(spec=spec, details=ModelDetails(), source="test"))
    assert any("cosine begins without a warm-up" in note for note in plan.notes)
    _, given = megatron_arguments(plan, plan.base)
    schedule = plan.base.schedule
    rates = [megatron_rate(given, step * given.global_batch_size) for step in range(plan.base.num_steps)]
    assert rates[0] == schedule.peak_lr
    assert rates[-1] == pytest.approx(schedule.learning_rate(plan.base.num_steps), rel=1e-12)
    for step, rate in enumerate(rates[1:], 2):
        assert schedule.learning_rate(step) <= rate * (1 + 1e-12)
        assert rate <= schedule.learning_rate(step - 1)


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_torchtitan_is_told_the_plan(schedule: Any) -> None:
    plan = plan_for("torchtitan", schedule)
    module = ast.parse(plan_files(plan)["growthlaw_stages.py"])
    functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    for stage in plan.stages:
        given: dict[str, Any] = {}
        for node in ast.walk(functions[stage.name]):
            if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
                given[str(node.arg)] = node.value.value
        assert given["steps"] * given["global_batch_size"] * given["seq_len"] == stage.num_tokens
        assert given["skip_sequences"] == stage.data_offset.sequences
        assert given["n_layers"] == stage.model.num_layers
        assert given["total_steps"] == stage.num_steps - bool(stage.schedule.decay_steps)
        if schedule == "wsd":
            assert round(given["total_steps"] * given["decay_ratio"]) == stage.schedule.decay_steps
        assert ("initial_load_in_hf" in given) == (stage.name == "grown")


@pytest.fixture(scope="module")
def torchtitan_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of torchtitan's own: it wants other versions of packages that this project has."""
    folder = tmp_path_factory.mktemp("torchtitan")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    constraints = folder / "constraints.txt"
    constraints.write_text(f"torch=={version('torch').partition('+')[0]}\n")
    # torchtitan imports triton, which torch for the CPU comes without.
    packages = [f"torchtitan=={VERSION.split()[1]}", "triton"]
    subprocess.run([folder / "bin" / "pip", "install", "-q", "-c", constraints, *packages], check=True)
    return folder / "bin" / "python"


@pytest.mark.long
@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_torchtitans_own_classes_take_the_module(tmp_path: Path, schedule: Any, torchtitan_python: Path) -> None:
    plan = plan_for("torchtitan", schedule)
    path = tmp_path / "growthlaw_stages.py"
    path.write_text(plan_files(plan)["growthlaw_stages.py"])
    probe = Path(__file__).with_name("torchtitan_rates.py")
    told = json.loads(
        subprocess.run([torchtitan_python, probe, path], check=True, capture_output=True, text=True).stdout
    )
    for stage in plan.stages:
        assert told[stage.name]["num_layers"] == stage.model.num_layers
        h, block = 32, 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
        assert told[stage.name]["num_parameters"] == 2 * 128 * h + stage.model.num_layers * block + h
        assert len(told[stage.name]["rates"]) == stage.num_steps
        for step, rate in enumerate(told[stage.name]["rates"], 1):
            if stage.schedule.kind == "cosine":
                before = stage.schedule.learning_rate(max(stage.schedule.warmup_steps, step - 1))
                inside = stage.schedule.learning_rate(step) - 1e-12 <= rate <= before + 1e-12
                assert inside or step <= stage.schedule.warmup_steps
            else:
                assert rate == pytest.approx(stage.schedule.learning_rate(step), rel=1e-9), (stage.name, step)
