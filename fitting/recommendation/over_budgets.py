"""Growing against scratch over the budget: where the gain comes from, and how it fades with tokens per parameter.

    C_i = C r_i,   r_i evenly spaced in ln r from 1/8 to 8,   each budget at its own best timing
    saved_i = speedup_i C_i / f,   speedup as :mod:`fitting.recommendation.summaries` has it

========  =====================================================  ==========
symbol    meaning                                                unit
========  =====================================================  ==========
C, f      compute budget, FLOPs per token of the target          FLOPs
========  =====================================================  ==========

The base is the one recommended at the request's own budget. Budgets beyond the guideline's reach (30x) are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fitting.guideline import Guideline
from fitting.recommendation.answer import Interval, flops_of
from fitting.recommendation.arms import arms
from fitting.recommendation.from_laws import budget_of, smallest_run, tried_factors
from fitting.recommendation.request import Request
from fitting.recommendation.summaries import finite_interval, finite_median, intervals, speedups
from fitting.recommendation.support import grade_at

_SPAN = 8.0


@dataclass(frozen=True, kw_only=True)
class BudgetPoint:
    """One budget. Intervals are those of a single run; saved tokens are None where scratch never reaches the grown loss."""

    token_budget: float
    tokens_per_parameter: float
    compute_flops: float
    grade: str
    growth_timing_tokens: float
    scratch_loss_nats: float
    scratch_interval: Interval
    grown_loss_nats: float
    grown_interval: Interval
    saved_target_tokens: float | None
    saved_interval: Interval | None


def over_budgets(request: Request, guideline: Guideline, num_budgets: int) -> tuple[BudgetPoint, ...]:
    """Growing and scratch at ``num_budgets`` budgets around the request's own; none where no base can be paid for.

    Args:
        guideline: one with laws that answers the request.
        num_budgets: an odd number has the request's own budget in the middle.
    """
    losses, target = guideline.losses, request.target
    tokens = [float(one) for one in request.token_budget * np.geomspace(1 / _SPAN, _SPAN, num_budgets)]
    sunk = request.base_compute == "sunk"
    own = budget_of(request, guideline, base_is_sunk=sunk)
    budgets = [own, *(budget_of(request, guideline, base_is_sunk=sunk, token_budget=one) for one in tokens)]
    first, *others = arms(losses, budgets, request.bases, smallest_run(guideline), tried_factors(guideline))
    if first.best is None:
        return ()
    factor = first.best.base.growth_factor
    found = []
    for token_budget, budget, weighed in zip(tokens, budgets[1:], others, strict=True):
        grade = grade_at(request, guideline, factor, token_budget)
        best = next((one for one in weighed.optima if one.base.growth_factor == factor), None)
        if grade == "unsupported" or best is None:
            continue
        both = np.stack([weighed.scratch.losses, best.losses], axis=1)
        scratch_band, grown_band = intervals(both, losses.run_noise_nats, losses, by_law=grade == "far")
        charged = flops_of(budget, best.base, best.timing_tokens).total
        assert charged is not None
        saved = speedups(losses, target, both[:, 1:], np.array([charged]))[:, 0] * charged / target.flops_per_token
        found.append(
            BudgetPoint(
                token_budget=token_budget,
                tokens_per_parameter=token_budget / target.params,
                compute_flops=budget.compute_flops,
                grade=grade,
                growth_timing_tokens=best.timing_tokens,
                scratch_loss_nats=weighed.scratch.loss_nats,
                scratch_interval=scratch_band,
                grown_loss_nats=best.loss_nats,
                grown_interval=grown_band,
                saved_target_tokens=finite_median(saved),
                saved_interval=finite_interval(saved),
            )
        )
    return tuple(found)
