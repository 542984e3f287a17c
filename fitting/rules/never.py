"""Never grow: the baseline that costs nothing to follow."""

from __future__ import annotations

from dataclasses import dataclass

from fitting.rules.base import Plan, RuleDecision


@dataclass(frozen=True)
class Never:
    name: str = "never"
    source: str = "baseline: every target is trained from scratch"

    def decide(self, plan: Plan) -> RuleDecision:
        return RuleDecision(decision="scratch", reason="This rule never grows.")
