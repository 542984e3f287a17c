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

from fitting.budget import Budget, grown_tokens_of
from fitting.layers import BaseOption
from fitting.recommendation.losses import Array, Losses

# A timing whose mean loss is within this share of the lowest counts as near-optimal.
NEAR_OPTIMAL = 0.0025
_POINTS, _SEARCH_DRAWS = 25, 20


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best timing of one base. ``losses`` (K,) are all draws at ``timing_tokens``; ``timing_draws`` the best
    timing of each draw of the search; ``edge`` says at which end of the search the mean's minimum lies, if at one."""

    base: BaseOption
    timing_tokens: float
    grown_tokens: float
    loss_nats: float
    losses: Array
    timing_draws: Array
    edge: Literal["earliest", "latest"] | None
    log_timings: Array
    search_means: Array

    @cached_property
    def near_optimal(self) -> tuple[float, float]:
        """The timings whose mean loss in the search (``search_means`` at ``log_timings``) is within 0.25% of the best."""
        return _near_optimal(self.log_timings, self.search_means, float(np.log(self.timing_tokens)))


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
    steps = np.linspace(0.0, 1.0, _POINTS)
    grids = ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * steps  # (cases, points)
    values = losses_at(few, chosen, grids)  # (few draws, cases, points)
    means = values.mean(axis=0)
    best = vertices(grids, means)
    rows = np.broadcast_to(grids, values.shape).reshape(-1, _POINTS)
    own_best = np.exp(vertices(rows, values.reshape(-1, _POINTS))).reshape(values.shape[:2])
    after = grown_tokens_of(chosen, np.exp(best)[:, None])[:, 0]
    all_losses = losses_at(losses, chosen, best[:, None])[:, :, 0]
    all_means = all_losses.mean(axis=0)
    found = []
    for i, (_, base) in enumerate(chosen):
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
                grown_tokens=float(after[i]),
                loss_nats=float(all_means[i]),
                losses=all_losses[:, i],
                timing_draws=own_best[:, i],
                edge=edge,
                log_timings=grids[i],
                search_means=means[i],
            )
        )
    answers = iter(found)
    return [None if span is None else next(answers) for span in spans]


def losses_at(losses: Losses, cases: Sequence[tuple[Budget, BaseOption]], log_timings: Array) -> Array:
    """Grown losses (K, cases, points) at ``log_timings`` (cases, points)."""
    timings = np.exp(log_timings)
    after = grown_tokens_of(cases, timings)
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


def _near_optimal(grid: Array, mean: Array, best: float) -> tuple[float, float]:
    """The timings around ``best`` at which the mean loss crosses the near-optimal limit, else the end of the search.

    Between grid points the square root of the excess is taken as linear, which is exact for a parabola.
    """
    lowest = float(mean.min())
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
