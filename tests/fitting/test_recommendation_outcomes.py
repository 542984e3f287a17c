"""The arms of an answer against plain numpy over many random runs: quantiles, chances, the largest regret."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from stored_cohort import SHAPE, fitted

from fitting.flops import Shape
from fitting.guideline import Guideline
from fitting.published import published_guideline
from fitting.recommendation import ExistingBase, Hardware, Recommendation, Request, recommend
from fitting.recommendation.answer import ArmOutcome

HARDWARE = Hardware(peak_flops_per_second=1e12, utilisation=0.4, base_utilisation=0.4)
REQUEST = Request(target_shape=Shape(**SHAPE), token_budget=2e6, hardware=HARDWARE)
NUM_RUNS = 400_000


def guideline_tested() -> Guideline:
    """The fitted guideline as one with enough held-out pairs."""
    return replace(fitted(), held_out={"num_pairs": 12})


def by_name(answer: Recommendation) -> dict[str, ArmOutcome]:
    return {one.arm: one for one in answer.arms}


def draws_of(guideline: Guideline, outcome: ArmOutcome) -> np.ndarray:
    """Expected losses (K,) of an arm, from the laws themselves."""
    assert outcome.params is not None
    assert outcome.tokens is not None
    if outcome.growth_factor is None:
        return guideline.losses.scratch(np.array([outcome.params]), np.array([outcome.tokens]))[:, 0]
    layers = round(SHAPE["num_layers"] / outcome.growth_factor)
    base = next(one for one in REQUEST.bases if one.num_layers == layers)
    timing = np.array([outcome.growth_timing_tokens])
    return guideline.losses.grown(outcome.params, np.array([base.params]), timing, np.array([outcome.tokens]))[:, 0]


@pytest.mark.parametrize("accounting", ["charged", "sunk"])
def test_quantiles_and_chances_are_those_of_simulated_runs(accounting: str) -> None:
    guideline = guideline_tested()
    losses = guideline.losses
    rows = by_name(recommend(replace(REQUEST, base_compute=accounting), guideline))  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    scratch = draws_of(guideline, rows["scratch"])
    for name, row in rows.items():
        draws = draws_of(guideline, row)
        runs = rng.choice(draws, NUM_RUNS) + losses.run_noise_nats * rng.standard_normal(NUM_RUNS)
        assert row.loss_nats is not None
        found = [row.loss_nats.p10, row.loss_nats.p50, row.loss_nats.p90]
        assert found == pytest.approx(np.quantile(runs, [0.1, 0.5, 0.9]), abs=5e-4), name
        if name == "scratch" or row.chance_to_beat_scratch is None:
            assert row.no_chance_reason
            continue
        noise = losses.delta_noise_nats if row.growth_factor else np.sqrt(2) * losses.run_noise_nats
        which = rng.integers(len(draws), size=NUM_RUNS)
        pairs = draws[which] - scratch[which] + noise * rng.standard_normal(NUM_RUNS)
        assert row.chance_to_beat_scratch == pytest.approx(np.mean(pairs < 0), abs=0.005), name


def test_the_chance_of_growing_is_the_answers_own() -> None:
    answer = recommend(REQUEST, guideline_tested())
    assert by_name(answer)["grown"].chance_to_beat_scratch == answer.expected.chance_growth_helps
    sunk = recommend(replace(REQUEST, base_compute="sunk"), guideline_tested())
    assert by_name(sunk)["grown_sunk_base"].chance_to_beat_scratch == sunk.expected.chance_growth_helps


def test_worst_regret_is_the_largest_distance_to_the_best_arm_in_any_draw() -> None:
    guideline = guideline_tested()
    rows = by_name(recommend(REQUEST, guideline))
    draws = {name: draws_of(guideline, row) for name, row in rows.items()}
    shared = ["scratch", "best_fixed_size", "grown"]
    for name, choices in {**dict.fromkeys(shared, shared), "grown_sunk_base": [*shared[:2], "grown_sunk_base"]}.items():
        expected = max(
            draws[name][k] - min(draws[choice][k] for choice in choices) for k in range(guideline.losses.num_draws)
        )
        worst = rows[name].worst_regret
        assert worst is not None
        assert worst.nats == pytest.approx(expected, abs=1e-12)
        assert (worst.nats > 0) == bool(worst.flops)


def test_worst_regret_in_flops_is_what_scratch_needs_to_make_up_for_it() -> None:
    """With the draw's own scratch curve: training on for those FLOPs reaches the best arm's loss."""
    guideline = guideline_tested()
    rows = by_name(recommend(REQUEST, guideline))
    worst = rows["scratch"].worst_regret
    assert worst is not None
    assert worst.flops is not None
    assert worst.gpu_hours == pytest.approx(worst.flops / (1e12 * 0.4 * 3600))
    best = np.minimum(draws_of(guideline, rows["grown"]), draws_of(guideline, rows["scratch"]))
    further = REQUEST.token_budget + worst.flops / REQUEST.target.flops_per_token
    after = guideline.losses.scratch(np.array([REQUEST.target.params]), np.array([further]))[:, 0]
    assert (after <= best + 1e-6).all(), "it is enough in every draw"
    assert np.isclose(after, best, atol=1e-5).any(), "and no more than one needs"


def test_every_arm_costs_the_budget_and_the_base_is_paid_by_its_accounting() -> None:
    rows = by_name(recommend(REQUEST, guideline_tested()))
    hours = HARDWARE.gpu_hours(REQUEST.compute_flops)
    assert [row.compute_flops for row in rows.values()] == [REQUEST.compute_flops] * 4
    assert [row.gpu_hours for row in rows.values()] == [hours] * 4
    grown, sunk = rows["grown"], rows["grown_sunk_base"]
    assert grown.base_flops is not None
    assert grown.tokens is not None
    assert grown.paid_base_gpu_hours == pytest.approx(HARDWARE.gpu_hours(grown.base_flops))
    assert grown.base_flops + grown.tokens * REQUEST.target.flops_per_token == pytest.approx(REQUEST.compute_flops)
    assert sunk.paid_base_gpu_hours == 0
    assert sunk.tokens == pytest.approx(REQUEST.token_budget)


def test_without_enough_held_out_pairs_there_are_losses_but_no_chance() -> None:
    for row in recommend(REQUEST, replace(fitted(), held_out={"num_pairs": 9})).arms:
        assert row.loss_nats is not None
        assert row.chance_to_beat_scratch is None
        assert row.no_chance_reason
    assert "10 held-out pairs" in (row.no_chance_reason or "")


def test_a_published_rule_gives_costs_and_reasons_but_no_loss() -> None:
    request = Request(target_params=3e9, token_budget=6e10, hardware=HARDWARE)
    answer = recommend(request, published_guideline("gstack"))
    rows = by_name(answer)
    for row in rows.values():
        assert (row.loss_nats, row.chance_to_beat_scratch, row.worst_regret) == (None, None, None)
        assert row.no_loss_reason
    assert rows["grown"].growth_timing_tokens == answer.growth_timing_tokens
    assert rows["grown"].tokens == answer.grown_tokens
    assert answer.base_model is not None
    assert rows["grown"].base_flops == pytest.approx(answer.flops.base)
    assert answer.pilot is None


def test_a_base_that_is_there_pays_only_for_what_comes_after_it() -> None:
    request = replace(
        REQUEST, base_compute="sunk", existing_base=ExistingBase(tokens=3e5, params=REQUEST.bases[1].params)
    )
    sunk = by_name(recommend(request, guideline_tested()))["grown_sunk_base"]
    assert sunk.growth_timing_tokens is not None
    paid = (sunk.growth_timing_tokens - 3e5) * request.bases[0].flops_per_token
    assert sunk.paid_base_gpu_hours == pytest.approx(HARDWARE.gpu_hours(paid), abs=1e-12)


def test_an_unsupported_question_names_the_cheapest_pilot() -> None:
    request = Request(target_params=7e11, token_budget=2e13, hardware=HARDWARE)
    answer = recommend(request, published_guideline("gstack"))
    assert answer.support.grade == "unsupported"
    pilot = answer.pilot
    assert pilot is not None
    assert pilot.sentence in answer.warnings
    assert (pilot.target_params, pilot.token_budget, pilot.num_runs) == (7e11 / 5, 2e13 / 5, 3)
    one = Request(target_params=pilot.target_params, token_budget=pilot.token_budget)
    assert pilot.compute_flops == pytest.approx(3 * one.compute_flops)
    assert pilot.gpu_hours == pytest.approx(HARDWARE.gpu_hours(pilot.compute_flops))
