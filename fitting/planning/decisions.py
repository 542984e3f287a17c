"""A question as a choice: every arm that could be taken, with its loss in every draw, and what a nat is worth.

    chosen  = argmin over a of mean_k L_k(a)    what would be done today
    worth_k = C / -(dS_k/d ln D)(N, D)          FLOPs of scratch training that a nat would take, to first order

========  ==============================================================  =========
symbol    meaning                                                         unit
========  ==============================================================  =========
a         an arm: scratch, a smaller fixed size, or grow (g, d)           -
K, A      draws; arms                                                     -
L_k(a)    final loss of arm a at the budget in draw k                     nats
S_k       scratch curve of the target in draw k                           nats
N, D, C   target size, token budget, compute budget                       -, tokens, FLOPs
========  ==============================================================  =========
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fitting.conventions import TIE_NATS
from fitting.errors import InputError
from fitting.guideline import Guideline
from fitting.layers import BaseOption, base_options
from fitting.recommendation.arms import on_offer, single_sizes
from fitting.recommendation.from_laws import budget_of, smallest_run, tried_factors
from fitting.recommendation.losses import Losses
from fitting.recommendation.optimum import losses_at
from fitting.recommendation.request import Request
from fitting.recommendation.support import support

Array = NDArray[np.float64]
ArmKind = Literal["scratch", "smaller", "grow"]

# Timings on offer a base, evenly in ln d over what the budget can pay for.
_TIMINGS = 13
# A step in ln D small enough for a derivative, large enough for its last bits.
_STEP = 0.01


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One thing that could be done with the budget; ``base`` and the timing (tokens) where it is to grow.

    ``tokens`` are those of a single size at the budget; None: at equal N D.
    """

    kind: ArmKind
    params: float
    base: BaseOption | None = None
    growth_timing_tokens: float | None = None
    tokens: float | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A choice between arms.

    Attributes:
        losses: (K, A) nats.
        worth_flops: (K,) FLOPs a nat; None where a nat of this decision is not to be paid for in FLOPs.
        weight: of this decision among several.
    """

    request: Request
    arms: tuple[Arm, ...]
    losses: Array
    worth_flops: Array
    weight: float = 1.0

    @cached_property
    def chosen(self) -> int:
        """The arm of the lowest mean loss: what would be done today."""
        return int(np.argmin(self.losses.mean(axis=0)))


def decision_of(request: Request, guideline: Guideline, *, weight: float = 1.0) -> Decision:
    """The arms of ``request`` in the draws of a fitted guideline.

    Raises:
        InputError: the guideline has no draws, or the question lies where it gives no number.
    """
    if not guideline.laws:
        raise InputError(
            "guideline", f"{guideline.name} has no fitted laws, so what a run would teach cannot be computed",
            "store at least six controls of different size or tokens, then refit",
        )  # fmt: skip
    graded = support(request, guideline)
    if graded.grade == "unsupported":
        raise InputError(
            "decision", f"lies too far out: {graded.reason}",
            "ask about a smaller target or budget, or run the pilot that POST /recommend names",
        )  # fmt: skip
    return _weighed(request, guideline, guideline.losses, weight)


def _weighed(request: Request, guideline: Guideline, losses: Losses, weight: float) -> Decision:
    budget = budget_of(request, guideline, base_is_sunk=request.base_compute == "sunk")
    target = budget.target
    sizes, _, costs = single_sizes(target, smallest_run(guideline))
    tokens = budget.compute_flops / costs
    singles = losses.scratch(sizes, tokens)
    arms = [
        Arm(kind="smaller" if i < len(sizes) - 1 else "scratch", params=float(size), tokens=float(tokens[i]))
        for i, size in enumerate(sizes)
    ]
    columns = [singles]
    bases = [base for base in base_options(target, request.growth_factors) if budget.timings(base) is not None]
    # As in an answer: a factor that was never run is no arm where one that was is on offer.
    for base in on_offer(bases, lambda base: base.growth_factor, tried_factors(guideline)):
        span = budget.timings(base)
        assert span is not None
        log_timings = np.linspace(np.log(span[0]), np.log(span[1]), _TIMINGS)
        columns.append(losses_at(losses, [(budget, base)], log_timings[None, :])[:, 0, :])
        arms += [
            Arm(kind="grow", params=target.params, base=base, growth_timing_tokens=float(timing))
            for timing in np.exp(log_timings)
        ]
    return Decision(
        request=request,
        arms=tuple(arms),
        losses=np.concatenate(columns, axis=1),
        worth_flops=_worth(losses, target.params, request.token_budget, budget.compute_flops),
        weight=weight,
    )


def _worth(losses: Losses, params: float, tokens: float, compute_flops: float) -> Array:
    around = tokens * np.exp([-_STEP, _STEP])
    before, after = losses.scratch(np.full(2, params), around).T
    slope = (before - after) / (2 * _STEP)
    # A curve that is flat within a tie here would price a nat at any number of FLOPs.
    return np.asarray(compute_flops / np.maximum(slope, TIE_NATS))
