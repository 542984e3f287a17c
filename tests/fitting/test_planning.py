"""What to run next: against the closed form of the value of information, and on this project's own runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from two_arms import two_arms, unit_loss

from fitting.budget import Budget
from fitting.errors import InputError
from fitting.flops import Shape, flops_per_token, non_embedding_params
from fitting.guideline import Guideline
from fitting.layers import Target
from fitting.planning import Experiment, candidates, decision_of, next_runs
from fitting.planning.experiments import control_of, stands
from fitting.planning.value import Simulation
from fitting.published import published_guideline
from fitting.recommendation import Request, recommend
from fitting.refit import fit_guideline

HIDDEN64 = Path(__file__).parents[1] / "data" / "hidden64" / "runs.csv"
SHAPE = Shape(
    num_layers=8, hidden_size=64, num_heads=2, num_kv_heads=2, intermediate_size=176, vocab_size=1024,
    context_length=128,
)  # fmt: skip
TARGET = Target(params=float(non_embedding_params(SHAPE)), num_layers=8, shape=SHAPE)


@pytest.fixture(scope="module")
def fitted() -> Guideline:
    return fit_guideline(HIDDEN64)


@pytest.mark.parametrize(("mean", "noise", "num_runs"), [(0.0, 1.0, 1), (0.7, 1.0, 1), (-0.5, 2.0, 1), (0.4, 1.5, 3)])
def test_the_value_of_results_is_the_closed_form(mean: float, noise: float, num_runs: int) -> None:
    """Normal prior, normal noise, two arms (Raiffa and Schlaifer 1961): EVPI = t psi(|m|/t), EVSI = t' psi(|m|/t')."""
    spread = 1.0
    theta = mean + spread * norm.ppf((np.arange(2000) + 0.5) / 2000)
    simulation = Simulation(decisions=[two_arms(theta)], truths=np.arange(0, 2000, 2), num_results=4, seed=3)
    before = simulation.regrets(simulation.start)[0]
    assert before.mean == pytest.approx(spread * unit_loss(abs(mean) / spread), rel=0.01)
    assert before.change_chance == 0.0
    columns = np.repeat(theta[:, None], num_runs, axis=1)
    seen = simulation.see(simulation.start, columns, np.full(num_runs, noise))
    after = simulation.regrets(seen)[0]
    told = spread**2 / math.sqrt(spread**2 + noise**2 / num_runs)
    assert before.mean - after.mean == pytest.approx(told * unit_loss(abs(mean) / told), abs=0.004)
    # Whether the posterior mean crosses 0: it is normal with standard deviation ``told`` around the prior's.
    assert after.change_chance == pytest.approx(norm.sf(abs(mean) / told), abs=0.03)


def test_a_result_without_noise_names_no_truth_among_few_draws() -> None:
    """With as few as 20 independent draws, an exact result leads to its neighbours, never to itself."""
    rng = np.random.default_rng(0)
    theta, unrelated = rng.standard_normal(20), rng.standard_normal((20, 1))
    simulation = Simulation(decisions=[two_arms(theta)], truths=np.arange(20), num_results=1, seed=0)
    exact = simulation.see(simulation.start, unrelated, np.array([1e-6]))
    assert np.isneginf(exact.log_weights[np.arange(20), np.arange(20)]).all()
    assert np.exp(exact.log_weights).sum(axis=1) == pytest.approx(np.ones(20))
    # A result that has nothing to do with the decision must not look valuable.
    assert simulation.regrets(exact)[0].mean >= 0.8 * simulation.regrets(simulation.start)[0].mean


def test_the_arm_chosen_is_the_answers(fitted: Guideline) -> None:
    for token_budget in (1e6, 2e6, 4e6):
        request = Request(target_shape=SHAPE, token_budget=token_budget)
        decision = decision_of(request, fitted)
        chosen, answer = decision.arms[decision.chosen], recommend(request, fitted)
        assert chosen.kind == answer.decision
        if chosen.base is not None:
            assert chosen.base.growth_factor == answer.growth_factor
            low, high = answer.growth_timing_range or (0, 0)
            assert low <= (chosen.growth_timing_tokens or 0) <= high


def test_a_factor_never_run_is_an_arm_only_where_none_that_was_is_on_offer(fitted: Guideline) -> None:
    """Of x4, which the runs hold, and x8: as in an answer, which then recommends the x4."""

    def factors(*asked: float) -> set[float]:
        request = Request(target_shape=SHAPE, token_budget=2e6, growth_factors=asked)
        growths = {arm.base.growth_factor for arm in decision_of(request, fitted).arms if arm.base is not None}
        assert recommend(request, fitted).growth_factor in {*growths, None}
        return growths

    low, high = fitted.known.growth_factor or (0, 0)
    assert high < 8
    assert factors(low, 8) == {low}
    assert factors(8) == {8}


def test_a_nat_is_priced_by_the_scratch_curve(fitted: Guideline) -> None:
    """Against the tokens at which the curve itself is one small step lower."""
    request = Request(target_shape=SHAPE, token_budget=4e6)
    decision, losses = decision_of(request, fitted), fitted.losses
    here = losses.scratch(np.array([TARGET.params]), np.array([4e6]))
    lower = losses.scratch_tokens(TARGET.params, here - 0.005)[:, 0]
    price = (lower - 4e6) * TARGET.flops_per_token / 0.005
    assert decision.worth_flops == pytest.approx(price, rel=0.05)


def test_runs_on_offer_spend_their_budget_once_each(fitted: Guideline) -> None:
    offered = candidates(fitted, [TARGET])
    assert len({one.key for one in offered}) == len(offered)
    assert len(offered) > 50
    assert {one.kind for one in offered} == {"scratch", "fixed_size", "grown"}
    for one in offered:
        compute = one.token_budget * flops_per_token(SHAPE)
        spent = one.tokens * (flops_per_token(SHAPE.with_layers(one.num_layers)) if one.num_layers else 0)
        if one.base is not None and one.growth_timing_tokens is not None:
            spent += one.growth_timing_tokens * one.base.flops_per_token
            assert Budget(target=TARGET, compute_flops=compute).grown_tokens(
                one.base, one.growth_timing_tokens
            ) == pytest.approx(one.tokens)
        assert spent == pytest.approx(compute)
        assert one.compute_flops == pytest.approx(compute)


def test_a_plan_keeps_its_budget_and_lowers_the_regret(fitted: Guideline) -> None:
    decision = decision_of(Request(target_shape=SHAPE, token_budget=2e6), fitted)
    budget = 8e12
    plan = next_runs(fitted, [decision], targets=[TARGET], flops_budget=budget)
    assert plan == next_runs(fitted, [decision], targets=[TARGET], flops_budget=budget)
    assert plan.steps
    assert plan.cost_flops == pytest.approx(sum(run.compute_flops for step in plan.steps for run in step.runs))
    assert plan.cost_flops <= budget
    ends = [plan.regret_now_nats, *(step.regret_after_nats for step in plan.steps)]
    assert ends == sorted(ends, reverse=True)
    assert plan.regret_after_nats == ends[-1] < 0.8 * ends[0]
    # A grown run is never planned without a control that stands, or stands in the plan.
    planned = [run for step in plan.steps for run in step.runs]
    for run in planned:
        if run.base is not None:
            control = control_of(run)
            assert stands(control, fitted) or any(other.key == control.key for other in planned)
    assert plan.net_flops == plan.saved_flops - plan.cost_flops
    low, high = plan.saved_flops_interval
    assert low < plan.saved_flops < high


def test_no_pilot_pays_where_the_runs_cost_more_than_the_regret(fitted: Guideline) -> None:
    decision = decision_of(Request(target_shape=SHAPE, token_budget=2e6), fitted)
    plan = next_runs(fitted, [decision], targets=[TARGET], flops_budget=1e15, must_pay=True)
    assert (plan.steps, plan.net_flops) == ((), 0.0)
    assert "No pilot pays" in plan.note
    # The same uncertainty on a decision that is worth a million times as much: now they pay.
    dear = replace(decision, worth_flops=1e6 * decision.worth_flops)
    plan = next_runs(fitted, [dear], targets=[TARGET], flops_budget=1e15, must_pay=True, max_steps=2)
    assert plan.steps
    assert plan.net_flops > 0


def test_draws_that_agree_leave_only_what_their_laws_may_miss(fitted: Guideline) -> None:
    decision = decision_of(Request(target_shape=SHAPE, token_budget=2e6), fitted)
    certain = replace(decision, losses=np.repeat(decision.losses[:1], len(decision.losses), axis=0))
    plan = next_runs(fitted, [certain], targets=[TARGET], flops_budget=1e15)
    assert plan.steps
    assert plan.regrets_now_nats == pytest.approx((plan.regret_now_nats,))
    # No runs of these sizes are missed by as much as a nat: where arms lie as far apart, there is nothing to learn.
    singles = [i for i, arm in enumerate(decision.arms) if arm.base is None]
    apart = replace(
        decision, arms=tuple(decision.arms[i] for i in singles),
        losses=np.tile(np.arange(len(singles), dtype=float), (len(decision.losses), 1)),
    )  # fmt: skip
    plan = next_runs(fitted, [apart], targets=[TARGET], flops_budget=1e15)
    assert plan.steps == ()
    none = "No run pays: in every draw, and however the laws may miss, the arm chosen today is the best one."
    assert plan.note.startswith(none)
    # Nobody has held these draws against runs that they had not seen: the end of planning is told with that.
    assert fitted.num_held_out_pairs == 0
    assert "tested on 0 held-out pairs, fewer than 10" in plan.note
    scores = {"num_pairs": 10}
    tested = next_runs(replace(fitted, held_out=scores), [apart], targets=[TARGET], flops_budget=1e15)
    assert tested.note == none


def test_of_steps_that_tell_alike_the_cheapest_is_taken(fitted: Guideline) -> None:
    """The same runs at a thousandth of their price are taken first, whatever the others tell."""
    decision = decision_of(Request(target_shape=SHAPE, token_budget=2e6), fitted)
    offered = [one for one in candidates(fitted, [TARGET]) if one.base is None]
    dear = next_runs(fitted, [decision], targets=[TARGET], flops_budget=1e15, offered=offered, max_steps=1)
    (step,) = dear.steps
    (run,) = step.runs
    cheap = replace(run, compute_flops=run.compute_flops / 1000)
    both = next_runs(
        fitted, [decision], targets=[TARGET], flops_budget=1e15, offered=[*offered, cheap], max_steps=1
    )  # fmt: skip
    assert both.steps[0].runs == (cheap,)
    assert both.steps[0].regret_after_nats == pytest.approx(step.regret_after_nats, rel=0.3)


def test_what_cannot_be_planned_is_refused(fitted: Guideline) -> None:
    request = Request(target_shape=SHAPE, token_budget=2e6)
    decision = decision_of(request, fitted)
    with pytest.raises(InputError, match="flops_budget is 0"):
        next_runs(fitted, [decision], targets=[TARGET], flops_budget=0.0)
    with pytest.raises(InputError, match=r"flops_budget is 1e\+06, which pays for no run"):
        next_runs(fitted, [decision], targets=[TARGET], flops_budget=1e6)
    with pytest.raises(InputError, match="decisions is empty"):
        next_runs(fitted, [], targets=[TARGET], flops_budget=1e15)
    with pytest.raises(InputError, match="has no fitted laws"):
        decision_of(request, published_guideline("gstack"))
    with pytest.raises(InputError, match="decision lies too far out"):
        decision_of(Request(target_params=7e9, token_budget=2e12), fitted)


def test_planned_runs_teach_more_than_random_ones_of_the_same_flops(fitted: Guideline) -> None:
    """Valued afresh, with other truths and other noise than chose them; beside 20 random plans of no more FLOPs."""
    decision = decision_of(Request(target_shape=SHAPE, token_budget=2e6), fitted)
    plan = next_runs(fitted, [decision], targets=[TARGET], flops_budget=8e12)
    offered, losses = candidates(fitted, [TARGET]), fitted.losses
    simulation = Simulation(decisions=[decision], truths=np.arange(losses.num_draws), num_results=4, seed=99)

    def regret_after(runs: list[Experiment]) -> float:
        columns = np.stack([run.losses(losses) for run in runs], axis=1)
        noise = np.full(len(runs), losses.run_noise_nats)
        return simulation.regrets(simulation.see(simulation.start, columns, noise))[0].mean

    planned = regret_after([run for step in plan.steps for run in step.runs])
    rng, random_ones = np.random.default_rng(5), []
    for _ in range(20):
        runs: list[Experiment] = []
        for index in rng.permutation(len(offered)):
            if sum(run.compute_flops for run in runs) + offered[index].compute_flops <= plan.cost_flops:
                runs.append(offered[index])
        random_ones.append(regret_after(runs))
    assert planned < np.median(random_ones)
