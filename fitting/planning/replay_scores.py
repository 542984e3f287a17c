"""What replays of planning came to: mean regret by round over the orders, and designs against each other, order by order.

Intervals are t intervals of a mean over orders. All orders are of the same runs, so they say what the luck of the start and of
the draw can do, and nothing of another grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from fitting.conventions import INTERVAL_LEVEL, TIE_NATS
from fitting.planning.replay import Design, Round

Array = NDArray[np.float64]
Interval = tuple[float, float]
Verdict = Literal["lower", "higher", "not told apart"]
# Of the verdict on a difference; intervals that are shown have the house's level.
CALL_LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One design by round: FLOPs that it might have spent and did, mean regret in nats with its 80% interval."""

    design: Design
    num_orders: int
    budget_flops: tuple[float, ...]
    spent_flops: tuple[float, ...]
    regret_nats: tuple[float, ...]
    regret_interval: tuple[Interval, ...]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean regret of ``design`` less that of ``other`` over all rounds with FLOPs, paired by order; 80% interval."""

    design: Design
    other: Design
    nats: float
    interval: Interval
    verdict: Verdict


def curve(design: Design, orders: Sequence[Sequence[Round]]) -> Curve:
    """Of the rounds of each order, the start first."""
    regrets = _regrets(orders)
    return Curve(
        design=design,
        num_orders=len(orders),
        budget_flops=_means([[one.budget_flops for one in rounds] for rounds in orders]),
        spent_flops=_means([[one.spent_flops for one in rounds] for rounds in orders]),
        regret_nats=tuple(float(value) for value in regrets.mean(axis=0)),
        regret_interval=tuple(_interval(column, INTERVAL_LEVEL) for column in regrets.T),
    )


def difference(
    design: Design, orders: Sequence[Sequence[Round]], other: Design, others: Sequence[Sequence[Round]]
) -> Difference:
    """``orders`` and ``others`` hold the same orders."""
    # The start is the same for both.
    gaps = (_regrets(orders) - _regrets(others))[:, 1:].mean(axis=1)
    nats = float(gaps.mean())
    low, high = _interval(gaps, CALL_LEVEL)
    verdict: Verdict = "not told apart"
    if abs(nats) > TIE_NATS and not low <= 0 <= high:
        verdict = "lower" if nats < 0 else "higher"
    return Difference(design=design, other=other, nats=nats, interval=_interval(gaps, INTERVAL_LEVEL), verdict=verdict)


def _regrets(orders: Sequence[Sequence[Round]]) -> Array:
    """(orders, rounds) nats."""
    return np.array([[one.regret_nats for one in rounds] for rounds in orders])


def _means(values: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.mean(values, axis=0))


def _interval(values: Array, level: float) -> Interval:
    mean = float(values.mean())
    if len(values) < 2:
        return mean, mean
    half = float(t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean - half, mean + half
