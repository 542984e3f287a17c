"""The exported transformers stages run for real: the base, its growth by the exported command, the grown stage."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from export_cases import design_spec

from app.api.import_bodies import ImportOptionsBody
from app.cli import cli
from app.commands.import_sources import files_of, plan_options
from app.engine.plan import plan_phases
from app.export import Question, build_plan, plan_files, write_files
from app.export.plan import TrainingPlan
from app.export.stages import ModelDetails
from app.ingest.build import build_runs
from app.ingest.imported import ImportFiles
from app.ingest.logs.rows import LogFile


def plan_of(schedule: Any) -> TrainingPlan:
    spec = design_spec()
    spec = replace(spec, training=replace(spec.training, schedule=schedule))
    return build_plan("transformers", Question(spec=spec, details=ModelDetails(), source="test"))


def load_script(path: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location("exported_train", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_both_stages_and_the_growth_run_on_the_engines_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = design_spec()
    plan = plan_of("wsd")
    folder = tmp_path / "export"
    write_files(folder, plan_files(plan))
    data = tmp_path / "tokens.bin"
    rng = np.random.default_rng(0)
    rng.integers(0, 128, plan.total_tokens, dtype=np.uint16).tofile(data)
    script = load_script(folder / "train.py")
    read: list[int] = []

    class Recording(script.Windows):  # type: ignore[misc,name-defined]
        def __getitem__(self, index: int) -> Any:
            read.append(self.first + index)
            return super().__getitem__(index)

    monkeypatch.setattr(script, "Windows", Recording)
    monkeypatch.chdir(folder)

    def train(stage: str) -> None:
        monkeypatch.setattr(sys, "argv", ["train.py", stage, "--data", str(data), "--cpu", "--per-device", "2"])
        script.main()

    train("base")
    for command in plan.growth.commands:
        done = CliRunner().invoke(cli, shlex.split(command.run)[1:])
        assert done.exit_code == 0, done.output
    train("grown")

    # Every sequence of the run once, in order, over both stages.
    assert sorted(set(read)) == list(range(40 + 64))
    assert read == sorted(read)
    for stage, phase in zip(plan.stages, plan_phases(spec), strict=True):
        rates = [json.loads(line) for line in (folder / stage.run_log / "rates.jsonl").read_text().splitlines()]
        assert [row["tokens"] for row in rates] == [step * phase.batch_tokens for step in range(1, phase.num_steps + 1)]
        expected = [phase.schedule.learning_rate(row["tokens"]) for row in rates]
        assert [row["lr"] for row in rates] == pytest.approx(expected, rel=1e-12)
        state = json.loads((folder / stage.run_log / "trainer_state.json").read_text())
        assert state["global_step"] == phase.num_steps
        assert state["num_input_tokens_seen"] == phase.num_tokens
    options = ImportOptionsBody(
        **plan_options(folder / "plan.json"), cohort="c", name="n", decision_metric="train_loss"
    ).import_options()
    base, grown = (
        tuple(LogFile(name=name, content=content) for name, content in files_of(folder / stage.run_log))
        for stage in plan.stages
    )
    (run,) = build_runs(ImportFiles(base=base, grown=grown), options)
    assert run.header["compute_flops"] == pytest.approx(plan.total_compute_flops, rel=1e-12)
    assert (run.header["growth_timing_tokens"], run.header["grown_tokens"]) == (1280, 2048)
    assert (run.header["growth_factor"], run.header["status"]) == (2.0, "finished")
    final = json.loads((folder / "checkpoints/final/config.json").read_text())
    assert final["num_hidden_layers"] == 4
    grown_from = json.loads((folder / "checkpoints/grown-start/growth.json").read_text())
    assert grown_from["base_tokens"] == 1280


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
@pytest.mark.parametrize("stage", ["base", "grown"])
def test_training_arguments_hold_and_their_own_schedule_is_as_told(tmp_path: Path, schedule: Any, stage: str) -> None:
    import torch
    from transformers import TrainingArguments
    from transformers.optimization import get_scheduler

    from app.export.for_transformers import training_arguments

    one = getattr(plan_of(schedule), stage)
    arguments = TrainingArguments(**training_arguments(one) | {"output_dir": str(tmp_path), "use_cpu": True})
    assert arguments.max_steps == one.num_steps
    assert arguments.train_batch_size * arguments.gradient_accumulation_steps == one.batch_sequences
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    scheduler = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.get_warmup_steps(one.num_steps),
        num_training_steps=one.num_steps,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )
    rates = []
    for _ in range(one.num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    plan = [one.schedule.learning_rate(step) for step in range(1, one.num_steps + 1)]
    decays_from = one.schedule.warmup_steps + one.schedule.hold_steps
    if one.schedule.kind == "wsd":  # exact once warm
        assert rates[one.schedule.warmup_steps :] == pytest.approx(plan[one.schedule.warmup_steps :], rel=1e-9)
    elif one.schedule.kind == "cosine":  # one step behind
        assert rates[1:] == pytest.approx(plan[:-1], rel=1e-9)
    else:
        assert rates[1 : decays_from + 1] == pytest.approx(plan[:-1], rel=1e-9)
    assert rates[0] < plan[0]
