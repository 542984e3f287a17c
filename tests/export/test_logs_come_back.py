"""The logs that torchtitan and Megatron-LM leave where a plan says become the growth that was planned.

The event files are written by torch's SummaryWriter with the tags of torchtitan 0.3.0's MetricsProcessor and Megatron-LM
core_v0.16's training_log; neither trainer runs here. The transformers stages' own logs come back in `test_transformers.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from export_cases import design_spec

from app.api.import_bodies import ImportOptionsBody
from app.commands.import_sources import files_of, plan_options
from app.export import Question, build_plan, plan_files, write_files
from app.export.stages import ModelDetails
from app.ingest.build import build_runs
from app.ingest.imported import ImportFiles
from app.ingest.logs.rows import LogFile


def write_torchtitan(folder: Path, num_steps: int, batch_tokens: int) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "20260501-1000")) as writer:
        for step in range(1, num_steps + 1):
            writer.add_scalar("loss_metrics/global_avg_loss", 4 - step / 100, step)
            writer.add_scalar("n_tokens_seen", step * batch_tokens, step)


def write_megatron(folder: Path, num_steps: int, batch_tokens: int) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for step in range(1, num_steps + 1):
            # Stage two of a plan starts behind the samples of stage one, so its samples are no count of its own tokens.
            samples = 10_000 + step * batch_tokens // 32
            for tag in ("lm loss", "learning-rate"):
                writer.add_scalar(tag, 4 - step / 100, step)
                writer.add_scalar(f"{tag} vs samples", 4 - step / 100, samples)
            if step % 5 == 0:
                writer.add_scalar("lm loss validation", 4.1 - step / 100, step)


@pytest.mark.parametrize(("trainer", "write"), [("torchtitan", write_torchtitan), ("megatron", write_megatron)])
def test_a_plans_logs_become_the_planned_growth(tmp_path: Path, trainer: Any, write: Any) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'growthlaw[tensorboard]'")
    plan = build_plan(trainer, Question(spec=design_spec(), details=ModelDetails(), source="test"))
    write_files(tmp_path / "plan", plan_files(plan))
    page = (tmp_path / "plan" / "README.md").read_text()
    assert "growthlaw runs import --base logs/base --grown logs/grown --plan plan.json" in page
    logs = {}
    for stage in plan.stages:
        write(tmp_path / "plan" / stage.run_log, stage.num_steps, stage.batch_tokens)
        found = files_of(tmp_path / "plan" / stage.run_log)
        logs[stage.name] = tuple(LogFile(name=name, content=content) for name, content in found)
    body = ImportOptionsBody(
        **plan_options(tmp_path / "plan" / "plan.json"), cohort="c", name="n", decision_metric="train_loss"
    )
    (run,) = build_runs(ImportFiles(**logs), body.import_options())
    assert (run.header["growth_timing_tokens"], run.header["grown_tokens"]) == (1280, 2048)
    assert run.header["compute_flops"] == pytest.approx(plan.total_compute_flops, rel=1e-12)
    assert run.header["final_loss"] == pytest.approx(4 - 16 / 100, abs=1e-6)
    assert (run.header["growth_factor"], run.header["order"], run.wasted_flops) == (2.0, "stack", 0)
    ends = [point for point in run.points if point.metric == "train_loss" and point.phase == "base"]
    assert ends[-1].compute_flops == pytest.approx(plan.base.compute_flops)
