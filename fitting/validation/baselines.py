"""Rules as baselines: what the planner would have lost by following one, on the designs that were run.

    regret = delta of the design the rule picks (0: scratch) - lowest delta there was (0: scratch)

========  ==============================================================  ======
symbol    meaning                                                         unit
========  ==============================================================  ======
design    a (d, g) that was run for a target at one compute               -
pick      the design of the rule's g nearest in ln d; none: scratch       -
========  ==============================================================  ======

The null rule grows iff g < 3 with d = 20 tokens per base parameter; G_stack has g = 4 and log10 d = 0.88 log10 N +
163.27 / log10 C - 5.74; never growing is the third. A G_stack timing that costs the whole budget counts as scratch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fitting.conventions import TIE_NATS
from fitting.growth_data import GrowthData
from fitting.rules.gstack import growth_timing_tokens
from fitting.validation.scores import design_groups

_NULL_FACTOR_LIMIT = 3.0
_TOKENS_PER_BASE_PARAM = 20.0
_GSTACK_FACTOR = 4.0


@dataclass(frozen=True, kw_only=True)
class RuleScores:
    """Signs a rule got right (grow or not, ties apart) and the mean regret of its picks in nats."""

    sign_hits: int
    sign_cases: int
    regret_nats: float


def rule_scores(data: GrowthData) -> dict[str, RuleScores]:
    """Scores by rule over all pairs of ``data``."""
    return {
        "null": _scores(
            data, data.points.growth_factor < _NULL_FACTOR_LIMIT, _TOKENS_PER_BASE_PARAM * data.points.base_params
        ),
        "gstack": _gstack(data),
        "never_grow": _scores(data, np.zeros(len(data), dtype=bool), data.points.timing_tokens),
    }


def _gstack(data: GrowthData) -> RuleScores:
    timing = np.array(
        [
            growth_timing_tokens(size, budget)
            for size, budget in zip(data.points.target_params, data.points.scratch_tokens, strict=True)
        ]
    )
    feasible = 6 * data.points.base_params * timing < data.compute_flops
    near_four = np.abs(data.points.growth_factor / _GSTACK_FACTOR - 1) < 0.1
    return _scores(data, feasible & near_four, timing)


def _scores(data: GrowthData, grows: np.ndarray, timing_tokens: np.ndarray) -> RuleScores:
    observed = data.delta_nats
    counted = np.abs(observed) > TIE_NATS
    regrets = []
    for rows in design_groups(data):
        allowed = rows[grows[rows]]
        got = 0.0
        if allowed.size:
            distance = np.abs(np.log(np.maximum(data.points.timing_tokens[allowed], 1.0) / timing_tokens[allowed]))
            got = float(observed[allowed[np.argmin(distance)]])
        regrets.append(got - min(float(observed[rows].min()), 0.0))
    return RuleScores(
        sign_hits=int(np.sum(counted & (grows == (observed < 0)))),
        sign_cases=int(counted.sum()),
        regret_nats=float(np.mean(regrets)),
    )
