"""The best growth timing for one base, per draw and on average, under the budget.

    minimise over d:  L_grown(N, n, d, D(d)),    D(d) > 0 what the budget leaves (``fitting.budget``)

========  ==================================================================  ==========
symbol    meaning                                                             unit
========  ==================================================================  ==========
d, D      growth timing, grown tokens                                         tokens
N, n      parameters of target and base                                       parameters
========  ==================================================================  ==========

The search runs on a few draws for all cases at once; what is reported comes from all of them. Valleys in d are flat,
so besides the minimum of the mean loss come the range within 0.25% of it, the minimum of every draw, and whether the
minimum lies at an edge of what was searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fitting.budget import Budget
from fitting.layers import BaseOption
from fitting.recommendation.losses import Array, Losses

# A timing whose mean loss is within this share of the lowest counts as near-optimal.
NEAR_OPTIMAL = 0.0025
_COARSE_POINTS, _FINE_POINTS, _SEARCH_DRAWS = 21, 5, 16


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best timing of one base. ``losses`` (K,) are all draws at ``timing_tokens``; ``span`` the timings searched;
    ``edge`` says at which end of it the mean's minimum lies, if at one."""

    base: BaseOption
    timing_tokens: float
    grown_tokens: float
    near_optimal: tuple[float, float]
    span: tuple[float, float]
    losses: Array
    edge: Literal["earliest", "latest"] | None

    @cached_property
    def loss_nats(self) -> float:
        return float(np.mean(self.losses))


def best_timings(losses: Losses, cases: Sequence[tuple[Budget, BaseOption]]) -> list[Optimum | None]:
    """The timing of the lowest mean loss of every case, None where its budget cannot pay for the base.

    Args:
        cases: budgets of one target, each with a base.
    """
    spans = [budget.timings(base) for budget, base in cases]
    open_cases = [(case, span) for case, span in zip(cases, spans, strict=True) if span is not None]
    if not open_cases:
        return [None] * len(cases)
    few = losses.thinned(_SEARCH_DRAWS)
    chosen = [case for case, _ in open_cases]
    ends = np.log([span for _, span in open_cases])  # (cases, 2)
    steps = np.linspace(0.0, 1.0, _COARSE_POINTS)
    coarse = ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * steps  # (cases, points)
    coarse_mean = losses_at(few, chosen, coarse).mean(axis=0)
    lowest = np.take_along_axis(coarse, np.argmin(coarse_mean, axis=1)[:, None], axis=1)
    step = coarse[:, 1:2] - coarse[:, :1]
    low, high = np.maximum(lowest - step, ends[:, :1]), np.minimum(lowest + step, ends[:, 1:])
    fine = low + (high - low) * np.linspace(0.0, 1.0, _FINE_POINTS)
    fine_mean = losses_at(few, chosen, fine).mean(axis=0)
    best, lowest_mean = vertices(fine, fine_mean), fine_mean.min(axis=1)
    all_losses = losses_at(losses, chosen, best[:, None])[:, :, 0]
    found = []
    for i, ((budget, base), span) in enumerate(open_cases):
        edge: Literal["earliest", "latest"] | None = None
        if best[i] <= ends[i, 0] + 1e-9:
            edge = "earliest"
        elif best[i] >= ends[i, 1] - 1e-9:
            edge = "latest"
        timing = float(np.exp(best[i]))
        found.append(
            Optimum(
                base=base,
                timing_tokens=timing,
                grown_tokens=float(budget.grown_tokens(base, timing)),
                near_optimal=_near_optimal(coarse[i], coarse_mean[i], float(best[i]), float(lowest_mean[i])),
                span=span,
                losses=all_losses[:, i],
                edge=edge,
            )
        )
    answers = iter(found)
    return [None if span is None else next(answers) for span in spans]


def timing_draws(losses: Losses, budget: Budget, optimum: Optimum) -> Array:
    """Each draw's own best timing (K,), in tokens."""
    low, high = np.log(optimum.span)
    grid = np.linspace(low, high, _COARSE_POINTS)
    values = losses_at(losses, [(budget, optimum.base)], grid[None])[:, 0]
    return np.exp(vertices(np.broadcast_to(grid, values.shape), values))


def losses_at(losses: Losses, cases: Sequence[tuple[Budget, BaseOption]], log_timings: Array) -> Array:
    """Grown losses (K, cases, points) at ``log_timings`` (cases, points)."""
    timings = np.exp(log_timings)
    after = np.array([budget.grown_tokens(base, row) for (budget, base), row in zip(cases, timings, strict=True)])
    bases = np.repeat([base.params for _, base in cases], timings.shape[1])
    target = cases[0][0].target.params
    values = losses.grown(target, bases, timings.ravel(), after.ravel())
    return values.reshape(len(values), *timings.shape)


def vertices(grids: Array, values: Array) -> Array:
    """Minimum (M,) of each row (M, points) on its even grid (M, points): the vertex of the parabola through the lowest
    point and its neighbours, the point itself at an edge."""
    rows = np.arange(len(values))
    lowest = np.argmin(values, axis=1)
    last = values.shape[1] - 1
    inner = np.clip(lowest, 1, last - 1)
    left, here, right = values[rows, inner - 1], values[rows, inner], values[rows, inner + 1]
    bend = left - 2 * here + right
    shift = np.divide(0.5 * (left - right), bend, out=np.zeros_like(bend), where=bend > 0)
    refined = grids[rows, inner] + np.clip(shift, -1.0, 1.0) * (grids[:, 1] - grids[:, 0])
    at_edge = (lowest == 0) | (lowest == last)
    return np.asarray(np.where(at_edge, grids[rows, lowest], refined))


def _near_optimal(grid: Array, mean: Array, best: float, lowest: float) -> tuple[float, float]:
    """The timings around ``best`` at which the mean loss crosses the near-optimal limit, else the end of the search.

    Between grid points the square root of the excess is taken as linear, which is exact for a parabola.
    """
    excess = np.sqrt(np.maximum(mean - lowest, 0.0))
    limit = np.sqrt(NEAR_OPTIMAL * lowest)

    def crossing(indices: NDArray[np.int64], end: float) -> float:
        inside_at, inside = best, 0.0
        for index in indices:
            if excess[index] > limit:
                share = (limit - inside) / (excess[index] - inside)
                return float(inside_at + share * (grid[index] - inside_at))
            inside_at, inside = grid[index], excess[index]
        return end

    below = np.flatnonzero(grid < best)[::-1]
    above = np.flatnonzero(grid > best)
    return float(np.exp(crossing(below, grid[0]))), float(np.exp(crossing(above, grid[-1])))
