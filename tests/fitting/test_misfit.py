"""What laws may miss: against closed forms of the normal distribution, and scipy's of many values at once."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm
from two_arms import two_arms, unit_loss

from fitting.flops import Shape
from fitting.guideline import Guideline, Noise
from fitting.layers import BaseOption
from fitting.planning import decision_of
from fitting.planning.decisions import Arm
from fitting.planning.misfit import Misfit, Place, misfit_of, places_of_arms
from fitting.planning.value import Simulation
from fitting.recommendation import Request
from fitting.refit import fit_guideline

HIDDEN64 = Path(__file__).parents[1] / "data" / "hidden64" / "runs.csv"
SHAPE = Shape(
    num_layers=8, hidden_size=64, num_heads=2, num_kv_heads=2, intermediate_size=176, vocab_size=1024,
    context_length=128,
)  # fmt: skip
GROWN = Place(params=1e6, tokens=1e7, base_params=2.5e5, timing_share=0.1)


@pytest.fixture(scope="module")
def fitted() -> Guideline:
    return fit_guideline(HIDDEN64)


@pytest.mark.parametrize(
    ("spread", "missed", "alike", "noise"), [(0.0, 1.0, 1.0, 0.5), (0.0, 1.0, 0.6, 0.5), (0.8, 0.6, 0.7, 1.0)]
)
def test_the_value_of_a_result_where_laws_may_miss_is_the_closed_form(
    spread: float, missed: float, alike: float, noise: float
) -> None:
    """A result at a place whose misfit is ``alike`` correlated with the arm's: EVSI = t psi(|m|/t), jointly normal."""
    mean = 0.3
    theta = mean + spread * norm.ppf((np.arange(600) + 0.5) / 600)
    # Places: scratch, which is not missed, the arm, and the experiment.
    covariance = missed**2 * np.array([[0, 0, 0], [0, 1, alike], [0, alike, 1]])
    simulation = Simulation(
        decisions=[two_arms(theta)], truths=np.arange(600), num_results=16, seed=5, misfit=covariance,
        arm_places=[np.array([0, 1])],
    )  # fmt: skip
    before = simulation.regrets(simulation.start)[0]
    prior = math.hypot(spread, missed)
    assert before.mean == pytest.approx(prior * unit_loss(mean / prior), rel=0.05)
    seen = simulation.see(simulation.start, theta[:, None], np.array([noise]), [2])
    told = (spread**2 + alike * missed**2) / math.sqrt(spread**2 + missed**2 + noise**2)
    assert before.mean - simulation.regrets(seen)[0].mean == pytest.approx(told * unit_loss(mean / told), abs=0.015)


def test_beliefs_after_several_results_are_those_of_the_joint_normal() -> None:
    """Weights of draws by scipy's multivariate normal of all results at once; one after the other they come to the same."""
    rng = np.random.default_rng(4)
    factor = rng.standard_normal((5, 5))
    covariance = factor @ factor.T / 5
    losses, noise = rng.standard_normal((30, 3)), np.array([0.3, 0.5, 0.4])
    simulation = Simulation(
        decisions=[two_arms(rng.standard_normal(30))], truths=np.arange(30), num_results=2, seed=1, misfit=covariance,
        arm_places=[np.array([0, 1])],
    )  # fmt: skip
    together = simulation.see(simulation.start, losses, noise, [2, 3, 4])
    step = simulation.see(simulation.start, losses[:, :1], noise[:1], [2])
    apart = simulation.see(step, losses[:, 1:], noise[1:], [3, 4])
    assert np.allclose(np.exp(together.log_weights), np.exp(apart.log_weights))
    # Undo the whitening: what draw k misses of the results of row r.
    among = covariance[2:, 2:] + np.diag(noise**2)
    misses = np.einsum("ij,jrk->rki", np.linalg.cholesky(among), np.stack(together.whitened))
    log_weights = multivariate_normal(cov=among).logpdf(misses)
    log_weights[np.arange(60), np.repeat(np.arange(30), 2)] = -np.inf
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    assert np.exp(together.log_weights) == pytest.approx(weights / weights.sum(axis=1, keepdims=True))
    # What one result tells of the arms: cov(arm, result) / sd(result).
    assert step.shares[0][:2] == pytest.approx(covariance[2, :2] / math.sqrt(covariance[2, 2] + noise[0] ** 2))


def test_runs_alike_are_missed_alike() -> None:
    misfit = Misfit(single_nats=0.02, grown_nats=0.1, seed_nats=0.01)
    near = replace(GROWN, timing_share=0.1 * math.e)
    far = replace(GROWN, params=1e6 * math.e**3, tokens=1e7 * math.e**3, base_params=2.5e5 * math.e**3)
    single = Place(params=1e6, tokens=1e7)
    found = misfit.covariance([GROWN, single], [GROWN, near, far, single])
    assert found[0] == pytest.approx([0.01, 0.01 * math.exp(-0.5), 0.01 * math.exp(-4.5), 0.0])
    assert found[1] == pytest.approx([0.0, 0.0, 0.0, 0.0004])


def test_where_runs_stand_less_is_missed(fitted: Guideline) -> None:
    """Against the closed form of a normal given one noisy value, and never more than before."""
    (pair, *_), noise = fitted.pairs, 0.03
    alone = replace(fitted, pairs=(pair,), controls=())
    misfit = Misfit(single_nats=0.05, grown_nats=0.1, seed_nats=noise)
    tokens = pair.compute_flops / (6 * pair.target_params)
    there = Place(
        params=pair.target_params, tokens=tokens, base_params=pair.base_params,
        timing_share=pair.growth_timing_tokens / tokens,
    )  # fmt: skip
    near = replace(there, tokens=tokens * math.e)
    after = misfit.after(alone, [there, near])
    measured = noise**2 * (1 / pair.num_grown_seeds + 1 / pair.num_scratch_seeds)
    across = misfit.covariance([there, near], [there])
    expected = misfit.covariance([there, near], [there, near]) - across @ across.T / (0.1**2 + measured)
    assert after == pytest.approx(expected)
    places = places_of_arms(decision_of(Request(target_shape=SHAPE, token_budget=2e6), fitted))
    gone = misfit.covariance(places, places) - misfit.after(fitted, places)
    assert np.linalg.eigvalsh(gone).min() > -1e-9
    assert np.diag(gone).max() > 0.5 * 0.05**2


def test_what_held_out_pairs_miss_beyond_seeds_is_the_laws(fitted: Guideline) -> None:
    """By hand: variances are split, and few questions leave growth as untold as its deltas are large."""
    decision = decision_of(Request(target_shape=SHAPE, token_budget=2e6), fitted)
    quiet = replace(fitted, noise=Noise(sd_nats=1e-9, degrees_of_freedom=9, num_repeats=9))
    found = misfit_of(quiet, [decision])
    losses = fitted.losses
    assert found.single_nats == pytest.approx(losses.run_noise_nats)
    scratch = next(i for i, arm in enumerate(decision.arms) if arm.kind == "scratch")
    grown = [i for i, arm in enumerate(decision.arms) if arm.base is not None]
    size = float(np.median(np.abs(decision.losses[:, grown] - decision.losses[:, [scratch]])))
    questions = {(round(one.target_params), f"{one.compute_flops:.2e}") for one in fitted.pairs}
    num = len(questions) if len(fitted.pairs) >= 10 else 0
    missed = max(0.0, losses.delta_noise_nats**2 - losses.run_noise_nats**2)
    assert found.grown_nats == pytest.approx(math.sqrt((num * missed + 4 * size**2) / (num + 4)))
    loud = replace(fitted, noise=Noise(sd_nats=1.0, degrees_of_freedom=9, num_repeats=9))
    assert misfit_of(loud, [decision]).single_nats == 0.0
    # Without a grown arm nothing says how large deltas are, and none is missed.
    assert misfit_of(replace(loud, pairs=()), []).grown_nats == 0.0


def test_places_of_arms_hold_what_runs_have(fitted: Guideline) -> None:
    decision = decision_of(Request(target_shape=SHAPE, token_budget=2e6), fitted)
    for arm, place in zip(decision.arms, places_of_arms(decision), strict=True):
        if arm.base is None:
            assert (place.params, place.tokens, place.base_params) == (arm.params, arm.tokens, None)
        else:
            assert (arm.base.params, arm.growth_timing_tokens) == (
                place.base_params, pytest.approx((place.timing_share or 0) * 2e6),
            )  # fmt: skip
    base = BaseOption(
        growth_factor=4, params=2.5e5, num_layers=2, order="stack", connection_rate=None, flops_per_token=1.5e6
    )
    said = replace(
        two_arms(np.zeros(3)),
        arms=(Arm(kind="smaller", params=5e5), Arm(kind="grow", params=1e6, base=base, growth_timing_tokens=1e6)),
    )
    single, grown = places_of_arms(said)
    assert (single.params, single.tokens) == (5e5, 2e7)
    assert grown == GROWN
