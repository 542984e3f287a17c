"""Liew and Kato's law of two-stage training: a joint power law of both token counts, apart from any scratch law.

    L = E + B N^-b + A x^-a1 y^(-a2 + a3 ln x),     x = d / 1e9,  y = D2 / 1e9

========  ==================================================  ======
symbol    meaning                                             unit
========  ==================================================  ======
E, B, b   floor and its dependence on size (N / 1e9)          nats
A         scale at a billion tokens in each stage             nats
a1, a2    exponents of base and grown tokens                  -
a3        their tie: with it d and D2 replace each other      -
========  ==================================================  ======

Meets no anchor, and its bare argmin runs to d -> 0 or to the far edge: it is here to be compared with, not to choose.
Source: Liew and Kato 2025 (arXiv 2510.06548).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fitting.growth_laws.base import GrowthLaw, Prepared
from fitting.laws.base import Array, split

_REFERENCE = 1e9


class LiewKato(GrowthLaw):
    name = "liew_kato"
    formula = "E + B N^-b + A d^-a1 D2^(-a2 + a3 ln d)"
    source = "Liew and Kato 2025, arXiv 2510.06548"
    parameter_names = ("ln_E", "ln_B", "b", "ln_A", "a1", "a2", "a3")
    lower = (-2.0, -8.0, 0.01, -8.0, 0.0, 0.01, -0.1)
    upper = (2.5, 3.0, 1.0, 3.0, 0.5, 1.0, 0.1)
    anchored_at_scratch = False
    anchored_at_base = False
    min_pairs = 10

    def starts(self) -> Array:
        return np.array(
            [
                [floor, -1.0, size, 0.0, 0.02, power, 0.0]
                for floor in (0.3, 0.7)
                for size in (0.1, 0.35)
                for power in (0.15, 0.35)
            ]
        )

    def grown_loss_and_gradient(self, params: ArrayLike, prepared: Prepared) -> tuple[Array, Array]:
        log_E, log_B, b, log_A, a1, a2, a3 = split(params)
        points = prepared.points
        x = np.log(np.maximum(points.timing_tokens, 1.0) / _REFERENCE)
        y = np.log(points.grown_tokens / _REFERENCE)
        size = np.log(points.target_params / _REFERENCE)
        floor = np.broadcast_to(np.exp(log_E), np.broadcast_shapes(log_E.shape, x.shape))
        by_size = np.exp(log_B - b * size)
        data = np.exp(log_A - a1 * x - a2 * y + a3 * x * y)
        columns = (floor, by_size, -by_size * size, data, -data * x, -data * y, data * x * y)
        return floor + by_size + data, np.stack(np.broadcast_arrays(*columns), axis=-1)
