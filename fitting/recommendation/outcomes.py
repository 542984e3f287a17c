"""What each arm of an answer costs and may end at: scratch, the best fixed size, growing, growing from a sunk base.

    P10, P50, P90    of L_a,k + s z,                         z ~ N(0, 1)
    chance           mean over k of P(L_a,k - L_0,k + s' z < 0)
    regret_a,k       L_a,k - min over the choices b of L_b,k
    worst case       max over k of regret_a,k;  in FLOPs  f (T_k(min_b L_b,k) - T_k(L_a,k)),  the largest over k

========  ==========================================================================================  ======
symbol    meaning                                                                                     unit
========  ==========================================================================================  ======
L_a,k     final loss of arm a in draw k; a = 0 is scratch                                             nats
s         noise of one run's final loss around its law                                                nats
s'        noise of an observed difference: grown - scratch as fitted, sqrt(2) s for two single sizes  nats
b         choices: scratch, the best fixed size, and growing under arm a's own accounting of the base  -
T_k       tokens at which scratch training of the target reaches a loss in draw k                     tokens
f         training FLOPs per token of the target                                                      FLOPs
========  ==========================================================================================  ======

Every arm costs the same C. At grade "far" P10 and P90 are the hull over the laws, whose
disagreement then counts in full.
The worst case is Savage's: the largest regret in any draw (L. J. Savage, "The theory of statistical decision", 1951), without
the noise of single runs, which no choice avoids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import scipy  # its parts load when they are first used: a service starts sooner

from fitting.budget import Budget
from fitting.guideline import Guideline
from fitting.layers import single_size_flops_per_token
from fitting.noisy_draws import noise_scores
from fitting.recommendation.answer import Accounting, ArmName, ArmOutcome, LossQuantiles, Regret
from fitting.recommendation.arms import Arms, Single
from fitting.recommendation.losses import Array, Losses
from fitting.recommendation.request import Request

# A probability needs at least this many pairs that were predicted before they were seen.
PAIRS_FOR_A_CHANCE = 10
# Of an outcome's quantiles: half a per cent of mass each.
_NUM_NOISE_SCORES = 200
_NO_BASE = "no base that the budget could pay for is on offer"
GROWN: dict[str, ArmName] = {"charged": "grown", "sunk": "grown_sunk_base"}


def chance_below(difference: Array, noise_nats: float) -> float:
    """Share of pairs of runs in which the first ends lower; ``difference`` (K,) is first - second."""
    return float(scipy.special.ndtr(-difference / noise_nats).mean())


def no_chance_reason(guideline: Guideline) -> str | None:
    """Why a guideline gives no probability; None where it may."""
    pairs = guideline.num_held_out_pairs
    if pairs >= PAIRS_FOR_A_CHANCE:
        return None
    return f"a chance takes at least {PAIRS_FOR_A_CHANCE} held-out pairs, and {guideline.name} has {pairs}"


def outcomes_from_laws(
    request: Request,
    guideline: Guideline,
    losses: Losses,
    budgets: Mapping[str, Budget],
    weighed: Mapping[str, Arms],
    *,
    by_law: bool,
) -> tuple[ArmOutcome, ...]:
    """The four arms from the draws.

    Args:
        budgets: the request's budget under "charged" and "sunk".
        weighed: the arms at each of them.
        by_law: P10 and P90 are the hull over laws.
    """
    target, hardware = request.target, request.hardware
    arms = weighed[request.base_compute]
    scratch, single = arms.scratch, arms.best_single
    own = None if single.params < scratch.params else "the best fixed size is the target itself"
    without_chance = no_chance_reason(guideline)

    def choices(accounting: str) -> list[Array]:
        best = weighed[accounting].best
        return [scratch.losses, single.losses, *([] if best is None else [best.losses])]

    def single_outcome(arm: ArmName, one: Single, rate: float, reason: str | None) -> ArmOutcome:
        compute = budgets["charged"].compute_flops
        chance = None if reason else chance_below(one.losses - scratch.losses, math.sqrt(2) * losses.run_noise_nats)
        return ArmOutcome(
            arm=arm, params=one.params, num_layers=one.num_layers, tokens=compute / rate, compute_flops=compute,
            gpu_hours=None if hardware is None else hardware.gpu_hours(compute),
            loss_nats=quantiles(one.losses, losses, by_law=by_law), chance_to_beat_scratch=chance, no_chance_reason=reason,
            worst_regret=regret(request, losses, one.losses, choices(request.base_compute)),
        )  # fmt: skip

    rate = target.flops_per_token
    if single.params < scratch.params:
        rate = (
            6.0 * single.params if single.num_layers is None else single_size_flops_per_token(target, single.num_layers)
        )
    found = [
        single_outcome("scratch", scratch, target.flops_per_token, "it is scratch"),
        single_outcome("best_fixed_size", single, rate, own or without_chance),
    ]
    for accounting, arm in GROWN.items():
        budget, best = budgets[accounting], weighed[accounting].best
        if best is None:
            found.append(ArmOutcome(arm=arm, no_loss_reason=_NO_BASE, no_chance_reason=_NO_BASE))
            continue
        base_flops = best.timing_tokens * best.base.flops_per_token
        delta = best.losses - scratch.losses
        found.append(
            ArmOutcome(
                arm=arm, params=target.params, num_layers=target.num_layers, growth_factor=best.base.growth_factor,
                growth_timing_tokens=best.timing_tokens, tokens=best.grown_tokens, base_flops=base_flops,
                compute_flops=budget.compute_flops,
                gpu_hours=None if hardware is None else hardware.gpu_hours(budget.compute_flops),
                paid_base_gpu_hours=_paid_base_gpu_hours(
                    request, budget, best.timing_tokens, best.base.flops_per_token
                ),
                loss_nats=quantiles(best.losses, losses, by_law=by_law),
                chance_to_beat_scratch=None if without_chance else chance_below(delta, losses.delta_noise_nats),
                no_chance_reason=without_chance,
                worst_regret=regret(request, losses, best.losses, choices(accounting)),
            )
        )  # fmt: skip
    return tuple(found)


def outcomes_without_losses(
    request: Request,
    budgets: Mapping[str, Budget],
    accountings: Mapping[str, Accounting],
    reason: str,
    rates: Mapping[str, float],
) -> tuple[ArmOutcome, ...]:
    """The arms of an answer that predicts no losses: what they cost, and why there is no more.

    Args:
        accountings: the answer under "charged" and "sunk".
        reason: why no loss and no chance is given.
        rates: training FLOPs per token of the base that each accounting grows from; none where it does not grow.
    """
    target, hardware = request.target, request.hardware
    hours = None if hardware is None else hardware.gpu_hours(request.compute_flops)
    found = [
        ArmOutcome(
            arm="scratch", params=target.params, num_layers=target.num_layers, tokens=request.token_budget,
            compute_flops=request.compute_flops, gpu_hours=hours, no_loss_reason=reason, no_chance_reason="it is scratch",
        ),
        ArmOutcome(arm="best_fixed_size", no_loss_reason=reason, no_chance_reason=reason),
    ]  # fmt: skip
    for accounting, arm in GROWN.items():
        own, budget = accountings[accounting], budgets[accounting]
        if own.decision != "grow" or own.growth_timing_tokens is None:
            found.append(ArmOutcome(arm=arm, no_loss_reason=own.reason, no_chance_reason=own.reason))
            continue
        rate = rates[accounting]
        found.append(
            ArmOutcome(
                arm=arm, params=target.params, num_layers=target.num_layers, growth_factor=own.growth_factor,
                growth_timing_tokens=own.growth_timing_tokens, tokens=own.grown_tokens,
                base_flops=own.growth_timing_tokens * rate, compute_flops=budget.compute_flops, gpu_hours=hours,
                paid_base_gpu_hours=_paid_base_gpu_hours(request, budget, own.growth_timing_tokens, rate),
                no_loss_reason=reason, no_chance_reason=reason,
            )
        )  # fmt: skip
    return tuple(found)


def _paid_base_gpu_hours(request: Request, budget: Budget, timing_tokens: float, rate: float) -> float | None:
    """Of the base's tokens that are charged, at ``rate`` training FLOPs per token; None without hardware."""
    if request.hardware is None:
        return None
    return request.hardware.gpu_hours(budget.base_cost_factor * float(budget.paid_tokens(timing_tokens)) * rate)


def quantiles(draws: Array, losses: Losses, *, by_law: bool) -> LossQuantiles:
    """P10, P50 and P90 of one run's final loss, from ``draws`` (K,) of its expectation."""

    def of(group: Array) -> Array:
        return np.asarray(
            np.quantile(group[:, None] + losses.run_noise_nats * noise_scores(_NUM_NOISE_SCORES), (0.1, 0.5, 0.9))
        )

    low, middle, high = of(draws)
    if by_law:
        ends = [of(draws[losses.law_of_draw == law]) for law in np.unique(losses.law_of_draw)]
        low, high = min(end[0] for end in ends), max(end[2] for end in ends)
    return LossQuantiles(p10=float(low), p50=float(middle), p90=float(high))


def regret(request: Request, losses: Losses, own: Array, choices: list[Array]) -> Regret:
    """The largest regret of ``own`` (K,) against the best of ``choices`` in any draw."""
    lowest = np.min([own, *choices], axis=0)
    reached = losses.scratch_tokens(request.target.params, np.stack([lowest, own], axis=1))
    with np.errstate(invalid="ignore"):  # inf - inf: scratch reaches neither
        lost = (reached[:, 0] - reached[:, 1]) * request.target.flops_per_token
    # Where the best choice is beyond scratch's reach in some draw, no amount of FLOPs makes up for it.
    flops = float(lost.max()) if np.isfinite(lost).all() else None
    hours = None if flops is None or request.hardware is None else request.hardware.gpu_hours(flops)
    return Regret(nats=float((own - lowest).max()), flops=flops, gpu_hours=hours, num_draws=len(own))
