"""Seed spread of a grid, and resampling of its arms by trunk family.

    s^2 = sum over cells of (L_i - mean L)^2 / sum over cells of (n - 1)          of one target and budget, or of all
    L*_ab = mean L_ab + mean over n of e_tb,      t drawn with replacement from all trunk families

========  ===========================================================================  ======
symbol    meaning                                                                      unit
========  ===========================================================================  ======
s         standard deviation of one run's final loss over seeds, pooled                nats
nu        its degrees of freedom: one arm counts n - 1 however many legs it has        -
e_tb      deviation of trunk family t from its arm at budget b, times sqrt(n/(n-1))    nats
L*_ab     resampled mean of arm a (n seeds) at budget b                                nats
========  ===========================================================================  ======

Seeds differ more where a budget ends near a step of learning (:mod:`fitting.grid_report.copying`), so differences rest on the
spread of their own target and budget where that has :data:`FEWEST_OWN_DEGREES` degrees of freedom or more, else on all.
Decay legs of one trunk share its noise, so a draw takes a whole family's deviations, budget by budget: a cluster bootstrap
in which arms of one seed have noise as well. The interval of s is chi-squared with nu as above, which is cautious.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2
from scipy.stats import t as student

from fitting.cells import DEFAULT_NOISE_DEGREES_OF_FREEDOM, DEFAULT_SEED_SD_NATS
from fitting.conventions import INTERVAL_LEVEL
from fitting.grid_report.arms import Arm, Grid, Target
from fitting.laws.base import Array

Interval = tuple[float, float]

# An effect is called one only where an interval of this level, widened for all that are compared, leaves out zero.
CALL_LEVEL = 0.95
NUM_RESAMPLES = 2000
FEWEST_OWN_DEGREES = 6
# With fewer families of its own a target borrows the deviations of all targets.
_OWN_FAMILIES = 8


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Pooled seed noise of some arms; ``measured`` is false where no design was repeated and the house's value stands."""

    sd_nats: float
    interval_nats: Interval | None
    degrees_of_freedom: float
    num_arms: int
    num_runs: int
    measured: bool

    def half_width(self, num_a: int, num_b: int, *, level: float = INTERVAL_LEVEL, num_compared: int = 1) -> float:
        """Half the interval (nats) of a difference of two means; Bonferroni over ``num_compared`` differences."""
        quantile = float(student.ppf(1 - (1 - level) / (2 * num_compared), self.degrees_of_freedom))
        return quantile * self.sd_nats * math.sqrt(1 / num_a + 1 / num_b)


@dataclass(frozen=True, kw_only=True)
class Spreads:
    """The seed noise of a grid: of all repeats, and by (target's parameters, budget) where there are enough of its own."""

    pooled: Spread
    own: Mapping[tuple[float, int], Spread]

    def at(self, target: Target, budget: int) -> Spread:
        return self.own.get((target.params, budget), self.pooled)


def spreads(targets: Sequence[Target]) -> Spreads:
    """The seed noise of targets, all kinds of arms and settings together."""
    own = {
        (target.params, budget): pooled_spread(target.arms, budget=budget)
        for target in targets
        for budget in range(len(target.budget_tokens))
    }
    return Spreads(
        pooled=pooled_spread(arm for target in targets for arm in target.arms),
        own={at: one for at, one in own.items() if one.measured and one.degrees_of_freedom >= FEWEST_OWN_DEGREES},
    )


def pooled_spread(arms: Iterable[Arm], *, budget: int | None = None) -> Spread:
    """The seed noise of arms with two or more seeds, at one budget or at all of them."""
    squares, cells, freedom, num_arms, num_runs = 0.0, 0, 0, 0, 0
    for arm in arms:
        cells_of_arm = [runs for place, runs in arm.runs.items() if budget in (None, place)]
        most = max(map(len, cells_of_arm), default=0)
        if most < 2:
            continue
        num_arms, freedom = num_arms + 1, freedom + most - 1
        for runs in cells_of_arm:
            losses = np.array([run.loss_nats for run in runs])
            if len(losses) > 1:
                squares += float(np.sum((losses - losses.mean()) ** 2))
                cells += len(losses) - 1
                num_runs += len(losses)
    if not freedom:
        return Spread(
            sd_nats=DEFAULT_SEED_SD_NATS, interval_nats=None, degrees_of_freedom=DEFAULT_NOISE_DEGREES_OF_FREEDOM,
            num_arms=0, num_runs=0, measured=False,
        )  # fmt: skip
    sd = math.sqrt(squares / cells)
    tail = 0.5 * (1 - INTERVAL_LEVEL)
    low, high = (sd * math.sqrt(freedom / chi2.ppf(share, freedom)) for share in (1 - tail, tail))
    return Spread(
        sd_nats=sd, interval_nats=(float(low), float(high)), degrees_of_freedom=float(freedom),
        num_arms=num_arms, num_runs=num_runs, measured=True,
    )  # fmt: skip


class Resampler:
    """Draws mean losses of arms by trunk family; the same seed gives the same draws."""

    def __init__(self, grid: Grid, *, seed: int, num_draws: int = NUM_RESAMPLES) -> None:
        self.num_draws, self._seed = num_draws, seed
        self._by_target = {target.params: _families(target.arms) for target in grid.targets}
        self._all = [family for families in self._by_target.values() for family in families]

    def means(self, target: Target, arms: Iterable[Arm]) -> dict[int, Array]:
        """By the arm's place: (K, budgets) mean losses in nats, nan where it has no run."""
        own = self._by_target[target.params]
        pool = own if len(own) >= _OWN_FAMILIES else self._all
        num_budgets = len(target.budget_tokens)
        deviations = _matrix(pool, num_budgets)
        rng = np.random.default_rng([self._seed, int(target.params) % 2**32])
        drawn = {}
        for place, arm in enumerate(arms):
            loss = np.array([arm.loss(budget) for budget in range(num_budgets)])
            num = [max(arm.num_seeds(budget), 1) for budget in range(num_budgets)]
            if len(deviations):
                taken = deviations[rng.integers(0, len(deviations), size=(self.num_draws, max(num)))]
            else:
                # An assumed noise is known as badly as it counts degrees of freedom.
                scores = rng.standard_t(DEFAULT_NOISE_DEGREES_OF_FREEDOM, size=(self.num_draws, max(num), 1))
                taken = DEFAULT_SEED_SD_NATS * scores + np.zeros(num_budgets)
            noise = [taken[:, : num[budget], budget].mean(axis=1) for budget in range(num_budgets)]
            drawn[place] = loss + np.stack(noise, axis=1)
        return drawn


def _families(arms: Iterable[Arm]) -> list[dict[int, float]]:
    """Deviations of each trunk family from its arm by budget, scaled up for the mean they were taken from."""
    found: list[dict[int, float]] = []
    for arm in arms:
        by_seed: dict[str, dict[int, float]] = {}
        for budget, runs in arm.runs.items():
            num = len(runs)
            if num < 2:
                continue
            mean = arm.loss(budget)
            for run in runs:
                by_seed.setdefault(run.seed, {})[budget] = (run.loss_nats - mean) * math.sqrt(num / (num - 1))
        found += by_seed.values()
    return found


def _matrix(families: list[dict[int, float]], num_budgets: int) -> Array:
    """(families, budgets); a budget that a family was not run at gets the mean of those it was."""
    rows = np.array([[family.get(budget, math.nan) for budget in range(num_budgets)] for family in families])
    if not len(families):
        return np.zeros((0, num_budgets))
    means = np.array([float(np.mean(list(family.values()))) for family in families])
    return np.where(np.isnan(rows), means[:, None], rows)


def interval_of(draws: Array, *, level: float = INTERVAL_LEVEL, num_compared: int = 1) -> Interval:
    """Central interval of finite draws; Bonferroni over ``num_compared``."""
    tail = 0.5 * (1 - level) / num_compared
    low, high = np.quantile(draws[np.isfinite(draws)], [tail, 1 - tail])
    return float(low), float(high)
