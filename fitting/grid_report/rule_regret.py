"""Which rule is right where: the loss of the cell a rule picks above the best cell that was measured.

    regret = L(pick) - min over cells of L          excess = L(pick) - L(scratch)

========  ===========================================================================  ======
symbol    meaning                                                                      unit
========  ===========================================================================  ======
cell      scratch, or a grown cell (g, d) of the target at the budget                  -
pick      the measured cell of the rule's factor nearest in ln d; scratch where the    -
          rule says so or cannot be followed at this budget
========  ===========================================================================  ======

A rule is offered the factors that were measured for the target. Rules hold no number of these runs but for staged training,
which watches the base's loss curve: it is given the scratch law of all single-size runs. ``excess`` has no minimum over
noisy cells in it and is what rules are compared by. Intervals resample trunk families with the picks held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fitting.conventions import TIE_NATS
from fitting.flops import Shape
from fitting.grid_report.arms import Arm, Grid, Target
from fitting.grid_report.gains import Verdict
from fitting.grid_report.spread import CALL_LEVEL, Interval, Resampler, interval_of
from fitting.growth_fit import fit_scratch_basis
from fitting.laws.base import Array
from fitting.layers import BaseOption
from fitting.layers import Target as Wanted
from fitting.rules import RULES, Plan
from fitting.scratch_rows import ScratchRows


@dataclass(frozen=True, kw_only=True)
class Case:
    """One target at one budget: its cells (scratch first) with their losses (cells,) and draws of them (K, cells)."""

    target: Target
    budget: int
    cells: tuple[Arm, ...]
    losses: Array
    draws: Array

    @property
    def run_ids(self) -> tuple[str, ...]:
        return tuple(run.run_id for arm in self.cells for run in arm.runs[self.budget])


@dataclass(frozen=True, kw_only=True)
class Pick:
    """What a rule takes in a case; ``asked`` is the timing it wanted, ``decision`` what it said."""

    case: Case
    cell: int
    decision: str
    asked_timing_tokens: float | None

    @property
    def regret_nats(self) -> float:
        return float(self.case.losses[self.cell] - self.case.losses.min())

    @property
    def excess_nats(self) -> float:
        return float(self.case.losses[self.cell] - self.case.losses[0])


@dataclass(frozen=True, kw_only=True)
class RuleScore:
    """Means over cases in nats, with intervals; ``num_best`` counts cases in which the pick was the best cell."""

    rule: str
    picks: tuple[Pick, ...]
    regret_nats: float
    regret_interval: Interval
    excess_nats: float
    excess_interval: Interval
    num_best: int
    num_infeasible: int


def cases(grid: Grid, resampler: Resampler) -> list[Case]:
    """Every target and budget with scratch and grown cells in the reference setting."""
    found = []
    for target in grid.targets:
        scratch = target.scratch
        if scratch is None:
            continue
        arms = [scratch, *target.of_kind("grown")]
        drawn = resampler.means(target, arms)
        for budget in range(len(target.budget_tokens)):
            places = [place for place, arm in enumerate(arms) if arm.num_seeds(budget)]
            if len(places) < 2 or places[0] != 0:
                continue
            found.append(
                Case(
                    target=target, budget=budget, cells=tuple(arms[place] for place in places),
                    losses=np.array([arms[place].loss(budget) for place in places]),
                    draws=np.stack([drawn[place][:, budget] for place in places], axis=1),
                )
            )  # fmt: skip
    return found


def rule_scores(grid: Grid, found: Sequence[Case]) -> list[RuleScore]:
    """Scores of every rule of :data:`fitting.rules.RULES` over the cases, lowest excess first."""
    loss = _base_loss(grid)
    scores = []
    for name, rule in RULES.items():
        picks = []
        for case in found:
            plan = Plan(
                target=_wanted(case.target), token_budget=case.target.budget_tokens[case.budget],
                bases=_bases(grid, case), base_loss=loss,
            )  # fmt: skip
            decision = rule.decide(plan)
            grows = decision.scored_as == "grow"
            picks.append(
                Pick(
                    case=case,
                    cell=pick_cell(case, decision.growth_factor, decision.growth_timing_tokens) if grows else 0,
                    decision=decision.decision,
                    asked_timing_tokens=decision.growth_timing_tokens,
                )
            )
        scores.append(score(name, picks))
    return sorted(scores, key=lambda one: one.excess_nats)


def score(name: str, picks: Sequence[Pick]) -> RuleScore:
    """Means and intervals over the cases of some picks."""
    regrets = np.mean([_drawn(pick, int(np.argmin(pick.case.losses))) for pick in picks], axis=0)
    excesses = np.mean([_drawn(pick, 0) for pick in picks], axis=0)
    return RuleScore(
        rule=name,
        picks=tuple(picks),
        regret_nats=float(np.mean([pick.regret_nats for pick in picks])),
        regret_interval=interval_of(regrets),
        excess_nats=float(np.mean([pick.excess_nats for pick in picks])),
        excess_interval=interval_of(excesses),
        num_best=sum(pick.regret_nats == 0 for pick in picks),
        num_infeasible=sum(pick.decision == "infeasible" for pick in picks),
    )


def pick_cell(case: Case, growth_factor: float | None, timing_tokens: float | None) -> int:
    """The measured cell nearest to (g, d): first in factor, then in ln d."""
    assert growth_factor is not None
    assert timing_tokens is not None
    grown = range(1, len(case.cells))
    return min(
        grown,
        key=lambda place: (
            round(abs(math.log(case.cells[place].growth_factor / growth_factor)), 6),
            abs(math.log(case.cells[place].timing_tokens / timing_tokens)),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean loss of one rule's picks minus another's over the same cases, in nats; the verdict is about the first."""

    rule: str
    other: str
    nats: float
    interval_nats: Interval
    verdict: Verdict


def difference(a: RuleScore, b: RuleScore, *, num_compared: int) -> Difference:
    """a against b; called one only where the 95% interval, widened for all comparisons, leaves out zero and it is no tie."""
    draws = np.mean(
        [one.case.draws[:, one.cell] - two.case.draws[:, two.cell] for one, two in zip(a.picks, b.picks, strict=True)],
        axis=0,
    )
    nats = a.excess_nats - b.excess_nats
    low, high = interval_of(draws, level=CALL_LEVEL, num_compared=num_compared)
    verdict: Verdict = "not told apart"
    if abs(nats) > TIE_NATS and not low <= 0 <= high:
        verdict = "lower" if nats < 0 else "higher"
    return Difference(rule=a.rule, other=b.rule, nats=nats, interval_nats=interval_of(draws), verdict=verdict)


def _drawn(pick: Pick, against: int) -> Array:
    return np.asarray(pick.case.draws[:, pick.cell] - pick.case.draws[:, against])


def _wanted(target: Target) -> Wanted:
    if target.shape is None:
        return Wanted(params=target.params)
    values = dict(target.shape)
    shape = Shape(num_layers=values.pop("num_target_layers"), **values)
    return Wanted(params=target.params, num_layers=shape.num_layers, shape=shape)


def _bases(grid: Grid, case: Case) -> tuple[BaseOption, ...]:
    """The bases that were measured in a case, by rising factor."""
    rows = grid.table[grid.table["run_id"].isin(case.run_ids) & (grid.table["growth_factor"] > 1)]
    found = {
        round(row["growth_factor"], 3): BaseOption(
            growth_factor=row["growth_factor"], params=row["base_params"],
            num_layers=None if math.isnan(row["num_base_layers"]) else int(row["num_base_layers"]),
            order="stack", connection_rate=None, flops_per_token=row["base_flops_per_token"],
        )
        for row in rows.to_dict("records")
    }  # fmt: skip
    return tuple(found[factor] for factor in sorted(found))


def _base_loss(grid: Grid) -> Callable[[float, float], float] | None:
    """(params, tokens) -> nats by the scratch law of the grid's single-size runs; None where they carry none."""
    single = grid.main[grid.main["growth_factor"] == 1]
    rows = ScratchRows(
        num_params=np.asarray(single["target_params"], dtype=float), tokens=np.asarray(single["grown_tokens"], dtype=float),
        loss_nats=np.asarray(single["final_loss"], dtype=float), clusters=np.asarray(single["run_id"].astype(str)),
    )  # fmt: skip
    try:
        curve = fit_scratch_basis(rows).curve
    except ValueError:
        return None
    law, params = curve.law, curve.params
    return lambda size, tokens: float(law.loss(params, np.array([size]), np.array([tokens]))[0])
