"""The runs that could be made: one size alone, or a grown run, at some size and budget of the cohort.

    cost = C of every run                   a grown run's control joins it where none stands at equal FLOPs
    f_e  = S(N, D)  or  L_grown(N, n, d, D)

========  =====================================================  ==========
symbol    meaning                                                unit
========  =====================================================  ==========
C         compute of the run, base included                      FLOPs
N, n      parameters of the trained target, of the base          parameters
d, D      growth timing, tokens of the last phase                tokens
f_e       final loss of the run in every draw                    nats, (K,)
========  =====================================================  ==========
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fitting.budget import Budget
from fitting.cells import equal_compute
from fitting.conventions import SAME_SIZE
from fitting.guideline import Guideline, ObservedSingle
from fitting.layers import BaseOption, Target, base_options, single_size_flops_per_token, single_size_params
from fitting.recommendation.losses import Losses
from fitting.recommendation.request import Request
from fitting.recommendation.support import grade_at

Array = NDArray[np.float64]
Kind = Literal["scratch", "fixed_size", "grown"]

# As shares of the token budget: both sides of every valley that has been seen.
TIMING_SHARES = (0.03, 0.1, 0.3, 0.6, 1.0)
# Around the budgets that a size was run at, so that a plan may also look beyond them.
BUDGET_MULTIPLES = (0.5, 1.0, 2.0)
# A grown phase shorter than this share of the budget is hardly a phase.
_FEWEST_GROWN = 0.05


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run.

    Attributes:
        target: what is trained to the end: the target, or for ``fixed_size`` the target it is a smaller depth of.
        token_budget: of the target from scratch at this compute.
        params, num_layers: of the model at the end.
        tokens: of the last phase.
        compute_flops: of the run, base included.
    """

    kind: Kind
    target: Target
    token_budget: float
    params: float
    num_layers: int | None
    tokens: float
    compute_flops: float
    base: BaseOption | None = None
    growth_timing_tokens: float | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal designs; a repeat differs in its seed alone."""
        base = None if self.base is None else (self.base.params, self.base.order)
        return (
            self.kind, round(self.params), round(self.target.params), round(self.tokens), base, self.growth_timing_tokens,
        )  # fmt: skip

    def losses(self, losses: Losses) -> Array:
        """Its final loss (K,) in every draw."""
        if self.base is None:
            return losses.scratch(np.array([self.params]), np.array([self.tokens]))[:, 0]
        assert self.growth_timing_tokens is not None
        one = (self.base.params, self.growth_timing_tokens, self.tokens)
        return losses.grown(self.target.params, *(np.array([value]) for value in one))[:, 0]


def candidates(guideline: Guideline, targets: Sequence[Target]) -> list[Experiment]:
    """The runs worth weighing: the targets at the guideline's own budgets and around them, inside its reach.

    Args:
        targets: sizes that may be trained; by shape, so that a run of them can be specified.

    Returns:
        Runs with the same model, tokens and timing stand once.
    """
    found: dict[tuple[object, ...], Experiment] = {}
    for target in targets:
        for token_budget in _budgets(guideline, target):
            for experiment in _at(guideline, target, token_budget):
                found.setdefault(experiment.key, experiment)
    return list(found.values())


def control_of(experiment: Experiment) -> Experiment:
    """The target from scratch at the FLOPs of a run."""
    return _scratch(experiment.target, experiment.token_budget)


def stands(experiment: Experiment, guideline: Guideline) -> bool:
    """Whether a single-size run like this one is behind the guideline."""
    return single_at(experiment.params, experiment.compute_flops, guideline) is not None


def single_at(params: float, compute_flops: float, guideline: Guideline) -> ObservedSingle | None:
    """The single-size cell of this size and compute behind the guideline."""
    for single in guideline.controls:
        if abs(single.params / params - 1) < SAME_SIZE and equal_compute(single.compute_flops, compute_flops):
            return single
    return None


def _budgets(guideline: Guideline, target: Target) -> list[float]:
    """Token budgets of the target: at the compute of its own controls, else of all, and multiples of it."""
    own = [one.compute_flops for one in guideline.controls if abs(one.params / target.params - 1) < SAME_SIZE]
    seen = own or [one.tokens / one.params * target.params * target.flops_per_token for one in guideline.controls]
    compute = sorted({multiple * value for value in seen for multiple in BUDGET_MULTIPLES})
    budgets: list[float] = []
    for value in compute:
        tokens = value / target.flops_per_token
        if not budgets or not equal_compute(tokens, budgets[-1]):
            budgets.append(tokens)
    return budgets


def _at(guideline: Guideline, target: Target, token_budget: float) -> Iterator[Experiment]:
    request = Request(token_budget=token_budget, target_params=target.params, num_target_layers=target.num_layers)
    if target.shape is not None:
        request = Request(token_budget=token_budget, target_shape=target.shape)
    yield _scratch(target, token_budget)
    compute = token_budget * target.flops_per_token
    budget = Budget(target=target, compute_flops=compute)
    for base in base_options(target):
        if grade_at(request, guideline, base.growth_factor, token_budget) == "unsupported":
            continue
        yield _alone(target, base, token_budget)
        for share in TIMING_SHARES:
            timing = share * token_budget
            tokens = float(budget.grown_tokens(base, timing))
            if tokens >= _FEWEST_GROWN * token_budget:
                yield Experiment(
                    kind="grown", target=target, token_budget=token_budget, params=target.params,
                    num_layers=target.num_layers, tokens=tokens, compute_flops=compute, base=base,
                    growth_timing_tokens=timing,
                )  # fmt: skip


def _scratch(target: Target, token_budget: float) -> Experiment:
    return Experiment(
        kind="scratch", target=target, token_budget=token_budget, params=target.params, num_layers=target.num_layers,
        tokens=token_budget, compute_flops=token_budget * target.flops_per_token,
    )  # fmt: skip


def _alone(target: Target, base: BaseOption, token_budget: float) -> Experiment:
    compute = token_budget * target.flops_per_token
    params, price = base.params, base.flops_per_token
    if base.num_layers is not None:
        params = single_size_params(target, base.num_layers)
        price = single_size_flops_per_token(target, base.num_layers)
    return Experiment(
        kind="fixed_size", target=target, token_budget=token_budget, params=params, num_layers=base.num_layers,
        tokens=compute / price, compute_flops=compute,
    )  # fmt: skip
