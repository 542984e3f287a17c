"""Planning replayed and written: `planning.csv`, a row a round, and `planning.png`, mean regret against FLOPs spent.

The file of rows is also what has been done: an order that stands there for the same runs and settings is not played again, so
a replay that was stopped goes on. Synthetic orders have the same cells with losses drawn from the laws fitted to all of them,
each order from another draw; they stand apart from the measured ones everywhere.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from app.report.figures import png
from app.report.writing import write_file
from app.sweep.runs_folder import as_text, csv_text
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
from fitting.planning.replay_scores import Curve, Difference, curve, difference
from fitting.refit import fit_guideline

CSV_FILE, FIGURE_FILE = "planning.csv", "planning.png"
Truth = Literal["measured", "synthetic"]
COLUMNS = ("runs", "truth", "order", "design", *(column.name for column in fields(Round)))
TITLES: dict[Design, str] = {"planned": "plan next", "random": "random choice", "grid": "the grid's own order"}
_COLOURS: dict[Design, str] = {"planned": "#1f4e9c", "random": "#d98c1f", "grid": "#7f8c8d"}

Orders = dict[Truth, dict[int, dict[Design, tuple[Round, ...]]]]


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """``orders`` of each truth; ``grid`` is what they were played on."""

    grid: ReplayGrid
    orders: Orders

    def rounds(self, truth: Truth, design: Design) -> list[tuple[Round, ...]]:
        return [designs[design] for _, designs in sorted(self.orders[truth].items())]

    def curves(self, truth: Truth) -> list[Curve]:
        return [curve(design, self.rounds(truth, design)) for design in DESIGNS] if self.orders[truth] else []

    def differences(self, truth: Truth) -> list[Difference]:
        if not self.orders[truth]:
            return []
        planned = self.rounds(truth, "planned")
        return [difference("planned", planned, other, self.rounds(truth, other)) for other in DESIGNS[1:]]


def replay_planning(
    runs_dir: Path, out: Path, *, num_orders: dict[Truth, int], num_rounds: int, num_draws: int, again: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Replayed:  # fmt: skip
    """Play the orders that do not stand in ``out`` yet; each is written when it has been played.

    Args:
        runs_dir: a folder with ``headers.csv``.
        num_draws: of each fit.
        again: leave what stands in ``out`` out of account.
        progress: told (guidelines asked for, all), those that stand counted in.

    Raises:
        InputError: the folder holds no runs, or too few for a replay.
    """
    grid = replay_grid(read_grid(runs_dir))
    mark = _mark(grid, num_rounds, num_draws)
    standing: Orders = {"measured": {}, "synthetic": {}} if again else _standing(out / CSV_FILE, mark, num_rounds)
    orders: Orders = {
        truth: {number: one for number, one in standing[truth].items() if number < num}
        for truth, num in num_orders.items()
    }
    asked_an_order = len(DESIGNS) * (2 * num_rounds + 1)
    total = sum(num_orders.values()) * asked_an_order
    done = sum(map(len, orders.values())) * asked_an_order
    progress(done, total)
    out.mkdir(parents=True, exist_ok=True)
    measured = Replayer(grid=grid, num_rounds=num_rounds, num_draws=num_draws)
    for truth, number, player in _missing(measured, orders, num_orders):
        before = done

        def asked() -> None:
            nonlocal done
            done += 1
            progress(min(done, total), total)

        orders[truth][number] = player.play(number, progress=asked)
        done = before + asked_an_order
        progress(done, total)
        write_file(out / CSV_FILE, _csv(orders, mark).encode())
    result = Replayed(grid=grid, orders=orders)
    write_file(out / CSV_FILE, _csv(orders, mark).encode())
    write_file(out / FIGURE_FILE, png(lambda figure: draw(figure, result), 12.0, 5.0))
    return result


def _missing(measured: Replayer, orders: Orders, num_orders: dict[Truth, int]) -> Iterator[tuple[Truth, int, Replayer]]:
    """The orders to play, each with its player."""
    grid = measured.grid
    for number in range(num_orders["measured"]):
        if number not in orders["measured"]:
            yield "measured", number, measured
    left = [number for number in range(num_orders["synthetic"]) if number not in orders["synthetic"]]
    if not left:
        return
    # All draws of the service's own fit: each is a world that the runs do not exclude.
    guideline = fit_guideline(grid.table, grid.cohort, outer_scores=False)
    for number in left:
        yield (
            "synthetic",
            number,
            Replayer(
                grid=synthetic(grid, guideline, number), num_rounds=measured.num_rounds, num_draws=measured.num_draws
            ),
        )


def _mark(grid: ReplayGrid, num_rounds: int, num_draws: int) -> str:
    """A short name of the runs and settings that an order was played with."""
    said = [[cell.run_ids, cell.loss_nats, cell.cost_flops] for cell in grid.cells]
    return hashlib.sha256(json.dumps([said, num_rounds, num_draws]).encode()).hexdigest()[:12]


def _standing(path: Path, mark: str, num_rounds: int) -> Orders:
    found: Orders = {"measured": {}, "synthetic": {}}
    if not path.is_file():
        return found
    rows: dict[tuple[Any, int, Any], list[Round]] = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["runs"] != mark:
                continue
            one = Round(
                number=int(row["number"]), budget_flops=float(row["budget_flops"]), spent_flops=float(row["spent_flops"]),
                num_cells=int(row["num_cells"]), regret_nats=float(row["regret_nats"]),
            )  # fmt: skip
            rows.setdefault((row["truth"], int(row["order"]), row["design"]), []).append(one)
    for (truth, number, design), rounds in rows.items():
        found[truth].setdefault(number, {})[design] = tuple(rounds)
    for orders in found.values():
        for number in [n for n, one in orders.items() if any(len(one.get(d, ())) != num_rounds + 1 for d in DESIGNS)]:
            del orders[number]
    return found


def _csv(orders: Orders, mark: str) -> str:
    rows = []
    for truth, numbers in orders.items():
        for number, designs in sorted(numbers.items()):
            for design, rounds in designs.items():
                for one in rounds:
                    values = {name: as_text(value) for name, value in asdict(one).items()}
                    rows.append({"runs": mark, "truth": truth, "order": str(number), "design": design} | values)
    return csv_text(COLUMNS, rows)


def summary(result: Replayed) -> list[str]:
    """What a replay came to, in sentences, each truth by itself."""
    said = []
    cells = result.grid.cells
    for truth in ("measured", "synthetic"):
        curves = {one.design: one for one in result.curves(truth)}
        if not curves:
            continue
        planned = curves["planned"]
        start = planned.regret_nats[0]
        losses = (
            "measured losses" if truth == "measured" else "losses drawn from the laws, each order from another draw"
        )
        said.append(
            f"{truth.capitalize()}: {len(cells)} cells of cohort {result.grid.cohort}, {len(result.grid.cases)} decisions, "
            f"{losses}; {planned.num_orders} orders, each from {NUM_SEED_SINGLES} single sizes, where the mean regret is "
            f"{start:.4f} nats."
        )
        for one in result.differences(truth):
            low, high = one.interval
            said.append(
                f"Regret of `plan next` less that of {TITLES[one.other]}, mean over the rounds: {one.nats:+.4f} nats (80% "
                f"interval {low:+.4f} to {high:+.4f}): {one.verdict}."
            )
        share = planned.spent_flops[-1] / planned.budget_flops[-1]
        said.append(
            f"Allowed all {planned.budget_flops[-1]:.3g} FLOPs, `plan next` spent {share:.0%} of them before it said that no "
            f"run pays, and stood at {planned.regret_nats[-1]:.4f} nats; with every cell known it is "
            f"{curves['grid'].regret_nats[-1]:.4f}."
        )
    return said


def draw(figure: Any, result: Replayed) -> None:
    """Mean regret over the FLOPs that might have been spent, a panel a truth; bands are 80% intervals of the mean."""
    truths: list[Truth] = [truth for truth in ("measured", "synthetic") if result.orders[truth]]
    axes = figure.subplots(1, len(truths), squeeze=False)[0]
    for axis, truth in zip(axes, truths, strict=True):
        for one in result.curves(truth):
            # The start has no place on a logarithmic axis: half a round before the first.
            flops = (one.budget_flops[1] / 2, *one.budget_flops[1:])
            low, high = zip(*one.regret_interval, strict=True)
            axis.fill_between(flops, low, high, color=_COLOURS[one.design], alpha=0.18, linewidth=0)
            axis.plot(flops, one.regret_nats, marker="o", color=_COLOURS[one.design], label=TITLES[one.design])
        axis.set_xscale("log")
        axis.set_xticks(flops, ["start", *(f"{value:.2g}" for value in flops[1:])])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.set_xlabel("FLOPs that might be spent beyond the start")
        axis.set_ylabel("regret of the decisions (nats, mean)")
        num = len(result.orders[truth])
        axis.set_title(f"{truth} losses, {num} orders", fontsize=11)
    axes[0].legend(fontsize=9)
    figure.suptitle(
        f"Cohort {result.grid.cohort}: {len(result.grid.cells)} cells, {len(result.grid.cases)} decisions; bands: 80% "
        "intervals of the mean over orders",
        fontsize=10,
    )
