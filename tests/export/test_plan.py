"""Plans against numbers worked out by hand, the service's own design, and the engine's own schedule."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from export_cases import ANSWER, DESIGN, TARGET, design_spec, flops_by_hand

from app.cli import cli
from app.contract import GrowthSpec, Spec
from app.engine.plan import plan_phases
from app.export import Question, Wishes, build_plan, hf_config, plan_files, plan_from_json, question_of, target_of
from app.export.stages import ModelDetails
from fitting.errors import InputError

DETAILS = ModelDetails()
# One schedule over both stages has one peak; 8 of its 26 steps decay.
KEPT: dict[str, Any] = {"base_peak_lr": None, "decay_fraction": 8 / 26}


def asked(spec: Spec) -> Question:
    return Question(spec=spec, details=DETAILS, source="test")


@pytest.mark.parametrize("trainer", ["torchtitan", "megatron", "transformers"])
def test_stages_cost_what_the_design_costs(trainer: Any) -> None:
    spec = design_spec()
    plan = build_plan(trainer, asked(spec))
    base, grown = plan.stages
    assert (base.num_steps, base.num_tokens, base.batch_tokens) == (10, 1280, 128)
    assert (grown.num_steps, grown.num_tokens, grown.batch_tokens) == (16, 2048, 128)
    assert (grown.data_offset.sequences, grown.data_offset.tokens, grown.data_offset.steps) == (40, 1280, 10.0)
    assert base.data_offset.tokens == 0
    assert plan.total_tokens == 1280 + 2048
    assert base.compute_flops == 1280 * flops_by_hand(2)
    assert grown.compute_flops == 2048 * flops_by_hand(4)
    assert plan.total_compute_flops == pytest.approx(base.compute_flops + grown.compute_flops, rel=1e-15)
    assert plan.rounding == ()
    last = plan.decision_points[-1]
    assert (last.run_tokens, last.compute_flops) == (plan.total_tokens, plan.total_compute_flops)
    assert plan_from_json(plan.to_json()) == plan
    assert plan_from_json(plan_files(plan)["plan.json"]) == plan


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
@pytest.mark.parametrize("policy", ["rewarm", "rewind", "keep"])
def test_every_step_has_the_engines_rate(schedule: Any, policy: Any) -> None:
    spec = design_spec()
    assert spec.growth is not None
    spec = replace(
        spec,
        training=replace(spec.training, schedule=schedule, **(KEPT if policy == "keep" else {})),
        growth=replace(spec.growth, learning_rate_policy=policy),
    )
    if policy == "keep" and schedule == "cosine":
        with pytest.raises(InputError, match="learning_rate_policy is 'keep'"):
            build_plan("transformers", asked(spec))
        return
    plan = build_plan("transformers", asked(spec))
    for stage, phase in zip(plan.stages, plan_phases(spec), strict=True):
        for step in range(1, stage.num_steps + 1):
            expected = phase.schedule.learning_rate(step * phase.batch_tokens)
            assert stage.schedule.learning_rate(step) == pytest.approx(expected, rel=1e-12), (stage.name, step)
    assert plan.grown.schedule.warmup_steps == (4 if policy == "rewarm" else 0)


def test_uneven_lengths_are_named() -> None:
    spec = design_spec()
    spec = replace(spec, training=replace(spec.training, warmup_tokens=500, base_batch_sequences=5, decay_fraction=0.2))
    plan = build_plan("megatron", asked(spec))
    assert plan.base.num_steps == 8  # 1280 / (5 x 32)
    assert plan.grown.data_offset.steps == 10.0
    assert "base: warm-up of 500 tokens becomes 480 (3 steps)" in plan.rounding
    assert "grown: warm-up of 500 tokens becomes 512 (4 steps)" in plan.rounding
    assert "grown: decay of 410 tokens becomes 384 (3 steps)" in plan.rounding
    uneven = replace(spec, training=replace(spec.training, base_batch_sequences=3))
    told = build_plan("megatron", asked(uneven))
    assert told.grown.data_offset.sequences == 39  # 13 steps of 3
    assert any("9.75 steps" in sentence for sentence in told.rounding)


def test_an_answer_becomes_a_plan_with_its_decision_points() -> None:
    question = question_of(ANSWER, TARGET, DETAILS, Wishes(batch_sequences=4))
    plan = build_plan("torchtitan", question)
    assert (plan.base.num_tokens, plan.grown.num_tokens) == (1280, 2048)
    assert any("growth_timing_tokens of 1,300 becomes 1,280 (10 steps" in told for told in plan.rounding)
    (look,) = [point for point in plan.decision_points if point.expected_loss_nats is not None]
    assert (look.stage, look.step, look.run_tokens) == ("grown", 5, 1280 + 640)
    assert look.compute_flops == plan.base.compute_flops + 640 * flops_by_hand(4)
    assert (look.expected_band, look.stop_above_nats) == ((3.0, 3.4), 3.5)
    assert plan.base.schedule.peak_lr == 2e-3
    assert plan.growth.commands[1].run == (
        "growthlaw checkpoint grow checkpoints/base-hf checkpoints/grown-start --layers 4 --order stack --operator direct "
        "--seed 0 --base-tokens 1280"
    )
    assert any("'copy'" in note and "reset" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"decision": "scratch"}, "decision is 'scratch'"),
        ({"target_model": {"params": 1e9, "num_layers": 4}}, "target_params is 1e"),
        ({"target_model": ANSWER["target_model"] | {"num_layers": 8}}, "num_target_layers is 8"),
        ({"growth_timing_tokens": 10.0}, "growth_timing_tokens is 10 tokens"),
        ({"recipe": ANSWER["recipe"] | {"schedule": {"value": "power"}}}, "schedule is 'power'"),
    ],
)
def test_answers_that_cannot_be_exported_are_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=re.escape(problem)):
        question_of(ANSWER | change, TARGET, DETAILS, Wishes(batch_sequences=4))


@pytest.mark.parametrize(
    ("growth", "field"),
    [
        ({"operator": "learn", "learn_steps": 1}, "operator"),
        ({"operator": "random", "mask_tokens": 128}, "operator"),
        ({"optimizer_state_policy": "copy"}, "optimizer_state_policy"),
    ],
)
def test_what_only_the_engine_does_is_refused(growth: dict[str, Any], field: str) -> None:
    spec = design_spec()
    assert isinstance(spec.growth, GrowthSpec)
    with pytest.raises(InputError) as refused:
        build_plan("megatron", asked(replace(spec, growth=replace(spec.growth, **growth))))
    assert refused.value.field == field


def test_a_config_reads_back_as_the_target_it_was_written_from() -> None:
    model = build_plan("transformers", asked(design_spec())).grown.model
    assert target_of(hf_config(replace(model, rope_theta=5e5)), None) == (TARGET, ModelDetails(rope_theta=5e5))
    with pytest.raises(InputError, match="rope_type 'yarn'"):
        target_of(hf_config(model) | {"rope_parameters": {"rope_type": "yarn"}}, None)
    with pytest.raises(InputError, match="model_type is 'gpt2'"):
        target_of({"model_type": "gpt2"}, None)


def run_export(*options: str) -> Result:
    return CliRunner().invoke(cli, ["plan", "export", *options])


def test_the_command_exports_a_design_a_file_and_a_question(tmp_path: Path) -> None:
    design, answer, config = tmp_path / "design.json", tmp_path / "answer.json", tmp_path / "config.json"
    design.write_text(json.dumps(DESIGN))
    answer.write_text(json.dumps(ANSWER))
    model = build_plan("transformers", asked(design_spec())).grown.model
    config.write_text(json.dumps(hf_config(model)))
    first = run_export(
        "--for", "megatron", "--design", str(design), "--vocab-size", "128", "--out", str(tmp_path / "a")
    )
    assert first.exit_code == 0, first.output
    assert "rounded: grown_tokens of" in first.output
    second = run_export(
        "--for", "transformers", "--recommendation", str(answer), "--target-config", str(config), "--batch-sequences", "4",
        "--out", str(tmp_path / "b"), "--json",
    )  # fmt: skip
    assert second.exit_code == 0, second.output
    assert plan_from_json((tmp_path / "b/plan.json").read_text()) == plan_from_json(second.output)
    big = hf_config(
        replace(model, num_layers=24, hidden_size=2048, num_heads=32, num_kv_heads=4, intermediate_size=5632)
    )
    config.write_text(json.dumps(big | {"max_position_embeddings": 2048, "vocab_size": 32000}))
    third = run_export(
        "--for", "torchtitan", "--target-config", str(config), "--token-budget", "1e11", "--guideline", "published:gstack",
        "--out", str(tmp_path / "c"), "--json",
    )  # fmt: skip
    assert third.exit_code == 0, third.output
    plan = plan_from_json(third.output)
    assert plan.growth.num_base_layers == 6
    # The whole is the budget to a batch: what 1e11 tokens of the target cost.
    budget = 1e11 * plan.grown.flops_per_token
    assert abs(plan.total_compute_flops - budget) <= plan.grown.batch_tokens * plan.grown.flops_per_token
    again = run_export(
        "--for", "megatron", "--design", str(design), "--vocab-size", "128", "--out", str(tmp_path / "a")
    )
    assert isinstance(again.exception, InputError)
    assert "is there already" in str(again.exception)
    assert run_export("--for", "megatron", "--out", str(tmp_path / "d")).exit_code == 2
