"""Scores of predictions that were stored before their runs were seen, and the paired comparison of two predictors.

    IS = (u - l) + (2 / a) (l - y)+ + (2 / a) (y - u)+                       interval score, a = 0.2
    WIS = (|y - m| / 2 + (a / 2) IS) / 1.5                                   weighted interval score, nats
    regret of a question = delta of the design picked (0: scratch) - min(0, lowest delta there was)

========  ==========================================================================  ======
symbol    meaning                                                                     unit
========  ==========================================================================  ======
y         observed delta (or loss)                                                    nats
m, l, u   prediction and the ends of its 80% interval                                 nats
question  the cases of one target at one compute: what a planner could choose between  -
========  ==========================================================================  ======

WIS is proper for an interval, rewards sharpness and calibration at once, and is |y - m| for a bare number (Bracher et al.
2021, PLOS Computational Biology 17(2): e1008618), so intervals and numbers stand on one scale. Differences of scores are
resampled by trunk family and by control, and the wider interval stands (:mod:`fitting.grid_report.held_out`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fitting.conventions import INTERVAL_LEVEL, SAME_FACTOR, TIE_NATS
from fitting.estimation.bootstrap import resample_weights
from fitting.prequential.cases import Case, questions
from fitting.prequential.predicting import Forecast
from fitting.validation.scores import binomial_interval

_NUM_RESAMPLES = 2000


def weighted_interval_score(observed_nats: float, forecast: Forecast) -> float:
    """WIS in nats, lower is better."""
    miss = 1 - INTERVAL_LEVEL
    below, above = max(0.0, forecast.low_nats - observed_nats), max(0.0, observed_nats - forecast.high_nats)
    interval_score = forecast.high_nats - forecast.low_nats + 2 / miss * (below + above)
    return (abs(observed_nats - forecast.nats) / 2 + miss / 2 * interval_score) / 1.5


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one predictor said of one case: a forecast, or a decision alone (as rules do), or both.

    ``growth_factor`` and ``timing_tokens`` are what a rule would do at the case's target and compute.
    """

    forecast: Forecast | None
    decision: str
    growth_factor: float | None = None
    timing_tokens: float | None = None

    def takes(self, case: Case) -> bool:
        """Whether it would grow by the case's factor rather than train from scratch."""
        if self.forecast is not None:
            return self.forecast.nats < 0
        return (
            self.decision == "grow"
            and self.growth_factor is not None
            and abs(self.growth_factor / case.base.growth_factor - 1) < SAME_FACTOR
        )


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One predictor over some cases: sums in nats, counts, and shares with intervals; None where nothing was to be counted.

    ``score_nats`` and ``coverage`` are over the ``num_numbers`` cases for which a number was given.
    """

    num_cases: int
    num_numbers: int
    score_nats: float | None
    wrong_signs: int
    sign_cases: int
    regret_nats: float
    num_questions: int
    coverage: float | None
    coverage_interval: tuple[float, float] | None


def standing(found: Sequence[Case], said: Sequence[Said]) -> Standing:
    """How a predictor stands after some cases, in the order in which they came."""
    numbers = [(case, one.forecast) for case, one in zip(found, said, strict=True) if one.forecast is not None]
    scores = [weighted_interval_score(case.delta_nats, forecast) for case, forecast in numbers]
    # A bare number has no interval to cover anything.
    spans = [(case, forecast) for case, forecast in numbers if forecast.high_nats > forecast.low_nats]
    held = sum(forecast.low_nats <= case.delta_nats <= forecast.high_nats for case, forecast in spans)
    counted = [
        (case, one) for case, one in zip(found, said, strict=True) if abs(case.delta_nats) > TIE_NATS
    ]  # fmt: skip
    groups = questions(found)
    return Standing(
        num_cases=len(found),
        num_numbers=len(numbers),
        score_nats=float(np.mean(scores)) if scores else None,
        wrong_signs=sum(one.takes(case) != (case.delta_nats < 0) for case, one in counted),
        sign_cases=len(counted),
        regret_nats=sum(regret([found[i] for i in places], [said[i] for i in places]) for places in groups),
        num_questions=len(groups),
        coverage=held / len(spans) if spans else None,
        coverage_interval=binomial_interval(held, len(spans)),
    )


def regret(found: Sequence[Case], said: Sequence[Said]) -> float:
    """Regret in nats on the cases of one question, against the best of them and scratch.

    A predictor with numbers picks the lowest predicted delta of the designs it gave one for, scratch if that is not below 0.
    One without follows its newest decision, which knows most of the bases on offer: the design nearest in factor, then timing.
    """
    best = min(0.0, *(case.delta_nats for case in found))
    numbers = [(one.forecast.nats, case.delta_nats) for case, one in zip(found, said, strict=True) if one.forecast]
    if numbers:
        predicted, observed = min(numbers)
        return (observed if predicted < 0 else 0.0) - best
    last = said[-1]
    if last.decision != "grow" or last.growth_factor is None or last.timing_tokens is None:
        return -best
    factor, timing = last.growth_factor, last.timing_tokens
    picked = min(
        found,
        key=lambda case: (
            round(abs(math.log(case.base.growth_factor / factor)), 6),
            abs(math.log(case.timing_tokens / timing)),
        ),
    )
    return picked.delta_nats - best


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Mean score of a candidate minus that of the active version on the same cases, in nats (negative: the candidate is
    better), with its 80% interval."""

    num_cases: int
    num_families: int
    difference_nats: float
    interval_nats: tuple[float, float]


def compare(differences: Sequence[float], families: Sequence[str], controls: Sequence[str]) -> Comparison | None:
    """The paired comparison over differences of scores; None without any."""
    if not differences:
        return None
    values = np.asarray(differences, dtype=np.float64)
    tail = (1 - INTERVAL_LEVEL) / 2
    ends = []
    for labels in (families, controls):
        weights = resample_weights(np.asarray(labels), _NUM_RESAMPLES, seed=0)
        means = (weights @ values) / weights.sum(axis=1)
        ends.append(np.quantile(means, [tail, 1 - tail]))
    low, high = max(ends, key=lambda pair: pair[1] - pair[0])
    return Comparison(
        num_cases=len(values),
        num_families=len(set(families)),
        difference_nats=float(values.mean()),
        interval_nats=(float(low), float(high)),
    )
