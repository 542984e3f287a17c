"""Fading head start: growth costs a jump in loss, and what is left of the head start fades with grown tokens.

    L = S(N, D2 + kappa d_jump (1 + D2 / 20 N)^-w),      S(N, d_jump) = S(n, d) + j ln g

========  ================================================================  ======
symbol    meaning                                                           unit
========  ================================================================  ======
kappa     worth of the head start                                           -
w         how it fades: 0 keeps it (the optimal d does not depend on the    -
          budget), w > 0 loses it, w < 0 lets it grow
j         jump of the loss at growth, per unit of ln g                      nats
========  ================================================================  ======

d = 0 gives scratch. The base's own loss at D2 = 0 needs kappa = 1 and j = 0, so the second anchor does not hold and
this law supplies no argmin. Fits to real curves give w < 0: the head start does not go to zero within the data.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike

from fitting.growth_laws.base import GrowthLaw, Prepared
from fitting.laws.base import Array, split


class FadingHeadStart(GrowthLaw):
    name = "fading_head_start"
    formula = "S(D2 + kappa d_jump (1 + D2/20N)^-w), S(N, d_jump) = S(n, d) + j ln g"
    source = "this project; w = 0 is the rule of Shen et al. 2022, arXiv 2203.06211"
    parameter_names = ("ln_kappa", "w", "j")
    lower = (-3.0, -1.5, 0.0)
    upper = (5.0, 1.5, 0.5)
    anchored_at_scratch = True
    anchored_at_base = False
    min_pairs = 4

    def starts(self) -> Array:
        return np.array(list(itertools.product((0.0, 1.0), (-0.3, 0.3), (0.02,))))

    def grown_loss_and_gradient(self, params: ArrayLike, prepared: Prepared) -> tuple[Array, Array]:
        log_kappa, w, j = split(params)
        points, scratch = prepared.points, prepared.scratch
        log_factor = np.log(points.growth_factor)
        jumped = scratch.smooth_tokens_for_loss(points.target_params, prepared.base_loss + j * log_factor)
        capped = jumped > prepared.equivalent_tokens
        jumped = np.maximum(np.minimum(jumped, prepared.equivalent_tokens), 1e-6)
        stretch = np.log1p(points.grown_tokens / (20 * points.target_params))
        head_start = np.exp(log_kappa - w * stretch) * jumped
        tokens = np.maximum(points.grown_tokens + head_start, 1e-3)
        loss, slope = scratch.loss_and_slope(points.target_params, tokens)
        by_head_start = slope * head_start / tokens
        # d ln d_jump / d j = ln g / (dS/dlnD at d_jump); nothing moves where the cap on d_eq holds.
        at_jump = scratch.law.d_loss_d_log_tokens(scratch.params, points.target_params, jumped)
        by_jump = np.where(capped, 0.0, by_head_start * log_factor / at_jump)
        return loss, np.stack(np.broadcast_arrays(by_head_start, -by_head_start * stretch, by_jump), axis=-1)
