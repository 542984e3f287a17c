"""Grow once, at 80% of the run's tokens.

    d = 0.8 T,   T = d + D,   d f_base + D f_target = C   =>   T = C / (0.8 f_base + 0.2 f_target)

Source: arXiv 2511.04981 (zero/one-layer progressive training under warm-up-stable-decay): grow at T - t_mix, about
0.8 T, from the shallowest base. t_mix comes from a pilot there; 0.8 is its rough value. The rule failed in a public
test with only 5% of the steps after growth. Always feasible.
"""

from __future__ import annotations

from dataclasses import dataclass

from fitting.rules.base import Plan, RuleDecision, checked, quantity

FRACTION_OF_RUN = 0.8


@dataclass(frozen=True)
class EightyPercent:
    name: str = "eighty_percent"
    source: str = "arXiv 2511.04981: one growth at about 80% of the run, from the shallowest base"

    def decide(self, plan: Plan) -> RuleDecision:
        if not plan.bases:
            return RuleDecision(decision="scratch", reason="No base is on offer.")
        base = max(plan.bases, key=lambda option: option.growth_factor)
        per_token = (1 - FRACTION_OF_RUN) * plan.target.flops_per_token
        if not plan.base_is_sunk:
            per_token += FRACTION_OF_RUN * plan.base_cost_factor * base.flops_per_token
        d = FRACTION_OF_RUN * plan.compute_flops / per_token
        return checked(plan, base, d, f"80% of the run's tokens go to the shallowest base: d = {quantity(d)} tokens.")
