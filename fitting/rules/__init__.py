"""Rules give (d, g) or "scratch". A new one is one file here and one line in :data:`RULES`."""

from __future__ import annotations

from fitting.rules.base import Plan, Rule, RuleDecision
from fitting.rules.constant_fraction import ConstantFraction
from fitting.rules.eighty_percent import EightyPercent
from fitting.rules.gstack import GStack
from fitting.rules.never import Never
from fitting.rules.null import Null
from fitting.rules.staged import Staged

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (GStack(), Null(), Never(), ConstantFraction(), Staged(), EightyPercent())  # type: Rule
}

__all__ = ["RULES", "Plan", "Rule", "RuleDecision"]
