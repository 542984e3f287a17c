"""What a guideline and a rule say of a run before it is seen.

    delta_k = L_grown,k(N, n, d, D) - S_k(N, C / f)            forecast = mean of k, central 80% interval with noise on top

========  =================================================================  ==========
symbol    meaning                                                            unit
========  =================================================================  ==========
k         draw of the guideline's laws                                       -
N, n      target, base                                                       parameters
d, D      growth timing, tokens after growth                                 tokens
C, f      compute of the run, training FLOPs per token of the target         FLOPs
S         scratch law                                                        nats
========  =================================================================  ==========

A guideline without laws repeats what it saw of the same design and says nothing else; one that lies 30x away says nothing
(:mod:`fitting.recommendation.support`). Where it says nothing its user gets the published rule, and so do its decisions here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fitting.cells import equal_compute
from fitting.conventions import SAME_SIZE
from fitting.guideline import Guideline, ObservedPair
from fitting.prequential.cases import Case
from fitting.recommendation.observed import delta_interval
from fitting.recommendation.summaries import intervals
from fitting.recommendation.support import Grade, distance, grade_of
from fitting.rules import RULES, Plan, RuleDecision

# Never growing states a number too: a difference of nothing.
NEVER = "never"
PUBLISHED = "gstack"


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A predicted delta or loss with its 80% interval, in nats."""

    nats: float
    low_nats: float
    high_nats: float


def forecast_delta(guideline: Guideline, case: Case) -> Forecast | None:
    """Grown - scratch of the case by a guideline that has not seen it; None where it says nothing of such a run."""
    if not guideline.laws:
        return _repeated(guideline, case)
    grade = _grade(guideline, case.target.params, case.compute_flops, case.scratch_tokens, case.base.growth_factor)
    if grade == "unsupported":
        return None
    losses, size = guideline.losses, case.target.params
    grown = losses.grown(
        size, np.array([case.base.params]), np.array([case.timing_tokens]), np.array([case.grown_tokens])
    )
    delta = grown - losses.scratch(np.array([size]), np.array([case.scratch_tokens]))
    ((low, high),) = intervals(delta, losses.delta_noise_nats, losses, by_law=grade == "far")
    return Forecast(nats=float(delta.mean()), low_nats=low, high_nats=high)


def forecast_loss(guideline: Guideline, params: float, tokens: float, compute_flops: float) -> Forecast | None:
    """Final loss of a run of one size by a guideline that has not seen it; None without laws or beyond their reach."""
    if not guideline.laws:
        return None
    grade = _grade(guideline, params, compute_flops, tokens, None)
    if grade == "unsupported":
        return None
    losses = guideline.losses
    drawn = losses.scratch(np.array([params]), np.array([tokens]))
    ((low, high),) = intervals(drawn, losses.run_noise_nats, losses, by_law=grade == "far")
    return Forecast(nats=float(drawn.mean()), low_nats=low, high_nats=high)


def forecast_grown_loss(
    guideline: Guideline,
    *,
    params: float,
    base_params: float,
    growth_factor: float,
    timing_tokens: float,
    grown_tokens: float,
    scratch_tokens: float,
    compute_flops: float,
) -> Forecast | None:
    """Final loss of a grown run by a guideline that has not seen it; None without laws or beyond their reach.

    Args:
        params, base_params: target and base.
        scratch_tokens: what scratch would get for ``compute_flops``.
    """
    if not guideline.laws:
        return None
    grade = _grade(guideline, params, compute_flops, scratch_tokens, growth_factor)
    if grade == "unsupported":
        return None
    losses = guideline.losses
    drawn = losses.grown(params, np.array([base_params]), np.array([timing_tokens]), np.array([grown_tokens]))
    ((low, high),) = intervals(drawn, losses.run_noise_nats, losses, by_law=grade == "far")
    return Forecast(nats=float(drawn.mean()), low_nats=low, high_nats=high)


def rule_decisions(
    case: Case, known: Sequence[Case], base_loss: Callable[[float, float], float] | None
) -> dict[str, RuleDecision]:
    """What every rule of :data:`fitting.rules.RULES` wants at the case's target and compute.

    Args:
        known: cases there so far; a rule is offered the bases that were grown at this target and compute.
        base_loss: (params, tokens) -> nats for rules that watch the base's curve; None: they take the published one.
    """
    offered = {round(case.base.growth_factor, 3): case.base}
    for other in known:
        if case.same_question(other):
            offered.setdefault(round(other.base.growth_factor, 3), other.base)
    plan = Plan(
        target=case.target,
        token_budget=case.compute_flops / case.target.flops_per_token,
        bases=tuple(offered[factor] for factor in sorted(offered)),
        base_loss=base_loss,
    )
    return {name: rule.decide(plan) for name, rule in RULES.items()}


def base_loss_of(guideline: Guideline | None) -> Callable[[float, float], float] | None:
    """The scratch curve of a fitted guideline, None where there is none."""
    if guideline is None or not guideline.laws:
        return None
    # The curve's shape is wanted, not its interval: few draws give it.
    losses = guideline.losses.thinned(12)
    return lambda params, tokens: float(losses.scratch(np.array([params]), np.array([tokens])).mean())


def _grade(guideline: Guideline, params: float, compute: float, tokens: float, factor: float | None) -> Grade:
    known = guideline.known
    if known.target_params is None or known.compute_flops is None:
        return "unsupported"
    found = [
        distance(params, known.target_params),
        distance(compute, known.compute_flops),
        distance(tokens / params, known.tokens_per_parameter),
        None if factor is None else distance(factor, known.growth_factor),
    ]
    return grade_of(max(value for value in found if value is not None))


def _repeated(guideline: Guideline, case: Case) -> Forecast | None:
    """The observed delta of the same design, where a guideline without laws holds one (another seed of it)."""
    seen = [pair for pair in guideline.pairs if _same_design(pair, case)]
    if not seen or guideline.noise is None:
        return None
    pair = seen[0]
    low, high = delta_interval(pair, guideline.noise)
    return Forecast(nats=pair.delta_nats, low_nats=low, high_nats=high)


def _same_design(pair: ObservedPair, case: Case) -> bool:
    return (
        abs(pair.target_params / case.target.params - 1) < SAME_SIZE
        and abs(pair.growth_factor / case.base.growth_factor - 1) < SAME_SIZE
        and abs(pair.growth_timing_tokens / case.timing_tokens - 1) < SAME_SIZE
        and equal_compute(pair.compute_flops, case.compute_flops)
    )
