"""A constant fraction of the compute goes to the base.

    d = phi C / f_base,   phi = 0.05

A baseline. The paper's own setting (d = 10B, g = 4) spends 3.7% of the middle of its compute range on the base at 1.1B
and 5.6% at 3B (arXiv 2405.15319: 4.5e20 and 8e20 FLOPs); phi is those two, rounded. It is always feasible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fitting.rules.base import Plan, RuleDecision, checked, quantity


@dataclass(frozen=True)
class ConstantFraction:
    fraction: float = 0.05
    growth_factor: float = 4.0
    name: str = "constant_fraction"
    source: str = "baseline: the share of compute that G_stack's own runs (arXiv 2405.15319) gave to the base"

    def decide(self, plan: Plan) -> RuleDecision:
        if not plan.bases:
            return RuleDecision(decision="scratch", reason="No base is on offer.")
        base = min(plan.bases, key=lambda option: abs(math.log(option.growth_factor / self.growth_factor)))
        d = self.fraction * plan.compute_flops / (plan.base_cost_factor * base.flops_per_token)
        return checked(
            plan, base, d, f"{self.fraction:.0%} of the compute budget trains the base: d = {quantity(d)} tokens."
        )
