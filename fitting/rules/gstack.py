"""The published G_stack guideline (Du et al., arXiv 2405.15319, section on guidelines).

    log10 d = 0.88 log10 N + 163.27 / log10 C - 5.74,   C = 6 N D,   g = 4

========  ==========================================  ==========
symbol    meaning                                     unit
========  ==========================================  ==========
d         growth timing                               tokens
N         non-embedding parameters of the target      parameters
D         token budget                                tokens
C         compute budget by 6 N D                     FLOPs
========  ==========================================  ==========

Fitted on 410M, 1.1B and 3B targets, one seed, intermediate points of one long cosine schedule, g = 4 only: no error
bars were published. The rounding of the printed constants alone moves d by 13% either way at 8B; that is the range
given. C in the formula stays 6 N D, as fitted; whether d is affordable is decided by the plan's own accounting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import scipy  # its parts load when they are first used: a service starts sooner

from fitting.flops import flops_by_6nd
from fitting.rules.base import BaseOption, Plan, RuleDecision, checked, quantity

_SIZE_EXPONENT, _COMPUTE_CONSTANT, _INTERCEPT = 0.88, 163.27, 5.74
_HALF_A_DIGIT = 0.005
PUBLISHED_GROWTH_FACTOR = 4.0
# "best between 2 and 4 on 1.1B and 3B".
FACTORS_FOUND_GOOD = (2.0, 4.0)
_LARGEST_BUDGET_TOKENS = 1e24


@dataclass(frozen=True)
class GStack:
    name: str = "gstack"
    source: str = "Du et al., 'Stacking Your Transformers', NeurIPS 2024, arXiv 2405.15319"

    def decide(self, plan: Plan) -> RuleDecision:
        base = _base_nearest_four(plan)
        if base is None:
            low, high = FACTORS_FOUND_GOOD
            return RuleDecision(
                decision="scratch",
                reason=f"G_stack was found good for growth factors {low:g} to {high:g}; none of those is on offer.",
            )
        d = growth_timing_tokens(plan.target.params, plan.token_budget)
        reason = (
            f"G_stack's formula gives d = {quantity(d)} tokens for N = {quantity(plan.target.params)} and C = "
            f"{flops_by_6nd(plan.target.params, plan.token_budget):.3g} FLOPs (6 N D)."
        )
        return checked(
            plan, base, d, reason,
            growth_timing_range=growth_timing_range(plan.target.params, plan.token_budget),
            needed_token_budget=smallest_feasible_budget(
                plan.target.params, plan.base_cost_factor * base.flops_per_token / plan.target.flops_per_token
            ),
        )  # fmt: skip


def growth_timing_tokens(target_params: float, token_budget: float) -> float:
    """d in tokens. The formula has no value at C <= 1 FLOP."""
    log_compute = math.log10(flops_by_6nd(target_params, token_budget))
    return 10 ** (_SIZE_EXPONENT * math.log10(target_params) + _COMPUTE_CONSTANT / log_compute - _INTERCEPT)


def growth_timing_range(target_params: float, token_budget: float) -> tuple[float, float]:
    """d with every constant half a printed digit lower, and higher."""
    log_compute = math.log10(flops_by_6nd(target_params, token_budget))
    slack = 10 ** (_HALF_A_DIGIT * (math.log10(target_params) + 1 / log_compute + 1))
    d = growth_timing_tokens(target_params, token_budget)
    return d / slack, d * slack


def tentative_growth_factor(target_params: float, token_budget: float) -> float:
    """The authors' own "mediocre" fit, log10 g = 1.01 log10 N - 29.88 / log10 C - 7.36. For comparison only."""
    log_compute = math.log10(flops_by_6nd(target_params, token_budget))
    return float(10 ** (1.01 * math.log10(target_params) - 29.88 / log_compute - 7.36))


def smallest_feasible_budget(target_params: float, base_to_target_flops: float) -> float | None:
    """The token budget from which d f_base < D f_target holds, None if it is above 1e24 tokens.

    d falls and D rises with the budget, so the crossing is unique.
    """

    def surplus(log_budget: float) -> float:
        return log_budget - math.log10(base_to_target_flops * growth_timing_tokens(target_params, 10**log_budget))

    highest = math.log10(_LARGEST_BUDGET_TOKENS)
    if surplus(highest) <= 0:
        return None
    # At 1 token C is 6 N, and d is astronomically above it for any model of more than a few parameters.
    lowest = 0.0
    if surplus(lowest) > 0:
        return 1.0
    return float(10 ** scipy.optimize.brentq(surplus, lowest, highest, xtol=1e-12))


def _base_nearest_four(plan: Plan) -> BaseOption | None:
    low, high = FACTORS_FOUND_GOOD
    # Layer counts that do not divide give factors like 4.07 from 61 layers; they count as the 4 that was meant.
    offered = [base for base in plan.bases if low * 0.9 <= base.growth_factor <= high * 1.1]
    return min(offered, key=lambda base: abs(math.log(base.growth_factor / PUBLISHED_GROWTH_FACTOR)), default=None)
