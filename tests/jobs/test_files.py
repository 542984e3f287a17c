"""Designs at equal FLOPs, tailing, and reading a process's end from its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.contract import (
    EvaluationSpec,
    EventLine,
    GrowthSpec,
    MetricLine,
    ModelSpec,
    Result,
    Spec,
    TrainingSpec,
)
from app.jobs.design import GrowthDesign, arm_spec, total_flops
from app.jobs.outcome import outcome_of
from app.jobs.tail import read_new_lines
from app.records import from_dict, to_dict, write_json_atomically
from fitting.errors import InputError


def design(**changes: object) -> GrowthDesign:
    values: dict[str, object] = {
        "name": "d", "cohort": "c", "corpus": "k", "corpus_dir": "/k",
        "target_model": ModelSpec(
            num_layers=8, hidden_size=64, num_heads=2, num_kv_heads=2, intermediate_size=176, vocab_size=1024,
            context_length=128,
        ),
        "growth": GrowthSpec(num_base_layers=2, growth_timing_tokens=1_200_000),
        "token_budget": 2_000_000, "training": TrainingSpec(tokens=2_000_000, peak_lr=4e-3),
        "evaluation": EvaluationSpec(every_tokens=10_000), "init_seed": 0, "data_seed": 0,
        "device": "cpu", "precision": "fp32", "checkpoint_every_tokens": 100_000,
    }  # fmt: skip
    return GrowthDesign(**values | changes)  # type: ignore[arg-type]


def test_arms_get_equal_flops() -> None:
    """By hand: 8 layers cost 3,588,096 FLOPs a token, 2 layers 1,191,936; budget 2M x 3,588,096 = 7.176192e12."""
    flops = {role: total_flops(arm_spec(design(), role, "r")) for role in ("grown", "scratch", "base_only")}
    for value in flops.values():
        assert value == pytest.approx(7.176192e12, rel=3e-4)
    grown = arm_spec(design(), "grown", "r")
    assert grown.growth is not None
    assert grown.growth.growth_timing_tokens == 1172 * 1024
    assert grown.training.tokens == round((7.176192e12 - 1172 * 1024 * 1_191_936) / 3_588_096 / 1024) * 1024
    assert arm_spec(design(), "base_only", "r").model.num_layers == 2


def test_arms_of_a_width_growth_get_equal_flops_too() -> None:
    wider = design(growth=GrowthSpec(num_base_layers=8, growth_timing_tokens=1_200_000, width_factor=2))
    arms = {role: arm_spec(wider, role, "r") for role in ("grown", "scratch", "base_only")}
    for spec in arms.values():
        assert total_flops(spec) == pytest.approx(7.176192e12, rel=3e-4)
    base = arms["base_only"].model
    assert (base.num_layers, base.hidden_size, base.num_heads) == (8, 32, 1)
    assert (base.head_size, base.intermediate_size) == (32, 88)


def test_the_base_may_have_a_batch_of_its_own() -> None:
    training = TrainingSpec(tokens=2_000_000, peak_lr=4e-3, base_batch_sequences=3)
    grown = arm_spec(design(training=training), "grown", "r")
    assert grown.growth is not None
    assert grown.growth.growth_timing_tokens == 3125 * 3 * 128


def test_a_base_that_eats_the_budget_is_refused() -> None:
    # 7.176192e12 / 1,191,936 = 6.02M tokens is all that the base can see.
    with pytest.raises(InputError, match="grow before 6,01") as caught:
        arm_spec(design(growth=GrowthSpec(num_base_layers=2, growth_timing_tokens=6_100_000)), "grown", "r")
    assert caught.value.field == "growth_timing_tokens"
    with pytest.raises(InputError, match="one batch"):
        arm_spec(design(token_budget=100), "scratch", "r")


def test_specs_survive_their_file(tmp_path: Path) -> None:
    spec = arm_spec(design(), "grown", "r")
    write_json_atomically(tmp_path / "spec.json", to_dict(spec))
    assert from_dict(Spec, json.loads((tmp_path / "spec.json").read_text())) == spec
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"surprise": 1}, ["surprise", "not a field"]),
        ({"run_id": 7}, ["run_id", "str"]),
        ({"training": {"tokens": 2048, "peak_lr": -1.0}}, ["peak_lr", "-1.0", "above 0"]),
        ({"training": {"tokens": 2048, "peak_lr": float("nan")}}, ["peak_lr", "nan"]),
        ({"training": {"tokens": 12, "peak_lr": 1.0}}, ["training.tokens", "1024"]),
        ({"device": "tpu"}, ["device", "'cuda'"]),
        ({"version": 99}, ["version", "99"]),
    ],
)
def test_a_wrong_spec_names_the_field(change: dict[str, object], words: list[str]) -> None:
    values = to_dict(arm_spec(design(), "scratch", "r")) | change
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are checked below
        from_dict(Spec, values)
    for word in words:
        assert word in str(caught.value)


def line(seq: int) -> str:
    return json.dumps(to_dict(EventLine(seq=seq, time="t", event="e", message="m"))) + "\n"


def test_a_tail_takes_whole_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert read_new_lines(path, 0, EventLine).lines == []
    path.write_text(line(0) + line(1) + line(2)[:15])
    first = read_new_lines(path, 0, EventLine)
    assert [one.seq for one in first.lines] == [0, 1]
    assert read_new_lines(path, first.offset, EventLine).lines == []
    # The writer died, came back, cut its torn line and went on.
    path.write_text(line(0) + line(1) + line(2) + "no json\n" + line(3))
    second = read_new_lines(path, first.offset, EventLine)
    assert [one.seq for one in second.lines] == [2, 3]
    assert len(second.bad_lines) == 1
    assert second.offset == path.stat().st_size


def test_a_metric_line_with_a_wrong_type_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = MetricLine(
        seq=0,
        phase="base",
        tokens=1,
        compute_flops=1.0,
        metric="train_loss",
        dataset="d",
        value=1.0,
        unit="nats",
        time="t",
    )
    path.write_text(json.dumps(to_dict(good) | {"seq": "one"}) + "\n")
    tail = read_new_lines(path, 0, MetricLine)
    assert tail.lines == []
    assert "seq is 'one'" in tail.bad_lines[0]


@pytest.mark.parametrize(
    ("exit_code", "last_event", "said", "end"),
    [
        (0, "finished", "", "failed"),  # done without a result: a bug, not a success
        (75, "paused", "", "paused"),
        (None, "paused", "", "paused"),
        (None, "started", "", "died"),
        (-9, "resumed", "", "died"),
        (65, "failed", "the corpus is empty", "failed"),
        (71, "started", "", "failed"),
        (1, "started", "", "failed"),
    ],
)
def test_ends_without_a_result(tmp_path: Path, exit_code: int | None, last_event: str, said: str, end: str) -> None:
    outcome = outcome_of("growth", tmp_path, tmp_path, exit_code, last_event, said)
    assert outcome.end == end
    assert said in outcome.reason
    assert end == "paused" or outcome.reason


def test_ends_with_a_result(tmp_path: Path) -> None:
    result = Result(
        run_id="r", status="diverged", final_loss_nats=None, base_tokens=0, final_phase_tokens=10, compute_flops=1.0,
        base_flops_per_token=None, target_flops_per_token=1.0, duration_seconds=1.0, reason="loss is nan",
    )  # fmt: skip
    write_json_atomically(tmp_path / "result.json", to_dict(result))
    outcome = outcome_of("growth", tmp_path, tmp_path, 70, "diverged", "")
    assert outcome.end == "failed"
    assert "loss is nan" in outcome.reason
    assert outcome.result == result
