"""Fit scratch laws: one by name, or several averaged by how well each extrapolates.

    ln S(N, D) = sum_l w_l ln S_l(N, D)        w_l ~ prod_c (mse_best,c / mse_l,c)^v_c,   0 for a law that fails

========  ===========================================================  ==========
symbol    meaning                                                      unit
========  ===========================================================  ==========
S_l       scratch law l, fitted to all rows                            nats
mse_l,c   mean squared log error of l, fitted to the rows of less      -
          compute than cut c, on the rows above it
v_c       share of the rows below cut c, squared, summing to 1: the    -
          latest cuts are most like the fit to all rows
w_l       weight of law l                                              -
========  ===========================================================  ==========

Flexible laws win in-sample and explode outside: laws are chosen by extrapolation only, averaged on near ties, and get no weight
where they explode or bend the wrong way (``verdicts`` says which and why).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from fitting.estimation.bootstrap import Draws, bootstrap
from fitting.estimation.identifiability import shortages, weaknesses
from fitting.estimation.losses import LossFunction, checked_knee, checked_loss_function, robust_sd
from fitting.estimation.regression import PointFit, Regression, fit_point
from fitting.estimation.residuals import ResidualModel, fit_residual_model, prediction_interval
from fitting.laws import SCRATCH_LAWS, scratch_law
from fitting.laws.base import Array, ScratchLaw
from fitting.laws.shape import shape_faults
from fitting.scratch_rows import ScratchRows, far_rows

# Shares of the rows, ordered by compute, that each cut of the rolling extrapolation trains on.
_CUTS = (0.5, 0.65, 0.8, 0.9)
# A law explodes where a held-out row is off by this factor's logarithm while its errors are this multiple of the best law's.
_EXPLODED_LOG_ERROR = 0.35
_EXPLODED_RATIO = 2.0
# A law whose errors are on the whole this multiple of the best law's gets no weight.
_WORTHLESS_RATIO = 3.0
# A law must keep its shape this far beyond the rows: (below, above), for sizes and for tokens.
_SHAPE_MARGIN = (2.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Wall-clock seconds that the cold fit and the bootstrap took."""

    fit: float
    bootstrap: float


@dataclass(frozen=True, kw_only=True)
class ScratchFit:
    """One scratch law fitted to one set of rows.

    ``params`` (P,) are in plain units and the order of ``law.parameter_names``; ``draws`` is None without a bootstrap.
    """

    law: ScratchLaw
    params: Array
    objective: float
    knee: float
    loss_function: LossFunction
    share_of_starts_at_best: float
    num_rows: int
    residual_model: ResidualModel
    draws: Draws | None
    warnings: tuple[str, ...]
    seconds: Seconds

    @property
    def parameters(self) -> dict[str, float]:
        return dict(zip(self.law.parameter_names, map(float, self.params), strict=True))

    @property
    def standard_errors(self) -> dict[str, float] | None:
        """Bootstrap standard errors by parameter name; None without a bootstrap."""
        if self.draws is None:
            return None
        return dict(zip(self.law.parameter_names, map(float, self.draws.standard_errors()), strict=True))

    def predict(self, num_params: ArrayLike, tokens: ArrayLike) -> Array:
        """Loss in nats (R,)."""
        return self.law.loss(self.params, num_params, tokens)

    def draw_predictions(self, num_params: ArrayLike, tokens: ArrayLike) -> Array:
        """Loss of every bootstrap draw (K, R); ValueError without a bootstrap."""
        if self.draws is None or not len(self.draws.params):
            raise ValueError("this fit has no bootstrap draws; fit again with bootstrap > 0")
        return self.law.loss(self.draws.params, num_params, tokens)

    def interval(self, num_params: ArrayLike, tokens: ArrayLike, coverage: float = 0.8) -> tuple[Array, Array]:
        """Prediction interval (R,), (R,) of a new run's loss: parameter and residual uncertainty."""
        return _interval(self.draw_predictions(num_params, tokens), self.residual_model, num_params, tokens, coverage)


@dataclass(frozen=True, kw_only=True)
class AveragedScratchFit:
    """Scratch laws averaged: ``fits`` and ``weights`` by name; laws of weight 0 stay in, ``verdicts`` says why."""

    fits: Mapping[str, ScratchFit]
    weights: Mapping[str, float]
    extrapolation_errors: Mapping[str, float]
    verdicts: Mapping[str, str]
    num_rows: int
    warnings: tuple[str, ...]
    seconds: Seconds

    @property
    def leader(self) -> ScratchFit:
        """The fit of the largest weight."""
        return self.fits[max(self.weights, key=lambda name: self.weights[name])]

    def predict(self, num_params: ArrayLike, tokens: ArrayLike) -> Array:
        """Geometric mean of the laws' losses in nats (R,)."""
        total: Array | float = 0.0
        for name, weight in self.weights.items():
            if weight > 0:
                total = total + weight * np.log(self.fits[name].predict(num_params, tokens))
        return np.exp(np.asarray(total))

    def draw_predictions(self, num_params: ArrayLike, tokens: ArrayLike) -> Array:
        """(K, R): each draw comes from one law, laws by weight, so that their disagreement widens the draws."""
        used = [(name, weight) for name, weight in self.weights.items() if weight > 0]
        draws = [self.fits[name].draw_predictions(num_params, tokens) for name, _ in used]
        num_draws = min(len(values) for values in draws)
        edges = np.cumsum([weight for _, weight in used])
        owner = np.searchsorted(edges[:-1], (np.arange(num_draws) + 0.5) / num_draws)
        return np.array([draws[law][k] for k, law in enumerate(owner)])

    def interval(self, num_params: ArrayLike, tokens: ArrayLike, coverage: float = 0.8) -> tuple[Array, Array]:
        """Prediction interval (R,), (R,) of a new run's loss: parameters, laws and residuals."""
        return _interval(
            self.draw_predictions(num_params, tokens), self.leader.residual_model, num_params, tokens, coverage
        )


def _interval(
    draws: Array, model: ResidualModel, num_params: ArrayLike, tokens: ArrayLike, coverage: float
) -> tuple[Array, Array]:
    compute = np.log(6.0 * np.asarray(num_params, dtype=np.float64) * np.asarray(tokens, dtype=np.float64))
    noise = model.draw(np.broadcast_to(compute, draws.shape[1:]), len(draws), seed=0)
    return prediction_interval(draws, noise, coverage)


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How to fit: loss function, knee (None: scale-aware), pinned scale-free parameters, bootstrap resamples and seed."""

    loss_function: LossFunction = "huber"
    knee: float | None = None
    fixed: Mapping[str, float] = field(default_factory=dict)
    bootstrap: int = 0
    seed: int = 0


def fit_scratch_law(
    rows: ScratchRows,
    law: str = "auto",
    *,
    loss_function: str = "huber",
    knee: float | str = "auto",
    fixed: Mapping[str, float] | None = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> ScratchFit | AveragedScratchFit:
    """Fit a scratch law to runs.

    Args:
        rows: checked runs, from :func:`fitting.scratch_rows.scratch_rows`.
        law: a name of ``SCRATCH_LAWS``, or ``auto`` to average them by rolling extrapolation.
        loss_function: ``huber`` or ``lad``.
        knee: ``auto`` (1.345 robust sd) or a number; 1e-3 for comparison with published fits.
        fixed: scale-free parameters to pin, as ``{"alpha": 0.35}``; with ``auto`` a ValueError.
        bootstrap: resamples of whole clusters; 0 for none.
        seed: of the resampling.

    Raises:
        ValueError: an option is wrong, or the rows cannot identify the law; the message counts what is missing.
    """
    if bootstrap < 0:
        raise ValueError(f"bootstrap is {bootstrap}; it must be 0 or more resamples")
    options = FitOptions(
        loss_function=checked_loss_function(loss_function),
        knee=checked_knee(knee),
        fixed=dict(fixed or {}),
        bootstrap=bootstrap,
        seed=seed,
    )
    if law == "auto":
        if options.fixed:
            raise ValueError("fixed parameters belong to one law; name the law instead of 'auto'")
        return _average(rows, options)
    return _fit_one(rows, scratch_law(law), options)


def _regression(rows: ScratchRows, law: ScratchLaw, options: FitOptions) -> Regression:
    missing = shortages(law, rows.num_params, rows.tokens, len(options.fixed))
    if missing:
        raise ValueError(f"law '{law.name}' cannot be fitted to these runs: {'; '.join(missing)}")
    return Regression(
        law=law, num_params=rows.num_params, tokens=rows.tokens, loss_nats=rows.loss_nats, fixed=dict(options.fixed)
    )


def _point(rows: ScratchRows, law: ScratchLaw, options: FitOptions) -> tuple[Regression, PointFit]:
    regression = _regression(rows, law, options)
    return regression, fit_point(regression, options.loss_function, options.knee)


def _fit_one(rows: ScratchRows, law: ScratchLaw, options: FitOptions) -> ScratchFit:
    began = time.perf_counter()
    regression, point = _point(rows, law, options)
    fitted = time.perf_counter()
    draws, warnings = None, weaknesses(regression, point)
    if options.bootstrap:
        draws = bootstrap(regression, point, rows.clusters, options.bootstrap, options.seed)
        if draws.num_failed:
            warnings.append(
                f"law '{law.name}': {draws.num_failed} of {draws.num_requested} bootstrap fits failed and are left out"
            )
    ended = time.perf_counter()
    params = regression.params(point.coordinates)
    warnings += shape_faults(law, params, *_region(rows))
    warnings += far_rows(rows, point.residuals, robust_sd(point.residuals))
    return ScratchFit(
        law=law,
        params=params,
        objective=point.objective,
        knee=point.knee,
        loss_function=point.loss_function,
        share_of_starts_at_best=point.share_of_starts_at_best,
        num_rows=len(rows),
        residual_model=fit_residual_model(point.residuals, np.log(rows.flops), law.num_parameters),
        draws=draws,
        warnings=tuple(dict.fromkeys(warnings)),
        seconds=Seconds(fit=fitted - began, bootstrap=ended - fitted),
    )


def _region(rows: ScratchRows) -> tuple[tuple[float, float], tuple[float, float]]:
    below, above = _SHAPE_MARGIN
    return (
        (float(rows.num_params.min()) / below, float(rows.num_params.max()) * above),
        (float(rows.tokens.min()) / below, float(rows.tokens.max()) * above),
    )


@dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """Rolling extrapolation of one law: mean squared and worst log error above each cut; where its shape failed, or ""."""

    squared_errors: Mapping[float, float]
    worst_errors: Mapping[float, float]
    bend: str

    @property
    def rms(self) -> float:
        """Root mean squared log error over the cuts."""
        return float(np.sqrt(np.mean(list(self.squared_errors.values()))))


def rolling_extrapolation(rows: ScratchRows, law: ScratchLaw, options: FitOptions) -> Extrapolation:
    """Fit the law to the rows of least compute, score it on all rows above, for each cut that it can be fitted at."""
    order = np.argsort(rows.flops, kind="stable")
    squared, worst, bend = {}, {}, ""
    for share in _CUTS:
        # Runs of equal compute stay on one side of the cut.
        limit = rows.flops[order[int(share * len(rows))]]
        below = rows.flops < limit * (1 - 1e-9)
        train, test = rows.where(below), rows.where(~below)
        if not len(test) or not below.any() or shortages(law, train.num_params, train.tokens):
            continue
        regression, point = _point(train, law, options)
        params = regression.params(point.coordinates)
        with np.errstate(all="ignore"):
            log_error = np.log(law.loss(params, test.num_params, test.tokens)) - np.log(test.loss_nats)
        log_error = np.where(np.isfinite(log_error), np.abs(log_error), np.inf)
        squared[share], worst[share] = float(np.mean(log_error**2)), float(log_error.max())
        faults = shape_faults(law, params, *_region(rows))
        bend = bend or (f"when fitted below {limit:.2g} FLOPs: {faults[0]}" if faults else "")
    return Extrapolation(squared_errors=squared, worst_errors=worst, bend=bend)


def _average(rows: ScratchRows, options: FitOptions) -> AveragedScratchFit:
    began = time.perf_counter()
    fits: dict[str, ScratchFit] = {}
    verdicts: dict[str, str] = {}
    tests: dict[str, Extrapolation] = {}
    for name, law in SCRATCH_LAWS.items():
        missing = shortages(law, rows.num_params, rows.tokens)
        if missing:
            verdicts[name] = f"not fitted: {'; '.join(missing)}"
            continue
        fits[name] = _fit_one(rows, law, options)
        tests[name] = rolling_extrapolation(rows, law, options)
    if not fits:
        reasons = "; ".join(f"{name}: {verdict}" for name, verdict in verdicts.items())
        raise ValueError(f"no scratch law can be fitted to these runs ({reasons})")
    weights, errors = _weights(fits, tests, _region(rows), verdicts)
    spent = sum(fit.seconds.bootstrap for fit in fits.values())
    warnings = [sentence for name, fit in fits.items() if weights[name] > 0 for sentence in fit.warnings]
    if not errors:
        warnings.append(
            "too few runs to compare laws by extrapolation: the law with the fewest parameters is used alone"
        )
    return AveragedScratchFit(
        fits=fits,
        weights=weights,
        extrapolation_errors=errors,
        verdicts=verdicts,
        num_rows=len(rows),
        warnings=tuple(dict.fromkeys(warnings)),
        seconds=Seconds(fit=time.perf_counter() - began - spent, bootstrap=spent),
    )


def _weights(
    fits: Mapping[str, ScratchFit],
    tests: Mapping[str, Extrapolation],
    region: tuple[tuple[float, float], tuple[float, float]],
    verdicts: dict[str, str],
) -> tuple[dict[str, float], dict[str, float]]:
    """Weights and root mean squared log errors by law; fills ``verdicts`` with why a law has no weight."""
    tested = {name: test for name, test in tests.items() if test.squared_errors}
    if not tested:
        simplest = min(fits, key=lambda name: fits[name].law.num_parameters)
        return {name: float(name == simplest) for name in fits}, {}
    cuts = {cut for test in tested.values() for cut in test.squared_errors}
    best = {cut: max(min(t.squared_errors.get(cut, np.inf) for t in tested.values()), 1e-16) for cut in cuts}
    ratios = {name: _mean_ratio(test, best) for name, test in tested.items()}
    faults = {name: _fault(fit, tested.get(name), best, region) for name, fit in fits.items()}
    sound = {name: ratio for name, ratio in ratios.items() if not faults[name]}
    if not sound:
        # Where every law fails, the one that fails least answers and says so.
        least = min(ratios, key=lambda name: ratios[name])
        sound = {least: ratios[least]}
        faults[least] += "; used all the same: no law passes and the others do worse"
    limit = _WORTHLESS_RATIO**2 * min(sound.values())
    raw = {name: 1.0 / ratio for name, ratio in sound.items() if ratio <= limit}
    total = sum(raw.values())
    weights = {name: raw.get(name, 0.0) / total for name in fits}
    for name, weight in weights.items():
        if faults[name]:
            verdicts[name] = faults[name]
        elif weight:
            verdicts[name] = f"weight {weight:.2f}"
        else:
            verdicts[name] = (
                f"no weight: its extrapolation error is {np.sqrt(ratios[name] / min(sound.values())):.1f} times the best law's"
            )
    return weights, {name: test.rms for name, test in tested.items()}


def _mean_ratio(test: Extrapolation, best: Mapping[float, float]) -> float:
    """Geometric mean over a law's cuts of its squared error against the best law's, later cuts weighing more."""
    cuts = list(test.squared_errors)
    importance = np.array(cuts) ** 2
    logs = np.log([max(test.squared_errors[cut], 1e-16) / best[cut] for cut in cuts])
    return float(np.exp(np.sum(importance * logs) / importance.sum()))


def _fault(
    fit: ScratchFit,
    test: Extrapolation | None,
    best: Mapping[float, float],
    region: tuple[tuple[float, float], tuple[float, float]],
) -> str:
    """Why a law may have no weight, in words; empty if it may."""
    if test is None:
        return "no weight: too few runs below any cut to test its extrapolation"
    for cut, worst in test.worst_errors.items():
        if worst > _EXPLODED_LOG_ERROR and not test.squared_errors[cut] <= _EXPLODED_RATIO**2 * best[cut]:
            factor = np.exp(min(worst, 50.0))
            return f"no weight: explodes, off by a factor {factor:.3g} when fitted to the lower {cut:.0%} of the compute range"
    if test.bend:
        return f"no weight: bends the wrong way {test.bend}"
    faults = shape_faults(fit.law, fit.params, *region)
    return f"no weight: bends the wrong way: {faults[0]}" if faults else ""
