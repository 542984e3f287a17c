"""What a growth law is: the loss of a grown run, given the scratch law S of its cohort and a few growth parameters.

    delta(N, n, g, d, D2) = L_grown - S(N, DS)

========  ============================================================  ==========
symbol    meaning                                                       unit
========  ============================================================  ==========
N, n      parameters of target and base                                 parameters
g         growth factor                                                 -
d         growth timing: tokens of the base                             tokens
D2        grown tokens                                                  tokens
DS        scratch tokens of the target at the same FLOPs                tokens
d_eq      target tokens at which scratch reaches the base's loss S(n,d) tokens
delta     grown - scratch at equal FLOPs (negative: growth helps)       nats
K, R, P   draws; rows; growth parameters                                -
========  ============================================================  ==========

Two anchors decide whether a law may supply an argmin over d. ``anchored_at_scratch``: with d -> 0 the grown run is the scratch
run (delta -> 0 where DS = D2). ``anchored_at_base``: with D2 -> 0 it has the base's own loss S(n, d). The conformance suite
(``tests/fitting/test_growth_laws_conformance.py``) holds every law to the flags it claims.

Shapes: growth parameters are (..., P), a :class:`Prepared` holds (..., R), results are (..., R) and (..., R, P).
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from fitting.growth_laws.scratch_curve import ScratchCurve
from fitting.laws.base import Array


@dataclass(frozen=True, kw_only=True)
class GrowthPoints:
    """Where growth is asked about; arrays (R,) in the units of the module's table."""

    target_params: Array
    base_params: Array
    growth_factor: Array
    timing_tokens: Array
    grown_tokens: Array
    scratch_tokens: Array

    def __len__(self) -> int:
        return len(self.target_params)

    def where(self, keep: np.ndarray) -> GrowthPoints:
        """The rows that ``keep`` (a mask or indices) selects."""
        return GrowthPoints(**{name: getattr(self, name)[keep] for name in self.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Points with what the scratch law says about them once and for all: base losses, d_eq and scratch losses, (..., R)."""

    points: GrowthPoints
    scratch: ScratchCurve
    base_loss: Array
    equivalent_tokens: Array
    scratch_loss: Array

    @staticmethod
    def of(points: GrowthPoints, scratch: ScratchCurve) -> Prepared:
        base_loss = scratch.smooth_loss(points.base_params, np.maximum(points.timing_tokens, 1e-3))
        reached = scratch.smooth_tokens_for_loss(points.target_params, base_loss)
        # A base below the target's floor is worth more than any scratch run: cap what it is worth.
        cap = 1e3 * (points.timing_tokens + points.grown_tokens + points.scratch_tokens)
        return Prepared(
            points=points,
            scratch=scratch,
            base_loss=base_loss,
            equivalent_tokens=np.minimum(reached, cap),
            scratch_loss=scratch.loss(points.target_params, points.scratch_tokens),
        )

    def take(self, which: np.ndarray) -> Prepared:
        """The draws ``which``; itself where the scratch law is a single one."""
        if self.base_loss.ndim == 1:
            return self
        return Prepared(
            points=self.points,
            scratch=self.scratch.take(which),
            base_loss=self.base_loss[which],
            equivalent_tokens=self.equivalent_tokens[which],
            scratch_loss=self.scratch_loss[which],
        )


class GrowthLaw(abc.ABC):
    """Loss of grown runs on top of a scratch law; stateless. Predictors (no timing in them) share this interface."""

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    parameter_names: ClassVar[tuple[str, ...]]
    lower: ClassVar[tuple[float, ...]]
    upper: ClassVar[tuple[float, ...]]
    anchored_at_scratch: ClassVar[bool]
    anchored_at_base: ClassVar[bool]
    # Pairs of distinct design without which the parameters are not fitted.
    min_pairs: ClassVar[int]

    @property
    def num_parameters(self) -> int:
        return len(self.parameter_names)

    @property
    def may_choose_timing(self) -> bool:
        """Only a law that meets both anchors may be minimised over d."""
        return self.anchored_at_scratch and self.anchored_at_base

    @abc.abstractmethod
    def starts(self) -> Array:
        """Cold starts (S, P) inside the bounds."""

    @abc.abstractmethod
    def grown_loss_and_gradient(self, params: ArrayLike, prepared: Prepared) -> tuple[Array, Array]:
        """L_grown (..., R) in nats and its exact gradient by the growth parameters (..., R, P)."""

    def grown_loss(self, params: ArrayLike, prepared: Prepared) -> Array:
        """L_grown (..., R) in nats; a law may have a quicker way than to drop the gradient."""
        return self.grown_loss_and_gradient(params, prepared)[0]

    def delta_and_gradient(self, params: ArrayLike, prepared: Prepared) -> tuple[Array, Array]:
        """delta (..., R) in nats and its gradient (..., R, P)."""
        loss, gradient = self.grown_loss_and_gradient(params, prepared)
        return loss - prepared.scratch_loss, gradient

    def delta(self, params: ArrayLike, prepared: Prepared) -> Array:
        """delta (..., R) in nats."""
        return self.delta_and_gradient(params, prepared)[0]


def engagement(prepared: Prepared) -> Array:
    """u = D2 / (D2 + d_eq), (..., R): 0 at the moment of growth, 1 once grown tokens outweigh the head start."""
    after = prepared.points.grown_tokens
    return np.asarray(after / (after + prepared.equivalent_tokens))
