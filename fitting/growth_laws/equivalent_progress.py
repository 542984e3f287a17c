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

import numpy as np
from numpy.typing import ArrayLike

from fitting.growth_laws.base import GrowthLaw, Prepared, engagement
from fitting.laws.base import Array, split

_TOKENS_PER_BASE_PARAM = 1.0
_BOUNDS = {"ln_kappa": (-3.0, 5.0), "c": (-0.3, 0.5), "c_slope": (-0.15, 0.15), "ln_p": (-3.0, 4.0)}
_GUESSES = {"ln_kappa": (-0.5, 0.5, 1.5), "c": (0.0, 0.05), "c_slope": (-0.01, 0.01), "ln_p": (0.0, 1.5)}


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

    def grown_loss_and_gradient(self, params: ArrayLike, prepared: Prepared) -> tuple[Array, Array]:
        values = dict(zip(self.parameter_names, split(params), strict=True))
        points, head_start = prepared.points, prepared.equivalent_tokens
        u = engagement(prepared)
        kappa = np.exp(values.get("ln_kappa", np.zeros(1)))
        p = _TOKENS_PER_BASE_PARAM * np.exp(values.get("ln_p", np.zeros(1)))
        # The sum is d_eq u when kappa = 0, never zero; tiny D2 with d = 0 would otherwise take the logarithm of zero.
        progress = points.grown_tokens + head_start * (1 + (kappa - 1) * u)
        progress = np.maximum(progress, 1e-3)
        loss, slope = prepared.scratch.loss_and_slope(points.target_params, progress)
        ratio = points.timing_tokens / points.base_params / p
        taught = -np.expm1(-ratio)
        depth = np.log(np.maximum(points.grown_tokens + head_start, 1e-3) / (20 * points.target_params))
        advantage = values.get("c", np.zeros(1)) + values.get("c_slope", np.zeros(1)) * depth
        grown = loss - advantage * u * taught
        gradient = np.empty((*grown.shape, self.num_parameters))
        for index, name in enumerate(self.parameter_names):
            if name == "ln_kappa":
                gradient[..., index] = slope * kappa * head_start * u / progress
            elif name == "c":
                gradient[..., index] = -u * taught
            elif name == "c_slope":
                gradient[..., index] = -u * taught * depth
            else:
                gradient[..., index] = advantage * u * ratio * np.exp(-ratio)
        return grown, gradient
