"""The loss over growth timing and growth factor: what a planner looks at before trusting one (d, g).

    surface[g][i] = mean over draws of L_grown(N, N / g, d_i, D(d_i)),   d_i evenly spaced in ln d, D what C leaves

Rows differ in their timings, as a smaller base affords more tokens. Scratch and the best fixed size are given beside it
at the same budget.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from fitting.budget import LEAST_GROWN_SHARE
from fitting.errors import InputError
from fitting.guideline import Guideline
from fitting.recommendation.answer import Interval
from fitting.recommendation.from_laws import budget_of
from fitting.recommendation.optimum import NEAR_OPTIMAL, losses_at
from fitting.recommendation.over_budgets import BudgetPoint, over_budgets
from fitting.recommendation.request import Request
from fitting.recommendation.summaries import intervals
from fitting.recommendation.support import support


@dataclass(frozen=True, kw_only=True)
class SurfaceRow:
    """One growth factor: timings and, for each, grown tokens, expected loss and delta with its interval."""

    growth_factor: float
    num_base_layers: int | None
    base_params: float
    grade: str
    growth_timing_tokens: tuple[float, ...]
    grown_tokens: tuple[float, ...]
    loss_nats: tuple[float, ...]
    delta_nats: tuple[float, ...]
    delta_interval: tuple[Interval, ...]


@dataclass(frozen=True, kw_only=True)
class Surface:
    """The rows by rising factor; factors whose base the budget cannot pay for have none.

    ``near_optimal_loss_nats`` is the loss up to which a point of the rows counts as near-optimal (0.25% above the lowest), None
    without rows. ``budgets`` compare growing with scratch at budgets around the request's own.
    """

    compute_flops: float
    base_compute: str
    scratch_loss_nats: float
    near_optimal_loss_nats: float | None
    rows: tuple[SurfaceRow, ...]
    budgets: tuple[BudgetPoint, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def surface(request: Request, guideline: Guideline, *, num_timings: int = 40, num_budgets: int = 0) -> Surface:
    """Loss over (d, g) for the request's budget and accounting, and growing against scratch at ``num_budgets`` others.

    Raises:
        InputError: the guideline has no laws, or does not answer this far out; ``num_timings`` is below 3.
    """
    if num_timings < 3:
        raise InputError("num_timings", f"is {num_timings}, but a surface needs at least 3", "use 40 if unsure")
    if not guideline.laws:
        raise InputError(
            "guideline", f"{guideline.id} predicts no losses, so it has no surface", "fit one with more controls"
        )
    if support(request, guideline).grade == "unsupported":
        raise InputError("guideline", f"{guideline.id} does not answer here", support(request, guideline).reason)
    losses, target = guideline.losses, request.target
    # All that can be paid for, also what is not offered: a landscape shows where the law was never seen.
    sunk = request.base_compute == "sunk"
    budget = replace(budget_of(request, guideline, base_is_sunk=sunk), least_grown_share=LEAST_GROWN_SHARE)
    scratch = losses.scratch(np.array([target.params]), np.array([request.token_budget]))
    rows = []
    for base in request.bases:
        span = budget.timings(base)
        if span is None:
            continue
        timings = np.geomspace(span[0], span[1], num_timings)
        grown = losses_at(losses, [(budget, base)], np.log(timings)[None])[:, 0]
        graded = support(request, guideline, base.growth_factor)
        delta = grown - scratch
        spans = intervals(delta, losses.delta_noise_nats, losses, by_law=graded.grade == "far")
        rows.append(
            SurfaceRow(
                growth_factor=base.growth_factor,
                num_base_layers=base.num_layers,
                base_params=base.params,
                grade=graded.grade,
                growth_timing_tokens=tuple(timings.tolist()),
                grown_tokens=tuple(budget.grown_tokens(base, timings).tolist()),
                loss_nats=tuple(grown.mean(axis=0).tolist()),
                delta_nats=tuple(delta.mean(axis=0).tolist()),
                delta_interval=tuple(spans),
            )
        )
    lowest = min((min(row.loss_nats) for row in rows), default=None)
    return Surface(
        compute_flops=budget.compute_flops,
        base_compute=request.base_compute,
        scratch_loss_nats=float(scratch.mean()),
        near_optimal_loss_nats=None if lowest is None else lowest * (1 + NEAR_OPTIMAL),
        rows=tuple(rows),
        budgets=over_budgets(request, guideline, num_budgets) if num_budgets else (),
    )
