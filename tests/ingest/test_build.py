"""Runs of the canonical table against hand-worked cases."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from logged_model import BASE, CONFIG, F_BASE, LOGS, TARGET, F

from app.ingest.build import build_runs
from app.ingest.imported import ImportedRun, ImportFiles, ImportOptions
from app.ingest.logs.rows import ColumnMap, LogFile
from fitting.errors import InputError
from fitting.flops import non_embedding_params

LOSS = ColumnMap(column="loss", metric="train_loss", unit="nats")
VALIDATION = ColumnMap(column="val", metric="validation_loss", dataset="web", unit="nats")


def csv_file(rows: list[tuple[int, Any, Any]]) -> LogFile:
    text = "step,loss,val\n" + "".join(f"{step},{loss},{val}\n" for step, loss, val in rows)
    return LogFile(name="log.csv", content=text.encode())


def options(**changes: Any) -> ImportOptions:
    return ImportOptions(
        **{
            "cohort": "mine", "name": "run", "columns": (LOSS, VALIDATION), "tokens": "step * 1000", "config": CONFIG,
            "corpus": "web", "tokenizer": "bpe",
        } | changes
    )  # fmt: skip


def single(rows: list[tuple[int, Any, Any]], **changes: Any) -> ImportedRun:
    (run,) = build_runs(ImportFiles(single=(csv_file(rows),)), options(**changes))
    return run


ROWS = [(10, 5.0, ""), (20, 4.0, 4.1), (30, 3.5, ""), (40, 3.2, 3.3)]


def test_a_single_run_counts_flops_by_the_one_function() -> None:
    run = single(ROWS)
    header = run.header
    assert (header["status"], header["is_final"], header["final_loss"]) == ("finished", True, 3.3)
    assert header["target_params"] == non_embedding_params(TARGET)
    assert (header["growth_factor"], header["growth_timing_tokens"], header["grown_tokens"]) == (1.0, 0.0, 40_000.0)
    assert header["compute_flops"] == 40_000 * F
    assert [(p.phase, p.tokens, p.compute_flops) for p in run.points if p.metric == "validation_loss"] == [
        ("single", 20_000, 20_000 * F),
        ("single", 40_000, 40_000 * F),
    ]
    assert run.wasted_flops == 0
    assert run.recipe["vocab_size"] == 1000
    assert run.decision_dataset == "web"


def test_a_rollback_is_wasted_and_in_no_other_number() -> None:
    run = single([*ROWS[:3], (20, 4.2, 4.3), (30, 3.6, ""), (40, 3.25, 3.35)])
    # Back at 20 means the run went on from 10: steps 11 to 30 of the first branch were for nothing.
    assert run.wasted_flops == 20_000 * F
    assert run.header["compute_flops"] == 40_000 * F
    assert run.header["final_loss"] == 3.35
    assert [p.value for p in run.points if p.metric == "train_loss"] == [5.0, 4.2, 3.6, 3.25]
    assert "rolled back 1 times (20,000 tokens)" in run.warnings[0]


def test_an_evaluation_that_is_repeated_is_no_training() -> None:
    run = single([*ROWS, (40, "", 3.29)])
    assert run.wasted_flops == 0
    assert run.header["final_loss"] == 3.29


def grown(base: list[Any], after: list[Any], **changes: Any) -> ImportedRun:
    files = ImportFiles(base=(csv_file(base),), grown=(csv_file(after),))
    (run,) = build_runs(files, options(**({"base_layers": 2} | changes)))
    return run


def test_base_and_grown_join_into_one_growth() -> None:
    run = grown(ROWS, [(5, 3.4, ""), (50, 3.0, 3.05)])
    header = run.header
    assert (header["growth_factor"], header["num_base_layers"], header["num_target_layers"]) == (4.0, 2, 8)
    assert (header["growth_timing_tokens"], header["grown_tokens"]) == (40_000.0, 50_000.0)
    assert header["compute_flops"] == pytest.approx(40_000 * F_BASE + 50_000 * F, rel=1e-15)
    assert (header["base_flops_per_token"], header["target_flops_per_token"]) == (F_BASE, F)
    assert header["base_params"] == non_embedding_params(BASE)
    assert header["final_loss"] == 3.05
    phases = [(p.phase, p.tokens, p.compute_flops) for p in run.points if p.metric == "train_loss"]
    assert phases[3] == ("base", 40_000, 40_000 * F_BASE)
    assert phases[4] == ("grown", 5_000, 40_000 * F_BASE + 5_000 * F)


def test_a_grown_log_that_goes_on_counting_is_told_or_asked() -> None:
    after = [(41, 3.4, ""), (90, 3.0, 3.05)]
    with pytest.raises(InputError, match="grown_counts is needed: the grown log begins at 41,000 tokens"):
        grown(ROWS, after)
    run = grown(ROWS, after, grown_counts="run")
    assert (run.header["growth_timing_tokens"], run.header["grown_tokens"]) == (40_000.0, 50_000.0)
    assert run.points[-1].tokens == 50_000
    assert grown(ROWS, after, grown_counts="phase").header["grown_tokens"] == 90_000.0
    # Grown from a checkpoint before the base's end: what the base did later is another run's.
    early = grown(ROWS, [(1, 3.4, ""), (50, 3.0, 3.05)], growth_timing_tokens=20_000)
    assert early.header["compute_flops"] == pytest.approx(20_000 * F_BASE + 50_000 * F)
    assert max(p.tokens for p in early.points if p.phase == "base") == 20_000
    with pytest.raises(InputError, match="before the growth"):
        grown(ROWS, [(5, 3.4, ""), (30, 3.0, 3.05)], grown_counts="run")


def test_both_stages_waste_counts_with_their_own_flops() -> None:
    run = grown([*ROWS, (40, 3.3, 3.4)], [(10, 3.4, ""), (20, 3.3, ""), (10, 3.4, ""), (50, 3.0, 3.05)])
    # The base trained 31 to 40 twice; the grown stage went back to its start, and had reached 20.
    assert run.wasted_flops == pytest.approx(10_000 * F_BASE + 20_000 * F)
    again = grown([*ROWS, (30, 3.5, ""), (40, 3.3, 3.4)], [(50, 3.0, 3.05)], grown_counts="phase")
    assert again.wasted_flops == pytest.approx(20_000 * F_BASE)


def test_a_stage_that_counts_on_wastes_from_its_own_start() -> None:
    run = grown(ROWS, [(41, 3.4, ""), (50, 3.3, ""), (41, 3.4, ""), (90, 3.0, 3.05)], grown_counts="run")
    assert run.wasted_flops == pytest.approx(10_000 * F)


def test_endings_are_told_apart() -> None:
    diverged = single([*ROWS[:3], (40, "nan", "")])
    assert (diverged.header["status"], diverged.header["final_loss"]) == ("diverged", None)
    assert diverged.reason == "the loss was no number at step 40, where its log ends"
    state = json.loads((LOGS / "trainer_state.json").read_text()) | {"max_steps": 100}
    config = json.loads((LOGS / "config.json").read_text())
    file = LogFile(name="trainer_state.json", content=json.dumps(state).encode())
    wanted = options(columns=(), tokens=None, config=config, decision_dataset="web")
    (stopped,) = build_runs(ImportFiles(single=(file,)), wanted)
    assert (stopped.header["status"], stopped.header["is_final"]) == ("stopped", False)
    late = single([*ROWS[:2], (40, 3.2, "")])
    assert (late.header["final_loss"], late.header["is_final"]) == (4.1, False)
    assert "after 20,000 of 40,000 tokens, so it is a mid-schedule loss" in late.warnings[0]
    assert single(ROWS, status="stopped").header["status"] == "stopped"
    assert single(ROWS, is_final=False).header["is_final"] is False


def test_several_validation_sets_keep_their_names_and_one_decides() -> None:
    config = json.loads((LOGS / "config.json").read_text())
    files = ImportFiles(single=(LogFile(name="s", content=(LOGS / "trainer_state.json").read_bytes()),))
    wanted = {"columns": (), "tokens": None, "config": config}
    with pytest.raises(InputError, match="decision_dataset is needed: the log has validation_loss of code, web"):
        build_runs(files, options(**wanted))
    with pytest.raises(InputError, match="decision_dataset is 'books'"):
        build_runs(files, options(**wanted, decision_dataset="books"))
    (run,) = build_runs(files, options(**wanted, decision_dataset="code"))
    assert {p.dataset for p in run.points if p.metric == "validation_loss"} == {"code", "web"}
    last = [p.value for p in run.points if p.dataset == "code"][-1]
    assert run.header["final_loss"] == last
    assert run.header["peak_lr"] == pytest.approx(0.00916666)


def test_bits_per_byte_become_nats_with_stored_bytes_per_token_alone() -> None:
    files = ImportFiles(single=(LogFile(name="results.csv", content=(LOGS / "results.csv").read_bytes()),))
    wanted = {"columns": (), "tokens": None, "config": None, "name": "sweep"}
    with pytest.raises(InputError, match="bytes_per_token of 'validation' is None"):
        build_runs(files, options(**wanted))
    runs = build_runs(files, options(**wanted, bytes_per_token={"validation": 4.5}))
    assert [run.name for run in runs] == ["sweep-d8-1e18", "sweep-d10-1e18"]
    assert runs[0].header["final_loss"] == pytest.approx(0.981 * math.log(2) * 4.5)
    assert runs[0].points[0].unit == "bits per byte"
    assert runs[0].points[0].value == 0.981
    assert runs[0].provenance["bytes_per_token"] == {"validation": 4.5}
    assert runs[0].header["compute_flops"] == 6 * 25_165_824 * 1_572_864_000
    assert runs[0].header["target_flops_per_token"] is None
    assert "6 N D" in runs[0].warnings[0]


def test_the_content_hash_is_the_measurement_not_its_name() -> None:
    assert single(ROWS).content_hash == single(ROWS, name="other").content_hash
    assert single(ROWS).content_hash != single([*ROWS[:3], (40, 3.2, 3.31)]).content_hash
    assert single(ROWS).content_hash != single(ROWS, cohort="other").content_hash


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": None}, "config is missing"),
        ({"config": CONFIG | {"model_type": "gpt2"}}, "model_type 'gpt2'"),
        ({"config": CONFIG | {"hidden_size": None}}, "hidden_size 'None'"),
        ({"target_params": 1e6}, "given beside a parameter count"),
        ({"base_layers": 2}, "no base"),
        ({"stated": {"final_loss": 1.0}}, "no column that an import may state"),
        ({"stated": {"peak_lr": "high"}}, "give a finite number"),
        ({"columns": (VALIDATION, ColumnMap(column="loss", metric="validation_loss", dataset="web"))}, "two columns"),
        ({"columns": (ColumnMap(column="none", metric="train_loss"),)}, "names the column 'none'"),
        ({"columns": (LOSS,)}, "decision_metric is 'validation_loss', which the log does not have"),
        ({"columns": (ColumnMap(column="val", metric="validation_loss", unit="perplexity"),)}, "unit 'perplexity'"),
        ({"batch_ramp": ((1, 10),)}, "batch_ramp is given beside tokens"),
        ({"tokens": "step * 0"}, "are 0 at the log's end"),
    ],
)
def test_what_cannot_be_a_run_is_refused_by_field(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        single(ROWS, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_layers": None}, "base_config is missing"),
        ({"base_layers": 8}, "give the smaller base"),
        ({"base_config": CONFIG}, "base_layers goes with the target's config alone"),
    ],
)
def test_a_growth_needs_its_base(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        grown(ROWS, [(50, 3.0, 3.05)], grown_counts="phase", **changes)
    with pytest.raises(InputError, match="give --base and --grown alone"):
        build_runs(ImportFiles(base=(csv_file(ROWS),)), options())
