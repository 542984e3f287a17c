"""The three arms that an answer weighs, at one budget: growing (best base and timing), scratch, a smaller fixed size.

    best fixed size = argmin over N' <= N of S(N', C / f(N'))

========  ========================================================  ==========
symbol    meaning                                                   unit
========  ========================================================  ==========
N, N'     target, any single size                                   parameters
C, f      compute budget, training FLOPs per token                  FLOPs
========  ========================================================  ==========
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import scipy  # its parts load when they are first used: a service starts sooner

from fitting.budget import Budget
from fitting.conventions import TIE_NATS
from fitting.guideline import Range
from fitting.layers import BaseOption, Target, single_size_flops_per_token, single_size_params
from fitting.recommendation.answer import Decision
from fitting.recommendation.losses import Array, Losses
from fitting.recommendation.optimum import Optimum, best_timings

T = TypeVar("T")

_SMALLER = 0.99
# Layer counts that do not divide give factors such as 4.07 where 4 was meant.
FACTOR_SLACK = 1.1
_SIZES_WITHOUT_LAYERS = 24
# Sizes below the smallest one that was run by more than this are not offered: the law was never seen there.
_BELOW_SMALLEST_RUN = 2.0
_BUDGETS_SEARCHED = (0.02, 1.0)


@dataclass(frozen=True, kw_only=True)
class Single:
    """One fixed size at the budget; ``losses`` (K,)."""

    params: float
    num_layers: int | None
    losses: Array

    @cached_property
    def loss_nats(self) -> float:
        return float(self.losses.mean())


@dataclass(frozen=True, kw_only=True)
class Arms:
    """``optima`` holds one entry for each base that the budget can pay for, by rising factor; ``tried`` is the range of
    factors that have been run: others are shown, and recommended only where none inside is on offer."""

    scratch: Single
    best_single: Single
    optima: tuple[Optimum, ...]
    tried: Range

    @cached_property
    def best(self) -> Optimum | None:
        """The base to recommend: the lowest expected loss; ties go to whole blocks, whose links all stay as trained."""
        candidates = on_offer(self.optima, lambda optimum: optimum.base.growth_factor, self.tried)
        lowest = min((optimum.loss_nats for optimum in candidates), default=0.0)
        tied = [optimum for optimum in candidates if optimum.loss_nats <= lowest + TIE_NATS]
        return min(tied, key=lambda optimum: (not optimum.base.exact, optimum.loss_nats), default=None)

    @property
    def untried_and_lower(self) -> Optimum | None:
        """The lowest of the factors never run, where it is expected to beat the one recommended."""
        lowest = min(self.optima, key=lambda optimum: optimum.loss_nats, default=None)
        if lowest is None or self.best is None or lowest.loss_nats >= self.best.loss_nats - TIE_NATS:
            return None
        return lowest

    @property
    def oversized(self) -> bool:
        """A smaller fixed size is expected to end lower than the target from scratch."""
        smaller = self.best_single.params < _SMALLER * self.scratch.params
        return smaller and self.best_single.loss_nats < self.scratch.loss_nats - TIE_NATS

    @cached_property
    def decision(self) -> Decision:
        """The lowest expected loss; ties go to scratch, then to growing."""
        grown = self.best.loss_nats if self.best is not None else np.inf
        if self.oversized and self.best_single.loss_nats < grown - TIE_NATS:
            return "smaller"
        if grown < self.scratch.loss_nats - TIE_NATS:
            return "grow"
        return "smaller" if self.oversized else "scratch"


def on_offer(options: Sequence[T], growth_factor: Callable[[T], float], tried: Range) -> list[T]:
    """The options whose growth factor is one of those tried, lowest to highest; all of them where none is."""
    low, high = tried
    inside = [one for one in options if low / FACTOR_SLACK <= growth_factor(one) <= high * FACTOR_SLACK]
    return inside or list(options)


def arms(
    losses: Losses, budgets: Sequence[Budget], bases: Sequence[BaseOption], smallest_run: float | None, tried: Range
) -> list[Arms]:
    """Weigh the arms at each of the ``budgets``, which differ in the base's accounting or in compute only.

    Args:
        smallest_run: the smallest size behind the laws, in parameters.
        tried: lowest and highest growth factor behind the laws.
    """
    sizes, layers, costs = single_sizes(budgets[0].target, smallest_run)
    optima = best_timings(losses, [(budget, base) for budget in budgets for base in bases])
    tokens = np.array([budget.compute_flops / costs for budget in budgets])
    all_singles = losses.scratch(np.tile(sizes, len(budgets)), tokens.ravel())
    weighed = []
    for i, singles in enumerate(np.split(all_singles, len(budgets), axis=1)):
        best = int(np.argmin(singles.mean(axis=0)))
        own = optima[i * len(bases) : (i + 1) * len(bases)]
        weighed.append(
            Arms(
                scratch=Single(params=float(sizes[-1]), num_layers=layers[-1], losses=singles[:, -1]),
                best_single=Single(params=float(sizes[best]), num_layers=layers[best], losses=singles[:, best]),
                optima=tuple(optimum for optimum in own if optimum is not None),
                tried=tried,
            )
        )
    return weighed


def single_sizes(target: Target, smallest_run: float | None) -> tuple[Array, list[int | None], Array]:
    """Sizes up to the target (the last one), their layers and FLOPs per token."""
    lowest = 0.0 if smallest_run is None else smallest_run / _BELOW_SMALLEST_RUN
    layers: list[int | None]
    if target.num_layers is not None:
        counts = np.arange(1, target.num_layers + 1)
        # Sizes and costs are straight lines in the number of layers.
        sizes = np.interp(counts, [1, counts[-1]], [single_size_params(target, 1), target.params])
        one_layer = single_size_flops_per_token(target, 1)
        costs = np.interp(counts, [1, counts[-1]], [one_layer, target.flops_per_token])
        offered = (sizes >= lowest) | (counts == counts[-1])
        return sizes[offered], [int(count) for count in counts[offered]], costs[offered]
    sizes = np.geomspace(min(target.params, max(lowest, target.params / 64)), target.params, _SIZES_WITHOUT_LAYERS)
    layers = [None] * len(sizes)
    return sizes, layers, 6.0 * sizes


def fewest_flops(weigh: Callable[[float], Arms], compute_flops: float, goal_nats: float) -> float | None:
    """The least compute at which growing or a smaller size is expected to reach ``goal_nats``.

    Args:
        weigh: the arms at a compute budget in FLOPs.
        compute_flops: what scratch needs for the goal; the search ends there.

    Returns:
        FLOPs, None where neither gets there for less.
    """

    def excess(log_share: float) -> float:
        found = weigh(float(np.exp(log_share)) * compute_flops)
        grown = found.best.loss_nats if found.best is not None else np.inf
        return min(grown, found.best_single.loss_nats) - goal_nats

    low, high = np.log(_BUDGETS_SEARCHED)
    if excess(high) >= 0:
        return None
    if excess(low) <= 0:
        return float(np.exp(low)) * compute_flops
    return float(np.exp(scipy.optimize.brentq(excess, low, high, xtol=1e-4))) * compute_flops
