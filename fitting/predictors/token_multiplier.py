"""Token multiplier: every grown token counts as k scratch tokens, k varying with the factor and the budget.

    L = S(N, k D2),     ln k = k0 + k1 ln g + k2 ln(D2 / 20 N)

========  ==============================================  ======
symbol    meaning                                         unit
========  ==============================================  ======
k         scratch tokens a grown token is worth           -
k0..k2    its level, and slopes in factor and budget      -
========  ==============================================  ======

It knows nothing of d.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike

from fitting.growth_laws.base import GrowthLaw, Prepared
from fitting.laws.base import Array, split


class TokenMultiplier(GrowthLaw):
    name = "token_multiplier"
    formula = "S(k D2), ln k = k0 + k1 ln g + k2 ln(D2/20N)"
    source = "this project"
    parameter_names = ("k0", "k1", "k2")
    lower = (-2.0, -1.5, -1.0)
    upper = (3.0, 1.5, 1.0)
    anchored_at_scratch = False
    anchored_at_base = False
    min_pairs = 4

    def starts(self) -> Array:
        return np.array(list(itertools.product((0.1, 0.5), (-0.1, 0.1), (-0.1, 0.05))))

    def grown_loss_and_gradient(self, params: ArrayLike, prepared: Prepared) -> tuple[Array, Array]:
        k0, k1, k2 = split(params)
        points = prepared.points
        log_factor = np.log(points.growth_factor)
        budget = np.log(points.grown_tokens / (20 * points.target_params))
        tokens = points.grown_tokens * np.exp(k0 + k1 * log_factor + k2 * budget)
        loss, slope = prepared.scratch.loss_and_slope(points.target_params, tokens)
        return loss, np.stack(np.broadcast_arrays(slope, slope * log_factor, slope * budget), axis=-1)
