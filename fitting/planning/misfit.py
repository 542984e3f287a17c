"""How far laws may miss beside what their draws say: the same for runs alike, so that a run tells of its neighbours.

    L(x) = f_k(x) + m(x),   m ~ GP(0, s^2 rho),   rho(x, x') = exp(-1/2 |x - x'|^2)
    s_single^2 = max(0, v_run^2 - s_seed^2)                       single sizes
    s_grown^2  = max(0, v_delta^2 - 2 s_seed^2 - s_single^2)      grown runs

Draws of a law's parameters agree more and more as runs come in, and are then sure of what the law's form gets wrong: a plan
that believes them alone stops too early. What held-out pairs miss beyond the noise of two seeds is such a misfit, and it is
not another roll of the dice for each run (Kennedy and O'Hagan 2001, J. R. Stat. Soc. B 63: 425, eq. 4-5). Its reach is a
factor e in each of size, tokens per parameter, growth factor and timing: on the first public grid the held-out misses of 158
pairs are likeliest under one reach of 1.0 (0.7 and 1.5 are less so), with a noise of 0.037 nats beside them, which is that of
two seeds (0.036).

========  ====================================================================================  ======
symbol    meaning                                                                               unit
========  ====================================================================================  ======
x         where a run stands: ln N, ln D/N, ln of base to target size, ln d/D; (P, 4)           -
f_k       loss in draw k of the laws                                                            nats
m         what the laws miss there                                                              nats
v_run     spread of runs around the laws, v_delta of pairs that were held out                   nats
s_seed    spread of equal runs over seeds                                                       nats
========  ====================================================================================  ======

Single sizes and grown runs are missed apart. Where runs stand, what is missed is known up to their noise: the covariance is
that after them. Their misses shift no loss: an answer is given by the laws, and a plan is for that answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its parts load when they are first used: a service starts sooner
from numpy.typing import NDArray

from fitting.conventions import PAIRS_TO_STAND_ALONE
from fitting.guideline import Guideline
from fitting.planning.decisions import Decision
from fitting.planning.experiments import Experiment, single_at

Array = NDArray[np.float64]

# A law of growth that nobody tested is taken to miss a delta by as much as deltas are, and that counts as much as this many
# (size, budget) questions that were held out: on the first public grid the ten of them miss by 0.09 nats, deltas are 0.09.
_QUESTIONS_ASSUMED = 4

# Of the largest variance: so that a covariance of runs that are nearly the same can be factored.
_JITTER = 1e-9


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run stands; ``base_params`` and ``timing_share`` (of the token budget) of a grown one."""

    params: float
    tokens: float
    base_params: float | None = None
    timing_share: float | None = None

    @property
    def coordinates(self) -> tuple[float, float, float, float]:
        ratio = 1.0 if self.base_params is None else self.base_params / self.params
        return (
            math.log(self.params), math.log(self.tokens / self.params), math.log(ratio),
            math.log(self.timing_share or 1.0),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """The two standard deviations in nats, and the noise of one run over seeds."""

    single_nats: float
    grown_nats: float
    seed_nats: float

    def covariance(self, places: Sequence[Place], others: Sequence[Place]) -> Array:
        """(P, Q) nats^2, before any run was seen."""
        left, right = (np.array([one.coordinates for one in some]).reshape(-1, 4) for some in (places, others))
        near = np.exp(-0.5 * scipy.spatial.distance.cdist(left, right, "sqeuclidean"))
        grown, other_grown = (np.array([one.base_params is not None for one in some]) for some in (places, others))
        variance = np.where(grown, self.grown_nats**2, self.single_nats**2)
        return np.asarray(np.where(grown[:, None] == other_grown, variance[:, None] * near, 0.0))

    def after(self, guideline: Guideline, places: Sequence[Place]) -> Array:
        """(P, P) nats^2, once the guideline's own runs are seen."""
        prior = self.covariance(places, places)
        seen, noise = _seen(guideline, self.seed_nats)
        if not seen or not prior.any():
            return prior
        across = self.covariance(seen, places)
        among = self.covariance(seen, seen) + np.diag(noise**2 + _JITTER * prior.max())
        factor = scipy.linalg.cho_factor(among, lower=True)
        return np.asarray(prior - across.T @ scipy.linalg.cho_solve(factor, across))


def misfit_of(guideline: Guideline, decisions: Sequence[Decision]) -> Misfit:
    """What the guideline's own spreads leave beside the noise of seeds; of growth, drawn to what its deltas are.

    Args:
        decisions: whose grown arms say how large deltas are.
    """
    assert guideline.noise is not None, "a guideline with draws was fitted, with a noise"
    losses, seed = guideline.losses, guideline.noise.sd_nats
    single = max(0.0, losses.run_noise_nats**2 - seed**2)
    missed = max(0.0, losses.delta_noise_nats**2 - 2 * seed**2 - single)
    tested = 0
    if len(guideline.pairs) >= PAIRS_TO_STAND_ALONE:
        tested = len({(round(pair.target_params), f"{pair.compute_flops:.2e}") for pair in guideline.pairs})
    weighed = tested * missed + _QUESTIONS_ASSUMED * _delta_size(decisions) ** 2
    grown = weighed / (tested + _QUESTIONS_ASSUMED)
    return Misfit(single_nats=math.sqrt(single), grown_nats=math.sqrt(grown), seed_nats=seed)


def _delta_size(decisions: Sequence[Decision]) -> float:
    """The median size of grown - scratch over draws and arms, in nats; 0 where nothing may be grown."""
    sizes = []
    for decision in decisions:
        scratch = next((i for i, arm in enumerate(decision.arms) if arm.kind == "scratch"), None)
        grown = [i for i, arm in enumerate(decision.arms) if arm.base is not None]
        if scratch is not None:
            sizes.append(np.abs(decision.losses[:, grown] - decision.losses[:, [scratch]]).ravel())
    every = np.concatenate(sizes) if sizes else np.zeros(0)
    return float(np.median(every)) if every.size else 0.0


def place_of(experiment: Experiment) -> Place:
    if experiment.base is None:
        return Place(params=experiment.params, tokens=experiment.tokens)
    assert experiment.growth_timing_tokens is not None
    return Place(
        params=experiment.target.params, tokens=experiment.token_budget, base_params=experiment.base.params,
        timing_share=experiment.growth_timing_tokens / experiment.token_budget,
    )  # fmt: skip


def places_of_arms(decision: Decision) -> list[Place]:
    """Of every arm of a decision, in their order."""
    places = []
    for arm in decision.arms:
        if arm.base is None:
            # Equal compute, where nobody said the tokens: C ~ N D.
            equal = decision.request.token_budget * decision.request.target.params / arm.params
            places.append(Place(params=arm.params, tokens=arm.tokens or equal))
        else:
            assert arm.growth_timing_tokens is not None
            places.append(
                Place(
                    params=arm.params, tokens=decision.request.token_budget, base_params=arm.base.params,
                    timing_share=arm.growth_timing_tokens / decision.request.token_budget,
                )
            )  # fmt: skip
    return places


def _seen(guideline: Guideline, seed_nats: float) -> tuple[list[Place], Array]:
    """The guideline's runs, and the noise (E,) of each in nats: a mean of seeds has less."""
    places = [Place(params=one.params, tokens=one.tokens) for one in guideline.controls]
    noise = [seed_nats / math.sqrt(one.num_seeds) for one in guideline.controls]
    for pair in guideline.pairs:
        control = single_at(pair.target_params, pair.compute_flops, guideline)
        tokens = control.tokens if control is not None else pair.compute_flops / (6 * pair.target_params)
        places.append(
            Place(
                params=pair.target_params, tokens=tokens, base_params=pair.base_params,
                timing_share=pair.growth_timing_tokens / tokens,
            )
        )  # fmt: skip
        noise.append(seed_nats * math.sqrt(1 / pair.num_grown_seeds + 1 / pair.num_scratch_seeds))
    return places, np.array(noise)
