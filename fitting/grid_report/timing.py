"""How the best timing moves with compute at a fixed size, against what the published law says.

    ln d*_sb = a_s + b ln C_sb         published (arXiv 2405.15319): b = -163.27 / (log10 C)^2

========  ===========================================================================  ======
symbol    meaning                                                                      unit
========  ===========================================================================  ======
d*_sb     minimum of the parabola in sqrt d through the lowest timing of target s at   tokens
          budget b and its two neighbours, cut to them
a_s, b    level of each target; exponent of d* in C, one for all targets               -
C_sb      compute of the budget                                                        FLOPs
========  ===========================================================================  ======

Valleys are steep on the late side, where the base eats the budget. On valleys of known laws over a grid's timings three points
in sqrt d miss the true minimum by up to 7%, in ln d by up to 26% (``tests/fitting/test_grid_report.py``). A valley whose
lowest timing is the earliest or latest one tried says "beyond" and takes no part. The interval resamples trunk families
(:mod:`fitting.grid_report.spread`): which timing is the lowest is decided anew in every draw, and a draw whose lowest falls on
an edge stays at that edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fitting.conventions import SAME_FACTOR
from fitting.grid_report.arms import Arm, Grid, Target
from fitting.grid_report.spread import CALL_LEVEL, Interval, Resampler, interval_of
from fitting.laws.base import Array

_PUBLISHED_COMPUTE_CONSTANT = 163.27
_FEWEST_TIMINGS = 3


@dataclass(frozen=True, kw_only=True)
class BestTiming:
    """One valley's minimum in tokens with its interval; ``edge`` where the lowest timing tried is an end one."""

    target: Target
    budget: int
    growth_factor: float
    best_timing_tokens: float
    interval_tokens: Interval
    edge: str | None
    num_timings: int


@dataclass(frozen=True, kw_only=True)
class TimingTrend:
    """The exponent of d* in C at fixed size, from ``num_valleys`` inner minima of ``num_targets`` targets.

    ``interval`` is at the house's level, ``call_interval`` at the level at which a trend is called one.
    """

    growth_factor: float
    exponent: float
    interval: Interval
    call_interval: Interval
    published_exponents: Interval
    num_valleys: int
    num_edges: int
    num_targets: int
    decades_of_compute: float
    run_ids: tuple[str, ...]


def best_timings(grid: Grid, growth_factor: float, resampler: Resampler) -> tuple[list[BestTiming], Array]:
    """The valleys of a factor with three timings or more, and (K, valleys) draws of ln d*."""
    found, draws = [], []
    for target in grid.targets:
        arms = _arms(target, growth_factor)
        drawn = resampler.means(target, arms)
        for budget in range(len(target.budget_tokens)):
            tried = [place for place, arm in enumerate(arms) if arm.num_seeds(budget)]
            if len(tried) < _FEWEST_TIMINGS:
                continue
            timings = np.array([arms[place].timing_tokens for place in tried])
            losses = np.array([[arms[place].loss(budget) for place in tried]])
            at = float(_minima(timings, losses)[0])
            spread = _minima(timings, np.stack([drawn[place][:, budget] for place in tried], axis=1))
            lowest = int(np.argmin(losses[0]))
            low, high = interval_of(spread)
            found.append(
                BestTiming(
                    target=target, budget=budget, growth_factor=growth_factor, best_timing_tokens=math.exp(at),
                    interval_tokens=(math.exp(low), math.exp(high)),
                    edge="earliest" if lowest == 0 else "latest" if lowest == len(tried) - 1 else None,
                    num_timings=len(tried),
                )
            )  # fmt: skip
            draws.append(spread)
    return found, np.stack(draws, axis=1) if draws else np.zeros((resampler.num_draws, 0))


def timing_trend(grid: Grid, growth_factor: float, found: Sequence[BestTiming], draws: Array) -> TimingTrend:
    """The pooled exponent.

    Raises:
        ValueError: no target has inner minima at two budgets; says what was found.
    """
    inner = [place for place, valley in enumerate(found) if valley.edge is None]
    by_target: dict[float, list[int]] = {}
    for place in inner:
        by_target.setdefault(found[place].target.params, []).append(place)
    used = [place for places in by_target.values() if len(places) > 1 for place in places]
    if not used:
        raise ValueError(
            f"how d* moves with C needs one size whose lowest timing is an inner one at two budgets; of {len(found)} valley(s) "
            f"at g = {growth_factor:g} with {_FEWEST_TIMINGS} timings or more {len(inner)} have an inner minimum, no size two"
        )
    targets = [by_target[params] for params in by_target if len(by_target[params]) > 1]
    log_compute = np.log([found[place].target.compute_flops(found[place].budget) for place in used])
    owner = np.array([next(i for i, places in enumerate(targets) if place in places) for place in used])
    # Taking each target's own mean away leaves the slope that all share.
    x = log_compute - _means(log_compute[None], owner)[0]
    at = np.log([[found[place].best_timing_tokens for place in used]])
    slope = float(((at - _means(at, owner)) @ x)[0] / (x @ x))
    drawn = (draws[:, used] - _means(draws[:, used], owner)) @ x / (x @ x)
    published = [-_PUBLISHED_COMPUTE_CONSTANT / (c / math.log(10)) ** 2 for c in (log_compute.min(), log_compute.max())]
    return TimingTrend(
        growth_factor=growth_factor,
        exponent=slope,
        interval=interval_of(drawn),
        call_interval=interval_of(drawn, level=CALL_LEVEL),
        published_exponents=(min(published), max(published)),
        num_valleys=len(used),
        num_edges=len(found) - len(inner),
        num_targets=len(targets),
        decades_of_compute=float(max(np.ptp(log_compute[owner == i]) for i in range(len(targets))) / math.log(10)),
        run_ids=tuple(
            run.run_id
            for place in used
            for arm in _arms(found[place].target, growth_factor)
            for run in arm.runs.get(found[place].budget, ())
        ),
    )


def _arms(target: Target, growth_factor: float) -> list[Arm]:
    arms = [arm for arm in target.of_kind("grown") if abs(arm.growth_factor / growth_factor - 1) < SAME_FACTOR]
    return sorted(arms, key=lambda arm: arm.timing_tokens)


def _means(values: Array, owner: np.ndarray) -> Array:
    """(K, R) the mean over each owner's columns, at each of them."""
    result = np.empty_like(values)
    for i in np.unique(owner):
        result[:, owner == i] = values[:, owner == i].mean(axis=1, keepdims=True)
    return result


def _minima(timing_tokens: Array, losses: Array) -> Array:
    """(K,) ln d at the minima of (K, timings) losses by three-point parabolas; the edge where the lowest timing is one."""
    root = np.sqrt(timing_tokens)
    lowest = np.argmin(losses, axis=1)
    middle = np.clip(lowest, 1, len(root) - 2)
    rows = np.arange(len(losses))
    left, right = root[middle - 1] - root[middle], root[middle + 1] - root[middle]
    down, up = (losses[rows, middle + step] - losses[rows, middle] for step in (-1, 1))
    # Through (left, down), (0, 0), (right, up): q x^2 + p x.
    q = (up / right - down / left) / (right - left)
    p = down / left - q * left
    inner = (lowest == middle) & (q > 0)
    shift = np.where(inner, -p / np.where(q > 0, 2 * q, 1.0), 0.0)
    best = np.where(inner, root[middle] + np.clip(shift, left, right), root[lowest])
    return np.asarray(2 * np.log(best))
