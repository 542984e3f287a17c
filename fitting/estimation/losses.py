"""Losses of residuals: the sum-Huber of log-loss residuals, with its knee taken from the data's own noise.

    r_i    = ln S(N_i, D_i) - ln L_i
    rho(r) = r^2 / 2                 for |r| <= k
             k (|r| - k / 2)         beyond
    objective = sum_i w_i rho(r_i)

========  ====================================================  =========
symbol    meaning                                               unit
========  ====================================================  =========
L_i       observed loss of run i                                nats
r_i       log residual (a relative error)                       -
k         knee: where the loss turns from square to linear      -
w_i       how often run i stands in the (re)sample              -
========  ====================================================  =========

The sum and not the mean: with the mean quasi-Newton methods meet their gradient tolerance early and stop short. The default
knee is 1.345 robust standard deviations (95% efficient under normal noise; Huber 1981). Knee 1e-3 is what Hoffmann et al. 2022
used; noise of real tables is larger than that, so it is nearly least absolute deviations, which is the limit k -> 0.
"""

from __future__ import annotations

from typing import Literal, cast

import numpy as np

from fitting.laws.base import Array

LossFunction = Literal["huber", "lad"]

HUBER_EFFICIENCY = 1.345
COMPATIBILITY_KNEE = 1e-3
# Exact data leave no noise to measure; below this knee rounding would drive the fit.
SMALLEST_KNEE = 1e-7
_MAD_TO_SD = 1.4826022185056018


def huber(residuals: Array, knee: float) -> tuple[Array, Array]:
    """rho(r) and its derivative psi(r), elementwise, for the given knee."""
    psi = np.clip(residuals, -knee, knee)
    # psi (r - psi / 2) is r^2 / 2 inside the knee and k (|r| - k / 2) outside: no branch needed.
    return psi * (residuals - 0.5 * psi), psi


def robust_sd(residuals: Array) -> float:
    """Standard deviation by the median absolute residual (about zero), consistent under normal noise."""
    return float(_MAD_TO_SD * np.median(np.abs(residuals)))


def scale_aware_knee(residuals: Array, num_parameters: int) -> float:
    """1.345 robust sd, corrected for the degrees of freedom that the fit used up."""
    freedom = max(len(residuals) - num_parameters, 1)
    return max(HUBER_EFFICIENCY * robust_sd(residuals) * float(np.sqrt(len(residuals) / freedom)), SMALLEST_KNEE)


def checked_loss_function(name: str) -> LossFunction:
    """The name, or ValueError with the ones there are."""
    if name not in ("huber", "lad"):
        raise ValueError(f"loss_function is '{name}'; it must be 'huber' or 'lad'")
    return cast(LossFunction, name)


def checked_knee(knee: float | str) -> float | None:
    """A knee in log-loss units; None for 'auto'."""
    if knee == "auto":
        return None
    try:
        value = float(knee)
    except ValueError:
        raise ValueError(f"knee is '{knee}'; give 'auto' or a positive number such as 1e-3") from None
    if not (np.isfinite(value) and value >= SMALLEST_KNEE):
        raise ValueError(f"knee is {value:g}; it must be at least {SMALLEST_KNEE:g} (or 'auto')")
    return value
