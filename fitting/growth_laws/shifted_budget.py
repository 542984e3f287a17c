"""Shifted budget: grown tokens discounted by the factor, base tokens credited at a flat rate.

    L = S(N, D2 g^-q + eta d)

========  ==================================================  ======
symbol    meaning                                             unit
========  ==================================================  ======
q         discount of grown tokens with the factor            -
eta       worth of a base token in target tokens              -
========  ==================================================  ======

Linear in d, an untested hypothesis, and anchored nowhere: at d = 0 it is scratch on D2 g^-q tokens. Safe to predict
with near the data, never to be minimised over d.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike

from fitting.growth_laws.base import GrowthLaw, Prepared
from fitting.laws.base import Array, split


class ShiftedBudget(GrowthLaw):
    name = "shifted_budget"
    formula = "S(D2 g^-q + eta d)"
    source = "this project"
    parameter_names = ("q", "ln_eta")
    lower = (-1.0, -7.0)
    upper = (1.0, 5.0)
    anchored_at_scratch = False
    anchored_at_base = False
    min_pairs = 3

    def starts(self) -> Array:
        return np.array(list(itertools.product((-0.3, 0.0, 0.3), (-1.0, 1.0))))

    def grown_loss_and_gradient(self, params: ArrayLike, prepared: Prepared) -> tuple[Array, Array]:
        q, log_eta = split(params)
        points = prepared.points
        log_factor = np.log(points.growth_factor)
        after, before = points.grown_tokens * np.exp(-q * log_factor), np.exp(log_eta) * points.timing_tokens
        tokens = np.maximum(after + before, 1e-3)
        loss, slope = prepared.scratch.loss_and_slope(points.target_params, tokens)
        gradient = np.stack(np.broadcast_arrays(-slope * after * log_factor / tokens, slope * before / tokens), axis=-1)
        return loss, gradient
