"""How large residuals are where: a fitted residual variance, and prediction intervals made of parameter and residual draws.

    r_i = s(z_i) e_i        ln s(z) = a + b (z - z0)        prediction_k = S_theta_k(N, D) exp(s(z) e_k)

========  =============================================================  =======
symbol    meaning                                                        unit
========  =============================================================  =======
r_i       log residual of row i                                          -
z         what noise may depend on: ln of compute                        ln FLOP
s(z)      residual standard deviation there                              -
e         standardised residuals, kept as observed (their tails count)   -
========  =============================================================  =======

b enters only where it raises the Gaussian log likelihood by more than 2, and outside the observed range of z the edge's
value holds: noise that falls with compute is not extrapolated to none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # its parts load when they are first used: a service starts sooner
from numpy.typing import ArrayLike

from fitting.laws.base import Array

_STEEPEST = 1.0
_WORTH_IT = 2.0
_WINSOR = 4.0
_SMALLEST_SD = 1e-9


@dataclass(frozen=True, kw_only=True)
class ResidualModel:
    """ln s(z) = ``log_sd`` + ``slope`` (z - ``centre``) on [``lowest``, ``highest``]; ``standardised`` residuals (R,)."""

    log_sd: float
    slope: float
    centre: float
    lowest: float
    highest: float
    standardised: tuple[float, ...]

    def sd(self, covariate: ArrayLike) -> Array:
        """Residual standard deviation at each z."""
        inside = np.clip(np.asarray(covariate, dtype=np.float64), self.lowest, self.highest)
        return np.exp(self.log_sd + self.slope * (inside - self.centre))

    def draw(self, covariate: ArrayLike, num_draws: int, seed: int) -> Array:
        """Residuals (K, R): standardised ones drawn with replacement, times s(z)."""
        sd = np.atleast_1d(self.sd(covariate))
        pool = np.array(self.standardised)
        return np.random.default_rng(seed).choice(pool, size=(num_draws, len(sd))) * sd


def fit_residual_model(residuals: ArrayLike, covariate: ArrayLike, num_parameters: int) -> ResidualModel:
    """Fit s(z) to residuals (R,) of a fit with ``num_parameters``, whose degrees of freedom are given back.

    Residuals beyond 4 robust standard deviations are pulled in for the fit of s, and stay as they are among e.
    """
    values = np.asarray(residuals, dtype=np.float64)
    z = np.asarray(covariate, dtype=np.float64)
    centre = float(z.mean())
    offset = z - centre
    limit = _WINSOR * 1.4826 * float(np.median(np.abs(values)))
    squares = np.minimum(values**2, limit**2) if limit > 0 else values**2
    squares = squares + _SMALLEST_SD**2

    def deviance(slope: float) -> float:
        """Twice the negative log likelihood a row, with a at its best for this slope."""
        return float(np.log(np.mean(squares * np.exp(-2 * slope * offset))) + 2 * slope * offset.mean())

    slope = 0.0
    if np.ptp(z) > 0 and len(values) > 4:
        best = scipy.optimize.minimize_scalar(deviance, bounds=(-_STEEPEST, _STEEPEST), method="bounded")
        if 0.5 * len(values) * (deviance(0.0) - best.fun) > _WORTH_IT:
            slope = float(best.x)
    freedom = max(len(values) - num_parameters, 1)
    variance = float(np.mean(squares * np.exp(-2 * slope * offset))) * len(values) / freedom
    log_sd = 0.5 * float(np.log(variance))
    # The residuals' own scale matches s before the correction for degrees of freedom.
    shrunken = np.exp(log_sd + slope * offset) / np.sqrt(len(values) / freedom)
    return ResidualModel(
        log_sd=log_sd,
        slope=slope,
        centre=centre,
        lowest=float(z.min()),
        highest=float(z.max()),
        standardised=tuple((values / shrunken).tolist()),
    )


def prediction_interval(predictions: Array, residuals: Array, coverage: float) -> tuple[Array, Array]:
    """Central interval (R,), (R,) of ``predictions`` (K, R) in nats with log ``residuals`` (K, R) on top."""
    if not 0 < coverage < 1:
        raise ValueError(f"coverage is {coverage:g}; it must lie between 0 and 1")
    outcomes = predictions * np.exp(residuals)
    tail = 0.5 * (1 - coverage)
    low, high = np.quantile(outcomes, [tail, 1 - tail], axis=0)
    return low, high
