"""Staged training's rule: grow a depth x2 when the base's loss curve has flattened to a fixed slope.

    grow when  d ln L / d ln C  of the base rises above -0.0575   (depth x2; -0.0475 for width x2)

Source: Shen et al., "Staged Training for Transformer Language Models", arXiv 2203.06211. At a fixed size C is
proportional to tokens, so the slope is d ln L / d ln d. The rule needs the base's loss curve: the plan's scratch law,
or Hoffmann et al.'s (arXiv 2203.15556, as refitted in arXiv 2404.10102) where the plan has none. It does not depend on
the final budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import scipy  # its parts load when they are first used: a service starts sooner

from fitting.rules.base import Plan, RuleDecision, checked, quantity

DEPTH_SLOPE = -0.0575
_LOG_TOKENS_SEARCHED = (math.log(1e3), math.log(1e16))


def hoffmann_loss(params: float, tokens: float) -> float:
    """Chinchilla's law with the published point's constants, nats per token on that paper's own data."""
    return 1.81686 + 482.006 / params**0.347813 + 2085.436 / tokens**0.365854


@dataclass(frozen=True)
class Staged:
    name: str = "staged"
    source: str = "Shen et al., 'Staged Training for Transformer Language Models', arXiv 2203.06211"

    def decide(self, plan: Plan) -> RuleDecision:
        bases = [base for base in plan.bases if 1.5 < base.growth_factor < 3]
        if not bases:
            return RuleDecision(
                decision="scratch", reason="Staged training doubles the depth; no base near g = 2 is on offer."
            )
        base = min(bases, key=lambda option: abs(math.log(option.growth_factor / 2)))
        curve, whose = (
            (plan.base_loss, "the cohort's scratch law") if plan.base_loss else (hoffmann_loss, "Hoffmann et al.'s law")
        )
        d = tokens_at_slope(lambda tokens: curve(base.params, tokens), DEPTH_SLOPE)
        if d is None:
            return RuleDecision(decision="scratch", reason=f"On {whose} the base's slope never crosses {DEPTH_SLOPE}.")
        reason = f"On {whose} the base's loss curve flattens to {DEPTH_SLOPE} at d = {quantity(d)} tokens."
        return checked(
            plan,
            base,
            d,
            reason,
            needed_token_budget=d * plan.base_cost_factor * base.flops_per_token / plan.target.flops_per_token,
        )


def tokens_at_slope(loss: Callable[[float], float], slope: float) -> float | None:
    """The last token count at which d ln loss / d ln tokens crosses ``slope`` upwards, None if it does not."""

    def excess(log_tokens: float) -> float:
        step = 1e-4
        rise = math.log(loss(math.exp(log_tokens + step))) - math.log(loss(math.exp(log_tokens - step)))
        return rise / (2 * step) - slope

    low, high = _LOG_TOKENS_SEARCHED
    grid = [low + (high - low) * i / 400 for i in range(401)]
    values = [excess(point) for point in grid]
    for i in range(len(grid) - 2, -1, -1):
        if values[i] < 0 <= values[i + 1]:
            return math.exp(scipy.optimize.brentq(excess, grid[i], grid[i + 1], xtol=1e-10))
    return None
