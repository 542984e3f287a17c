"""Predictors: they give delta and no timing. :data:`PREDICTORS` maps their names to instances.

They share the interface of growth laws and claim neither anchor, so nothing is ever minimised over d with them. The
isoFLOP two-step (:mod:`fitting.predictors.isoflop`) is a procedure on valleys of its own.
"""

from __future__ import annotations

from fitting.growth_laws.base import GrowthLaw
from fitting.predictors.constant_speedup import ConstantSpeedup
from fitting.predictors.token_multiplier import TokenMultiplier

PREDICTORS: dict[str, GrowthLaw] = {law.name: law for law in (ConstantSpeedup(), TokenMultiplier())}

__all__ = ["PREDICTORS"]
