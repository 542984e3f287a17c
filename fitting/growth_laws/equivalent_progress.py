"""Equivalent progress: what counts of a base is how far it has come on the target's own scratch curve.

    L = S(N, D2 + d_eq (1 + (kappa - 1) u)) - (c + c' ln((D2 + d_eq) / 20 N)) u (1 - exp(-(d / n) / p))
    u = D2 / (D2 + d_eq)

========  ==================================================================  ======
symbol    meaning                                                             unit
========  ==================================================================  ======
kappa     what the head start is worth once training has gone on              -
c, c'     advantage that stays, and how it changes with progress              nats
p         tokens per base parameter at which the advantage has come to 63%    tokens
u         engagement: 0 when grown, 1 when grown tokens outweigh d_eq         -
========  ==================================================================  ======

Nested: (kappa = 1, c = 0) has no free parameter; then kappa; kappa and c; then c', or p, on top. u carries the
anchors: at D2 = 0 the loss is the base's own; at d = 0 both d_eq and the advantage vanish. For D2 >> d_eq it is the plain form
S(D2 + kappa d_eq) - c. Progress rises with D2 for every kappa > 0. p is 1 where it is not fitted: a base of less than about one
token per parameter has nothing that stays to pass on.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fitting.growth_laws.base import GrowthLaw, Prepared, engagement
from fitting.laws.base import Array, split

_TOKENS_PER_BASE_PARAM = 1.0
_BOUNDS = {"ln_kappa": (-3.0, 5.0), "c": (-0.3, 0.5), "c_slope": (-0.15, 0.15), "ln_p": (-3.0, 4.0)}
_GUESSES = {"ln_kappa": (-0.5, 0.5, 1.5), "c": (0.0, 0.05), "c_slope": (-0.01, 0.01), "ln_p": (0.0, 1.5)}


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """The module's symbols at given parameters and points, each broadcasting to (..., R); ``ratio`` is (d / n) / p,
    ``taught`` 1 - exp(-ratio), ``depth`` ln((D2 + d_eq) / 20 N)."""

    u: Array
    kappa: Array
    progress: Array
    ratio: Array
    taught: Array
    depth: Array
    advantage: Array


class EquivalentProgress(GrowthLaw):
    """One of the nested family: ``free`` names which of ln_kappa, c, c_slope and ln_p are fitted."""

    source = "d_eq and its nesting: this project; compare Du et al. 2024, arXiv 2405.15319"
    anchored_at_scratch = True
    anchored_at_base = True
    formula = "S(D2 + d_eq (1 + (kappa-1) u)) - (c + c' ln((D2+d_eq)/20N)) u (1 - exp(-(d/n)/p)), u = D2/(D2+d_eq)"

    def __init__(self, name: str, free: tuple[str, ...]) -> None:
        self.name = name  # type: ignore[misc]
        self.parameter_names = free  # type: ignore[misc]
        self.lower = tuple(_BOUNDS[parameter][0] for parameter in free)  # type: ignore[misc]
        self.upper = tuple(_BOUNDS[parameter][1] for parameter in free)  # type: ignore[misc]
        self.min_pairs = len(free) + 1 if free else 0  # type: ignore[misc]

    def starts(self) -> Array:
        return np.array(list(itertools.product(*(_GUESSES[name] for name in self.parameter_names))), dtype=np.float64)

    def _terms(self, params: ArrayLike, prepared: Prepared) -> _Terms:
        values = dict(zip(self.parameter_names, split(params), strict=True))
        zero = np.zeros(1)
        points, head_start = prepared.points, prepared.equivalent_tokens
        u = engagement(prepared)
        kappa = np.exp(values.get("ln_kappa", zero))
        # The sum is d_eq u when kappa = 0, never zero; tiny D2 with d = 0 would otherwise take the logarithm of zero.
        progress = np.maximum(points.grown_tokens + head_start * (1 + (kappa - 1) * u), 1e-3)
        ratio = points.timing_tokens / points.base_params / (_TOKENS_PER_BASE_PARAM * np.exp(values.get("ln_p", zero)))
        depth = np.zeros(1)
        advantage = values.get("c", zero)
        if "c_slope" in values:
            depth = np.log(np.maximum(points.grown_tokens + head_start, 1e-3) / (20 * points.target_params))
            advantage = advantage + values["c_slope"] * depth
        return _Terms(
            u=u, kappa=kappa, progress=progress, ratio=ratio, taught=-np.expm1(-ratio), depth=depth, advantage=advantage
        )

    def grown_loss(self, params: ArrayLike, prepared: Prepared) -> Array:
        terms = self._terms(params, prepared)
        loss = prepared.scratch.loss(prepared.points.target_params, terms.progress)
        return loss - terms.advantage * terms.u * terms.taught

    def grown_loss_and_gradient(self, params: ArrayLike, prepared: Prepared) -> tuple[Array, Array]:
        t = self._terms(params, prepared)
        loss, slope = prepared.scratch.loss_and_slope(prepared.points.target_params, t.progress)
        grown = loss - t.advantage * t.u * t.taught
        gradient = np.empty((*grown.shape, self.num_parameters))
        for index, name in enumerate(self.parameter_names):
            if name == "ln_kappa":
                gradient[..., index] = slope * t.kappa * prepared.equivalent_tokens * t.u / t.progress
            elif name == "c":
                gradient[..., index] = -t.u * t.taught
            elif name == "c_slope":
                gradient[..., index] = -t.u * t.taught * t.depth
            else:
                gradient[..., index] = t.advantage * t.u * t.ratio * np.exp(-t.ratio)
        return grown, gradient
