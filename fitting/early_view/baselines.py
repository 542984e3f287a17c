"""What the early view must beat: the last value, and a power law in tokens that knows no schedule.

last value: final = L(t)            power law: L(t) = E + A (t / T)^-alpha, final = E + A
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import least_squares

from fitting.early_view.curves import LossCurve
from fitting.laws.base import Array


def last_value(curve: LossCurve) -> float:
    """The final loss if nothing more were learned, in nats."""
    return float(curve.loss_nats[-1])


def power_law(curve: LossCurve) -> float:
    """The final loss by a least-squares power law through the points that count, in nats."""
    usable = curve.usable()
    share, lowest = usable.tokens / curve.planned_tokens, float(usable.loss_nats.min())

    def residuals(point: Array) -> Array:
        return point[0] + np.exp(point[1]) * share ** -np.exp(point[2]) - usable.loss_nats

    bounds = ([0.0, np.log(1e-3), np.log(0.02)], [lowest, np.log(50.0), np.log(3.0)])
    found = least_squares(residuals, [0.8 * lowest, np.log(0.2 * lowest), np.log(0.5)], bounds=bounds)
    return float(found.x[0] + np.exp(found.x[1]))
