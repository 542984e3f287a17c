"""The answer from fitted laws: every field from the same draws, under both accountings of the base's compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fitting.budget import LEAST_GROWN_SHARE, Budget
from fitting.conventions import INTERVAL_LEVEL, TIE_NATS
from fitting.guideline import Guideline, Range
from fitting.layers import BaseOption
from fitting.recommendation import summaries
from fitting.recommendation.answer import (
    Accounting,
    Alternative,
    Decision,
    Expected,
    Fade,
    FixedSize,
    Flops,
    Interval,
    Recommendation,
    Stakes,
    base_model,
    flops_of,
    target_model,
)
from fitting.recommendation.arms import Arms, arms, fewest_flops
from fitting.recommendation.losses import Losses
from fitting.recommendation.optimum import Optimum
from fitting.recommendation.outcomes import PAIRS_FOR_A_CHANCE, chance_below, outcomes_from_laws
from fitting.recommendation.recipe import recipe
from fitting.recommendation.request import Request
from fitting.recommendation.support import Support, grade_at, support
from fitting.rules.gstack import FACTORS_FOUND_GOOD

# The token budgets at which to show how the gain fades, as multiples of the one asked about.
_FADE_BUDGETS = (0.25, 1.0, 4.0)
_BISECTION_DRAWS = 50
# Grown phases shorter than the shortest one that was run by more than this are not offered: the law was never seen there.
_BELOW_SHORTEST_RUN = 2.0


def answer_from_laws(request: Request, guideline: Guideline, losses: Losses) -> Recommendation:
    """What the fitted laws say; the caller has checked that the guideline answers at this distance."""
    if request.objective == "fewest_flops":
        return _for_fewest_flops(request, guideline, losses)
    target = request.target
    bases = request.bases
    sunk = request.base_compute == "sunk"
    budgets = {name: budget_of(request, guideline, base_is_sunk=name == "sunk") for name in ("charged", "sunk")}
    others = [
        budget_of(request, guideline, base_is_sunk=sunk, token_budget=share * request.token_budget)
        for share in _FADE_BUDGETS
    ]
    # One evaluation of the laws for everything: both accountings, and the budgets that show how the gain fades.
    everything = arms(losses, [*budgets.values(), *others], bases, smallest_run(guideline), tried_factors(guideline))
    found = dict(zip(budgets, everything, strict=False))
    budget, weighed = budgets[request.base_compute], found[request.base_compute]
    best, decision = weighed.best, weighed.decision
    graded = support(request, guideline, None if best is None else best.base.growth_factor)
    far = graded.grade == "far"
    grow = decision == "grow"
    deltas = {name: _deltas(losses, arms_, far=far) for name, arms_ in found.items()}
    base = best.base if best is not None and grow else None
    timing = best.timing_tokens if best is not None and grow else None
    delta = None if best is None else best.losses - weighed.scratch.losses
    fading = [] if best is None else _same_base(best, others, everything[len(budgets) :])
    speedup = None
    fade: tuple[Fade, ...] = ()
    if best is not None:
        points = [(budget, best), *((other, optimum) for other, _, optimum in fading)]
        charged = np.array([flops_of(own, one.base, one.timing_tokens).total for own, one in points])
        grown = np.stack([one.losses for _, one in points], axis=1)
        all_speedups = summaries.speedups(losses, target, grown, charged)
        speedup = all_speedups[:, 0]
        fade = _fade(request, guideline, best, fading, all_speedups[:, 1:], charged[1:])
    return Recommendation(
        guideline=guideline.summary(),
        decision=decision,
        growth_factor=None if base is None else base.growth_factor,
        growth_timing_tokens=timing,
        growth_timing_range=best.near_optimal if best is not None and grow else None,
        growth_timing_interval=summaries.finite_interval(best.timing_draws) if best is not None and grow else None,
        order=None if base is None else base.order,
        base_model=None if base is None else base_model(target, base),
        target_model=target_model(target),
        grown_tokens=best.grown_tokens if best is not None and grow else None,
        flops=flops_of(budget, base, timing),
        expected=_expected(guideline, losses, weighed, deltas[request.base_compute], speedup, budget),
        best_fixed_size=FixedSize(
            params=weighed.best_single.params,
            num_layers=weighed.best_single.num_layers,
            expected_loss_nats=weighed.best_single.loss_nats,
        ),
        target_oversized=weighed.oversized,
        by_accounting={name: _accounting(arms_, deltas[name], budgets[name]) for name, arms_ in found.items()},
        support=graded,
        alternatives=_alternatives(request, guideline, weighed, deltas[request.base_compute], bases),
        warnings=tuple(_warnings(request, guideline, weighed, graded)),
        fade=fade,
        decision_points=summaries.decision_points(losses, budget, best, by_law=far)
        if best is not None and grow
        else (),
        stakes=_stakes(request, delta, speedup, budget),
        arms=outcomes_from_laws(request, guideline, losses, budgets, found, by_law=far),
        recipe=recipe(guideline, target, best.base, best.timing_tokens, best.grown_tokens) if best and grow else {},
        borrowed=guideline.borrowed,
    )


def budget_of(
    request: Request, guideline: Guideline, *, base_is_sunk: bool, token_budget: float | None = None
) -> Budget:
    """The request's budget under one accounting, or another token budget with everything else the same.

    Grown phases shorter than the guideline's runs tell of are not offered: right after growth a loss stands above its law.
    """
    tokens = request.token_budget if token_budget is None else token_budget
    return Budget(
        target=request.target,
        compute_flops=tokens * request.target.flops_per_token,
        base_is_sunk=base_is_sunk,
        existing_base_tokens=request.base_tokens,
        base_cost_factor=1.0 if request.hardware is None else request.hardware.base_cost_factor,
        least_grown_share=least_grown_share(guideline),
    )


def least_grown_share(guideline: Guideline) -> float:
    """The smallest share of a budget that a grown phase had in the guideline's pairs, and half of it: no less is offered."""
    shares = [1.0 - pair.base_flops / pair.compute_flops for pair in guideline.pairs]
    return max(LEAST_GROWN_SHARE, min(shares, default=0.0) / _BELOW_SHORTEST_RUN)


def smallest_run(guideline: Guideline) -> float | None:
    """The smallest single size behind the guideline, in parameters."""
    return min((single.params for single in guideline.controls), default=None)


def tried_factors(guideline: Guideline) -> Range:
    """The factors behind the guideline; without grown runs of its own, those that the literature found good."""
    return guideline.known.growth_factor or FACTORS_FOUND_GOOD


# Mean and interval of grown - scratch by growth factor.
Deltas = dict[float, tuple[float, Interval]]


def _deltas(losses: Losses, weighed: Arms, *, far: bool) -> Deltas:
    if not weighed.optima:
        return {}
    draws = np.stack([optimum.losses - weighed.scratch.losses for optimum in weighed.optima], axis=1)
    spans = summaries.intervals(draws, losses.delta_noise_nats, losses, by_law=far)
    means = draws.mean(axis=0)
    return {
        optimum.base.growth_factor: (float(mean), span)
        for optimum, mean, span in zip(weighed.optima, means, spans, strict=True)
    }


def _expected(
    guideline: Guideline,
    losses: Losses,
    weighed: Arms,
    deltas: Deltas,
    speedup: summaries.Array | None,
    budget: Budget,
) -> Expected:
    best = weighed.best
    if best is None or speedup is None:
        return Expected(basis="none: no base that the budget could pay for is on offer")
    delta, span = deltas[best.base.growth_factor]
    middle = summaries.finite_median(speedup)
    enough = guideline.num_held_out_pairs >= PAIRS_FOR_A_CHANCE
    charged = "sunk" if budget.base_is_sunk else "charged"
    return Expected(
        basis=(
            f"fitted: {guideline.basis.replace('_', '-')} losses, base compute {charged}, {losses.num_draws} draws, "
            f"{INTERVAL_LEVEL:.0%} intervals for a single pair of runs"
        ),
        delta_nats=delta,
        delta_interval=span,
        speedup=middle,
        speedup_interval=summaries.finite_interval(speedup),
        saved_target_tokens=None if middle is None else middle * budget.compute_flops / budget.target.flops_per_token,
        chance_growth_helps=chance_below(best.losses - weighed.scratch.losses, losses.delta_noise_nats)
        if enough
        else None,
    )


def _accounting(weighed: Arms, deltas: Deltas, budget: Budget) -> Accounting:
    best, decision = weighed.best, weighed.decision
    reason = f"Scratch is expected to end at {weighed.scratch.loss_nats:.3f} nats"
    if best is None:
        return Accounting(decision=decision, reason=f"{reason}; no base that the budget could pay for is on offer.")
    delta, span = deltas[best.base.growth_factor]
    grow = decision == "grow"
    reason += (
        f", grown (g = {best.base.growth_factor:.3g}) at {best.loss_nats:.3f}, the best fixed size "
        f"({weighed.best_single.params:.3g} parameters) at {weighed.best_single.loss_nats:.3f}."
    )
    if budget.base_is_sunk and budget.existing_base_tokens is None:
        reason += " This holds where a base trained for d tokens exists anyway."
    return Accounting(
        decision=decision,
        reason=reason,
        growth_factor=best.base.growth_factor if grow else None,
        growth_timing_tokens=best.timing_tokens if grow else None,
        grown_tokens=best.grown_tokens if grow else None,
        delta_nats=delta,
        delta_interval=span,
    )


def _alternatives(
    request: Request, guideline: Guideline, weighed: Arms, deltas: Deltas, bases: tuple[BaseOption, ...]
) -> tuple[Alternative, ...]:
    by_factor = {optimum.base.growth_factor: optimum for optimum in weighed.optima}
    rows = []
    for base in bases:
        optimum = by_factor.get(base.growth_factor)
        delta, span = deltas.get(base.growth_factor, (None, None))
        decision: Decision = "infeasible"
        if delta is not None:
            decision = "grow" if delta < -TIE_NATS else "scratch"
        rows.append(
            Alternative(
                growth_factor=base.growth_factor,
                num_base_layers=base.num_layers,
                base_params=base.params,
                order=base.order,
                connection_rate=base.connection_rate,
                growth_timing_tokens=None if optimum is None else optimum.timing_tokens,
                growth_timing_range=None if optimum is None else optimum.near_optimal,
                grown_tokens=None if optimum is None else optimum.grown_tokens,
                decision=decision,
                delta_nats=delta,
                delta_interval=span,
                grade=grade_at(request, guideline, base.growth_factor, request.token_budget),
            )
        )
    return tuple(rows)


# A budget, its arms, and the optimum there of the base that is recommended.
Fading = tuple[Budget, Arms, Optimum]


def _same_base(best: Optimum, budgets: Sequence[Budget], weighed: Sequence[Arms]) -> list[Fading]:
    return [
        (budget, arms_, optimum)
        for budget, arms_ in zip(budgets, weighed, strict=True)
        for optimum in arms_.optima
        if optimum.base.growth_factor == best.base.growth_factor
    ]


def _fade(
    request: Request,
    guideline: Guideline,
    best: Optimum,
    fading: Sequence[Fading],
    speedups: summaries.Array,
    charged_flops: summaries.Array,
) -> tuple[Fade, ...]:
    """What the recommended base gains at other budgets, each at its own best timing."""
    target, rows = request.target, []
    for i, (budget, arms_, optimum) in enumerate(fading):
        tokens = budget.compute_flops / target.flops_per_token
        grade = grade_at(request, guideline, best.base.growth_factor, tokens)
        if grade == "unsupported":
            continue
        speedup = summaries.finite_median(speedups[:, i])
        rows.append(
            Fade(
                token_budget=tokens,
                tokens_per_parameter=tokens / target.params,
                growth_timing_tokens=optimum.timing_tokens,
                delta_nats=float((optimum.losses - arms_.scratch.losses).mean()),
                speedup=speedup,
                saved_target_tokens=None
                if speedup is None
                else float(speedup * charged_flops[i] / target.flops_per_token),
                grade=grade,
            )
        )
    return tuple(rows)


def _stakes(
    request: Request, delta: summaries.Array | None, speedup: summaries.Array | None, budget: Budget
) -> Stakes | None:
    if delta is None or speedup is None:
        return None
    return summaries.stakes(delta, speedup, budget.compute_flops, request.hardware)


def _for_fewest_flops(request: Request, guideline: Guideline, losses: Losses) -> Recommendation:
    """Shrink the budget until the best arm just reaches what scratch reaches with all of it, and answer there."""
    target = request.target
    bases = request.bases
    scratch = losses.scratch(np.array([target.params]), np.array([request.token_budget]))
    goal = float(scratch.mean())
    sunk = request.base_compute == "sunk"
    few = losses.thinned(_BISECTION_DRAWS)

    def weigh(compute_flops: float) -> Arms:
        tokens = compute_flops / target.flops_per_token
        budget = budget_of(request, guideline, base_is_sunk=sunk, token_budget=tokens)
        return arms(few, [budget], bases, smallest_run(guideline), tried_factors(guideline))[0]

    compute = fewest_flops(weigh, request.compute_flops, goal)
    if compute is None:
        answer = answer_from_laws(replace(request, objective="lowest_loss"), guideline, losses)
        sentence = f"Neither growth nor a smaller size is expected to reach scratch's {goal:.3f} nats for fewer FLOPs."
        return replace(answer, warnings=(sentence, *answer.warnings))
    asked = replace(request, token_budget=compute / target.flops_per_token, objective="lowest_loss")
    answer = answer_from_laws(asked, guideline, losses)
    saved = 1 - compute / request.compute_flops
    sentence = (
        f"Scratch on {request.token_budget:.4g} tokens is expected to end at {goal:.3f} nats; this reaches it with "
        f"{saved:.0%} fewer FLOPs ({compute:.3g} against {request.compute_flops:.3g})."
    )
    flops: Flops = replace(answer.flops, scratch=request.compute_flops)
    return replace(answer, flops=flops, warnings=(sentence, *answer.warnings))


def _warnings(request: Request, guideline: Guideline, weighed: Arms, graded: Support) -> list[str]:
    sentences = []
    best, single = weighed.best, weighed.best_single
    if weighed.oversized:
        against = "both growing and scratch" if best is not None and weighed.decision == "smaller" else "scratch"
        sentences.append(
            f"The target is over-sized for this budget: {single.params:,.0f} parameters alone are expected to end at "
            f"{single.loss_nats:.3f} nats, below {against}."
        )
    if graded.grade == "far":
        sentences.append(f"{graded.reason} Intervals include the disagreement between laws.")
    if best is not None and best.edge is not None:
        why = (
            ""
            if best.edge == "earliest"
            else ", and no grown phase half as short as this was run: a later one would tell"
        )
        sentences.append(f"The best timing lies at the {best.edge} one on offer: no inner optimum was found{why}.")
    if best is not None and abs(best.loss_nats - weighed.scratch.loss_nats) <= TIE_NATS:
        sentences.append(f"Growing and scratch are expected to tie (within {TIE_NATS} nats).")
    untried = weighed.untried_and_lower
    if untried is not None:
        sentences.append(
            f"g = {untried.base.growth_factor:.3g} is expected to end lower still ({untried.loss_nats:.3f} nats), but "
            "no such factor was run in this cohort: one run of it would tell."
        )
    if best is not None and not best.base.exact and weighed.decision == "grow":
        sentences.append(
            f"The base's {best.base.num_layers} layers do not divide the target's; order lists the layers "
            f"(connection rate {best.base.connection_rate:.0%})."
        )
    if request.target.flops_convention == "6nd":
        sentences.append("FLOPs are 6 N D because only the target's size is known; give its shape for an exact count.")
    if guideline.num_held_out_pairs < PAIRS_FOR_A_CHANCE:
        sentences.append("No chance that growth helps is given: that takes at least 10 held-out pairs.")
    sentences += guideline.borrowed
    sentences += guideline.warnings
    sentences += [f"These runs cannot identify {sentence}." for sentence in guideline.cannot_identify]
    return sentences
