"""The answer at a point that was run: the observed pair, its noise, and the controls beside it.

    interval of delta = delta +- t(nu, 0.9) s sqrt(1 / k_grown + 1 / k_scratch)

========  =======================================================================  ======
symbol    meaning                                                                  unit
========  =======================================================================  ======
s, nu     seed noise of one run and its degrees of freedom (``fitting.cells``)     nats, -
k         seeds averaged on each side                                              -
========  =======================================================================  ======

delta is a difference of two noisy runs: with one seed each its noise is sqrt(2) s. No chance that growth helps is
given: that takes ten held-out pairs, and a single observed one is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import scipy  # its parts load when they are first used: a service starts sooner

from fitting.cells import equal_compute
from fitting.conventions import INTERVAL_LEVEL
from fitting.guideline import Guideline, Noise, ObservedPair, ObservedSingle
from fitting.layers import BaseOption
from fitting.orders import connection_rate, stacked_layers
from fitting.recommendation.answer import (
    Accounting,
    Alternative,
    Decision,
    Expected,
    FixedSize,
    Flops,
    Interval,
    Recommendation,
    base_model,
    target_model,
)  # fmt: skip
from fitting.recommendation.from_laws import budget_of
from fitting.recommendation.outcomes import outcomes_without_losses
from fitting.recommendation.recipe import recipe
from fitting.recommendation.request import Request
from fitting.recommendation.support import support

_SAME_SIZE = 0.01
# The set of timings whose loss is within this share of the best counts as near-optimal.
NEAR_OPTIMAL = 0.0025


def pairs_at(request: Request, guideline: Guideline) -> tuple[ObservedPair, ...]:
    """The guideline's pairs of exactly this target, this compute (within 1%) and the factors asked for."""
    target = request.target
    free = request.growth_factors is None and request.existing_base is None
    factors = None if free else {round(base.growth_factor, 2) for base in request.bases}
    return tuple(
        pair for pair in guideline.pairs
        if abs(pair.target_params / target.params - 1) <= _SAME_SIZE
        and (target.num_layers is None or pair.num_target_layers in (None, target.num_layers))
        and (target.shape is None or pair.hidden_size in (None, target.shape.hidden_size))
        and equal_compute(pair.compute_flops, request.compute_flops)
        and pair.growth_timing_tokens >= (request.base_tokens or 0.0)
        and (factors is None or round(pair.growth_factor, 2) in factors)
    )  # fmt: skip


def best_single_at(request: Request, guideline: Guideline) -> ObservedSingle | None:
    """The lowest loss of any observed size up to the target at this compute."""
    singles = [
        single for single in guideline.controls
        if single.params <= request.target.params * (1 + _SAME_SIZE)
        and equal_compute(single.compute_flops, request.compute_flops)
    ]  # fmt: skip
    return min(singles, key=lambda single: single.loss_nats, default=None)


def delta_interval(pair: ObservedPair, noise: Noise) -> Interval:
    """Two-sided interval of the pair's delta at :data:`INTERVAL_LEVEL`, in nats."""
    quantile = float(scipy.special.stdtrit(noise.degrees_of_freedom, (1 + INTERVAL_LEVEL) / 2))  # Student's t
    half = quantile * noise.sd_nats * math.sqrt(1 / pair.num_grown_seeds + 1 / pair.num_scratch_seeds)
    return pair.delta_nats - half, pair.delta_nats + half


def answer_from_observation(request: Request, guideline: Guideline, pairs: Sequence[ObservedPair]) -> Recommendation:
    """The answer from the best of the observed ``pairs`` (all at the question's own target and compute)."""
    assert guideline.noise is not None
    noise = guideline.noise
    best = min(pairs, key=lambda pair: pair.grown_loss_nats)
    interval = delta_interval(best, noise)
    single = best_single_at(request, guideline)
    smaller = single if single is not None and single.params < best.target_params * (1 - _SAME_SIZE) else None
    oversized = None if single is None else smaller is not None and smaller.loss_nats < best.scratch_loss_nats
    charged = _charged(best, interval, smaller)
    by_accounting = {"charged": charged, "sunk": _sunk(best, charged)}
    decision = by_accounting[request.base_compute].decision or charged.decision
    assert decision is not None
    grow = decision == "grow"
    target = request.target
    near = _near_optimal(best, pairs)
    # The contract's charged total is the pair's own compute; with the base sunk the grown run gets all of C.
    sunk = request.base_compute == "sunk"
    grown_tokens = request.token_budget if sunk else best.grown_tokens
    grown_flops = request.compute_flops if sunk else best.compute_flops - best.base_flops
    graded = support(request, guideline, best.growth_factor)
    return Recommendation(
        guideline=guideline.summary(),
        decision=decision,
        growth_factor=best.growth_factor if grow else None,
        growth_timing_tokens=best.growth_timing_tokens if grow else None,
        growth_timing_range=near if grow else None,
        order=best.order if grow else None,
        base_model=base_model(target, _base(best)) if grow else None,
        target_model=target_model(target),
        grown_tokens=grown_tokens if grow else None,
        flops=Flops(
            convention=target.flops_convention,
            base=best.base_flops if grow else None,
            grown=grown_flops if grow else None,
            total=(grown_flops + (0.0 if sunk else best.base_flops)) if grow else None,
            scratch=request.compute_flops,
        ),
        expected=Expected(
            basis=(
                f"observed: {best.num_grown_seeds} grown and {best.num_scratch_seeds} scratch run(s) at equal FLOPs, "
                f"base compute charged, {guideline.basis.replace('_', '-')} losses, {INTERVAL_LEVEL:.0%} interval"
            ),
            delta_nats=best.delta_nats,
            delta_interval=interval,
        ),
        best_fixed_size=None if single is None else FixedSize(
            params=single.params, num_layers=single.num_layers, expected_loss_nats=single.loss_nats
        ),
        target_oversized=oversized,
        by_accounting=by_accounting,
        support=graded,
        alternatives=_alternatives(request, guideline, pairs),
        warnings=tuple(_warnings(request, guideline, best, pairs, interval, smaller, oversized, by_accounting)),
        recipe=recipe(guideline, target, _base(best), best.growth_timing_tokens, grown_tokens) if grow else {},
        arms=outcomes_without_losses(
            request,
            {name: budget_of(request, guideline, base_is_sunk=name == "sunk") for name in by_accounting},
            by_accounting,
            f"{guideline.name} is provisional: it repeats what was observed and predicts nothing",
            dict.fromkeys(by_accounting, _base(best).flops_per_token),
        ),
    )  # fmt: skip


def _charged(pair: ObservedPair, interval: Interval, smaller: ObservedSingle | None) -> Accounting:
    decision: Decision = "grow" if pair.delta_nats < 0 else "scratch"
    reason = (
        f"At equal FLOPs the grown run ended at {pair.grown_loss_nats:.3f} nats and scratch at "
        f"{pair.scratch_loss_nats:.3f} nats."
    )
    if smaller is not None:
        reason += f" A fixed size of {smaller.params:,.0f} parameters ended at {smaller.loss_nats:.3f} nats."
        if smaller.loss_nats < min(pair.grown_loss_nats, pair.scratch_loss_nats):
            decision = "smaller"
    grow = decision == "grow"
    return Accounting(
        decision=decision, reason=reason, growth_factor=pair.growth_factor if grow else None,
        growth_timing_tokens=pair.growth_timing_tokens if grow else None,
        grown_tokens=pair.grown_tokens if grow else None, delta_nats=pair.delta_nats, delta_interval=interval,
    )  # fmt: skip


def _sunk(pair: ObservedPair, charged: Accounting) -> Accounting:
    """With the base free the grown run gets more tokens than the one observed, so its loss is at most that."""
    if charged.decision != "grow":
        return Accounting(
            decision=None,
            reason=(
                "With the base's compute already spent, growth would get more tokens than the observed run had; how "
                "much that gains was not observed, so it cannot be told whether it is enough."
            ),
        )
    return Accounting(
        decision="grow",
        reason=(
            "With the base's compute already spent, the grown run gets the tokens that the base cost, so it ends at "
            f"most at the observed {pair.grown_loss_nats:.3f} nats; by how much it ends lower was not observed."
        ),
        growth_factor=pair.growth_factor,
        growth_timing_tokens=pair.growth_timing_tokens,
        grown_tokens=pair.grown_tokens * pair.compute_flops / (pair.compute_flops - pair.base_flops),
    )


def _near_optimal(best: ObservedPair, pairs: Sequence[ObservedPair]) -> Interval | None:
    """The span of tried timings whose loss is within 0.25% of the best; None where only one was tried."""
    tried = [pair for pair in pairs if round(pair.growth_factor, 2) == round(best.growth_factor, 2)]
    if len({pair.growth_timing_tokens for pair in tried}) < 2:
        return None
    near = [
        pair.growth_timing_tokens for pair in tried
        if pair.grown_loss_nats <= best.grown_loss_nats * (1 + NEAR_OPTIMAL)
    ]  # fmt: skip
    return min(near), max(near)


def _base(pair: ObservedPair) -> BaseOption:
    layers = (pair.num_base_layers, pair.num_target_layers)
    stacked = pair.order == "stack" and None not in layers
    return BaseOption(
        growth_factor=pair.growth_factor,
        params=pair.base_params,
        num_layers=pair.num_base_layers,
        order=pair.order or "stack",
        connection_rate=connection_rate(stacked_layers(*layers)) if stacked else None,  # type: ignore[arg-type]
        flops_per_token=pair.base_flops / pair.growth_timing_tokens,
    )


def _alternatives(request: Request, guideline: Guideline, pairs: Sequence[ObservedPair]) -> tuple[Alternative, ...]:
    """A row for every factor observed (its best timing) and for every one on offer that was not."""
    assert guideline.noise is not None
    rows: dict[float, Alternative] = {}
    for base in request.bases:
        rows[round(base.growth_factor, 2)] = _unobserved(request, guideline, base)
    for pair in sorted(pairs, key=lambda pair: -pair.grown_loss_nats):
        rows[round(pair.growth_factor, 2)] = Alternative(
            growth_factor=pair.growth_factor, num_base_layers=pair.num_base_layers, base_params=pair.base_params,
            order=pair.order or "stack", connection_rate=_base(pair).connection_rate,
            growth_timing_tokens=pair.growth_timing_tokens,
            growth_timing_range=_near_optimal(pair, pairs), grown_tokens=pair.grown_tokens,
            decision="grow" if pair.delta_nats < 0 else "scratch", delta_nats=pair.delta_nats,
            delta_interval=delta_interval(pair, guideline.noise), grade="interpolation",
        )  # fmt: skip
    return tuple(rows[factor] for factor in sorted(rows))


def _unobserved(request: Request, guideline: Guideline, base: BaseOption) -> Alternative:
    return Alternative(
        growth_factor=base.growth_factor, num_base_layers=base.num_layers, base_params=base.params, order=base.order,
        connection_rate=base.connection_rate, grade=support(request, guideline, base.growth_factor).grade,
    )  # fmt: skip


def _warnings(
    request: Request,
    guideline: Guideline,
    best: ObservedPair,
    pairs: Sequence[ObservedPair],
    interval: Interval,
    smaller: ObservedSingle | None,
    oversized: bool | None,
    by_accounting: dict[str, Accounting],
) -> list[str]:
    sentences = []
    if oversized and smaller is not None:
        against = (
            "both the grown and the scratch target" if by_accounting["charged"].decision == "smaller" else "scratch"
        )
        sentences.append(
            f"The target is over-sized for this budget: {smaller.params:,.0f} parameters alone end at "
            f"{smaller.loss_nats:.3f} nats, below {against}."
        )
    elif smaller is None:
        sentences.append(
            "No smaller fixed size was run at this compute: whether the target is over-sized is not known."
        )
    if guideline.provisional:
        sentences.append(
            f"This guideline is provisional ({guideline.num_runs} runs): it repeats what was observed and predicts "
            "nothing else."
        )
    if by_accounting[request.base_compute].decision is None:
        sentences.append("The answer with the base's compute sunk is not known; the charged one stands on top instead.")
    if interval[0] < 0 < interval[1]:
        sentences.append("The observed difference of grown and scratch is within the noise: it may be none.")
    if smaller is not None and guideline.noise is not None:
        gap = abs(smaller.loss_nats - best.grown_loss_nats)
        if gap < interval[1] - best.delta_nats:
            sentences.append(
                "Grown and the smaller fixed size differ by less than the noise: which is better cannot be told."
            )
    if len(pairs) > 1:
        sentences.append(f"The best of {len(pairs)} observed pairs was chosen, so its delta is somewhat optimistic.")
    if request.target.flops_convention == "6nd":
        sentences.append("FLOPs are 6 N D because only the target's size is known; give its shape for an exact count.")
    sentences += guideline.warnings
    sentences += [f"These runs cannot identify {sentence}." for sentence in guideline.cannot_identify]
    sentences.append("No chance that growth helps is given: that takes at least 10 held-out pairs.")
    return sentences
