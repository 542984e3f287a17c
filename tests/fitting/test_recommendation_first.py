"""Answers of the published rules and of a provisional guideline: the contract's fields and the honesty rules."""

from __future__ import annotations

import doctest
import json
import math
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from scipy.stats import t as student

import fitting.recommendation
from fitting.errors import InputError
from fitting.layers import Target, base_options
from fitting.orders import connection_rate, stacked_layers
from fitting.published import PUBLISHED_NAMES, published_guideline
from fitting.recommendation import Request, recommend
from fitting.refit import fit_guideline

CONTRACT = {
    "guideline": {"id", "name", "version", "law", "num_runs", "held_out"},
    "flops": {"convention", "base", "grown", "total", "scratch"},
    "expected": {
        "delta_nats", "delta_interval", "speedup", "speedup_interval", "saved_target_tokens", "chance_growth_helps",
        "basis",
    },
    "by_accounting": {"charged", "sunk"},
    "support": {"grade", "distances", "reason"},
}  # fmt: skip
TOP_LEVEL = {
    "guideline", "decision", "growth_factor", "growth_timing_tokens", "growth_timing_range", "order", "base_model",
    "target_model", "grown_tokens", "flops", "expected", "best_fixed_size", "target_oversized", "by_accounting",
    "support", "alternatives", "warnings",
}  # fmt: skip


def check_contract(answer: dict[str, Any]) -> None:
    json.dumps(answer, allow_nan=False)
    assert set(answer) >= TOP_LEVEL
    for name, fields in CONTRACT.items():
        assert set(answer[name]) >= fields
    assert answer["decision"] in ("grow", "scratch", "smaller", "infeasible")
    assert answer["target_model"].keys() >= {"params", "num_layers"}
    assert all(sentence.endswith(".") for sentence in answer["warnings"])


def demo_request(tables: SimpleNamespace, **other: Any) -> Request:
    return Request(target_shape=tables.shape, token_budget=tables.budget, **other)


def test_docstring_example() -> None:
    assert doctest.testmod(fitting.recommendation).failed == 0


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
@pytest.mark.parametrize("base_compute", ["charged", "sunk"])
def test_every_rule_fills_the_contract(name: str, base_compute: Any, tables: SimpleNamespace) -> None:
    guideline = published_guideline(name)
    for request in (
        Request(target_params=7e9, token_budget=2e12, base_compute=base_compute),
        Request(target_params=1e9, token_budget=6e10, num_target_layers=46, base_compute=base_compute),
        demo_request(tables, base_compute=base_compute),
    ):
        answer = recommend(request, guideline).to_dict()
        check_contract(answer)
        if answer["decision"] == "grow":
            flops = answer["flops"]
            paid = flops["base"] if base_compute == "charged" else 0
            assert flops["total"] == pytest.approx(flops["scratch"])
            assert flops["grown"] + paid == pytest.approx(flops["total"])
            assert answer["by_accounting"][base_compute]["growth_timing_tokens"] == answer["growth_timing_tokens"]


def test_gstack_far_outside_its_runs_gives_timing_as_a_prior_and_no_gain() -> None:
    answer = recommend(Request(target_params=7e9, token_budget=2e12), published_guideline("gstack")).to_dict()
    assert answer["growth_timing_tokens"] / 1e9 == pytest.approx(11.11, abs=0.005)
    low, high = answer["growth_timing_range"]
    assert low < answer["growth_timing_tokens"] < high
    # C = 8.4e22 FLOPs against at most 1.2e21 in the fits.
    assert answer["support"]["distances"]["compute"] == pytest.approx(70)
    assert answer["support"]["grade"] == "unsupported"
    assert answer["expected"]["speedup"] is None
    assert answer["expected"]["chance_growth_helps"] is None
    assert answer["flops"]["convention"] == "6nd"
    assert any("6 N D" in sentence for sentence in answer["warnings"])
    assert any("cheapest pilot" in sentence for sentence in answer["warnings"])
    # By hand: the base is N / 4, the budget 2T.
    assert answer["grown_tokens"] == pytest.approx(2e12 - answer["growth_timing_tokens"] / 4)


def test_gstack_inside_its_runs_quotes_the_published_speedups() -> None:
    answer = recommend(Request(target_params=1.1e9, token_budget=1e11), published_guideline("gstack")).to_dict()
    assert answer["support"]["grade"] == "interpolation"
    assert answer["expected"]["speedup_interval"] == [0.31, 0.553]
    assert answer["expected"]["saved_target_tokens"] == pytest.approx(0.531e11)
    assert answer["expected"]["delta_nats"] is None


def test_gstack_on_the_demo_is_infeasible_and_says_by_how_much(tables: SimpleNamespace) -> None:
    answer = recommend(demo_request(tables), published_guideline("gstack")).to_dict()
    assert answer["decision"] == "infeasible"
    assert answer["growth_timing_tokens"] is None
    assert answer["growth_factor"] is None
    reason = answer["warnings"][0]
    # log10 d = 0.88 log10 402496 + 163.27 / log10(6 x 402496 x 2e6) - 5.74 = 12.06; 6.02M base tokens are affordable.
    assert "1.16T tokens" in reason
    assert "10^5.3 times too much" in reason
    assert "feasible from a token budget of 1.566B tokens" in reason
    assert answer["support"]["grade"] == "unsupported"
    assert answer["by_accounting"]["charged"]["decision"] == "infeasible"


def test_published_3b_case_is_infeasible() -> None:
    answer = recommend(Request(target_params=3e9, token_budget=5.5556e9), published_guideline("gstack")).to_dict()
    assert answer["flops"]["scratch"] == pytest.approx(1e20, rel=1e-4)
    assert answer["decision"] == "infeasible"


def test_observed_point_answers_from_the_pair(tables: SimpleNamespace) -> None:
    answer = recommend(demo_request(tables, cohort="demo"), fit_guideline(tables.demo_table())).to_dict()
    check_contract(answer)
    assert answer["decision"] == "grow"
    assert answer["growth_factor"] == 4
    assert answer["growth_timing_tokens"] == 1.2e6
    assert answer["expected"]["delta_nats"] == pytest.approx(-0.098)
    half = student.ppf(0.9, 4) * 0.015 * math.sqrt(2)
    assert answer["expected"]["delta_interval"] == pytest.approx([-0.098 - half, -0.098 + half])
    assert answer["expected"]["chance_growth_helps"] is None
    assert answer["best_fixed_size"] == {"params": 100_672.0, "num_layers": 2, "expected_loss_nats": 3.491}
    assert answer["target_oversized"] is True
    assert answer["warnings"][0].startswith("The target is over-sized for this budget")
    assert answer["base_model"]["flops_per_token"] == pytest.approx(1_191_936)
    assert answer["flops"]["total"] == pytest.approx(answer["flops"]["scratch"])
    assert answer["support"]["grade"] == "interpolation"
    sunk = answer["by_accounting"]["sunk"]
    assert sunk["decision"] == "grow"
    assert sunk["grown_tokens"] == pytest.approx(2e6)
    assert sunk["delta_nats"] is None
    observed = {row["growth_factor"]: row["delta_nats"] for row in answer["alternatives"]}
    assert observed == {2.0: None, 4.0: pytest.approx(-0.098), 8.0: None}
    assert any("cannot identify the best growth factor" in sentence for sentence in answer["warnings"])
    assert any("0.015 nats" in sentence for sentence in answer["warnings"])


@pytest.mark.parametrize(
    ("losses", "decision", "oversized"),
    [
        ({"scratch": 3.844, "grown": 3.665, "base": 3.604}, "smaller", True),
        ({"scratch": 3.564, "grown": 3.466, "base": 3.491}, "grow", True),
        ({"scratch": 3.398, "grown": 3.262, "base": 3.450}, "grow", False),
        ({"scratch": 3.200, "grown": 3.262, "base": 3.450}, "scratch", False),
    ],
)
def test_decision_is_the_lowest_of_three_arms(
    losses: dict[str, float], decision: str, oversized: bool, tables: SimpleNamespace
) -> None:
    guideline = fit_guideline(tables.demo_table(**losses))
    answer = recommend(demo_request(tables), guideline).to_dict()
    assert answer["decision"] == decision
    assert answer["target_oversized"] is oversized
    assert (answer["growth_timing_tokens"] is None) == (decision != "grow")
    sunk = recommend(demo_request(tables, base_compute="sunk"), guideline).to_dict()
    check_contract(sunk)
    assert sunk["by_accounting"] == answer["by_accounting"]
    assert sunk["by_accounting"]["sunk"]["decision"] == ("grow" if decision == "grow" else None)
    if decision != "grow":
        assert any("sunk is not known" in sentence for sentence in sunk["warnings"])


def test_a_difference_within_the_noise_is_called_one(tables: SimpleNamespace) -> None:
    guideline = fit_guideline(tables.demo_table(scratch=3.47, grown=3.466, base=3.6))
    answer = recommend(demo_request(tables), guideline)
    assert any("within the noise" in sentence for sentence in answer.warnings)


def test_more_seeds_narrow_the_interval(tables: SimpleNamespace) -> None:
    rows = tables.demo_rows()
    for arm in (0, 1):
        for seed, shift in ((1, 0.01), (2, -0.01)):
            loss = rows[arm]["final_loss"] + shift
            rows.append(rows[arm] | {"run_id": f"{arm}-{seed}", "init_seed": seed, "final_loss": loss})
    few, many = fit_guideline(tables.demo_table()), fit_guideline(pd.DataFrame(rows))
    width = [
        high - low
        for low, high in (
            recommend(demo_request(tables), one).to_dict()["expected"]["delta_interval"] for one in (few, many)
        )
    ]
    assert many.noise is not None
    expected = 2 * student.ppf(0.9, many.noise.degrees_of_freedom) * many.noise.sd_nats * math.sqrt(1 / 3 + 1 / 3)
    assert width[1] == pytest.approx(expected)
    assert width[1] < width[0] / 1.5


def test_several_timings_give_a_near_optimal_range(tables: SimpleNamespace) -> None:
    rows = tables.demo_rows()
    for d, loss in ((0.4e6, 3.491), (0.8e6, 3.470), (2.4e6, 3.468)):
        rows.append(tables.grown_row(tables.shape, 2, d, tables.compute, loss))
    answer = recommend(demo_request(tables), fit_guideline(pd.DataFrame(rows))).to_dict()
    assert answer["growth_timing_tokens"] == 1.2e6
    # 0.25% of 3.466 is 0.0087 nats: 0.8M and 2.4M are inside, 0.4M is not.
    assert answer["growth_timing_range"] == [0.8e6, 2.4e6]
    assert any("best of 4 observed pairs" in sentence for sentence in answer["warnings"])


def test_a_guideline_never_answers_30_times_away(tables: SimpleNamespace) -> None:
    answer = recommend(
        Request(target_params=402_496 * 31, token_budget=2e6 / 31), fit_guideline(tables.demo_table())
    ).to_dict()
    assert answer["guideline"]["id"] == "published:gstack"
    assert "does not answer here" in answer["warnings"][0]
    assert answer["expected"]["chance_growth_helps"] is None


def test_a_provisional_guideline_predicts_nothing_elsewhere(tables: SimpleNamespace) -> None:
    answer = recommend(
        Request(target_shape=tables.shape, token_budget=3 * tables.budget), fit_guideline(tables.demo_table())
    ).to_dict()
    assert answer["guideline"]["id"] == "published:gstack"
    assert any("-0.098 nats" in sentence for sentence in answer["warnings"])


def test_other_cohorts_are_refused(tables: SimpleNamespace) -> None:
    with pytest.raises(InputError) as caught:
        recommend(demo_request(tables, cohort="other"), fit_guideline(tables.demo_table()))
    assert caught.value.field == "cohort"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"token_budget": -1.0}, "token_budget"),
        ({"token_budget": math.nan}, "token_budget"),
        ({"token_budget": math.inf}, "token_budget"),
        ({"token_budget": 2.0}, "token_budget"),
        ({"token_budget": True}, "token_budget"),
        ({"token_budget": "2e12"}, "token_budget"),
        ({"target_params": 7.0}, "target_params"),
        ({"target_params": 0}, "target_params"),
        ({"target_params": None}, "target_params"),
        ({"num_target_layers": 0}, "num_target_layers"),
        ({"num_target_layers": 2.5}, "num_target_layers"),
        ({"growth_factors": ()}, "growth_factors"),
        ({"growth_factors": (1.0,)}, "growth_factors"),
        ({"growth_factors": (math.nan,)}, "growth_factors"),
        ({"growth_factors": (1.01,), "num_target_layers": 8}, "growth_factors"),
        ({"base_compute": "free"}, "base_compute"),
    ],
)
def test_bad_questions_name_their_field(values: dict[str, Any], field: str) -> None:
    good: dict[str, Any] = {"target_params": 7e9, "token_budget": 2e12}
    with pytest.raises(InputError) as caught:
        Request(**(good | values))
    assert caught.value.field == field
    assert field in str(caught.value)


def test_shape_and_size_must_agree(tables: SimpleNamespace) -> None:
    with pytest.raises(InputError, match="402,496"):
        Request(target_params=7e9, target_shape=tables.shape, token_budget=2e6)
    with pytest.raises(InputError, match="8 layers"):
        Request(num_target_layers=9, target_shape=tables.shape, token_budget=2e6)
    assert Request(target_params=402_496, target_shape=tables.shape, token_budget=2e6).target.num_layers == 8


def test_connection_rates_of_the_paper() -> None:
    # arXiv 2405.15319, appendix: whole-block 3 -> 6 layers 80%, 8 -> 24 layers 91.3%, 123456*4 87.0%.
    assert connection_rate(stacked_layers(3, 6)) == pytest.approx(0.80)
    assert connection_rate(stacked_layers(8, 24)) == pytest.approx(0.913, abs=5e-4)
    assert connection_rate(stacked_layers(6, 24)) == pytest.approx(0.870, abs=5e-4)
    assert connection_rate([0, 0, 1, 1, 2, 2]) == pytest.approx(0.40)


@pytest.mark.parametrize("num_layers", [8, 46, 61])
def test_partial_stacks_use_every_base_layer_and_end_in_the_last(num_layers: int) -> None:
    for base in base_options(Target(params=1e9, num_layers=num_layers)):
        assert base.num_layers is not None
        layers = stacked_layers(base.num_layers, num_layers)
        assert len(layers) == num_layers
        assert set(layers) == set(range(base.num_layers))
        assert layers[-1] == base.num_layers - 1
        assert base.exact == (num_layers % base.num_layers == 0)
        if base.exact:
            assert layers == tuple(i % base.num_layers for i in range(num_layers))
