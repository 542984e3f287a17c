"""A replay on a small folder of runs: their order, what stands in the files, and that the same runs give the same bytes."""

from __future__ import annotations

import csv
import json
import lzma
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from arrivals import COHORT, HELPS, Truth
from click.testing import CliRunner

from app.cli import cli
from app.report.refinement import CSV_FILE, FIGURE_FILE, VERSIONS_FILE, write_replay
from app.report.replay import replay, summary
from fitting.errors import InputError
from fitting.table import COLUMNS

RECIPE = {"vocab_size": 1024, "context_length": 128, "optimizer": "adamw"}
DELTAS = (-0.05, -0.02, 0.01)


def write_folder(folder: Path, rows: list[dict[str, Any]], ended: dict[str, str]) -> None:
    """A bundle whose runs ended at these times."""
    folder.mkdir()
    more = {"optimizer": "adamw", "engine_numerics_version": 1, "created_at": "2026-01-01T00:00:00+00:00"}
    frame = pd.DataFrame([row | more for row in rows]).reindex(columns=list(COLUMNS))
    frame.to_csv(folder / "headers.csv", index=False)
    points = "".join(
        f"{row['run_id']},{seq},single,1000,1e9,validation_loss,x,4.0,nats,{time}\n"
        for row in rows
        for seq, time in enumerate(("2026-01-01T00:00:00+00:00", ended[row["run_id"]]))
    )
    header = "run_id,seq,phase,tokens,compute_flops,metric,dataset,value,unit,time\n"
    (folder / "points.csv.xz").write_bytes(lzma.compress((header + points).encode()))
    (folder / "cohorts.json").write_text(json.dumps({"cohorts": {COHORT: RECIPE}}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One scratch run and three growths of chosen deltas; the rows stand in another order than the runs ended in."""
    truth = Truth(HELPS)
    scratch = truth.scratch(48, 5)
    grown = [
        truth.grown(48, 5, share) | {"final_loss": scratch["final_loss"] + delta}
        for share, delta in zip((0.1, 0.3, 0.6), DELTAS, strict=True)
    ]
    # The second growth ends first, before its control.
    order = [grown[1], scratch, grown[0], grown[2]]
    ended = {row["run_id"]: f"2026-01-0{day}T00:00:00+00:00" for day, row in enumerate(order, start=2)}
    path = tmp_path_factory.mktemp("replay") / "runs"
    write_folder(path, [scratch, *grown], ended)
    return path


def test_runs_arrive_in_the_order_in_which_they_ended(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    result = replay(folder, every=1, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (result.cohort, result.num_runs, result.num_grown, result.num_pairs) == (COHORT, 4, 3, 3)
    # The growth that ended before its control was listed by version 1, which saw nothing of its delta.
    assert [(step.num_runs, step.run_id) for step in result.steps] == [
        (2, "run_0003"),
        (3, "run_0002"),
        (4, "run_0004"),
    ]
    assert [step.version for step in result.steps] == [1, 2, 3]
    assert [step.delta_nats for step in result.steps] == pytest.approx([DELTAS[1], DELTAS[0], DELTAS[2]])
    assert [(one.num_runs, one.version, one.outcome) for one in result.versions] == [
        (1, 1, "first"), (2, 2, "newest"), (3, 3, "newest"), (4, 4, "newest"),
    ]  # fmt: skip
    # By hand: never growing loses the best delta there is; the versions are provisional and say nothing, so G_stack's rule is
    # followed, which cannot be paid for here.
    last = result.steps[-1]
    assert last.regret_nats["never"] == pytest.approx(0.05)
    assert last.regret_nats["active"] == last.regret_nats["gstack"] == pytest.approx(0.05)
    assert last.regret_nats["eighty_percent"] == pytest.approx(0.06)  # it takes the late one, that hurts
    assert last.regret_nats["constant_fraction"] == pytest.approx(0.0)  # 5% is nearest to the early one
    assert (last.wrong_signs["never"], last.wrong_signs["constant_fraction"]) == (2, 1)
    assert last.error_nats["never"] == last.error_nats["active"] == pytest.approx(0.08)
    assert result.num_silent == 3


def test_the_files_are_the_same_every_time(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli, ["runs", "replay", str(folder), "--out", str(tmp_path / "a"), "--every", "3"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert f"{COHORT}: the active guideline's cumulative regret is no lower than" in done.output
    result = replay(folder, every=3)
    for path in write_replay(result, tmp_path / "b"):
        assert (tmp_path / "a" / path.name).read_bytes() == path.read_bytes()
    assert {path.name for path in (tmp_path / "b").iterdir()} == {CSV_FILE, VERSIONS_FILE, FIGURE_FILE}
    rows = list(csv.DictReader((tmp_path / "b" / CSV_FILE).open()))
    (step,) = result.steps
    assert [(row["run_id"], float(row["regret_nats_never"])) for row in rows] == [
        (step.run_id, step.regret_nats["never"])
    ]
    assert (tmp_path / "b" / FIGURE_FILE).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="is not among these runs"):
        replay(folder, cohort="nowhere")


def test_a_folder_without_a_pair_says_that_nothing_can_be_told(tmp_path: Path) -> None:
    truth = Truth(HELPS)
    grown = truth.grown(48, 5, 0.1)
    write_folder(tmp_path / "runs", [grown], {grown["run_id"]: "2026-01-02T00:00:00+00:00"})
    result = replay(tmp_path / "runs")
    assert summary(result) == [
        f"{COHORT}: none of its 0 pairs was predicted before it was seen: nothing can be told yet."
    ]  # fmt: skip
    assert write_replay(result, tmp_path / "out")
    scratch = truth.scratch(48, 5)
    write_folder(tmp_path / "scratch", [scratch], {scratch["run_id"]: "2026-01-02T00:00:00+00:00"})
    with pytest.raises(InputError, match="holds no grown run"):
        replay(tmp_path / "scratch")
