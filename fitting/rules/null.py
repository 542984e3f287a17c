"""The null rule: grow if and only if g < 3, with the base at 20 tokens per parameter.

    d = 20 N / g,   N / g the base's non-embedding parameters

The baseline that every fitted guideline has to beat: it had 19 of 20 signs right on one held-out set of width growth
(the runs of arXiv 2605.13405). 20 tokens per parameter is the compute-optimal ratio of arXiv 2203.15556.
"""

from __future__ import annotations

from dataclasses import dataclass

from fitting.rules.base import Plan, RuleDecision, checked, quantity

TOKENS_PER_BASE_PARAMETER = 20.0
GROWTH_FACTOR_LIMIT = 3.0


@dataclass(frozen=True)
class Null:
    name: str = "null"
    source: str = "grow iff g < 3, d = 20 tokens per base parameter (ratio of Hoffmann et al., arXiv 2203.15556)"

    def decide(self, plan: Plan) -> RuleDecision:
        small = [base for base in plan.bases if 1 < base.growth_factor < GROWTH_FACTOR_LIMIT]
        if not small:
            return RuleDecision(
                decision="scratch", reason="The null rule grows only below g = 3; no such base is on offer."
            )
        base = max(small, key=lambda option: option.growth_factor)
        d = TOKENS_PER_BASE_PARAMETER * base.params
        reason = f"The null rule grows below g = 3, after 20 tokens per base parameter: d = {quantity(d)} tokens."
        return checked(
            plan,
            base,
            d,
            reason,
            needed_token_budget=d * plan.base_cost_factor * base.flops_per_token / plan.target.flops_per_token,
        )
