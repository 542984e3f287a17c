"""The isoFLOP two-step: a valley in ln d for each target, factor and compute; then its minimum regressed on size and compute.

    delta(d) = delta* + k (ln d - ln d*)^2 / 2        ln d* = a0 + a1 ln(N / N0) + a2 ln(C / C0)

========  ================================================================  ======
symbol    meaning                                                           unit
========  ================================================================  ======
d*        timing at a valley's minimum                                      tokens
delta*    delta there                                                       nats
k         curvature of the valley                                           nats
s         standard error of ln d*, from the valley's own residuals and      -
          never below a floor
========  ================================================================  ======

Valleys whose minimum lies at the edge of the timings tried say only "beyond" and are dropped; the others weigh by 1
/ s^2. A parabola is
biased on a skewed valley, so its minimum is weaker than s says: the near-optimal range (delta within 0.25% of the loss, or a
given margin) is what should be read. Source of the procedure: Hoffmann et al. 2022 (arXiv 2203.15556), approach 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fitting.growth_data import GrowthData
from fitting.laws.base import Array

_FEWEST_TIMINGS = 3
_SMALLEST_SD_LOG = 0.1
_NOISE_NATS = 0.003


@dataclass(frozen=True, kw_only=True)
class Valley:
    """Pairs of one target, factor and compute that differ in d. ``status``: interior, edge, no valley, or too few timings."""

    target_params: float
    growth_factor: float
    compute_flops: float
    timing_tokens: tuple[float, ...]
    delta_nats: tuple[float, ...]
    status: str
    best_timing_tokens: float
    best_delta_nats: float
    curvature_nats: float
    sd_log_timing: float

    def near_optimal(self, margin_nats: float) -> tuple[float, float] | None:
        """Timings whose fitted delta is within ``margin_nats`` of the minimum, cut to those tried; None without a minimum."""
        if self.status != "interior":
            return None
        half = float(np.sqrt(2 * margin_nats / self.curvature_nats))
        low, high = self.best_timing_tokens * np.exp(-half), self.best_timing_tokens * np.exp(half)
        return max(float(low), min(self.timing_tokens)), min(float(high), max(self.timing_tokens))


@dataclass(frozen=True, kw_only=True)
class TimingLaw:
    """ln d* = ``intercept`` + ``by_size`` ln(N/N0) + ``by_compute`` ln(C/C0); a slope that is not told is None."""

    centre_params: float
    centre_flops: float
    intercept: float
    by_size: float | None
    by_compute: float | None
    standard_errors: tuple[float, ...]
    num_valleys: int
    num_edge: int

    def best_timing_tokens(self, target_params: float, compute_flops: float) -> float:
        """d* in tokens."""
        log_timing = self.intercept
        if self.by_size is not None:
            log_timing += self.by_size * np.log(target_params / self.centre_params)
        if self.by_compute is not None:
            log_timing += self.by_compute * np.log(compute_flops / self.centre_flops)
        return float(np.exp(log_timing))


def valleys(data: GrowthData) -> tuple[Valley, ...]:
    """The valleys of the pairs, in order of target, factor and compute."""
    points = data.points
    order = np.lexsort((points.timing_tokens, data.compute_flops, points.growth_factor, points.target_params))
    groups: list[list[int]] = []
    for row in order:
        if groups:
            first = groups[-1][0]
            same = all(
                abs(values[row] / values[first] - 1) < limit
                for values, limit in (
                    (points.target_params, 1e-3),
                    (points.growth_factor, 1e-2),
                    (data.compute_flops, 1e-2),
                )
            )
            if same:
                groups[-1].append(int(row))
                continue
        groups.append([int(row)])
    return tuple(_valley(data, np.array(rows)) for rows in groups)


def _valley(data: GrowthData, rows: np.ndarray) -> Valley:
    timing, inverse = np.unique(data.points.timing_tokens[rows], return_inverse=True)
    delta = np.bincount(inverse, weights=data.delta_nats[rows]) / np.bincount(inverse)
    x = np.log(timing)
    best = int(np.argmin(delta))
    status, log_best, lowest, curvature, sd = "too few timings", float(x[best]), float(delta[best]), 0.0, np.inf
    if len(x) >= _FEWEST_TIMINGS:
        design = np.stack([np.ones_like(x), x - x.mean(), 0.5 * (x - x.mean()) ** 2], axis=1)
        coefficients, *_ = np.linalg.lstsq(design, delta, rcond=None)
        level, slope, curvature = map(float, coefficients)
        residuals = delta - design @ coefficients
        noise = max(float(np.sqrt(np.sum(residuals**2) / max(len(x) - 3, 1))), _NOISE_NATS)
        if curvature <= 0:
            status = "no valley"
        else:
            log_best = float(x.mean() - slope / curvature)
            lowest = level - slope**2 / (2 * curvature)
            status = "interior" if x[0] < log_best < x[-1] else "edge"
            covariance = noise**2 * np.linalg.inv(design.T @ design)
            by = np.array([0.0, -1 / curvature, slope / curvature**2])
            sd = max(float(np.sqrt(by @ covariance @ by)), _SMALLEST_SD_LOG)
    return Valley(
        target_params=float(data.points.target_params[rows[0]]),
        growth_factor=float(data.points.growth_factor[rows[0]]),
        compute_flops=float(data.compute_flops[rows].mean()),
        timing_tokens=tuple(timing.tolist()),
        delta_nats=tuple(delta.tolist()),
        status=status,
        best_timing_tokens=float(np.exp(log_best)),
        best_delta_nats=lowest,
        curvature_nats=curvature,
        sd_log_timing=sd,
    )


def timing_law(found: tuple[Valley, ...]) -> TimingLaw:
    """Weighted regression of the interior minima; a slope is fitted only over two or more sizes, or computes, and
    enough valleys.

    Raises:
        ValueError: no valley has its minimum inside the timings tried.
    """
    interior = [valley for valley in found if valley.status == "interior"]
    num_edge = sum(valley.status == "edge" for valley in found)
    if not interior:
        raise ValueError(
            f"no isoFLOP valley has its minimum inside the timings tried ({len(found)} valleys, "
            f"{num_edge} with it at an edge); "
            "try timings further out"
        )
    log_size = np.log([valley.target_params for valley in interior])
    log_compute = np.log([valley.compute_flops for valley in interior])
    centre_size, centre_compute = float(log_size.mean()), float(log_compute.mean())
    columns: list[Array] = [np.ones(len(interior))]
    use_compute = np.ptp(log_compute) > 0.1 and len(interior) >= 3
    use_size = np.ptp(log_size) > 0.1 and len(interior) >= 3 + int(use_compute)
    if use_size:
        columns.append(log_size - centre_size)
    if use_compute:
        columns.append(log_compute - centre_compute)
    sd = np.array([valley.sd_log_timing for valley in interior])
    design = np.stack(columns, axis=1) / sd[:, None]
    goal = np.log([valley.best_timing_tokens for valley in interior]) / sd
    coefficients, *_ = np.linalg.lstsq(design, goal, rcond=None)
    residuals = goal - design @ coefficients
    # Valleys disagree by more than their own errors say (a parabola is not the shape): the spread widens the errors.
    spread = max(float(np.sum(residuals**2)) / max(len(goal) - design.shape[1], 1), 1.0)
    errors = np.sqrt(spread * np.diag(np.linalg.pinv(design.T @ design)))
    slopes = list(map(float, coefficients[1:]))
    return TimingLaw(
        centre_params=float(np.exp(centre_size)),
        centre_flops=float(np.exp(centre_compute)),
        intercept=float(coefficients[0]),
        by_size=slopes.pop(0) if use_size else None,
        by_compute=slopes.pop(0) if use_compute else None,
        standard_errors=tuple(map(float, errors)),
        num_valleys=len(interior),
        num_edge=num_edge,
    )


def predicted_delta(
    found: tuple[Valley, ...], timing: TimingLaw, target_params: float, compute_flops: float, timing_tokens: float
) -> float:
    """Delta in nats at any d: median depth and curvature of the interior valleys around d* of the timing law."""
    interior = [valley for valley in found if valley.status == "interior"]
    depth = float(np.median([valley.best_delta_nats for valley in interior]))
    curvature = float(np.median([valley.curvature_nats for valley in interior]))
    distance = np.log(timing_tokens / timing.best_timing_tokens(target_params, compute_flops))
    return float(depth + 0.5 * curvature * distance**2)
