"""Planning replayed on a table of known losses: what is revealed and paid for, what is scored, stopping and going on."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from stored_cohort import BUDGETS, rows

from app.cli import cli
from app.report.planning import CSV_FILE, FIGURE_FILE, replay_planning, summary
from fitting.errors import InputError
from fitting.grid_report.arms import read_grid
from fitting.planning.replay import (
    DESIGNS,
    NUM_SEED_SINGLES,
    Design,
    Replayer,
    ReplayGrid,
    Round,
    replay_grid,
    synthetic,
)
from fitting.planning.replay_scores import curve, difference
from fitting.refit import fit_guideline
from fitting.table import COLUMNS

NUM_ROUNDS, NUM_DRAWS = 2, 24
NUM_SINGLES, NUM_GROWN = 12, 3


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Four depths and a growth at each of three budgets; a growth ends 0.05 nats below its control."""
    kept = {f"{budget:g}" for budget in BUDGETS[1:4]}
    return pd.DataFrame(
        [{name: getattr(row, name) for name in COLUMNS} for row in rows() if row.run_id.rsplit("_", 1)[1] in kept]
    )


@pytest.fixture(scope="module")
def grid(table: pd.DataFrame) -> ReplayGrid:
    return replay_grid(read_grid(table))


@pytest.fixture(scope="module")
def runs_dir(table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    table.to_csv(folder / "headers.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def played(grid: ReplayGrid) -> dict[Design, tuple[Round, ...]]:
    return Replayer(grid=grid, num_rounds=NUM_ROUNDS, num_draws=NUM_DRAWS).play(0)


def test_the_cells_are_the_runs_of_the_table(grid: ReplayGrid, table: pd.DataFrame) -> None:
    assert (len(grid.cells), len(grid.cases)) == (NUM_SINGLES + NUM_GROWN, 3)
    by_id = table.set_index("run_id")
    for cell in grid.cells:
        (run_id,) = cell.run_ids
        row = by_id.loc[run_id]
        assert (cell.loss_nats, cell.cost_flops) == (row["final_loss"], row["compute_flops"])
        assert cell.experiment.tokens == row["grown_tokens"]
        assert (cell.control is not None) == (row["growth_factor"] > 1)
        if cell.control is not None:
            assert grid.cells[cell.control].run_ids == (row["control_id"],)
            assert cell.experiment.growth_timing_tokens == row["growth_timing_tokens"]
    assert sorted(place for case in grid.cases for place in case) == list(range(len(grid.cells)))


def test_every_design_starts_alike_and_pays_for_what_it_reveals(
    grid: ReplayGrid, played: dict[Design, tuple[Round, ...]]
) -> None:
    player = Replayer(grid=grid, num_rounds=NUM_ROUNDS, num_draws=NUM_DRAWS)
    start = player.start(0)
    assert len(start) == NUM_SEED_SINGLES
    assert all(grid.cells[place].experiment.base is None for place in start)
    total = sum(cell.cost_flops for place, cell in enumerate(grid.cells) if place not in start)
    assert len({rounds[0] for rounds in played.values()}) == 1
    for rounds in played.values():
        assert [one.budget_flops for one in rounds] == [0, total / 2, total]
        for before, after in itertools.pairwise(rounds):
            assert before.num_cells <= after.num_cells
            assert before.spent_flops <= after.spent_flops <= after.budget_flops * (1 + 1e-9)
            assert after.regret_nats >= 0
    # These two spend it all, know every cell, and therefore decide alike.
    for design in ("random", "grid"):
        assert played[design][-1].num_cells == len(grid.cells)
    assert played["random"][-1].regret_nats == played["grid"][-1].regret_nats


def test_a_grown_cell_comes_with_its_control(grid: ReplayGrid) -> None:
    player = Replayer(grid=grid, num_rounds=NUM_ROUNDS, num_draws=NUM_DRAWS)
    grown = next(place for place, cell in enumerate(grid.cells) if cell.control is not None)
    control = grid.cells[grown].control
    assert control is not None
    both = grid.cells[grown].cost_flops + grid.cells[control].cost_flops
    assert player._in_order([grown], frozenset(), both) == {grown, control}
    assert player._in_order([grown], frozenset(), both * 0.99) == frozenset()
    assert player._in_order([grown], frozenset({control}), both * 0.6) == {grown}


def test_planning_reveals_cells_of_the_grid_within_what_is_left(grid: ReplayGrid) -> None:
    player = Replayer(grid=grid, num_rounds=NUM_ROUNDS, num_draws=NUM_DRAWS)
    known = player.start(0)
    guideline = fit_guideline(grid.rows(known), outer_scores=False, num_draws=NUM_DRAWS)
    dearest = max(cell.cost_flops for cell in grid.cells)
    new = player._planned(guideline, known, 3 * dearest, 0)
    assert new
    assert not new & known
    assert sum(grid.cells[place].cost_flops for place in new) <= 3 * dearest
    for place in new:
        assert grid.cells[place].control in {None, *known, *new}
    # Nothing costs so little.
    assert player._planned(guideline, known, 1.0, 0) == frozenset()


def test_regret_is_scored_on_cells_that_are_not_known_too(grid: ReplayGrid) -> None:
    """Without laws the lowest cell that was seen is taken, else scratch."""
    player = Replayer(grid=grid, num_rounds=NUM_ROUNDS, num_draws=NUM_DRAWS)
    few = fit_guideline(grid.rows(frozenset(grid.cases[0][:2])), outer_scores=False)
    assert not few.laws
    case = grid.cases[0]
    losses = {place: grid.cells[place].loss_nats for place in case}
    best, worst = min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)
    assert player._regret(case, frozenset({best}), few) == 0
    assert player._regret(case, frozenset({worst}), few) == pytest.approx(losses[worst] - losses[best])
    scratch = next(place for place in case if grid.cells[place].experiment.kind == "scratch")
    assert player._regret(case, frozenset(), few) == pytest.approx(losses[scratch] - losses[best])


def test_a_synthetic_grid_reveals_with_noise_and_scores_without(grid: ReplayGrid) -> None:
    guideline = fit_guideline(grid.table, outer_scores=False, num_draws=NUM_DRAWS)
    made, again = synthetic(grid, guideline, 1), synthetic(grid, guideline, 1)
    assert [cell.loss_nats for cell in made.cells] == [cell.loss_nats for cell in again.cells]
    revealed = made.table.set_index("run_id")["final_loss"]
    gaps = [revealed[cell.run_ids[0]] - cell.loss_nats for cell in made.cells]
    noise = max(guideline.losses.run_noise_nats, guideline.losses.delta_noise_nats)
    assert all(0 < abs(gap) < 5 * noise for gap in gaps)
    assert [cell.loss_nats for cell in synthetic(grid, guideline, 2).cells] != [cell.loss_nats for cell in made.cells]


def test_intervals_and_verdicts_against_hand_worked_ones() -> None:
    def rounds(*regrets: float) -> tuple[Round, ...]:
        return tuple(
            Round(number=n, budget_flops=n, spent_flops=n / 2, num_cells=n, regret_nats=regret)
            for n, regret in enumerate(regrets)
        )

    low = [rounds(0.1, 0.01), rounds(0.3, 0.03)]
    high = [rounds(0.1, 0.11), rounds(0.3, 0.14)]
    one = curve("planned", low)
    assert one.regret_nats == pytest.approx((0.2, 0.02))
    assert one.spent_flops == (0, 0.5)
    # Student's t with one degree of freedom at 90%: 3.0777; standard error of 0.01 and 0.03: 0.01.
    assert one.regret_interval[1] == pytest.approx((0.02 - 0.030777, 0.02 + 0.030777), abs=1e-5)
    gap = difference("planned", low, "random", high)
    assert gap.nats == pytest.approx(-0.105)
    # At 95% the t is 12.706, of a standard error of 0.005: the interval just leaves out zero.
    assert gap.verdict == "lower"
    assert difference("planned", high, "random", low).verdict == "higher"
    assert difference("planned", low, "random", low).verdict == "not told apart"


def test_a_replay_is_written_and_goes_on_where_it_stopped(runs_dir: Path, tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []

    def replayed(measured: int) -> str:
        asked.clear()
        result = replay_planning(
            runs_dir, tmp_path, num_orders={"measured": measured, "synthetic": 1}, num_rounds=NUM_ROUNDS, num_draws=NUM_DRAWS,
            progress=lambda done, total: asked.append((done, total)),
        )  # fmt: skip
        assert asked[-1][0] == asked[-1][1]
        assert {truth: len(orders) for truth, orders in result.orders.items()} == {"measured": measured, "synthetic": 1}
        said = "\n".join(summary(result))
        assert re.search(r"^Measured: 15 cells of cohort known, 3 decisions, measured losses; ", said, re.MULTILINE)
        assert re.search(r"^Synthetic: ", said, re.MULTILINE)
        return (tmp_path / CSV_FILE).read_text()

    whole = replayed(2)
    assert len(whole.splitlines()) == 1 + 3 * len(DESIGNS) * (NUM_ROUNDS + 1)
    assert (tmp_path / FIGURE_FILE).read_bytes().startswith(b"\x89PNG")
    # The last line of an order is lost: that order alone is played again, and comes out the same.
    lines = whole.splitlines(keepends=True)
    (tmp_path / CSV_FILE).write_text("".join(lines[:-1]))
    assert replayed(2) == whole
    a_refit = asked[0][1] // 3
    assert asked[0][0] == 2 * a_refit
    assert replayed(2) == whole
    assert asked[0][0] == asked[0][1]


def test_too_few_runs_are_refused_with_the_reason(table: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 single sizes among them; a replay needs"):
        replay_grid(read_grid(table[table["num_target_layers"] == 8]))
    with pytest.raises(InputError, match=r"holds 0 target\(s\) and budgets"):
        replay_grid(read_grid(table[table["growth_factor"] == 1]))
    done = CliRunner().invoke(cli, ["plan", "replay", str(tmp_path), "--out", str(tmp_path)])
    assert done.exit_code != 0
    assert "has no headers.csv" in f"{done.output} {done.exception}"
