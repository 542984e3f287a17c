"""What budget reaches a loss, against closed forms and an independent root-find; and a base that exists already."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest
from scipy.optimize import bisect, minimize_scalar

from fitting.drawn_losses import DrawnLosses, Group, state_of
from fitting.errors import InputError
from fitting.flops import Shape, non_embedding_params
from fitting.growth_laws import GROWTH_LAWS, ScratchCurve
from fitting.guideline import Guideline, KnownRange, ObservedSingle
from fitting.laws import scratch_law
from fitting.noisy_draws import NUM_NOISE_SCORES, TAILS, noise_scores
from fitting.published import published_guideline
from fitting.recommendation import ExistingBase, Hardware, LossRequest, Request, question_of, recommend

CHINCHILLA = scratch_law("chinchilla")
E, A, B, ALPHA, BETA = 1.8, 480.0, 2085.0, 0.348, 0.366
PARAMS = CHINCHILLA.params_of({"E": E, "A": A, "B": B, "alpha": ALPHA, "beta": BETA})
LAW = GROWTH_LAWS["equivalent_progress_kappa_c_p"]
N, NOISE = 4e8, 0.005


def guideline(*, spread: float = 1.0, num_draws: int = 40, **known: Any) -> Guideline:
    """Draws around kappa = 1.5, c = 0.03, p = 3 on one scratch law; 100M to 1B parameters, g from 2 to 4."""
    rng = np.random.default_rng(0)
    terms = np.array([0.4, 0.03, 1.1]) + spread * np.array([0.2, 0.01, 0.2]) * rng.standard_normal((num_draws, 3))
    curve = ScratchCurve(law=CHINCHILLA, params=np.repeat(PARAMS[None], num_draws, axis=0))
    losses = DrawnLosses(
        groups=(Group(curve=curve, growth=LAW, growth_draws=terms),),
        run_noise_nats=NOISE, delta_noise_nats=NOISE * math.sqrt(2),
    )  # fmt: skip
    single = ObservedSingle(
        params=3e8, num_layers=None, hidden_size=None, tokens=1e10, compute_flops=1.5e18, loss_nats=3.0, num_seeds=1,
        run_ids=("a",),
    )  # fmt: skip
    ranges: dict[str, Any] = {
        "target_params": (1e8, 1e9), "compute_flops": (1e18, 1e21), "tokens_per_parameter": (5.0, 500.0),
        "growth_factor": (2.0, 4.0),
    }  # fmt: skip
    return Guideline(
        id="gl_test", name="test", kind="fitted", law=LAW.name, laws=state_of(losses), controls=(single,),
        known=KnownRange(**(ranges | known)),
    )  # fmt: skip


def scratch_loss(tokens: float, params: float = N) -> float:
    return E + A / params**ALPHA + B / tokens**BETA


def scratch_tokens(loss: float, params: float = N) -> float:
    """The closed form of Chinchilla's law in its tokens."""
    return float((B / (loss - E - A / params**ALPHA)) ** (1 / BETA))


QUESTION = {"target_params": N, "num_target_layers": 24, "growth_factors": (4.0,)}
GOAL = scratch_loss(2e10)


def test_scratch_is_the_closed_form_with_the_noise_of_a_run() -> None:
    answer = recommend(LossRequest(loss_to_match_nats=GOAL, fields=QUESTION), guideline())
    assert answer.to_reach is not None
    reach = answer.to_reach.scratch
    assert reach.token_budget == pytest.approx(2e10, rel=1e-4)
    assert reach.tokens == pytest.approx(2e10, rel=1e-4)
    assert reach.compute_flops == pytest.approx(6 * N * 2e10, rel=1e-4)
    ends = np.sort([6 * N * scratch_tokens(GOAL - NOISE * z) for z in np.repeat(noise_scores(), 40)])
    expected = [ends[round(tail * (len(ends) - 1))] for tail in TAILS]
    assert reach.compute_flops_interval == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("accounting", ["charged", "sunk"])
def test_growing_is_scipys_root_of_scipys_minimum(accounting: str) -> None:
    """All draws alike, so that mean and draw are one; the loss from the law itself, not through the search."""
    known = guideline(spread=0.0)
    answer = recommend(LossRequest(loss_to_match_nats=GOAL, fields=QUESTION), known)
    assert answer.to_reach is not None
    reach = answer.to_reach.grown[accounting]
    base = N / 4

    def lowest(compute: float) -> float:
        def loss(log_timing: float) -> float:
            d = math.exp(log_timing)
            left = (compute - (6 * base * d if accounting == "charged" else 0.0)) / (6 * N)
            return float(known.losses.grown(N, np.array([base]), np.array([d]), np.array([left])).mean())

        most = compute / (6 * base)
        span = (math.log(1e-4 * most), math.log(0.995 * most))
        return float(minimize_scalar(loss, bounds=span, method="bounded", options={"xatol": 1e-9}).fun)

    root = math.exp(bisect(lambda x: lowest(math.exp(x)) - GOAL, math.log(1e18), math.log(1e21), xtol=1e-8))
    assert reach.compute_flops == pytest.approx(root, rel=2e-3)
    # One draw: only the run's own noise is left, and it moves the crossing as it moves the goal.
    low, high = reach.compute_flops_interval or (0.0, 0.0)
    for end, tail in ((low, TAILS[1]), (high, TAILS[0])):
        score = noise_scores()[round(tail * (NUM_NOISE_SCORES - 1))]
        goal = GOAL - NOISE * -score
        expected = math.exp(
            bisect(lambda x, g=goal: lowest(math.exp(x)) - g, math.log(1e18), math.log(1e21), xtol=1e-8)
        )
        assert end == pytest.approx(expected, rel=0.02)
    assert low < root < (high or 0)


def test_draws_widen_the_interval_of_growing_only() -> None:
    sure, unsure = (
        recommend(LossRequest(loss_to_match_nats=GOAL, fields=QUESTION), guideline(spread=spread))
        for spread in (0.0, 1.0)
    )
    assert sure.to_reach is not None
    assert unsure.to_reach is not None

    def width(interval: Any) -> float:
        return math.log(interval[1] / interval[0])

    for name in ("charged", "sunk"):
        wide = width(unsure.to_reach.grown[name].compute_flops_interval)
        assert wide > 1.5 * width(sure.to_reach.grown[name].compute_flops_interval)
    assert unsure.to_reach.scratch.compute_flops_interval == pytest.approx(sure.to_reach.scratch.compute_flops_interval)


def test_the_answer_stands_at_the_least_budget() -> None:
    fields = QUESTION | {"hardware": Hardware(peak_flops_per_second=1e15, utilisation=0.4, base_utilisation=0.4)}
    answer = recommend(LossRequest(loss_to_match_nats=GOAL, fields=fields), guideline(spread=0.0))
    assert answer.to_reach is not None
    grown, scratch = answer.to_reach.grown["charged"], answer.to_reach.scratch
    assert grown.compute_flops is not None
    assert scratch.compute_flops is not None
    needs = [grown.compute_flops, scratch.compute_flops]
    if answer.to_reach.smaller is not None and answer.to_reach.smaller.compute_flops is not None:
        needs.append(answer.to_reach.smaller.compute_flops)
    assert answer.flops.scratch == pytest.approx(min(needs), rel=1e-6)
    assert answer.decision == "grow"
    assert answer.growth_timing_tokens == pytest.approx(grown.growth_timing_tokens, rel=0.02)
    assert grown.gpu_hours == pytest.approx(grown.compute_flops / (3600 * 0.4e15))
    assert "fewer" in answer.warnings[0]
    # Sunk costs no more than charged.
    sunk = answer.to_reach.grown["sunk"].compute_flops
    assert sunk is not None
    assert sunk < grown.compute_flops


def test_a_smaller_size_is_told_where_it_needs_less() -> None:
    goal = scratch_loss(2.5e9)
    answer = recommend(LossRequest(loss_to_match_nats=goal, fields=QUESTION), guideline())
    assert answer.to_reach is not None
    smaller = answer.to_reach.smaller
    assert smaller is not None
    assert smaller.params < N
    assert smaller.compute_flops == pytest.approx(6 * smaller.params * scratch_tokens(goal, smaller.params), rel=1e-4)
    assert smaller.compute_flops < (answer.to_reach.scratch.compute_flops or 0)


@pytest.mark.parametrize(
    ("goal", "known", "words"),
    [
        (1.9, {}, "nothing is expected below"),
        (9.0, {}, "already reach"),
        (GOAL, {"target_params": (2e10, 4e10)}, "does not speak of this target"),
        (GOAL, {"compute_flops": (1e18, 1e18), "tokens_per_parameter": (1e5, 1e5)}, "does not speak of this target"),
    ],
)
def test_what_lies_beyond_the_runs_is_refused(goal: float, known: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        recommend(LossRequest(loss_to_match_nats=goal, fields=QUESTION), guideline(**known))
    assert caught.value.field == "loss_to_match_nats"


def test_scratch_may_never_get_there_where_growing_does() -> None:
    known = guideline(spread=0.0, compute_flops=(1e18, 2e19), tokens_per_parameter=(5.0, 20.0))
    with pytest.raises(InputError) as caught:
        recommend(LossRequest(loss_to_match_nats=1.9, fields=QUESTION), known)
    # Just above the lowest that growing reaches with the largest budget there is to speak of.
    goal = float(re.findall(r"below ([0-9.]+) nats", str(caught.value))[0]) + 0.001
    answer = recommend(LossRequest(loss_to_match_nats=goal, fields=QUESTION), known)
    assert answer.to_reach is not None
    assert answer.to_reach.scratch.compute_flops is None
    assert "not expected to get there" in answer.to_reach.scratch.reason
    assert answer.to_reach.grown["charged"].compute_flops is not None
    # The upper end lies where the guideline does not speak: said by its absence, not by a number.
    assert (answer.to_reach.grown["charged"].compute_flops_interval or (0, 0))[1] is None
    assert answer.support.grade == "far"
    assert any("extrapolate several times worse" in sentence for sentence in answer.warnings)


def test_published_rules_and_provisional_guidelines_predict_no_loss() -> None:
    for asked in (published_guideline("gstack"), dataclasses.replace(guideline(), laws={}, kind="provisional")):
        with pytest.raises(InputError, match="predicts none"):
            recommend(LossRequest(loss_to_match_nats=3.0, fields=QUESTION), asked)


def test_fields_become_one_of_the_two_kinds_of_question() -> None:
    asked = question_of({"target_params": N, "loss_to_match_nats": 3.0, "token_budget": None, "cohort": "c"})
    assert isinstance(asked, LossRequest)
    assert asked.at(2e10) == Request(target_params=N, token_budget=2e10, cohort="c")
    assert isinstance(question_of({"target_params": N, "token_budget": 2e10}), Request)
    for fields, field in (
        ({"target_params": N, "loss_to_match_nats": 3.0, "token_budget": 2e10}, "loss_to_match_nats"),
        ({"target_params": N, "loss_to_match_nats": -3.0}, "loss_to_match_nats"),
        ({"target_params": N, "loss_to_match_nats": 3e3}, "loss_to_match_nats"),
        ({"loss_to_match_nats": 3.0}, "target_params"),
        ({"target_params": N}, "token_budget"),
    ):
        with pytest.raises(InputError) as caught:
            question_of(fields)
        assert caught.value.field == field


SHAPE = Shape(
    num_layers=24, hidden_size=1024, num_heads=16, num_kv_heads=8, intermediate_size=2816, vocab_size=32_000,
    context_length=2048,
)  # fmt: skip


def test_an_existing_base_is_the_only_one_and_its_compute_is_sunk() -> None:
    base = ExistingBase(tokens=2e9, shape=SHAPE.with_layers(8))
    asked = question_of({"target_shape": SHAPE, "token_budget": 2e10, "existing_base": base})
    assert isinstance(asked, Request)
    assert asked.base_compute == "sunk"
    answer = recommend(asked, guideline())
    assert {row.growth_factor for row in answer.alternatives} == {3.0}
    assert answer.growth_factor == 3
    assert answer.base_model is not None
    assert answer.base_model.num_layers == 8
    timing = answer.growth_timing_tokens or 0
    assert timing >= 2e9
    # Only what comes after the 2e9 tokens that it has is paid for.
    assert answer.flops.total == pytest.approx(answer.flops.scratch)
    further = (timing - 2e9) * answer.base_model.flops_per_token
    assert (answer.flops.grown or 0) + further == pytest.approx(answer.flops.scratch)
    charged = answer.by_accounting["charged"]
    assert (charged.grown_tokens or 0) < (answer.by_accounting["sunk"].grown_tokens or 0)


def test_an_existing_base_by_its_size_is_a_whole_number_of_layers() -> None:
    eight = float(non_embedding_params(SHAPE.with_layers(8)))
    by_size = Request(target_shape=SHAPE, token_budget=2e10, existing_base=ExistingBase(tokens=2e9, params=eight))
    assert [base.num_layers for base in by_size.bases] == [8]
    unshaped = Request(target_params=4e8, token_budget=2e10, existing_base=ExistingBase(tokens=2e9, params=1.25e8))
    (base,) = unshaped.bases
    assert base.growth_factor == pytest.approx(3.2)
    assert base.num_layers is None


@pytest.mark.parametrize(
    ("base", "other", "field", "words"),
    [
        (ExistingBase(tokens=2e9, shape=SHAPE), {}, "existing_base", "fewer layers"),
        (ExistingBase(tokens=2e9, shape=dataclasses.replace(SHAPE, hidden_size=512)), {}, "existing_base", "width"),
        (ExistingBase(tokens=2e9, params=1.01e8), {}, "existing_base.params", "width"),
        (ExistingBase(tokens=2e9, params=9e9), {}, "existing_base.params", "smaller"),
        (ExistingBase(tokens=2.0, params=1e8), {}, "existing_base.tokens", "1000"),
        (ExistingBase(tokens=2e9), {}, "existing_base.params", "missing"),
        (ExistingBase(tokens=2e9, params=1e8), {"growth_factors": (2.0,)}, "growth_factors", "beside existing_base"),
        (ExistingBase(tokens=2e9, params=1e8), {"existing_base_tokens": 1e9}, "existing_base_tokens", "leave it out"),
    ],
)
def test_a_base_that_cannot_become_the_target_is_refused(
    base: ExistingBase, other: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        Request(target_shape=SHAPE, token_budget=2e10, existing_base=base, **other)
    assert caught.value.field == field
