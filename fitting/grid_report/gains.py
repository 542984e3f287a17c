"""What growth gained: valleys in timing and factor, against scratch and against the best fixed size, and as compute saved.

    delta     = mean L_grown - mean L_scratch                                 at equal FLOPs
    speedup   = D_S(L_grown) / B - 1          saved tokens = D_S(L_grown) - B

========  ===========================================================================  ======
symbol    meaning                                                                      unit
========  ===========================================================================  ======
B         budget: scratch tokens at the same compute                                   tokens
D_S(L)    tokens at which scratch's final losses, joined by a power law between        tokens
          neighbouring budgets, reach L; beyond them the last piece goes on (flagged)
========  ===========================================================================  ======

The best of k cells looks better than it is, so a gain is called one only where an interval of 95%, widened for all k cells
(Bonferroni), leaves out zero and the gain is no tie. Intervals of differences rest on the seed spread of their
target and budget (:mod:`fitting.grid_report.spread`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fitting.conventions import TIE_NATS
from fitting.grid_report.arms import Arm, Target
from fitting.grid_report.spread import CALL_LEVEL, Interval, Spread, Spreads

Verdict = Literal["lower", "higher", "not told apart"]
# A nearly flat last piece would need more tokens than a float can hold.
_LARGEST_LOG_TOKENS = 100.0


@dataclass(frozen=True, kw_only=True)
class Point:
    """One grown cell of a valley; ``share`` is d over the scratch tokens of this budget."""

    growth_factor: float
    timing_tokens: float
    share: float
    delta_nats: float
    interval_nats: Interval
    loss_nats: float
    num_seeds: int
    sd_nats: float | None


@dataclass(frozen=True, kw_only=True)
class Valley:
    """All reference grown cells of a target at a budget; ``edge`` says whether the best timing of its factor is an end one."""

    target: Target
    budget: int
    scratch_loss_nats: float
    num_scratch_seeds: int
    points: tuple[Point, ...]
    run_ids: tuple[str, ...]

    @property
    def best(self) -> Point:
        return min(self.points, key=lambda point: point.delta_nats)

    @property
    def edge(self) -> Literal["earliest", "latest", "only"] | None:
        timings = sorted(point.timing_tokens for point in self.points if point.growth_factor == self.best.growth_factor)
        if len(timings) == 1:
            return "only"
        if self.best.timing_tokens == timings[-1]:
            return "latest"
        return "earliest" if self.best.timing_tokens == timings[0] else None


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The best grown cell of a valley against scratch and against the best fixed size up to the target.

    ``fixed_*`` are None where no smaller size was run at this compute.
    """

    valley: Valley
    against_scratch: Verdict
    fixed_layers: int | None
    fixed_params: float | None
    fixed_loss_nats: float | None
    delta_fixed_nats: float | None
    fixed_interval_nats: Interval | None
    against_fixed: Verdict | None
    speedup: float
    speedup_interval: Interval
    saved_tokens: float
    beyond_scratch_runs: bool
    run_ids: tuple[str, ...]


def valleys(target: Target, spreads: Spreads) -> list[Valley]:
    """One valley a budget that has scratch runs and grown ones in the reference setting."""
    scratch, found = target.scratch, []
    if scratch is None:
        return []
    for budget in range(len(target.budget_tokens)):
        grown = [arm for arm in target.of_kind("grown") if arm.num_seeds(budget)]
        if not grown or not scratch.num_seeds(budget):
            continue
        points = [
            _point(arm, scratch, budget, target.budget_tokens[budget], spreads.at(target, budget)) for arm in grown
        ]
        found.append(
            Valley(
                target=target, budget=budget, scratch_loss_nats=scratch.loss(budget),
                num_scratch_seeds=scratch.num_seeds(budget),
                points=tuple(sorted(points, key=lambda point: (point.growth_factor, point.timing_tokens))),
                run_ids=tuple(run.run_id for arm in [scratch, *grown] for run in arm.runs[budget]),
            )
        )  # fmt: skip
    return found


def _point(arm: Arm, scratch: Arm, budget: int, budget_tokens: float, spread: Spread) -> Point:
    delta = arm.loss(budget) - scratch.loss(budget)
    half = spread.half_width(arm.num_seeds(budget), scratch.num_seeds(budget))
    losses = [run.loss_nats for run in arm.runs[budget]]
    return Point(
        growth_factor=arm.growth_factor, timing_tokens=arm.timing_tokens, share=arm.timing_tokens / budget_tokens,
        delta_nats=delta, interval_nats=(delta - half, delta + half), loss_nats=arm.loss(budget), num_seeds=len(losses),
        sd_nats=float(np.std(losses, ddof=1)) if len(losses) > 1 else None,
    )  # fmt: skip


def gain(valley: Valley, spreads: Spreads) -> Gain:
    """The best cell of a valley, judged against both controls."""
    target, budget, best = valley.target, valley.budget, valley.best
    spread = spreads.at(target, budget)
    num_compared = len(valley.points)
    sizes = [arm for arm in target.of_kind("fixed") if arm.num_seeds(budget)]
    fixed = min(sizes, key=lambda arm: arm.loss(budget), default=None)
    fixed_loss = None if fixed is None else fixed.loss(budget)
    delta_fixed = None if fixed_loss is None else best.loss_nats - fixed_loss
    num_fixed = 0 if fixed is None else fixed.num_seeds(budget)
    half = spread.half_width(best.num_seeds, num_fixed) if fixed else 0.0
    tokens, beyond = scratch_tokens_at(target, best.loss_nats)
    ends = [scratch_tokens_at(target, valley.scratch_loss_nats + end)[0] for end in best.interval_nats]
    own = target.budget_tokens[budget]
    return Gain(
        valley=valley,
        against_scratch=verdict(best.delta_nats, spread, best.num_seeds, valley.num_scratch_seeds, num_compared),
        fixed_layers=None if fixed is None else fixed.num_layers,
        fixed_params=None if fixed is None else fixed.params,
        fixed_loss_nats=fixed_loss,
        delta_fixed_nats=delta_fixed,
        fixed_interval_nats=None if delta_fixed is None else (delta_fixed - half, delta_fixed + half),
        against_fixed=None
        if delta_fixed is None
        else verdict(delta_fixed, spread, best.num_seeds, num_fixed, num_compared * len(sizes)),
        speedup=tokens / own - 1,
        speedup_interval=(min(ends) / own - 1, max(ends) / own - 1),
        saved_tokens=tokens - own,
        beyond_scratch_runs=beyond,
        run_ids=(*valley.run_ids, *(() if fixed is None else (run.run_id for run in fixed.runs[budget]))),
    )


def verdict(delta_nats: float, spread: Spread, num_a: int, num_b: int, num_compared: int) -> Verdict:
    """Whether a difference is one, by the rule at the head of this module."""
    half = spread.half_width(num_a, num_b, level=CALL_LEVEL, num_compared=num_compared)
    if abs(delta_nats) <= max(half, TIE_NATS):
        return "not told apart"
    return "lower" if delta_nats < 0 else "higher"


def scratch_tokens_at(target: Target, loss_nats: float) -> tuple[float, bool]:
    """Tokens at which scratch reaches a loss, and whether that lies beyond its own runs; one budget alone gives nan."""
    scratch = target.scratch
    if scratch is None:
        return math.nan, True
    known = [(target.budget_tokens[budget], scratch.loss(budget)) for budget in sorted(scratch.runs)]
    if len(known) < 2:
        return math.nan, True
    log_tokens, log_loss = np.log([tokens for tokens, _ in known]), np.log([loss for _, loss in known])
    # Noise may make a later budget no better; such a piece has no slope to read tokens from.
    slopes = np.diff(log_loss) / np.diff(log_tokens)
    if not (slopes < 0).all():
        return math.nan, True
    goal = math.log(loss_nats)
    piece = int(np.clip(np.searchsorted(-log_loss, -goal) - 1, 0, len(slopes) - 1))
    tokens = math.exp(min(log_tokens[piece] + (goal - log_loss[piece]) / slopes[piece], _LARGEST_LOG_TOKENS))
    return tokens, not log_loss[-1] <= goal <= log_loss[0]
