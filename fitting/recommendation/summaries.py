"""From draws to what an answer says: intervals, speedups, stakes, decision points, how the gain fades.

    speedup_k = f_target S^-1(L_grown,k) / C - 1

========  ====================================================================  ======
symbol    meaning                                                               unit
========  ====================================================================  ======
L_grown   final loss of the grown run, by draw k                                nats
S^-1      tokens at which scratch training of the target reaches a loss         tokens
C         FLOPs that the grown run is charged                                   FLOPs
========  ====================================================================  ======
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fitting.budget import Budget
from fitting.layers import Target
from fitting.noisy_draws import TAILS, central_interval
from fitting.recommendation.answer import DecisionPoint, Interval, Stake, Stakes
from fitting.recommendation.losses import Array, Losses
from fitting.recommendation.optimum import Optimum
from fitting.recommendation.request import Hardware

# Looks after growth, as shares of the grown tokens.
_LOOKS = (0.1, 0.3, 0.6)


def intervals(draws: Array, noise_sd: float, losses: Losses, *, by_law: bool) -> list[Interval]:
    """Central interval of every column of ``draws`` (K, R) with normal noise on top.

    Args:
        by_law: take the hull of the intervals of every law, so that their disagreement counts in full.
    """
    groups = [draws]
    if by_law:
        groups = [draws[losses.law_of_draw == law] for law in np.unique(losses.law_of_draw)]
    ends = [central_interval(group, noise_sd) for group in groups]
    low = np.min([end[0] for end in ends], axis=0)
    high = np.max([end[1] for end in ends], axis=0)
    return [(float(lower), float(upper)) for lower, upper in zip(low, high, strict=True)]


def speedups(losses: Losses, target: Target, grown_losses: Array, charged_flops: Array) -> Array:
    """Speedups (K, R) of grown runs with ``grown_losses`` (K, R) and ``charged_flops`` (R,); inf where scratch never
    reaches the grown run's loss."""
    tokens = losses.scratch_tokens(target.params, grown_losses)
    return np.asarray(tokens * target.flops_per_token / charged_flops - 1)


def finite_median(values: Array) -> float | None:
    middle = float(np.median(values))
    return middle if math.isfinite(middle) else None


def finite_interval(values: Array) -> Interval | None:
    """Central interval (K,), None where an end is not finite."""
    ordered = np.sort(values)
    low, high = (float(ordered[round(tail * (len(ordered) - 1))]) for tail in TAILS)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def stakes(delta: Array, speedup: Array, compute_flops: float, hardware: Hardware | None) -> Stakes:
    """What is gained where growing is right, and lost where it is wrong."""

    def stake(chosen: NDArray[np.bool_], sign: int) -> Stake | None:
        if not chosen.any():
            return None
        worth = speedup[chosen]
        finite = worth[np.isfinite(worth)]
        flops = float(sign * finite.mean() * compute_flops) if finite.size else None
        return Stake(
            nats=float(-sign * delta[chosen].mean()),
            flops=flops,
            gpu_hours=hardware.gpu_hours(flops) if hardware is not None and flops is not None else None,
        )

    return Stakes(gain_if_right=stake(delta < 0, 1), regret_if_wrong=stake(delta > 0, -1))


def decision_points(losses: Losses, budget: Budget, optimum: Optimum, *, by_law: bool) -> tuple[DecisionPoint, ...]:
    """Where to look after growth: the loss expected, its band, and the loss above which to stop.

    To stop is right once a run is above both its own band and what scratch is expected to have for the same FLOPs.
    """
    target, base = budget.target, optimum.base
    tokens = np.array(_LOOKS) * optimum.grown_tokens
    timing = np.full(len(tokens), optimum.timing_tokens)
    paid = float(budget.paid_tokens(optimum.timing_tokens)) * base.flops_per_token
    spent = paid + tokens * target.flops_per_token
    grown = losses.grown(target.params, np.full(len(tokens), base.params), timing, tokens)
    scratch = losses.scratch(np.full(len(tokens), target.params), spent / target.flops_per_token)
    points = []
    bands = intervals(grown, losses.run_noise_nats, losses, by_law=by_law)
    for index, (seen, band) in enumerate(zip(tokens, bands, strict=True)):
        points.append(
            DecisionPoint(
                tokens_after_growth=float(seen),
                compute_flops=float(spent[index]),
                expected_loss_nats=float(grown[:, index].mean()),
                expected_band=band,
                stop_above_nats=max(band[1], float(scratch[:, index].mean())),
                fallback="go on from the grown checkpoint only if it follows scratch's curve; else train from scratch",
            )
        )
    return tuple(points)
