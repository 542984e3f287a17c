"""Multiplied progress: the rival of equivalent progress, in which the head start makes every later token worth more.

    L = S(N, m^w (D2 + d_eq)),     w = u (1 - exp(-(d / n) / 1)),   u = D2 / (D2 + d_eq)

========  ================================================================  ======
symbol    meaning                                                           unit
========  ================================================================  ======
m         what a token is worth after growth                                -
w         0 without a base and at the moment of growth, then 1              -
========  ================================================================  ======

Plain m (D2 + d_eq) fails both anchors (at d = 0 it is a scratch run on m times its tokens); w restores them and is 1
for every run with more grown tokens than head start and over a few tokens per base parameter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fitting.growth_laws.base import GrowthLaw, Prepared, engagement
from fitting.laws.base import Array, split


class MultipliedProgress(GrowthLaw):
    name = "multiplied_progress"
    formula = "S(m^w (D2 + d_eq)), w = u (1 - exp(-d/n))"
    source = "this project's rival of equivalent progress"
    parameter_names = ("ln_m",)
    lower = (-1.5,)
    upper = (2.5,)
    anchored_at_scratch = True
    anchored_at_base = True
    min_pairs = 2

    def starts(self) -> Array:
        return np.array([[-0.2], [0.1], [0.5]])

    def grown_loss_and_gradient(self, params: ArrayLike, prepared: Prepared) -> tuple[Array, Array]:
        (log_m,) = split(params)
        points = prepared.points
        weight = engagement(prepared) * -np.expm1(-points.timing_tokens / points.base_params)
        tokens = np.maximum(points.grown_tokens + prepared.equivalent_tokens, 1e-3) * np.exp(log_m * weight)
        loss, slope = prepared.scratch.loss_and_slope(points.target_params, tokens)
        return loss, (slope * weight)[..., None]
