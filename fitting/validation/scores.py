"""Scores of held-out predictions of delta: error, signs, best factors, regret and coverage, each with an interval.

    regret = delta of the design a law would choose - lowest delta there was (0: scratch),  a mean over (target, compute) groups

========  ==============================================================  ======
symbol    meaning                                                         unit
========  ==============================================================  ======
tie       |delta| <= 0.003: no sign to hit                                nats
group     pairs of one target at one compute (1%)                         -
chosen    the design of the lowest predicted delta, scratch if that > 0   -
========  ==============================================================  ======

Counts have Clopper-Pearson intervals at 80%, errors and regrets a cluster bootstrap of the held-out pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import scipy  # its parts load when they are first used: a service starts sooner

from fitting.conventions import INTERVAL_LEVEL, TIE_NATS
from fitting.estimation.bootstrap import resample_weights
from fitting.growth_data import GrowthData
from fitting.laws.base import Array

_RESAMPLES = 400


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Predictions of one law for pairs it was not fitted to: (R,) delta, and the 80% interval's ends."""

    delta_nats: Array
    low_nats: Array
    high_nats: Array


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of one law over some held-out pairs; intervals are (low, high) or None where nothing was to be counted."""

    num_pairs: int
    rmse_delta_nats: float
    rmse_interval: tuple[float, float]
    sign_hits: int
    sign_cases: int
    sign_interval: tuple[float, float] | None
    best_factor_hits: int
    best_factor_cases: int
    best_factor_interval: tuple[float, float] | None
    regret_nats: float
    regret_interval: tuple[float, float]
    coverage_80: float
    coverage_interval: tuple[float, float] | None

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def score(data: GrowthData, held_out: HeldOut) -> Scores:
    """Scores of predictions for all pairs of ``data``."""
    observed, predicted = data.delta_nats, held_out.delta_nats
    counted = np.abs(observed) > TIE_NATS
    hits = counted & (np.sign(predicted) == np.sign(observed))
    groups = design_groups(data)
    factor_hits, factor_cases = _best_factors(data, predicted, groups)
    regrets = _regrets(observed, predicted, groups)
    covered = (held_out.low_nats <= observed) & (observed <= held_out.high_nats)
    clusters = data.clusters
    return Scores(
        num_pairs=len(observed),
        rmse_delta_nats=float(np.sqrt(np.mean((predicted - observed) ** 2))),
        rmse_interval=_resampled((predicted - observed) ** 2, clusters, np.sqrt),
        sign_hits=int(hits.sum()),
        sign_cases=int(counted.sum()),
        sign_interval=binomial_interval(int(hits.sum()), int(counted.sum())),
        best_factor_hits=factor_hits,
        best_factor_cases=factor_cases,
        best_factor_interval=binomial_interval(factor_hits, factor_cases),
        regret_nats=float(np.mean(regrets)),
        regret_interval=_resampled(regrets, np.arange(len(regrets)), np.asarray),
        coverage_80=float(covered.mean()),
        coverage_interval=binomial_interval(int(covered.sum()), len(covered)),
    )


def design_groups(data: GrowthData) -> list[np.ndarray]:
    """Indices of the pairs of one target at one compute, group by group: what a planner could have chosen between."""
    order = np.lexsort((data.compute_flops, data.points.target_params))
    result: list[list[int]] = []
    for row in order:
        if result:
            first = result[-1][0]
            same_target = abs(data.points.target_params[row] / data.points.target_params[first] - 1) < 1e-3
            if same_target and abs(data.compute_flops[row] / data.compute_flops[first] - 1) <= 0.01:
                result[-1].append(int(row))
                continue
        result.append([int(row)])
    return [np.array(rows) for rows in result]


def binomial_interval(hits: int, cases: int) -> tuple[float, float] | None:
    """Clopper-Pearson interval of a share at 80%; None without cases."""
    if cases == 0:
        return None
    tail = 0.5 * (1 - INTERVAL_LEVEL)
    low = 0.0 if hits == 0 else float(scipy.stats.beta.ppf(tail, hits, cases - hits + 1))
    high = 1.0 if hits == cases else float(scipy.stats.beta.ppf(1 - tail, hits + 1, cases - hits))
    return low, high


def _best_factors(data: GrowthData, predicted: Array, groups: list[np.ndarray]) -> tuple[int, int]:
    """In how many groups with two or more factors the predicted best one was the observed best one."""
    hits = cases = 0
    factors = data.points.growth_factor
    for rows in groups:
        if len(np.unique(np.round(factors[rows], 2))) < 2:
            continue
        cases += 1
        best = rows[np.argmin(data.delta_nats[rows])]
        hits += int(abs(factors[rows[np.argmin(predicted[rows])]] / factors[best] - 1) < 0.01)
    return hits, cases


def _regrets(observed: Array, predicted: Array, groups: list[np.ndarray]) -> Array:
    regrets = []
    for rows in groups:
        chosen = rows[np.argmin(predicted[rows])]
        got = observed[chosen] if predicted[chosen] < 0 else 0.0
        regrets.append(got - min(float(observed[rows].min()), 0.0))
    return np.array(regrets)


def _resampled(values: Array, clusters: np.ndarray, finish: Callable[[Array], Array]) -> tuple[float, float]:
    """80% interval of finish(mean of ``values``) over resampled clusters."""
    weights = resample_weights(clusters, _RESAMPLES, seed=0)
    means = finish((weights @ values) / weights.sum(axis=1))
    low, high = np.quantile(means, [0.5 * (1 - INTERVAL_LEVEL), 0.5 * (1 + INTERVAL_LEVEL)])
    return float(low), float(high)
