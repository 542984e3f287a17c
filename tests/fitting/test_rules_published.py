"""Rules against the worked values of their papers and against scipy."""

from __future__ import annotations

import dataclasses
import math

import pytest
from scipy.optimize import brentq

from fitting.layers import Target, base_options
from fitting.published import PUBLISHED_NAMES, published_guideline
from fitting.rules import RULES, Plan
from fitting.rules.gstack import growth_timing_range, smallest_feasible_budget, tentative_growth_factor
from fitting.rules.staged import hoffmann_loss, tokens_at_slope

# arXiv 2405.15319: the four Llama rows, d in billions as printed, and the tentative factor.
LLAMA_ROWS = [(8e9, 15e12, 6.58, 24), (7e9, 2e12, 11.11, 19), (13e9, 2e12, 15.84, 37), (70e9, 2e12, 42.48, 221)]


def plan(
    target_params: float, token_budget: float, factors: tuple[float, ...] | None = None, num_layers: int | None = None
) -> Plan:
    target = Target(params=target_params, num_layers=num_layers)
    return Plan(target=target, token_budget=token_budget, bases=base_options(target, factors))


@pytest.mark.parametrize(("params", "tokens", "d_billions", "tentative"), LLAMA_ROWS)
def test_gstack_gives_the_published_table(params: float, tokens: float, d_billions: float, tentative: int) -> None:
    decision = RULES["gstack"].decide(plan(params, tokens))
    assert decision.decision == "grow"
    assert decision.growth_factor == 4
    assert round((decision.growth_timing_tokens or 0) / 1e9, 2) == d_billions
    # Printed as 24 where the printed constants give 24.5.
    assert tentative_growth_factor(params, tokens) == pytest.approx(tentative, abs=0.6)


def test_rounding_of_the_constants_moves_llama3_as_known() -> None:
    low, high = growth_timing_range(8e9, 15e12)
    assert low / 1e9 == pytest.approx(5.8, abs=0.05)
    assert high / 1e9 == pytest.approx(7.5, abs=0.05)


def test_gstack_is_infeasible_where_the_base_costs_more_than_the_budget() -> None:
    decision = RULES["gstack"].decide(plan(3e9, 5.5556e9))
    # By hand: log10 d = 0.88 log10 3e9 + 163.27 / 20 - 5.74 = 10.763, a base of N / 4: 14.5B > 5.56B target tokens.
    assert (decision.growth_timing_tokens or 0) == pytest.approx(10**10.7633, rel=1e-3)
    assert decision.decision == "infeasible"
    assert decision.scored_as == "scratch"
    assert "d = 57.99B tokens" in decision.reason
    assert "22.22B tokens" in decision.reason


@pytest.mark.parametrize(("params", "ratio"), [(402_496.0, 0.3322), (3e9, 0.25), (70e9, 0.5)])
def test_smallest_feasible_budget_is_the_root(params: float, ratio: float) -> None:
    budget = smallest_feasible_budget(params, ratio)

    def log_surplus(log_budget: float) -> float:
        log_c = math.log10(6 * params) + log_budget
        return log_budget - math.log10(ratio) - (0.88 * math.log10(params) + 163.27 / log_c - 5.74)

    assert budget == pytest.approx(10 ** brentq(log_surplus, 1, 20), rel=1e-8)
    for factor, expected in ((0.99, "infeasible"), (1.01, "grow")):
        if ratio == 0.25:
            assert RULES["gstack"].decide(plan(params, factor * budget)).decision == expected


def test_gstack_has_no_opinion_outside_its_factors() -> None:
    assert RULES["gstack"].decide(plan(7e9, 2e12, (8.0, 16.0))).decision == "scratch"
    assert RULES["gstack"].decide(plan(7e9, 2e12, (2.0, 16.0))).growth_factor == 2


def test_gstack_on_61_layers_names_a_partial_stack() -> None:
    decision = RULES["gstack"].decide(plan(7e9, 2e12, num_layers=61))
    assert decision.base is not None
    assert decision.base.num_layers == 15
    assert decision.growth_factor == pytest.approx(61 / 15)
    assert decision.order == "list:" + ",".join(map(str, [*range(15)] * 4 + [14]))


def test_null_grows_below_three_only() -> None:
    decision = RULES["null"].decide(plan(8e9, 2e12, (2.0, 4.0)))
    assert (decision.growth_factor, decision.growth_timing_tokens) == (2, 20 * 4e9)
    assert RULES["null"].decide(plan(8e9, 2e12, (3.0, 4.0))).decision == "scratch"
    # 20 tokens per base parameter at g = 2 cost 5 N target tokens by 6 N D.
    assert RULES["null"].decide(plan(8e9, 39e9, (2.0,))).decision == "infeasible"
    assert RULES["null"].decide(plan(8e9, 41e9, (2.0,))).decision == "grow"


def test_constant_fraction_spends_its_fraction() -> None:
    asked = plan(8e9, 2e12)
    decision = RULES["constant_fraction"].decide(asked)
    assert decision.base is not None
    assert decision.growth_timing_tokens == pytest.approx(0.05 * 2e12 * 4)
    assert asked.grown_tokens(decision.base, decision.growth_timing_tokens or 0) == pytest.approx(0.95 * 2e12)


def test_eighty_percent_is_of_the_tokens_run() -> None:
    asked = plan(8e9, 2e12)
    decision = RULES["eighty_percent"].decide(asked)
    assert decision.base is not None
    assert decision.growth_factor == 8
    d = decision.growth_timing_tokens or 0
    assert d / (d + asked.grown_tokens(decision.base, d)) == pytest.approx(0.8)


def test_staged_slope_matches_the_closed_form() -> None:
    # d ln L / d ln D of L = F + B D^-b is -b B D^-b / L: solve for D with the law's own constants at 4B parameters.
    floor = 1.81686 + 482.006 / 4e9**0.347813

    def excess(log_d: float) -> float:
        term = 2085.436 * math.exp(-0.365854 * log_d)
        return -0.365854 * term / (floor + term) + 0.0575

    expected = math.exp(brentq(excess, math.log(1e8), math.log(1e13)))
    assert tokens_at_slope(lambda d: hoffmann_loss(4e9, d), -0.0575) == pytest.approx(expected, rel=1e-5)
    assert RULES["staged"].decide(plan(8e9, 2e12)).growth_timing_tokens == pytest.approx(expected, rel=1e-5)
    assert tokens_at_slope(lambda d: 3.0, -0.0575) is None


def test_never_never_grows() -> None:
    assert RULES["never"].decide(plan(8e9, 2e12)).decision == "scratch"


def test_every_rule_is_a_published_guideline_with_a_source() -> None:
    assert set(PUBLISHED_NAMES) == set(RULES)
    for name in PUBLISHED_NAMES:
        guideline = published_guideline(name)
        assert guideline.id == f"published:{name}"
        assert guideline.source


def test_unknown_published_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match="published:gstack"):
        published_guideline("gstak")


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("sunk", [False, True])
@pytest.mark.parametrize(
    ("params", "tokens", "num_layers"), [(7e9, 2e12, 32), (1e9, 2e10, 46), (4e5, 2e6, 8), (3e9, 5e9, None)]
)
def test_conformance(name: str, sunk: bool, params: float, tokens: float, num_layers: int | None) -> None:
    """Every rule: its name is its key, it is deterministic, spends the budget and not more, and says why."""
    rule = RULES[name]
    asked = dataclasses.replace(plan(params, tokens, num_layers=num_layers), base_is_sunk=sunk)
    decision = rule.decide(asked)
    assert rule.name == name
    assert rule.decide(asked) == decision
    assert decision.reason.endswith(".")
    assert decision.scored_as == ("grow" if decision.decision == "grow" else "scratch")
    if decision.decision == "scratch":
        assert decision.growth_factor is None
        return
    base, d = decision.base, decision.growth_timing_tokens
    assert base in asked.bases
    assert d is not None
    assert d > 0
    grown = asked.grown_tokens(base, d)
    assert (grown > 0) == (decision.decision == "grow")
    paid = 0.0 if sunk else d * base.flops_per_token
    assert grown * asked.target.flops_per_token + paid == pytest.approx(asked.compute_flops)
    if decision.decision == "infeasible":
        assert "too much" in decision.reason
        assert decision.needed_token_budget is not None
        enough = dataclasses.replace(asked, token_budget=1.01 * decision.needed_token_budget)
        assert rule.decide(enough).decision == "grow"


def test_an_existing_base_cannot_be_grown_before_it_stands() -> None:
    asked = dataclasses.replace(plan(7e9, 2e12), existing_base_tokens=1e12)
    decision = RULES["gstack"].decide(asked)
    assert decision.growth_timing_tokens == 1e12
    assert "already has 1T tokens" in decision.reason
