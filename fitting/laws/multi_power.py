"""The multi-power law: the loss along one run under any learning-rate schedule.

    L(t) = L0 + A S(t)^-alpha - B sum_{k=1..t} (eta_{k-1} - eta_k) (1 - (1 + C eta_k^-gamma S_k(t))^-beta)

========  =========================================================  ======
symbol    meaning                                                    unit
========  =========================================================  ======
eta_k     learning rate of step k (k = 0, 1, ...)                    -
S(t)      sum of eta_0 .. eta_t                                      -
S_k(t)    sum of eta_k .. eta_t                                      -
L0        loss without end of training at constant rate              nats
A, alpha  scale and exponent of progress at constant rate            nats, -
B         what a fall of the rate is worth, once it has taken hold   nats
C..gamma  how soon it takes hold                                     -
========  =========================================================  ======

Every change of the rate counts, the increases of the warm-up too: leaving those out is wrong by 0.11 nats. With a
constant rate the sum
is empty and the law a power law in steps. It is no law of (N, D): it tells a mid-schedule loss from a final one.

Source: Luo et al. 2025 (arXiv 2503.12811), equation 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fitting.estimation.losses import huber, scale_aware_knee
from fitting.estimation.minimize import minimise
from fitting.laws.base import Array

PARAMETER_NAMES = ("L0", "A", "alpha", "B", "C", "beta", "gamma")
# All parameters are positive and are estimated by their logarithms inside these bounds; A, B and C scale with the rates.
_LOWER = np.log([1e-3, 1e-6, 0.05, 1e-3, 1e-6, 0.05, 0.01])
_UPPER = np.log([20.0, 1e4, 2.0, 1e6, 1e8, 3.0, 2.0])


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run: learning rate of every step (T,), the steps its loss is known at (R,), and the losses there (R,) in nats."""

    learning_rates: Array
    steps: np.ndarray
    loss_nats: Array

    def __post_init__(self) -> None:
        rates, steps = np.asarray(self.learning_rates), np.asarray(self.steps)
        if rates.ndim != 1 or not (np.isfinite(rates).all() and (rates >= 0).all() and rates.max() > 0):
            raise ValueError("learning_rates must be one finite, non-negative number a step, and not all 0")
        if len(steps) != len(self.loss_nats) or not len(steps):
            raise ValueError(
                f"{len(steps)} steps and {len(self.loss_nats)} losses; there must be as many, and at least one"
            )
        if steps.min() < 0 or steps.max() >= len(rates):
            raise ValueError(f"steps span {steps.min()} to {steps.max()}; the schedule has steps 0 to {len(rates) - 1}")
        if not (np.isfinite(self.loss_nats) & (np.asarray(self.loss_nats) > 0)).all():
            raise ValueError("loss_nats must be finite and positive")


def curve_loss(params: ArrayLike, learning_rates: Array, steps: np.ndarray) -> Array:
    """L(t) in nats at ``steps`` (R,) for one parameter vector (7,) in the order of :data:`PARAMETER_NAMES`."""
    return curve_loss_and_gradient(params, learning_rates, steps)[0]


def curve_loss_and_gradient(params: ArrayLike, learning_rates: Array, steps: np.ndarray) -> tuple[Array, Array]:
    """L (R,) and dL/dparams (R, 7), exact."""
    L0, A, alpha, B, C, beta, gamma = np.asarray(params, dtype=np.float64)
    rates = np.asarray(learning_rates, dtype=np.float64)
    total = np.cumsum(rates)
    progress = np.maximum(total[steps], 1e-300)
    power = progress**-alpha
    drops = rates[:-1] - rates[1:]
    changed = 1 + np.flatnonzero(drops)
    sums = np.zeros((4, len(steps)))
    if changed.size:
        # A rate of exactly 0 gives an infinite eta^-gamma: what falls to 0 has taken hold at once.
        eta = np.maximum(rates[changed], 1e-12 * rates.max())
        fall = drops[changed - 1][:, None]
        since = np.maximum(total[steps][None, :] - total[changed - 1][:, None], 0.0)
        reached = (steps[None, :] >= changed[:, None]) * fall
        x = eta[:, None] ** -gamma * since
        grown = 1 + C * x
        kept = grown**-beta
        sums[0] = np.sum(reached * (1 - kept), axis=0)
        sums[1] = np.sum(reached * beta * x * kept / grown, axis=0)
        sums[2] = np.sum(reached * kept * np.log(grown), axis=0)
        sums[3] = np.sum(reached * beta * C * x * kept / grown * -np.log(eta)[:, None], axis=0)
    loss = L0 + A * power - B * sums[0]
    gradient = np.stack(
        [
            np.ones(len(steps)), power, -A * power * np.log(progress),
            -sums[0], -B * sums[1], -B * sums[2], -B * sums[3],
        ],
        axis=1,
    )  # fmt: skip
    return loss, gradient


def fit_multi_power(curves: Sequence[Curve]) -> tuple[dict[str, float], float]:
    """Fit one parameter vector to the curves of one model size under several schedules, by sum-Huber of log residuals.

    Returns:
        Parameters by name, and the root mean squared log residual.

    Raises:
        ValueError: fewer points than parameters, or no schedule in which the rate changes.
    """
    num_points = sum(len(curve.steps) for curve in curves)
    if num_points <= len(PARAMETER_NAMES):
        raise ValueError(f"{len(PARAMETER_NAMES) + 1} points needed for 7 parameters, {num_points} found")
    if not any(np.ptp(curve.learning_rates) > 0 for curve in curves):
        raise ValueError("no schedule changes its learning rate: B, C, beta and gamma cannot be told")
    observed = np.log(np.concatenate([curve.loss_nats for curve in curves]))

    def residuals_and_jacobian(point: Array) -> tuple[Array, Array]:
        parts = [curve_loss_and_gradient(np.exp(point), curve.learning_rates, curve.steps) for curve in curves]
        loss = np.concatenate([part[0] for part in parts])
        jacobian = np.concatenate([part[1] for part in parts]) * np.exp(point)
        with np.errstate(invalid="ignore"):
            return np.log(loss) - observed, jacobian / loss[:, None]

    def objective(knee: float):  # type: ignore[no-untyped-def]  # returns an Objective
        def value_and_gradient(points: Array, which: np.ndarray) -> tuple[Array, Array]:
            values, gradients = np.empty(len(points)), np.empty_like(points)
            for row, point in enumerate(points):
                residuals, jacobian = residuals_and_jacobian(point)
                rho, psi = huber(residuals, knee)
                values[row], gradients[row] = rho.sum() / knee**2, psi @ jacobian / knee**2
            return values, gradients

        return value_and_gradient

    minima = minimise(objective(0.05), _starts(curves), _LOWER, _UPPER, max_evaluations=150, tolerance=1e-6)
    best = minima.points[[np.argmin(minima.values)]]
    for _ in range(4):
        knee = scale_aware_knee(residuals_and_jacobian(best[0])[0], len(PARAMETER_NAMES))
        best = minimise(objective(knee), best, _LOWER, _UPPER, max_evaluations=300).points
    error = float(np.sqrt(np.mean(residuals_and_jacobian(best[0])[0] ** 2)))
    return dict(zip(PARAMETER_NAMES, map(float, np.exp(best[0])), strict=True)), error


def _starts(curves: Sequence[Curve]) -> Array:
    """Power-law guesses for the constant-rate part; B worth a tenth of the loss for a full decay, C soon or late."""
    lowest = min(float(np.min(curve.loss_nats)) for curve in curves)
    highest = max(float(np.max(curve.loss_nats)) for curve in curves)
    peak = max(float(curve.learning_rates.max()) for curve in curves)
    total = float(np.mean([curve.learning_rates.sum() for curve in curves]))
    starts = []
    for alpha, gamma, soon in itertools.product((0.3, 0.6), (0.3, 0.7), (10.0, 200.0)):
        scale = 0.5 * (highest - lowest) * (0.05 * total) ** alpha
        starts.append([0.9 * lowest, scale, alpha, 0.1 * lowest / peak, soon * peak**gamma / total, 0.5, gamma])
    return np.clip(np.log(starts), _LOWER, _UPPER)
