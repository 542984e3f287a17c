"""Constant speedup: a grown run is its target's scratch run on 1 + s times the compute.

    L = S(N, (1 + s) DS)

========  ====================================  ======
symbol    meaning                               unit
========  ====================================  ======
s         speedup, the same everywhere          -
DS        scratch tokens at the same FLOPs      tokens
========  ====================================  ======

The best simple predictor on the digitised G_stack curves. It says nothing of d or g, and real speedups fade: 154% at
94 tokens per parameter, 30% at 1403 (410M of Du et al. 2024, arXiv 2405.15319).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fitting.growth_laws.base import GrowthLaw, Prepared
from fitting.laws.base import Array, split


class ConstantSpeedup(GrowthLaw):
    name = "constant_speedup"
    formula = "S((1 + s) DS)"
    source = "Du et al. 2024, arXiv 2405.15319"
    parameter_names = ("ln_1_plus_s",)
    lower = (-2.0,)
    upper = (3.0,)
    anchored_at_scratch = False
    anchored_at_base = False
    min_pairs = 1

    def starts(self) -> Array:
        return np.array([[0.0], [0.4]])

    def grown_loss_and_gradient(self, params: ArrayLike, prepared: Prepared) -> tuple[Array, Array]:
        (stretch,) = split(params)
        points = prepared.points
        loss, slope = prepared.scratch.loss_and_slope(points.target_params, points.scratch_tokens * np.exp(stretch))
        return loss, slope[..., None]
