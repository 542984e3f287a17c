"""What the rows cannot tell, in words: too few sizes or token counts, sizes tied to tokens, bounds, loose parameters.

    cov(coordinates) = sd^2 (J'J)^-1

========  ====================================================  ==========
symbol    meaning                                               shape
========  ====================================================  ==========
J         d log residual / d working coordinate                 (R, P)
sd        robust standard deviation of the residuals            -
========  ====================================================  ==========

Working coordinates are logarithms of positive parameters and plain values of others, so a standard error of 1 there means
"not even the order of e is known".
"""

from __future__ import annotations

import numpy as np

from fitting.estimation.losses import robust_sd
from fitting.estimation.regression import PointFit, Regression
from fitting.laws.base import Array, ScratchLaw

# Values closer than this (relative) count as one size or one token count.
_SAME_VALUE = 0.01
# Above this correlation of ln N and ln D the table is close to a ray of constant tokens per parameter.
_TIED = 0.985
_LOOSE = 1.0


def num_distinct(values: Array) -> int:
    """Distinct positive values, those within 1% of each other counted once."""
    ordered = np.sort(np.log(values))
    return 1 + int(np.sum(np.diff(ordered) > _SAME_VALUE))


def shortages(law: ScratchLaw, num_params: Array, tokens: Array, num_fixed: int = 0) -> list[str]:
    """Why this law cannot be fitted to these rows at all; an empty list if it can."""
    missing = []
    free = law.num_parameters - num_fixed
    if len(num_params) < free + 1:
        missing.append(f"{free + 1} runs needed for {free} free parameters, {len(num_params)} found")
    sizes, counts = num_distinct(num_params), num_distinct(tokens)
    if sizes < law.min_sizes:
        missing.append(f"{law.min_sizes} sizes needed, {sizes} found")
    if counts < law.min_token_counts:
        missing.append(f"{law.min_token_counts} token counts needed, {counts} found")
    return missing


def weaknesses(regression: Regression, fit: PointFit) -> list[str]:
    """Sentences on what a fit leaves open: starts that disagree, bounds met, tied sizes and tokens, loose parameters."""
    law, found = regression.law, []
    if fit.share_of_starts_at_best < 0.2:
        found.append(
            f"law '{law.name}': only {fit.share_of_starts_at_best:.0%} of {fit.num_starts} cold starts reached the best optimum"
        )
    lower, upper = regression.box
    pinned = []
    for index, name in enumerate(law.parameter_names):
        if name in regression.fixed:
            pinned.append(index)
            continue
        width = 1e-6 * (upper[index] - lower[index])
        for edge, side in ((lower[index], "lower"), (upper[index], "upper")):
            if abs(fit.coordinates[index] - edge) <= width:
                pinned.append(index)
                found.append(f"law '{law.name}': {name} stands at its {side} bound; the rows do not hold it")
    correlation = _correlation(np.log(regression.num_params), np.log(regression.tokens))
    if correlation > _TIED:
        found.append(
            f"tokens follow size (correlation {correlation:.3f} of the logarithms): "
            "what comes from size and what from data is told apart by little"
        )
    free = [index for index in range(law.num_parameters) if index not in pinned]
    for index, error in zip(free, _standard_errors(regression, fit, free), strict=True):
        if not error < _LOOSE:
            size = "unbounded" if not np.isfinite(error) else f"{error:.1f}"
            kind = "of its logarithm" if law.positive[index] else "of its value"
            found.append(
                f"law '{law.name}': {law.parameter_names[index]} is not identified (standard error {kind} {size})"
            )
    return found


def _correlation(first: Array, second: Array) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _standard_errors(regression: Regression, fit: PointFit, free: list[int]) -> Array:
    """Standard errors of the free working coordinates by the Gauss-Newton covariance; inf along directions without data."""
    jacobian = regression.jacobian(fit.coordinates)[:, free]
    scale = np.sqrt(np.sum(jacobian**2, axis=0))
    safe = np.where(scale > 0, scale, 1.0)
    _, singular, directions = np.linalg.svd(jacobian / safe, full_matrices=False)
    with np.errstate(divide="ignore"):
        inverse = np.where(singular > 1e-10 * singular.max(), 1.0 / singular, np.inf)
    shares = directions.T**2
    variance = np.sum(np.where(shares > 1e-12, shares * inverse**2, 0.0), axis=1)
    sd = max(robust_sd(fit.residuals), 1e-12)
    return np.where(scale > 0, sd * np.sqrt(variance) / safe, np.inf)
