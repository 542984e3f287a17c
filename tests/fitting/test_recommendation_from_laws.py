"""Answers from laws against scipy and closed forms: optimum, best size, speedup, fewest FLOPs, honesty at a distance."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar

from fitting.budget import Budget
from fitting.drawn_losses import DrawnLosses, Group, losses_of, state_of
from fitting.errors import InputError
from fitting.growth_laws import GROWTH_LAWS, GrowthPoints, Prepared, ScratchCurve, with_offsets
from fitting.guideline import Guideline, KnownRange, ObservedSingle
from fitting.laws import scratch_law
from fitting.layers import Target, base_of_layers, base_options
from fitting.recommendation import Hardware, Request, recommend, refuse_unknown_wishes, surface
from fitting.recommendation.arms import arms
from fitting.recommendation.optimum import NEAR_OPTIMAL, best_timings, losses_at
from fitting.refit import fit_guideline

CHINCHILLA = scratch_law("chinchilla")
PARAMS = CHINCHILLA.params_of({"E": 1.8, "A": 480.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366})
LAW = GROWTH_LAWS["equivalent_progress_kappa_c_p"]


def drawn(num_draws: int = 40, spread: float = 1.0) -> DrawnLosses:
    """Draws around kappa = 1.5, c = 0.03, p = 3 on one scratch law."""
    rng = np.random.default_rng(0)
    terms = np.array([0.4, 0.03, 1.1]) + spread * np.array([0.2, 0.01, 0.2]) * rng.standard_normal((num_draws, 3))
    curve = ScratchCurve(law=CHINCHILLA, params=np.repeat(PARAMS[None], num_draws, axis=0))
    return DrawnLosses(
        groups=(Group(curve=curve, growth=LAW, growth_draws=terms),),
        run_noise_nats=0.005,
        delta_noise_nats=0.005 * math.sqrt(2),
    )


def guideline(losses: DrawnLosses, **other: Any) -> Guideline:
    """A fitted guideline that knows 100M to 1B parameters, g from 2 to 4."""
    values: dict[str, Any] = {
        "id": "guideline-test", "name": "test", "kind": "fitted", "law": LAW.name, "laws": state_of(losses),
        "known": KnownRange(
            target_params=(1e8, 1e9), compute_flops=(1e18, 1e21), tokens_per_parameter=(5.0, 500.0),
            growth_factor=(2.0, 4.0),
        ),
        "controls": (
            ObservedSingle(
                params=2.5e7, num_layers=None, hidden_size=None, tokens=1e10, compute_flops=1.5e18, loss_nats=3.0,
                num_seeds=1, run_ids=("a",),
            ),
        ),
    }  # fmt: skip
    return Guideline(**(values | other))


REQUEST = Request(target_params=4e8, token_budget=2e10, num_target_layers=24)


def budget(request: Request = REQUEST, **other: Any) -> Budget:
    return Budget(target=request.target, compute_flops=request.compute_flops, **other)


@pytest.mark.parametrize("num_base_layers", [3, 6, 12])
@pytest.mark.parametrize("sunk", [False, True])
def test_best_timing_is_scipys(num_base_layers: int, sunk: bool) -> None:
    # All draws alike, so that the few draws of the search are all of them.
    losses = drawn(spread=0.0)
    base = base_of_layers(REQUEST.target, num_base_layers)
    own = budget(base_is_sunk=sunk, existing_base_tokens=1e9 if sunk else None)
    (found,) = best_timings(losses, [(own, base)])
    assert found is not None

    def loss(log_timing: float) -> float:
        return float(losses_at(losses, [(own, base)], np.array([[log_timing]])).mean())

    low, high = own.timings(base) or (math.nan, math.nan)
    best = minimize_scalar(loss, bounds=(math.log(low), math.log(high)), method="bounded", options={"xatol": 1e-8})
    assert found.loss_nats == pytest.approx(best.fun, abs=1e-5)
    assert math.log(found.timing_tokens) == pytest.approx(best.x, abs=0.05)
    assert found.edge is None
    # C is spent exactly: what the base is paid, plus the grown tokens.
    paid = found.timing_tokens - (1e9 if sunk else 0.0)
    spent = paid * base.flops_per_token + found.grown_tokens * REQUEST.target.flops_per_token
    assert spent == pytest.approx(REQUEST.compute_flops)
    for end, last in zip(found.near_optimal, (low, high), strict=True):
        at_end = loss(math.log(end))
        limit = found.loss_nats * (1 + NEAR_OPTIMAL)
        assert at_end == pytest.approx(limit, abs=5e-4) or (end == pytest.approx(last) and at_end < limit)


def test_each_draws_timing_is_its_own() -> None:
    losses = drawn(20)
    base = base_of_layers(REQUEST.target, 6)
    (found,) = best_timings(losses, [(budget(), base)])
    assert found is not None
    assert len(found.timing_draws) == 20
    for k in (0, 7, 19):
        one = dataclasses.replace(
            losses.groups[0],
            curve=losses.groups[0].curve.take(np.array([k])),
            growth_draws=losses.groups[0].growth_draws[[k]],
        )
        alone = dataclasses.replace(losses, groups=(one,))
        (single,) = best_timings(alone, [(budget(), base)])
        assert single is not None
        assert found.timing_draws[k] == pytest.approx(single.timing_tokens, rel=1e-9)


def test_groups_of_one_family_are_evaluated_together_without_a_difference() -> None:
    narrow = GROWTH_LAWS["equivalent_progress_c"]
    group = drawn().groups[0]
    other = dataclasses.replace(group, growth=narrow, growth_draws=group.growth_draws[:, 1:2])
    third = dataclasses.replace(group, growth=GROWTH_LAWS["multiplied_progress"], growth_draws=np.full((40, 1), 0.1))
    arguments = (4e8, np.full(3, 1e8), np.array([1e8, 1e9, 4e9]), np.array([2e10, 1e10, 5e9]))
    apart = [DrawnLosses(groups=(one,), run_noise_nats=0.0, delta_noise_nats=0.0) for one in (group, other, third)]
    together = DrawnLosses(groups=(group, other, third), run_noise_nats=0.0, delta_noise_nats=0.0)
    points = GrowthPoints(
        target_params=np.full(3, 4e8), base_params=arguments[1], growth_factor=np.full(3, 4.0),
        timing_tokens=arguments[2], grown_tokens=arguments[3], scratch_tokens=arguments[3],
    )  # fmt: skip
    expected = []
    for one in (group, other, third):
        prepared = Prepared.of(points, one.curve)
        expected.append(prepared.scratch_loss + one.growth.delta(one.growth_draws, prepared))
    assert together.grown(*arguments) == pytest.approx(np.concatenate(expected), rel=1e-12)
    assert together.law_of_draw.tolist() == [0] * 40 + [1] * 40 + [2] * 40
    losses = together.grown(*arguments)
    inverse = together.scratch_tokens(4e8, losses)
    assert inverse == pytest.approx(
        np.concatenate([one.scratch_tokens(4e8, part) for one, part in zip(apart, np.split(losses, 3), strict=True)])
    )


def test_an_existing_base_bounds_the_timing() -> None:
    losses, base = drawn(), base_of_layers(REQUEST.target, 6)
    (free,) = best_timings(losses, [(budget(), base)])
    assert free is not None
    have = 3 * free.timing_tokens
    (bound,) = best_timings(losses, [(budget(existing_base_tokens=have), base)])
    assert bound is not None
    assert bound.timing_tokens == pytest.approx(have)
    assert bound.edge == "earliest"
    # A base that costs more than the whole budget leaves nothing to search.
    assert best_timings(losses, [(budget(existing_base_tokens=1e12), base)]) == [None]


def test_base_utilisation_is_paid_for() -> None:
    hardware = Hardware(peak_flops_per_second=1e15, utilisation=0.5, base_utilisation=0.25)
    request = Request.from_gpu_hours(1000.0, hardware=hardware, target_params=4e8)
    # By hand: 1000 h x 3600 s x 1e15 x 0.5 = 1.8e21 FLOPs, over 6 x 4e8 a token.
    assert request.token_budget == pytest.approx(1.8e21 / 2.4e9)
    base = base_options(request.target, (4.0,))[0]
    own = budget(request, base_cost_factor=hardware.base_cost_factor)
    # A base token costs a quarter of the target's FLOPs at half the utilisation: half a target token.
    assert own.grown_tokens(base, 1e10) == pytest.approx(request.token_budget - 0.5e10)
    assert Request.from_flops(2.4e18, target_params=4e8).token_budget == pytest.approx(1e9)


def test_best_fixed_size_is_the_closed_form() -> None:
    request = Request(target_params=8e9, token_budget=1e9)
    (found,) = arms(drawn(), [budget(request)], base_options(request.target), None, (2.0, 4.0))
    # Hoffmann et al. 2022: N* = G (C / 6)^(b / (a + b)), G = (a A / b B)^(1 / (a + b)).
    a, b, A, B = 0.348, 0.366, 480.0, 2085.0
    best = (a * A / (b * B)) ** (1 / (a + b)) * (request.compute_flops / 6) ** (b / (a + b))
    assert found.best_single.params == pytest.approx(best, rel=0.12)
    assert found.oversized
    assert found.decision == "smaller"


def test_speedup_and_saved_tokens_are_read_off_the_scratch_law() -> None:
    answer = recommend(REQUEST, guideline(drawn(spread=0.0)))
    assert answer.decision == "grow"
    grown = CHINCHILLA.loss(PARAMS, [4e8], [2e10])[0] + (answer.expected.delta_nats or 0.0)
    tokens = brentq(lambda d: CHINCHILLA.loss(PARAMS, [4e8], [d])[0] - grown, 1e9, 1e15)
    assert answer.expected.speedup == pytest.approx(tokens / 2e10 - 1, rel=1e-6)
    assert answer.expected.saved_target_tokens == pytest.approx(tokens - 2e10, rel=1e-6)


def test_fewest_flops_just_reach_scratchs_loss() -> None:
    losses = drawn(spread=0.0)
    request = dataclasses.replace(REQUEST, objective="fewest_flops")
    answer = recommend(request, guideline(losses))
    goal = CHINCHILLA.loss(PARAMS, [4e8], [2e10])[0]
    assert answer.flops.scratch == pytest.approx(REQUEST.compute_flops)
    assert answer.flops.total is not None
    assert answer.flops.total < 0.95 * REQUEST.compute_flops
    reached = losses.grown(
        4e8, np.array([answer.base_model.params]), np.array([answer.growth_timing_tokens]), np.array([answer.grown_tokens])
    )  # fmt: skip
    assert reached.mean() == pytest.approx(goal, abs=2e-4)
    assert "fewer FLOPs" in answer.warnings[0]


def test_sunk_and_charged_are_both_answered() -> None:
    for accounting in ("charged", "sunk"):
        answer = recommend(dataclasses.replace(REQUEST, base_compute=accounting), guideline(drawn())).to_dict()
        assert answer["growth_timing_tokens"] == answer["by_accounting"][accounting]["growth_timing_tokens"]
    charged, sunk = answer["by_accounting"]["charged"], answer["by_accounting"]["sunk"]
    assert sunk["delta_nats"] < charged["delta_nats"]
    assert sunk["grown_tokens"] == pytest.approx(2e10)


def test_chance_needs_ten_held_out_pairs() -> None:
    without = recommend(REQUEST, guideline(drawn(), held_out={"num_pairs": 9}))
    assert without.expected.chance_growth_helps is None
    assert any("at least 10 held-out pairs" in sentence for sentence in without.warnings)
    scores_of_few = {"num_pairs": 40, "averaged": {"num_pairs": None}}
    assert recommend(REQUEST, guideline(drawn(), held_out=scores_of_few)).expected.chance_growth_helps is None
    chance = recommend(REQUEST, guideline(drawn(), held_out={"num_pairs": 10})).expected.chance_growth_helps
    assert chance is not None
    assert 0 <= chance <= 1


def test_untried_factors_are_shown_not_recommended() -> None:
    known = dataclasses.replace(guideline(drawn()).known, growth_factor=(2.0, 2.0))
    answer = recommend(dataclasses.replace(REQUEST, growth_factors=(2.0, 8.0)), guideline(drawn(), known=known))
    assert answer.growth_factor == 2
    assert {row.growth_factor: row.grade for row in answer.alternatives} == {2.0: "interpolation", 8.0: "far"}
    only = recommend(dataclasses.replace(REQUEST, growth_factors=(8.0,)), guideline(drawn(), known=known))
    assert only.growth_factor == 8


def test_far_away_intervals_hold_the_disagreement_of_laws() -> None:
    group = drawn().groups[0]
    other = dataclasses.replace(group, growth_draws=group.growth_draws - np.array([0.0, 0.05, 0.0]))
    both = DrawnLosses(groups=(group, other), run_noise_nats=0.005, delta_noise_nats=0.005 * math.sqrt(2))
    near = recommend(REQUEST, guideline(both))
    far = recommend(
        REQUEST, guideline(both, known=dataclasses.replace(guideline(both).known, target_params=(4e7, 4e7)))
    )
    assert near.support.grade == "interpolation"
    assert far.support.grade == "far"
    widths = [high - low for low, high in (answer.expected.delta_interval or (0, 0) for answer in (near, far))]
    assert widths[1] > widths[0]
    base = base_of_layers(REQUEST.target, far.base_model.num_layers)
    noise = math.sqrt(2) * 0.005 * np.random.default_rng(0).standard_normal((500, 1))
    ends = []
    for one in (group, other):
        grown = losses_at(
            DrawnLosses(groups=(one,), run_noise_nats=0.0, delta_noise_nats=0.0),
            [(budget(), base)],
            np.log([[far.growth_timing_tokens]]),
        )
        delta = grown[:, 0, 0] - CHINCHILLA.loss(PARAMS, [4e8], [2e10])[0]
        ends.append(np.quantile(delta + noise, [0.1, 0.9]))
    hull = (min(low for low, _ in ends), max(high for _, high in ends))
    assert far.expected.delta_interval == pytest.approx(hull, abs=0.002)


@pytest.mark.parametrize("axis", ["target_params", "compute_flops", "tokens_per_parameter"])
def test_thirty_times_away_only_the_published_prior_answers(axis: str) -> None:
    known = dataclasses.replace(guideline(drawn()).known, **{axis: (1e-9, 1e-9)})
    answer = recommend(REQUEST, guideline(drawn(), known=known))
    assert answer.guideline["id"] == "published:gstack"
    assert answer.expected.delta_nats is None
    assert any("does not answer here" in sentence for sentence in answer.warnings)


def test_decision_points_bracket_what_is_expected() -> None:
    answer = recommend(REQUEST, guideline(drawn()))
    assert [round(point.tokens_after_growth / (answer.grown_tokens or 1), 6) for point in answer.decision_points] == [
        0.1, 0.3, 0.6,
    ]  # fmt: skip
    losses = [point.expected_loss_nats for point in answer.decision_points]
    assert losses == sorted(losses, reverse=True)
    for point in answer.decision_points:
        low, high = point.expected_band
        assert low < point.expected_loss_nats < high <= point.stop_above_nats


def test_stakes_split_the_draws() -> None:
    losses = drawn(spread=6.0)
    hardware = Hardware(peak_flops_per_second=1e15, utilisation=0.4, base_utilisation=0.4)
    answer = recommend(dataclasses.replace(REQUEST, hardware=hardware), guideline(losses))
    assert answer.stakes is not None
    assert answer.stakes.gain_if_right is not None
    assert answer.stakes.regret_if_wrong is not None
    gain, regret = answer.stakes.gain_if_right, answer.stakes.regret_if_wrong
    assert gain.nats > 0 < regret.nats
    assert (gain.flops or 0) > 0 < (regret.flops or 0)
    assert gain.gpu_hours == pytest.approx((gain.flops or 0) / (3600 * 1e15 * 0.4))


def test_fade_covers_budgets_around_the_one_asked() -> None:
    fade = recommend(REQUEST, guideline(drawn(spread=0.0))).fade
    assert [row.token_budget for row in fade] == pytest.approx([5e9, 2e10, 8e10])
    assert [row.tokens_per_parameter for row in fade] == pytest.approx([12.5, 50, 200])
    deltas = [row.delta_nats for row in fade]
    assert deltas == sorted(deltas)


def test_surface_holds_the_optimum() -> None:
    own = guideline(drawn())
    found = surface(REQUEST, own, num_timings=200)
    json.dumps(found.to_dict())
    answer = recommend(REQUEST, own)
    for row in found.rows:
        (alternative,) = [one for one in answer.alternatives if one.growth_factor == row.growth_factor]
        assert min(row.delta_nats) == pytest.approx(alternative.delta_nats, abs=2e-4)
        assert all(tokens > 0 for tokens in row.grown_tokens)
    assert found.scratch_loss_nats == pytest.approx(CHINCHILLA.loss(PARAMS, [4e8], [2e10])[0])
    with pytest.raises(InputError, match="no surface"):
        surface(REQUEST, dataclasses.replace(own, laws={}))
    with pytest.raises(InputError, match="does not answer"):
        surface(Request(target_params=1e12, token_budget=1e12), own)
    with pytest.raises(InputError, match="at least 3"):
        surface(REQUEST, own, num_timings=2)


def test_laws_survive_json_bit_by_bit() -> None:
    bent = with_offsets(
        CHINCHILLA,
        np.repeat(PARAMS[None], 40, axis=0),
        np.array([4e8, 4e8]),
        np.array([1e10, 4e10]),
        np.array([2.6, 2.5]),
    )
    losses = DrawnLosses(
        groups=(dataclasses.replace(drawn().groups[0], curve=bent), drawn().groups[0]),
        run_noise_nats=0.005,
        delta_noise_nats=0.005 * math.sqrt(2),
    )
    own = guideline(losses)
    again = Guideline.from_json(own.to_json())
    assert again == own
    assert recommend(REQUEST, again) == recommend(REQUEST, own)
    assert state_of(losses_of(again.laws)) == own.laws


def test_inverse_of_a_bent_curve() -> None:
    sizes, tokens = np.full(12, 4e8), np.geomspace(1e9, 1e11, 12)
    seen = CHINCHILLA.loss(PARAMS, sizes, tokens) * (1 + 0.01 * np.sin(np.log(tokens)))
    curve = with_offsets(CHINCHILLA, np.repeat(PARAMS[None], 3, axis=0), sizes, tokens, seen)
    group = Group(curve=curve, growth=LAW, growth_draws=np.zeros((3, 3)))
    losses = curve.loss(np.array([4e8]), np.array([2e10]))
    assert group.scratch_tokens(4e8, losses) == pytest.approx(np.full((3, 1), 2e10), rel=2e-3)


def test_partial_stacks_are_offered_and_named() -> None:
    request = Request(target_params=4e8, token_budget=2e10, num_target_layers=46)
    answer = recommend(request, guideline(drawn()))
    assert answer.decision == "grow"
    assert [row.num_base_layers for row in answer.alternatives] == [23, 12, 6]
    assert answer.base_model is not None
    # Whole blocks win the tie with the partial stacks.
    assert answer.base_model.num_layers == 23 or answer.alternatives[0].delta_nats > answer.alternatives[1].delta_nats
    partial = [row for row in answer.alternatives if row.num_base_layers == 12]
    assert partial[0].order.startswith("list:0,1,2,3,")
    # 46 layers from 12: four runs of the base meet at three seams, (45 - 3) / 45 of the links are the base's.
    assert partial[0].connection_rate == pytest.approx(42 / 45)


@pytest.mark.parametrize(
    ("num_layers", "num_base_layers"),
    [(8, [4, 2, 1]), (24, [12, 8, 6, 4, 3]), (32, [16, 8, 4]), (46, [23, 12, 6]), (61, [30, 15, 8]), (2, [1]), (1, [])],
)
def test_default_bases_divide_where_they_can(num_layers: int, num_base_layers: list[int]) -> None:
    bases = base_options(Target(params=1e9, num_layers=num_layers))
    assert [base.num_layers for base in bases] == num_base_layers


@pytest.mark.parametrize(
    "name", ["active_params", "num_experts", "num_epochs", "unique_tokens", "data_mixture", "deadline", "width_factor"]
)
def test_wishes_that_cannot_be_honoured_are_refused_by_name(name: str) -> None:
    with pytest.raises(InputError) as caught:
        refuse_unknown_wishes(["target_params", name])
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"objective": "cheapest"}, "objective"),
        ({"existing_base_tokens": -1.0}, "existing_base_tokens"),
    ],
)
def test_bad_new_fields_are_named(values: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        dataclasses.replace(REQUEST, **values)
    assert caught.value.field == field


def test_bad_hardware_is_named() -> None:
    good = {"peak_flops_per_second": 1e15, "utilisation": 0.4, "base_utilisation": 0.4}
    for field, value in (("peak_flops_per_second", 0.0), ("utilisation", 1.5), ("base_utilisation", math.nan)):
        with pytest.raises(InputError) as caught:
            Hardware(**(good | {field: value}))
        assert caught.value.field == field
    with pytest.raises(InputError, match="gpu_hours"):
        Request.from_gpu_hours(-1.0, hardware=Hardware(**good), target_params=1e9)
    with pytest.raises(InputError, match="compute_flops"):
        Request.from_flops(1e3, target_params=1e9)


def test_what_needs_laws_is_refused_without_them(tables: SimpleNamespace) -> None:
    observed = fit_guideline(tables.demo_table())
    with pytest.raises(InputError) as caught:
        recommend(Request(target_shape=tables.shape, token_budget=2e6, objective="fewest_flops"), observed)
    assert caught.value.field == "objective"
    hardware = Hardware(peak_flops_per_second=1e12, utilisation=0.4, base_utilisation=0.2)
    with pytest.raises(InputError) as caught:
        recommend(Request(target_shape=tables.shape, token_budget=2e6, hardware=hardware), observed)
    assert caught.value.field == "base_utilisation"


def test_target_known_by_size_alone_gets_factors_without_layers() -> None:
    answer = recommend(Request(target_params=4e8, token_budget=2e10), guideline(drawn()))
    assert [row.num_base_layers for row in answer.alternatives] == [None, None, None]
    assert answer.flops.convention == "6nd"
    assert Target(params=4e8).num_layers is None
