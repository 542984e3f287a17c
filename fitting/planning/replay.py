"""Planning replayed on runs that are all there: from a few known cells, which to reveal next, and what was decided then.

    pick of a case = argmin over its cells of mean_k L_k(cell)          regret = L(pick) - min over its cells of L

A case is one target at one budget with every cell that was measured for it; regret is scored on all of them, known or not,
and a tie is no regret. In a round a design spends FLOPs on cells that it does not know yet, the guideline is fitted anew to
what is known, and all cases are decided by it. What may have been spent doubles from round to round, up to all that the grid
cost beyond the start; what a round leaves over goes to the next.

========  ====================================================================================  ======
symbol    meaning                                                                               unit
========  ====================================================================================  ======
L         loss of a cell: measured, mean over its seeds; or a synthetic truth                   nats
L_k       what draw k of the fitted guideline says of it                                        nats
========  ====================================================================================  ======

Designs differ in which cells come next: ``planned`` asks :func:`fitting.planning.next_runs`, with nothing on offer but the
cells of the grid; ``random`` shuffles them; ``grid`` keeps the order of the table. All start from the same cells, and all buy
a grown cell's control with it where it is not known. Where ``planned`` is told that no run pays, it keeps its FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fitting.cohort_fit import ROWS_FOR_A_LAW
from fitting.conventions import TIE_NATS
from fitting.errors import InputError
from fitting.flops import Shape
from fitting.grid_report.arms import Arm, Grid
from fitting.grid_report.arms import Target as GridTarget
from fitting.guideline import Guideline
from fitting.layers import BaseOption, Target
from fitting.planning.choose import next_runs
from fitting.planning.decisions import Arm as DecisionArm
from fitting.planning.decisions import Decision
from fitting.planning.experiments import Experiment
from fitting.recommendation import Request
from fitting.refit import fit_guideline

Array = NDArray[np.float64]
Design = Literal["planned", "random", "grid"]
DESIGNS: tuple[Design, ...] = get_args(Design)
# A law needs so many single sizes, and a decision one grown cell to hear of growth at all.
NUM_SEED_SINGLES = ROWS_FOR_A_LAW


@dataclass(frozen=True, kw_only=True)
class RealCell:
    """A cell that was measured. ``control`` is the place of the target from scratch at its FLOPs, None for single sizes."""

    experiment: Experiment
    run_ids: tuple[str, ...]
    loss_nats: float
    cost_flops: float
    control: int | None


@dataclass(frozen=True, kw_only=True)
class ReplayGrid:
    """Cells in the order of the table; ``cases`` hold their places; ``table`` the rows behind them."""

    cohort: str
    table: pd.DataFrame
    cells: tuple[RealCell, ...]
    cases: tuple[tuple[int, ...], ...]

    def rows(self, known: frozenset[int]) -> pd.DataFrame:
        ids = {run_id for place in known for run_id in self.cells[place].run_ids}
        return self.table[self.table["run_id"].isin(ids)].reset_index(drop=True)


@dataclass(frozen=True, kw_only=True)
class Round:
    """How a design stood after a round: what it could have spent and spent since the start, and its mean regret."""

    number: int
    budget_flops: float
    spent_flops: float
    num_cells: int
    regret_nats: float


def replay_grid(grid: Grid) -> ReplayGrid:
    """The cells of a grid's reference settings, a case wherever scratch and a grown cell were measured.

    Raises:
        InputError: there is no such case, or too few single sizes to start from.
    """
    rows = {row["run_id"]: (place, row) for place, row in enumerate(grid.table.to_dict("records"))}
    found: dict[tuple[str, ...], RealCell] = {}
    keyed: list[list[tuple[str, ...]]] = []
    for target in grid.targets:
        scratch = target.scratch
        if scratch is None or target.shape is None:
            continue
        arms = [arm for kind in ("scratch", "fixed", "grown") for arm in target.of_kind(kind)]
        for budget in range(len(target.budget_tokens)):
            there = [arm for arm in arms if arm.num_seeds(budget)]
            if not scratch.num_seeds(budget) or not any(arm.kind == "grown" for arm in there):
                continue
            keyed.append([_ids(arm, budget) for arm in there])
            for arm in there:
                experiment = _experiment(target, arm, budget, [rows[one][1] for one in _ids(arm, budget)])
                found.setdefault(
                    _ids(arm, budget),
                    RealCell(
                        experiment=experiment, run_ids=_ids(arm, budget), loss_nats=arm.loss(budget),
                        cost_flops=sum(rows[one][1]["compute_flops"] for one in _ids(arm, budget)), control=None,
                    ),
                )  # fmt: skip
    order = sorted(found, key=lambda ids: min(rows[one][0] for one in ids))
    place_of = {ids: place for place, ids in enumerate(order)}
    cases = tuple(tuple(sorted(place_of[ids] for ids in case)) for case in keyed)
    cells = [found[ids] for ids in order]
    for case in cases:
        (control,) = [place for place in case if cells[place].experiment.kind == "scratch"]
        for place in case:
            if cells[place].experiment.base is not None:
                cells[place] = replace(cells[place], control=control)
    num_singles = sum(cell.experiment.base is None for cell in cells)
    if not cases or num_singles < NUM_SEED_SINGLES:
        raise InputError(
            "RUNS_DIR", f"holds {len(cases)} target(s) and budgets with scratch and grown runs, and {num_singles} single "
            f"sizes among them; a replay needs one, and {NUM_SEED_SINGLES}", "collect more of the grid",
        )  # fmt: skip
    ids = {run_id for cell in cells for run_id in cell.run_ids}
    return ReplayGrid(
        cohort=grid.cohort, table=grid.table[grid.table["run_id"].isin(ids)].reset_index(drop=True), cells=tuple(cells),
        cases=cases,
    )  # fmt: skip


def synthetic(grid: ReplayGrid, guideline: Guideline, seed: int) -> ReplayGrid:
    """The same cells with losses of one of the guideline's draws, which is then the truth; what is revealed has its noise."""
    rng = np.random.default_rng([seed, 1])
    losses = guideline.losses
    draw = int(rng.integers(losses.num_draws))
    grown_noise = max(losses.run_noise_nats, losses.delta_noise_nats / np.sqrt(2))
    table, cells = grid.table.copy(), []
    for cell in grid.cells:
        truth = float(cell.experiment.losses(losses)[draw])
        noise = losses.run_noise_nats if cell.experiment.base is None else grown_noise
        own = table["run_id"].isin(cell.run_ids)
        table.loc[own, "final_loss"] = truth + noise * rng.standard_normal(int(own.sum()))
        cells.append(replace(cell, loss_nats=truth))
    return replace(grid, table=table, cells=tuple(cells))


@dataclass(frozen=True, kw_only=True)
class Replayer:
    """Plays designs on a grid.

    Args:
        num_rounds: the last has all FLOPs beyond the start, each before it half of the next.
        num_draws: of each fit; the service's own have more.
    """

    grid: ReplayGrid
    num_rounds: int
    num_draws: int
    _fits: dict[frozenset[int], Guideline] = field(default_factory=dict, init=False, repr=False, compare=False)

    def start(self, seed: int) -> frozenset[int]:
        """The cells that are known at first: some single sizes at random."""
        singles = [place for place, cell in enumerate(self.grid.cells) if cell.experiment.base is None]
        picked = np.random.default_rng([seed, 0]).choice(singles, NUM_SEED_SINGLES, replace=False)
        return frozenset(int(place) for place in picked)

    def play(
        self, seed: int, *, designs: Sequence[Design] = DESIGNS, progress: Callable[[], None] = lambda: None
    ) -> dict[Design, tuple[Round, ...]]:
        """Every design from the same start; ``progress`` is told each time a guideline is asked for."""
        known = self.start(seed)

        def fitted(cells: frozenset[int]) -> Guideline:
            progress()
            if cells not in self._fits:
                rows = self.grid.rows(cells)
                self._fits[cells] = fit_guideline(
                    rows, self.grid.cohort, outer_scores=False, num_draws=self.num_draws
                )  # fmt: skip
            return self._fits[cells]

        return {design: self._rounds(design, known, seed, fitted) for design in designs}

    def _rounds(
        self, design: Design, known: frozenset[int], seed: int, fitted: Callable[[frozenset[int]], Guideline]
    ) -> tuple[Round, ...]:
        cells = self.grid.cells
        total = sum(cell.cost_flops for place, cell in enumerate(cells) if place not in known)
        order = self._order(design, known, seed)
        spent, now = 0.0, known
        rounds = [self._round(0, 0.0, spent, now, fitted(now))]
        for number in range(1, self.num_rounds + 1):
            budget = total / 2 ** (self.num_rounds - number)
            # The last round may spend what rounding left.
            left = budget * (1 + 1e-9) - spent
            by_plan = design == "planned"
            new = self._planned(fitted(now), now, left, seed) if by_plan else self._in_order(order, now, left)
            spent += sum(cells[place].cost_flops for place in new)
            now |= new
            rounds.append(self._round(number, budget, spent, now, fitted(now)))
        return tuple(rounds)

    def _round(self, number: int, budget: float, spent: float, known: frozenset[int], guideline: Guideline) -> Round:
        return Round(
            number=number, budget_flops=budget, spent_flops=spent, num_cells=len(known),
            regret_nats=float(np.mean([self._regret(case, known, guideline) for case in self.grid.cases])),
        )  # fmt: skip

    def _regret(self, case: tuple[int, ...], known: frozenset[int], guideline: Guideline) -> float:
        cells = self.grid.cells
        if guideline.laws:
            losses = guideline.losses
            expected = [float(cells[place].experiment.losses(losses).mean()) for place in case]
            pick = case[int(np.argmin(expected))]
        else:
            # Without laws an answer repeats what was observed; of nothing it is scratch.
            seen = [place for place in case if place in known]
            scratch = next(place for place in case if cells[place].experiment.kind == "scratch")
            pick = min(seen, key=lambda place: cells[place].loss_nats, default=scratch)
        excess = cells[pick].loss_nats - min(cells[place].loss_nats for place in case)
        return excess if excess > TIE_NATS else 0.0

    def _order(self, design: Design, known: frozenset[int], seed: int) -> list[int]:
        left = [place for place in range(len(self.grid.cells)) if place not in known]
        if design == "random":
            np.random.default_rng([seed, 2]).shuffle(left)
        return left

    def _in_order(self, order: Sequence[int], known: frozenset[int], left_flops: float) -> frozenset[int]:
        """Cells from the front of the order while they can be paid for."""
        cells = self.grid.cells
        new: set[int] = set()
        for place in order:
            if place in known or place in new:
                continue
            control = cells[place].control
            both = {place} | ({control} if control is not None else set())
            wanted = both - known - new
            cost = sum(cells[one].cost_flops for one in wanted)
            if cost > left_flops:
                break
            left_flops -= cost
            new |= wanted
        return frozenset(new)

    def _planned(self, guideline: Guideline, known: frozenset[int], left_flops: float, seed: int) -> frozenset[int]:
        cells = self.grid.cells
        offered = [place for place in range(len(cells)) if place not in known]
        if not guideline.laws or not offered:
            return self._in_order(offered, known, left_flops)
        by_key: Mapping[tuple[object, ...], int] = {cells[place].experiment.key: place for place in offered}
        # Timings of a base side by side, as bundles are made of them.
        ordered = sorted((cells[place].experiment for place in offered), key=_side_by_side)
        try:
            plan = next_runs(
                guideline, [self._decision(case, guideline) for case in self.grid.cases], targets=(), offered=ordered,
                flops_budget=left_flops, max_steps=len(ordered), seed=seed,
            )  # fmt: skip
        except InputError:
            # Nothing that is left can be paid for in this round.
            return frozenset()
        new: set[int] = set()
        cost = 0.0
        for step in plan.steps:
            wanted = {by_key[run.key] for run in step.runs if run.key in by_key}
            wanted |= {control for place in wanted if (control := cells[place].control) is not None}
            wanted -= known | new
            cost += sum(cells[place].cost_flops for place in wanted)
            if cost > left_flops:
                break
            new |= wanted
        return frozenset(new)

    def _decision(self, case: tuple[int, ...], guideline: Guideline) -> Decision:
        cells = [self.grid.cells[place].experiment for place in case]
        losses = guideline.losses
        target = cells[0].target
        return Decision(
            request=Request(target_shape=target.shape, token_budget=cells[0].token_budget),
            arms=tuple(
                DecisionArm(
                    kind="grow" if cell.base is not None else "smaller" if cell.kind == "fixed_size" else "scratch",
                    params=cell.params, base=cell.base, growth_timing_tokens=cell.growth_timing_tokens,
                    tokens=cell.tokens if cell.base is None else None,
                )
                for cell in cells
            ),
            losses=np.stack([cell.losses(losses) for cell in cells], axis=1),
            # Nothing is priced here: a round's FLOPs are there to be spent.
            worth_flops=np.ones(losses.num_draws),
            weight=1 / len(self.grid.cases),
        )  # fmt: skip


def _ids(arm: Arm, budget: int) -> tuple[str, ...]:
    return tuple(run.run_id for run in arm.runs[budget])


def _experiment(target: GridTarget, arm: Arm, budget: int, rows: Sequence[Mapping[str, object]]) -> Experiment:
    first = rows[0]

    def number(column: str) -> float:
        return float(np.mean([float(row[column]) for row in rows]))  # type: ignore[arg-type]

    assert target.shape is not None
    values = dict(target.shape)
    shape = Shape(num_layers=values.pop("num_target_layers"), **values)
    base = None
    if arm.kind == "grown":
        base = BaseOption(
            growth_factor=arm.growth_factor, params=number("base_params"), num_layers=int(number("num_base_layers")),
            order=str(first["order"]), connection_rate=None, flops_per_token=number("base_flops_per_token"),
        )  # fmt: skip
    return Experiment(
        kind="fixed_size" if arm.kind == "fixed" else arm.kind,
        target=Target(params=target.params, num_layers=shape.num_layers, shape=shape),
        token_budget=target.budget_tokens[budget],
        params=arm.params, num_layers=arm.num_layers, tokens=number("grown_tokens"), compute_flops=number("compute_flops"),
        base=base, growth_timing_tokens=arm.timing_tokens if base is not None else None,
    )  # fmt: skip


def _side_by_side(one: Experiment) -> tuple[float, float, float, float]:
    base = 0.0 if one.base is None else one.base.params
    return one.target.params, one.token_budget, base, one.growth_timing_tokens or one.params
