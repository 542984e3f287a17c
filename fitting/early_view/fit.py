"""Fit of one curve under a prior from its cohort, and the loss it predicts at its end.

    minimise  |W (L(t) - l)|^2 / sigma^2 + |P (theta - mu)|^2          W_i: e_i - rho e_{i-1}

========  ============================================================================  ======
symbol    meaning                                                                       unit
========  ============================================================================  ======
theta     parameters of :mod:`fitting.early_view.form`                                  -
l, e      observed losses and their residuals                                           nats
sigma     standard deviation of what is new in each residual                            nats
rho       how much of a residual the next one repeats (AR(1))                           -
mu, P     mean of the prior; P'P is its precision                                       -
========  ============================================================================  ======

Neighbouring evaluations err alike, so counting each as news would make intervals far too narrow; whitening by rho is the
exact likelihood of such noise. The prior is the spread of the cohort's finished runs, at least :data:`MIN_COHORT` of them, each
fitted on its own under the weak prior below.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from fitting.early_view.curves import LossCurve, Units
from fitting.early_view.form import PARAMETER_NAMES, Places, loss_and_gradient, places
from fitting.estimation.losses import robust_sd
from fitting.laws.base import Array

MIN_COHORT = 4
NUM_PARAMETERS = len(PARAMETER_NAMES)
# Weight of the weak prior's spread beside the cohort's own, in runs: a spread seen on few runs is not trusted to be small.
_WEAK_PRIOR_RUNS = 1.0
_HIGHEST_RHO = 0.9
_SMALLEST_SIGMA = 1e-4


@dataclass(frozen=True, kw_only=True)
class Prior:
    """mu (6,) and covariance (6, 6)."""

    mean: Array
    covariance: Array

    def whitening(self) -> Array:
        """P (6, 6) with P'P the inverse covariance."""
        return np.linalg.inv(np.linalg.cholesky(self.covariance))


@dataclass(frozen=True, kw_only=True)
class Noise:
    """sigma in nats, rho."""

    sigma: float
    rho: float

    @property
    def marginal_sd(self) -> float:
        """Standard deviation of one residual in nats."""
        return self.sigma / float(np.sqrt(1 - self.rho**2))


@dataclass(frozen=True, kw_only=True)
class CurveFit:
    """theta (6,), its covariance (6, 6), the residuals (R,) of the usable points, and the loss at the end with its sd."""

    point: Array
    covariance: Array
    residuals: Array
    final_loss_nats: float
    final_sd_nats: float


def weak_prior(curve: LossCurve) -> Prior:
    """What is known of any run: the published fits for the shape, the curve's own level for F and D.

    Fitted at three sizes (25M to 400M, peak rate 3e-4): alpha 0.43 to 0.51 and B x peak 0.11 to 0.16 nats. C counts steps there
    (2 x peak^(1 - gamma) a step), which is of order 100 over a run of hundreds to thousands of steps.
    """
    lowest = float(curve.loss_nats.min())
    mean = np.array([0.9 * lowest, np.log(0.15 * lowest), np.log(0.45), np.log(0.15), np.log(100.0), np.log(0.03)])
    sd = np.array([0.15 * lowest, 0.8, 0.5, 0.7, 1.5, 1.5])
    return Prior(mean=mean, covariance=np.diag(sd**2))


def fit_curve(curve: LossCurve, prior: Prior, noise: Noise, units: Units) -> CurveFit:
    """Maximum a posteriori fit to the usable points of ``curve``, with the covariance of its linearisation."""
    usable = curve.usable()
    where = places(curve, usable.tokens, units)
    whiten = prior.whitening()

    @functools.lru_cache(maxsize=2)
    def evaluate(key: bytes) -> tuple[Array, Array]:
        # Residuals and Jacobian are asked for one after the other at the same point, and share nearly all their work.
        return loss_and_gradient(np.frombuffer(key), where)

    def residuals(point: Array) -> Array:
        errors = evaluate(point.tobytes())[0] - usable.loss_nats
        return np.concatenate([_decorrelated(errors, noise.rho) / noise.sigma, whiten @ (point - prior.mean)])

    def jacobian(point: Array) -> Array:
        slopes = evaluate(point.tobytes())[1]
        return np.concatenate([_decorrelated(slopes, noise.rho) / noise.sigma, whiten])

    # Six standard deviations of the prior: nothing beyond is meant, and nothing inside overflows.
    sd = np.sqrt(np.diag(prior.covariance))
    bounds = (prior.mean - 6 * sd, prior.mean + 6 * sd)
    found = least_squares(residuals, prior.mean, jac=jacobian, bounds=bounds, x_scale=sd, max_nfev=200)
    covariance = np.linalg.inv(found.jac.T @ found.jac)
    return CurveFit(
        point=found.x,
        covariance=covariance,
        residuals=usable.loss_nats - loss_and_gradient(found.x, where)[0],
        final_loss_nats=float(found.x[0]) + _carried(curve, found.x, where, noise),
        final_sd_nats=float(np.sqrt(covariance[0, 0] + noise.marginal_sd**2)),
    )


def _decorrelated(values: Array, rho: float) -> Array:
    """What is new in each value: v_i - rho v_{i-1} along the first axis, the first one scaled to the same variance."""
    first = values[:1] * np.sqrt(1 - rho**2)
    return np.concatenate([first, values[1:] - rho * values[:-1]])


def _carried(curve: LossCurve, point: Array, where: Places, noise: Noise) -> float:
    """What is left at the end of the last residual, which fades by rho an evaluation."""
    usable = curve.usable()
    if len(usable.tokens) < 2:
        return 0.0
    spacing = float(np.median(np.diff(usable.tokens)))
    steps_left = (curve.planned_tokens - usable.tokens[-1]) / spacing
    last = usable.loss_nats[-1] - loss_and_gradient(point, where)[0][-1]
    return float(last * noise.rho**steps_left)


def measure_noise(fits: Sequence[CurveFit]) -> Noise:
    """sigma and rho over the residuals of several fits, by robust scales."""
    before = np.concatenate([fit.residuals[:-1] for fit in fits])
    after = np.concatenate([fit.residuals[1:] for fit in fits])
    total = float(before @ before + after @ after)
    # 2 a.b / (a.a + b.b) lies within -1 and 1 whatever the residuals.
    rho = float(np.clip(2 * float(before @ after) / total, 0.0, _HIGHEST_RHO)) if total > 0 else 0.0
    return Noise(sigma=max(robust_sd(after - rho * before), _SMALLEST_SIGMA), rho=rho)


def fit_alone(curves: Sequence[LossCurve], units: Units) -> tuple[list[CurveFit], Noise]:
    """Fit each curve under its weak prior, with one noise for all, found by two rounds."""
    noise = Noise(sigma=0.01, rho=0.0)
    fits: list[CurveFit] = []
    for _ in range(3):
        fits = [fit_curve(curve, weak_prior(curve.usable()), noise, units) for curve in curves]
        noise = measure_noise(fits)
    return fits, noise


def cohort_prior(points: Sequence[Array], curve: LossCurve) -> Prior:
    """The spread of finished runs' parameters, a little widened by the weak prior of ``curve`` and by their number."""
    values = np.array(points)
    num = len(values)
    mean = values.mean(axis=0)
    centred = values - mean
    weak = np.diag(weak_prior(curve).covariance)
    spread = (centred.T @ centred + _WEAK_PRIOR_RUNS * np.diag(0.1 * weak)) / (num - 1 + _WEAK_PRIOR_RUNS)
    return Prior(mean=mean, covariance=spread * (1 + 1 / num))
