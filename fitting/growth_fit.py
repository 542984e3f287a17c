"""Fit growth laws to pairs on top of the cohort's scratch law, with draws of both.

    theta_k = scratch parameters of resample k        phi_k = argmin sum_i w_ki rho( delta_phi(theta_k; i) - delta_i )

========  ==================================================================  ======
symbol    meaning                                                             unit
========  ==================================================================  ======
delta_i   observed grown - control of pair i                                  nats
rho       Huber, knee 1.345 robust sd of the residuals                        nats^2
w_ki      how often the cluster of pair i stands in resample k                -
========  ==================================================================  ======

Scratch runs and pairs are levels of their own in the cluster bootstrap: no resample loses all controls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fitting.estimation.bootstrap import resample_weights
from fitting.estimation.identifiability import num_distinct
from fitting.estimation.losses import HUBER_EFFICIENCY, huber, scale_aware_knee
from fitting.estimation.minimize import Minima, minimise
from fitting.estimation.regression import PointFit, Regression, fit_point
from fitting.growth_laws import GROWTH_LAWS, GrowthLaw, GrowthPoints, Prepared, ScratchCurve, with_offsets
from fitting.laws import scratch_law
from fitting.laws.base import Array
from fitting.predictors import PREDICTORS
from fitting.scratch_rows import ScratchRows

ALL_LAWS: dict[str, GrowthLaw] = {**GROWTH_LAWS, **PREDICTORS}

# Where a cohort's scratch runs cannot tell them, these are borrowed: Chinchilla as refitted by Besiroglu et al. 2024.
_BORROWED = {"alpha": 0.3478, "beta": 0.3658}
_BORROWED_E = 1.817
# With three sizes two parameters of size are fitted without a check: on the digitised G_stack curves alpha then runs
# to its bound.
_SIZES_FOR_OWN_ALPHA = 4
# A robust sd below this is a table of one or two pairs, not of quiet ones.
_SMALLEST_KNEE_NATS = 5e-4
_WIDE_KNEE_NATS = 0.03
_CHUNK = 128
# The first pass, over all cold starts at a wide knee, only has to come near.
_ROUGH = 1e-4


@dataclass(frozen=True, kw_only=True)
class ScratchBasis:
    """The scratch curve of a cohort, draws of it (K, P) with as many curves inside, and sentences on what was borrowed.

    ``run_sd_log`` is the robust standard deviation of one scratch run's log loss around the law.
    """

    curve: ScratchCurve
    draws: ScratchCurve | None
    run_sd_log: float
    borrowed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GrowthFit:
    """One growth law fitted: parameters (P,), draws (K, P) or None, residuals (R,) in nats, where it ended."""

    law: GrowthLaw
    params: Array
    draws: Array | None
    num_failed: int
    knee_nats: float
    inverse_hessian: Array
    residuals_nats: Array
    warnings: tuple[str, ...]

    @property
    def parameters(self) -> dict[str, float]:
        return dict(zip(self.law.parameter_names, map(float, self.params), strict=True))


def fit_scratch_basis(rows: ScratchRows, num_draws: int = 0, seed: int = 0) -> ScratchBasis:
    """Chinchilla on the cohort's scratch runs, bent to each target's own; exponents are borrowed where the runs
    cannot tell them.

    Raises:
        ValueError: fewer than 3 scratch runs, or all at one size and token count.
    """
    law = scratch_law("chinchilla")
    fixed, why = _to_borrow(rows)
    regression, point = _fit_scratch(rows, fixed)
    pinned = [name for name in _BORROWED if name not in fixed and _at_bound(regression, point, name)]
    if pinned:
        why = (*why, f"{' and '.join(pinned)} of the scratch runs' own law stand(s) at a bound")
        fixed = {**fixed, **{name: _BORROWED[name] for name in pinned}}
        regression, point = _fit_scratch(rows, fixed)
    borrowed = why
    if fixed:
        named = ", ".join(f"{name} {value:.3g}" for name, value in fixed.items())
        borrowed = (f"scratch law: {'; '.join(why)}; borrowed from the published Chinchilla fit: {named}",)
    params = regression.params(point.coordinates)
    draws = None
    if num_draws:
        weights = resample_weights(rows.clusters, num_draws, seed)
        starts = np.repeat(point.coordinates[None], num_draws, axis=0)
        minima = regression.minimise(starts, point.knee, weights=weights, inverse_hessian=point.inverse_hessian)
        drawn = regression.params(np.where(np.isfinite(minima.values)[:, None], minima.points, point.coordinates))
        draws = with_offsets(law, _sound(drawn, rows, params), rows.num_params, rows.tokens, rows.loss_nats)
    return ScratchBasis(
        curve=with_offsets(law, params, rows.num_params, rows.tokens, rows.loss_nats),
        draws=draws,
        run_sd_log=scale_aware_knee(point.residuals, law.num_parameters - len(fixed)) / HUBER_EFFICIENCY,
        borrowed=borrowed,
    )


def _fit_scratch(rows: ScratchRows, fixed: dict[str, float]) -> tuple[Regression, PointFit]:
    law = scratch_law("chinchilla")
    regression = Regression(
        law=law, num_params=rows.num_params, tokens=rows.tokens, loss_nats=rows.loss_nats, fixed=fixed
    )
    return regression, fit_point(regression)


def _at_bound(regression: Regression, point: PointFit, name: str) -> bool:
    index = regression.law.parameter_names.index(name)
    lower, upper = (edge[index] for edge in regression.box)
    return bool(min(point.coordinates[index] - lower, upper - point.coordinates[index]) < 1e-3 * (upper - lower))


def _to_borrow(rows: ScratchRows) -> tuple[dict[str, float], tuple[str, ...]]:
    """What the scratch runs cannot tell, and why; ValueError where they tell nothing."""
    sizes, counts = num_distinct(rows.num_params), num_distinct(rows.tokens)
    if len(rows) < 3 or sizes + counts < 3:
        raise ValueError(
            f"a scratch law needs at least 3 scratch runs that differ in size or tokens; {len(rows)} run(s), {sizes} size(s) "
            f"and {counts} token count(s) found"
        )
    fixed, why = {}, []
    if sizes < _SIZES_FOR_OWN_ALPHA:
        fixed["alpha"] = _BORROWED["alpha"]
        why.append(f"{_SIZES_FOR_OWN_ALPHA} sizes needed for an alpha of its own, {sizes} found")
    if counts < 3 or len(rows) < 6:
        fixed["beta"] = _BORROWED["beta"]
        why.append(f"3 token counts and 6 runs needed for a beta of its own, {counts} and {len(rows)} found")
    if sizes < 2 or counts < 2 or len(rows) < 4:
        fixed["E"] = min(_BORROWED_E, 0.6 * float(rows.loss_nats.min()))
        why.append(
            f"2 sizes, 2 token counts and 4 runs needed for an E of its own, {sizes}, {counts} and {len(rows)} found"
        )
    return fixed, tuple(why)


def _sound(draws: Array, rows: ScratchRows, params: Array) -> Array:
    """Draws with those that lost what held them (every run of a size, say) replaced by the point fit."""
    law = scratch_law("chinchilla")
    miss = np.median(np.abs(np.log(law.loss(draws, rows.num_params, rows.tokens) / rows.loss_nats)), axis=1)
    usual = np.median(miss)
    return np.where((miss > 5 * usual + 1e-12)[:, None], params, draws)


def fit_growth_law(
    law: GrowthLaw,
    points: GrowthPoints,
    delta_nats: Array,
    basis: ScratchBasis,
    *,
    clusters: np.ndarray | None = None,
    controls: np.ndarray | None = None,
    seed: int = 0,
) -> GrowthFit:
    """Fit one law to pairs; with ``basis.draws`` and ``clusters`` also one parameter vector a draw.

    ``controls`` (R,) label the control run of each pair. A resample of grown families leaves the noise of a control
    that several pairs share where it was, so every draw gives such controls fresh noise of a scratch run's size.

    Raises:
        ValueError: fewer pairs than the law's parameters need.
    """
    if len(points) < law.min_pairs:
        raise ValueError(f"law '{law.name}' needs {law.min_pairs} pairs, {len(points)} found")
    prepared = Prepared.of(points, basis.curve)
    fit = _fit_point(law, prepared, delta_nats)
    if basis.draws is None or clusters is None:
        return fit
    noisy = delta_nats + _control_noise(prepared, basis, controls, seed)
    draws, failed = _draw(law, points, noisy, basis.draws, clusters, fit, seed)
    warnings = fit.warnings
    if failed:
        warnings = (
            *warnings,
            f"law '{law.name}': {failed} of {len(draws)} bootstrap fits failed and stand at the point fit",
        )
    return replace(fit, draws=draws, num_failed=failed, warnings=warnings)


def _fit_point(law: GrowthLaw, prepared: Prepared, delta_nats: Array) -> GrowthFit:
    """Best of the cold starts; the knee starts wide and follows the residuals until both settle."""
    params, knee = np.empty(0), _WIDE_KNEE_NATS
    inverse_hessian = np.empty((0, 0))
    warnings = []
    if law.num_parameters:
        minima = _minimise(law, prepared, delta_nats, law.starts(), knee, tolerance=_ROUGH)
        best = int(np.argmin(minima.values))
        params, inverse_hessian = minima.points[best], minima.inverse_hessians[best]
        settled = False
        for _ in range(8):
            residuals = law.delta(params, prepared) - delta_nats
            fresh = max(scale_aware_knee(residuals, law.num_parameters), _SMALLEST_KNEE_NATS)
            if settled and abs(fresh / knee - 1) < 0.02:
                break
            knee, settled = fresh, True
            minima = _minimise(law, prepared, delta_nats, params[None], knee, inverse_hessian=inverse_hessian)
            params, inverse_hessian = minima.points[0], minima.inverse_hessians[0]
        for name, value, low, high in zip(law.parameter_names, params, law.lower, law.upper, strict=True):
            if min(value - low, high - value) < 1e-6 * (high - low):
                warnings.append(f"law '{law.name}': {name} stands at its bound {value:g}; the pairs do not hold it")
    return GrowthFit(
        law=law,
        params=params,
        draws=None,
        num_failed=0,
        knee_nats=knee,
        inverse_hessian=inverse_hessian,
        residuals_nats=law.delta(params, prepared) - delta_nats,
        warnings=tuple(warnings),
    )


def _minimise(
    law: GrowthLaw,
    prepared: Prepared,
    delta_nats: Array,
    starts: Array,
    knee: float,
    weights: Array | None = None,
    inverse_hessian: Array | None = None,
    tolerance: float = 1e-8,
) -> Minima:
    """Sum-Huber over the squared knee from each start (M, P); all but ``law`` and ``knee`` may hold one draw a start."""

    def objective(coordinates: Array, which: np.ndarray) -> tuple[Array, Array]:
        delta, gradient = law.delta_and_gradient(coordinates, prepared.take(which))
        rho, psi = huber(delta - (delta_nats if delta_nats.ndim == 1 else delta_nats[which]), knee)
        if weights is not None:
            rho, psi = rho * weights[which], psi * weights[which]
        return rho.sum(axis=1) / knee**2, np.matmul(psi[:, None, :], gradient)[:, 0, :] / knee**2

    lower, upper = np.array(law.lower), np.array(law.upper)
    return minimise(
        objective, starts, lower, upper, inverse_hessian=inverse_hessian, max_evaluations=200, tolerance=tolerance
    )


def _control_noise(prepared: Prepared, basis: ScratchBasis, controls: np.ndarray | None, seed: int) -> Array:
    """(K, R) nats: noise of controls that two or more pairs share, the same for all of them; 0 elsewhere."""
    assert basis.draws is not None
    num_draws, num_pairs = len(basis.draws.params), len(prepared.points)
    if controls is None:
        return np.zeros((num_draws, num_pairs))
    _, owner, count = np.unique(controls, return_inverse=True, return_counts=True)
    noise = np.random.default_rng(seed + 2).standard_normal((num_draws, len(count)))[:, owner]
    return np.asarray(np.where(count[owner] > 1, basis.run_sd_log * prepared.scratch_loss * noise, 0.0))


def _draw(
    law: GrowthLaw,
    points: GrowthPoints,
    delta_nats: Array,
    curves: ScratchCurve,
    clusters: np.ndarray,
    point_fit: GrowthFit,
    seed: int,
) -> tuple[Array, int]:
    """Growth parameters (K, P) of every scratch draw with its own resample and deltas (K, R) of the pairs; how many failed."""
    num_draws = len(curves.params)
    starts = np.repeat(point_fit.params[None], num_draws, axis=0)
    if not law.num_parameters:
        return starts, 0
    weights = resample_weights(clusters, num_draws, seed + 1)
    drawn, failed = starts.copy(), 0
    for first in range(0, num_draws, _CHUNK):
        part = np.arange(first, min(first + _CHUNK, num_draws))
        minima = _minimise(
            law, Prepared.of(points, curves.take(part)), delta_nats[part], starts[part], point_fit.knee_nats,
            weights[part], point_fit.inverse_hessian,
        )  # fmt: skip
        good = np.isfinite(minima.values)
        drawn[part[good]] = minima.points[good]
        failed += int((~good).sum())
    return drawn, failed
