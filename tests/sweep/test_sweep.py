"""A tiny grid from the command line to checked files: real service, real runs, one interruption, and tampering."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from sweeping import Swept, growthlaw

from app.ingest.bundle import read_bundle
from app.sweep.check import Verdict, check_runs, standing_cells
from app.sweep.collect import POINTS_A_METRIC, ServiceRuns, collect, thinned
from app.sweep.families import Design
from app.sweep.live import Lines
from app.sweep.runner import families_to_run, have_corpus
from app.sweep.runs_folder import Row, read_headers, read_points, write_headers, write_points
from fitting.errors import InputError


@pytest.fixture
def runs(swept: Swept, tmp_path: Path) -> Path:
    """A copy of the collected runs, to be spoiled."""
    return shutil.copytree(swept.runs_dir, tmp_path / "runs")


def spoil(runs: Path, name: str, **values: str) -> None:
    write_headers(runs, [row | (values if row["cell"] == name else {}) for row in read_headers(runs)])


def told(verdict: Verdict) -> str:
    return "\n".join(verdict.wrong)


def test_the_grid_is_complete_by_its_own_check(swept: Swept, grid_file: Path, design: Design) -> None:
    checked = growthlaw("check", grid_file, "--runs-dir", swept.runs_dir)
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout == "5 of 5 cells\n"
    assert check_runs(design, swept.runs_dir, step=2).num_cells == 2
    rows = {row["cell"]: row for row in read_headers(swept.runs_dir)}
    # Every cell was trained once: what was interrupted went on, under the same ids.
    assert len({row["run_id"] for row in rows.values()}) == 5
    assert rows["h32-l2-lr0.004-s0-b0.5"]["trunk_id"] == rows["h32-l2-lr0.004-s0-b1"]["run_id"]
    for budget in ("0.5", "1"):
        grown, scratch = rows[f"h32-l1to2-d6144-lr0.004-s0-b{budget}"], rows[f"h32-l2-lr0.004-s0-b{budget}"]
        assert grown["control_id"] == scratch["run_id"]
        assert float(grown["compute_flops"]) == pytest.approx(float(scratch["compute_flops"]), rel=0.02)
    # More tokens end lower, by far more than noise.
    assert (
        float(rows["h32-l2-lr0.004-s0-b1"]["final_loss"]) < float(rows["h32-l2-lr0.004-s0-b0.5"]["final_loss"]) - 0.05
    )
    for name in ("headers.csv", "cohorts.json"):
        assert str(swept.runs_dir.parent) not in (swept.runs_dir / name).read_text()


def test_the_collected_runs_are_a_bundle(swept: Swept) -> None:
    bundle = read_bundle(swept.runs_dir)
    assert {cohort: len(rows) for cohort, rows in bundle.runs.items()} == {"tiny": 5}
    assert bundle.recipes["tiny"]["schedule"] == "wsd"


def test_again_nothing_is_trained_and_no_byte_changes(
    swept: Swept, grid_file: Path, design: Design, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in swept.runs_dir.iterdir()}
    again = growthlaw("run", grid_file, "--data-dir", tmp_path / "new", "--runs-dir", swept.runs_dir)
    assert again.returncode == 0, again.stderr
    assert "0 families to run, 3 stand in" in again.stdout
    assert not (tmp_path / "new").exists()
    assert collect(ServiceRuns(swept.client), design, swept.runs_dir).num_new == 0
    assert {path.name: path.read_bytes() for path in swept.runs_dir.iterdir()} == before


def test_what_the_service_has_is_not_trained_again(swept: Swept, grid_file: Path, tmp_path: Path) -> None:
    """With nothing in the runs directory the families are asked for, and found to stand in the service."""
    num_jobs = len(swept.client.jobs(limit=1000)["data"])
    done = growthlaw("run", grid_file, "--url", swept.client.url, "--runs-dir", tmp_path, "--families", "h32-l2-*")
    assert done.returncode == 0, done.stderr
    assert "1 families to run, 0 stand in" in done.stdout
    assert done.stdout.count("(stood)") == 2
    assert len(swept.client.jobs(limit=1000)["data"]) == num_jobs == 5


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("compute_flops", "5.5e9", "compute_flops is 5.5e9, the design says"),
        ("grown_tokens", "19968", "truncated or another run"),
        ("init_seed", "1", "init_seed is 1, the design says 0"),
        ("data_seed", "", "data_seed is empty"),
        ("peak_lr", "0.002", "peak_lr is 0.002, the design says 0.004"),
        ("engine_numerics_version", "2", "engine_numerics_version is 2"),
        ("cohort", "other", "cohort is other, the design says tiny"),
        ("status", "stopped", "no final loss"),
        ("is_final", "false", "no final loss"),
        ("final_loss", "1.5", "final_loss is 1.5, its last validation loss"),
        ("run_id", "run_x", "has points but no header"),
        ("cell", "h32-l3", "is no cell of the grid"),
    ],
)
def test_a_tampered_header_is_caught(runs: Path, design: Design, column: str, value: str, words: str) -> None:
    spoil(runs, "h32-l2-lr0.004-s0-b1", **{column: value})
    verdict = check_runs(design, runs)
    assert words in told(verdict)
    assert not verdict.is_complete


def test_a_growth_and_a_control_that_are_others_are_caught(runs: Path, design: Design) -> None:
    grown = "h32-l1to2-d6144-lr0.004-s0-b0.5"
    spoil(runs, grown, growth_timing_tokens="6656", control_id="run_x", trunk_id="run_y", order="interpose")
    said = told(check_runs(design, runs))
    for words in ("growth_timing_tokens is 6656", "control_id is run_x", "trunk_id is run_y", "order is interpose"):
        assert f"{grown}: {words}" in said


def test_a_doubled_cell_and_a_missing_one_are_told(runs: Path, design: Design) -> None:
    rows = read_headers(runs)
    write_headers(runs, [*rows[1:], rows[1]])
    verdict = check_runs(design, runs)
    assert verdict.missing == (rows[0]["cell"],)
    assert f"cell {rows[1]['cell']} stands 2 times" in told(verdict)
    assert f"run {rows[1]['run_id']} stands 2 times" in told(verdict)


def test_points_that_end_early_are_caught(runs: Path, design: Design) -> None:
    trunk = next(row for row in read_headers(runs) if row["cell"] == "h32-l1-lr0.004-s0-b1")
    last = max(
        int(p["seq"]) for p in read_points(runs) if (p["run_id"], p["metric"]) == (trunk["run_id"], "validation_loss")
    )
    write_points(runs, [p for p in read_points(runs) if p["run_id"] != trunk["run_id"] or int(p["seq"]) < last])
    assert "its points end at token" in told(check_runs(design, runs))
    (runs / "points.csv.xz").write_bytes((runs / "points.csv.xz").read_bytes()[:-40])
    with pytest.raises(InputError, match=r"points\.csv\.xz cannot be read"):
        check_runs(design, runs)


def test_a_diverged_trunk_stands_with_its_legs(runs: Path, design: Design) -> None:
    spoil(
        runs, "h32-l1to2-d6144-lr0.004-s0-b1", status="diverged", is_final="false", final_loss="", compute_flops="1e9"
    )
    write_headers(runs, [row for row in read_headers(runs) if row["cell"] != "h32-l1to2-d6144-lr0.004-s0-b0.5"])
    standing = {row["run_id"] for row in read_headers(runs)}
    write_points(runs, [point for point in read_points(runs) if point["run_id"] in standing])
    verdict = check_runs(design, runs)
    assert verdict.is_complete
    assert verdict.num_diverged == 2
    # Nor is it trained again.
    assert families_to_run(design, standing_cells(design, read_headers(runs))) == ((), 3)


def test_collecting_another_result_of_a_cell_is_refused_by_name(swept: Swept, runs: Path, design: Design) -> None:
    spoil(runs, "h32-l2-lr0.004-s0-b1", final_loss="5.0")
    with pytest.raises(InputError, match=r"cell h32-l2-lr0.004-s0-b1 stands .* final_loss 5\.0 against"):
        collect(ServiceRuns(swept.client), design, runs)


def test_a_trunk_trained_again_keeps_its_standing_id(swept: Swept, runs: Path, design: Design) -> None:
    """The row of a chunk whose data directory was lost: the same numbers under another id."""
    trunk, leg = "h32-l2-lr0.004-s0-b1", "h32-l2-lr0.004-s0-b0.5"
    old = {row["cell"]: row["run_id"] for row in read_headers(runs)}[trunk]
    spoil(runs, trunk, run_id="run_before", trunk_id="run_before")
    write_points(runs, [p | {"run_id": p["run_id"].replace(old, "run_before")} for p in read_points(runs)])
    write_headers(runs, [row for row in read_headers(runs) if row["cell"] != leg])
    standing = {row["run_id"] for row in read_headers(runs)}
    write_points(runs, [p for p in read_points(runs) if p["run_id"] in standing])
    assert collect(ServiceRuns(swept.client), design, runs).num_new == 1
    rows = {row["cell"]: row for row in read_headers(runs)}
    assert rows[leg]["trunk_id"] == rows[leg]["parent_run_id"] == rows[trunk]["run_id"] == "run_before"
    assert check_runs(design, runs).is_complete, told(check_runs(design, runs))


def test_another_corpus_than_the_planned_one_is_refused(swept: Swept, design: Design) -> None:
    grid = replace(design.grid, corpus=replace(design.grid.corpus, train_tokens=700_000))
    with pytest.raises(InputError, match=r"corpus\.train_tokens is 700,000 in the grid"):
        have_corpus(swept.client, grid, Lines(Console(stderr=True)))


def test_what_is_asked_of_the_command_is_checked(grid_file: Path, design: Design) -> None:
    assert "write step numbers" in growthlaw("run", grid_file, "--steps", "one").stderr
    assert "does not exist" in growthlaw("plan", "nowhere.toml").stderr
    assert "no step of the grid" in growthlaw("check", grid_file, "--step", "9").stderr
    with pytest.raises(InputError, match="no step of the grid"):
        families_to_run(design, [], steps=(9,))
    with pytest.raises(InputError, match="matches no family"):
        families_to_run(design, [], pattern="h99-*")


def test_the_plan_as_a_table_and_as_json(grid_file: Path, tmp_path: Path) -> None:
    planned = growthlaw("plan", grid_file, "--out", tmp_path / "cells.csv")
    assert "3 families, 5 cells" in planned.stdout
    assert len((tmp_path / "cells.csv").read_text().splitlines()) == 6
    answer = json.loads(growthlaw("plan", grid_file, "--json").stdout)
    assert [cell["place"] for cell in answer["cells"]] == [1, 2, 3, 4, 5]
    assert answer["within_core_hours"] is True


def test_points_are_thinned_by_the_stated_rule() -> None:
    def point(seq: int, metric: str) -> Row:
        return {"run_id": "r", "seq": str(seq), "phase": "single", "metric": metric, "dataset": "d"}

    points = [point(seq, "validation_loss") for seq in range(300)] + [
        point(seq, "train_loss") for seq in range(300, 401)
    ]
    kept = thinned(points)
    losses = [int(p["seq"]) for p in kept if p["metric"] == "train_loss"]
    assert len(kept) - len(losses) == 300
    assert sorted(losses) == list(range(300, 401))[-1::-3][::-1]
    assert len(losses) <= POINTS_A_METRIC
    assert 400 in losses
