"""Scores, regrets, the paired interval and the verdict against numbers worked by hand and closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from arrivals import HELPS, Truth, frame_of
from scipy import integrate
from scipy.stats import norm

from fitting.guideline import Guideline
from fitting.layers import BaseOption, Target
from fitting.prequential.cases import Case, cases, questions, waiting_runs
from fitting.prequential.predicting import Forecast, forecast_delta, forecast_loss, rule_decisions
from fitting.prequential.promotion import FAMILIES_TO_COMPARE, judge
from fitting.prequential.scoring import Comparison, Said, compare, regret, standing, weighted_interval_score
from fitting.refit import fit_guideline


def case(
    delta: float, *, name: str = "a", g: float = 4, d: float = 1e6, size: float = 1e6, compute: float = 1e13
) -> Case:
    base = BaseOption(
        growth_factor=g, params=size / g, num_layers=None, order="stack", connection_rate=None, flops_per_token=6 * size / g
    )  # fmt: skip
    return Case(
        run_id=name, family=name, control="k", target=Target(params=size), base=base, timing_tokens=d, grown_tokens=1e6,
        scratch_tokens=compute / 6 / size, compute_flops=compute, delta_nats=delta,
    )  # fmt: skip


def number(nats: float, half: float = 0.01) -> Said:
    return Said(forecast=Forecast(nats=nats, low_nats=nats - half, high_nats=nats + half), decision="grow")


def test_the_score_of_an_interval_by_hand() -> None:
    forecast = Forecast(nats=-0.02, low_nats=-0.05, high_nats=0.01)
    assert weighted_interval_score(-0.03, forecast) == pytest.approx((0.01 / 2 + 0.1 * 0.06) / 1.5)
    # Above the interval by 0.04: the interval score is 0.06 + 10 x 0.04.
    assert weighted_interval_score(0.05, forecast) == pytest.approx((0.07 / 2 + 0.1 * 0.46) / 1.5)
    # A bare number is its absolute error, on either side.
    for observed in (-0.2, 0.3):
        bare = Forecast(nats=0.0, low_nats=0.0, high_nats=0.0)
        assert weighted_interval_score(observed, bare) == pytest.approx(abs(observed))


def test_the_score_is_proper() -> None:
    """Of all widths the true 80% interval of a normal has the lowest expected score, by numerical integration."""

    def expected(half: float) -> float:
        forecast = Forecast(nats=0.0, low_nats=-half, high_nats=half)
        return integrate.quad(
            lambda y: weighted_interval_score(y, forecast) * norm.pdf(y), -9, 9, points=[-half, half]
        )[0]

    true = norm.ppf(0.9)
    assert expected(true) < min(expected(0.8 * true), expected(1.25 * true))


def test_the_paired_interval_is_the_normal_one_of_cluster_means() -> None:
    """40 families of 3 equal differences: se = sd of family means / sqrt(40); by rows it would be sqrt(3) too narrow."""
    means = np.random.default_rng(3).normal(-0.01, 0.02, 40)
    found = compare(
        list(np.repeat(means, 3)), [str(i) for i in np.repeat(np.arange(40), 3)], [str(i) for i in range(120)]
    )
    assert found is not None
    se = means.std() / math.sqrt(40)
    assert (found.num_cases, found.num_families) == (120, 40)
    assert found.difference_nats == pytest.approx(means.mean())
    assert found.interval_nats == pytest.approx(
        (means.mean() + norm.ppf(0.1) * se, means.mean() + norm.ppf(0.9) * se), abs=0.1 * se
    )
    # Where pairs share controls rather than trunks, those decide.
    by_control = compare(
        list(np.repeat(means, 3)), [str(i) for i in range(120)], [str(i) for i in np.repeat(np.arange(40), 3)]
    )
    assert by_control is not None
    assert by_control.interval_nats == pytest.approx(found.interval_nats, abs=1e-12)
    assert compare([], [], []) is None


def test_regret_of_a_question() -> None:
    group = [case(-0.03, name="a", d=1e5), case(-0.05, name="b", d=1e6), case(0.02, name="c", g=2, d=1e6)]
    assert regret(group, [number(-0.01), number(-0.02), number(0.0)]) == 0
    assert regret(group, [number(-0.04), number(-0.02), number(0.0)]) == pytest.approx(0.02)
    assert regret(group, [number(0.04), number(0.02), number(0.1)]) == pytest.approx(0.05)  # scratch
    rule = Said(forecast=None, decision="grow", growth_factor=2.1, timing_tokens=1.0)
    assert regret(group, [rule] * 3) == pytest.approx(0.07)  # the nearest factor is the 2 that hurts
    assert regret(group, [Said(forecast=None, decision="infeasible", growth_factor=4.0)] * 3) == pytest.approx(0.05)
    # Only the newest decision counts, which knows most of the bases.
    last = Said(forecast=None, decision="grow", growth_factor=4.0, timing_tokens=9e5)
    assert regret(group, [rule, rule, last]) == 0
    # Where growth never helped, scratch is the best there was.
    assert regret([case(0.02)], [number(-0.01)]) == pytest.approx(0.02)
    assert regret([case(0.02)], [number(0.01)]) == 0


def test_standing_counts_by_hand() -> None:
    found = [
        case(-0.03, name="a"),
        case(0.002, name="b"),
        case(0.02, name="c", compute=2e13),
        case(-0.01, name="d", size=2e6),
    ]
    silent = Said(forecast=None, decision="grow", growth_factor=4.0, timing_tokens=1.0)
    said = [number(-0.03), number(-0.05), number(-0.001), silent]
    told = standing(found, said)
    assert (told.num_cases, told.num_numbers, told.num_questions) == (4, 3, 3)
    assert (told.wrong_signs, told.sign_cases) == (1, 3)  # 0.002 is a tie, 0.02 was called a gain
    assert told.coverage == pytest.approx(1 / 3)
    assert told.regret_nats == pytest.approx(0.032 + 0.02)  # picked +0.002 where -0.03 was; grew where it hurt
    scores = [weighted_interval_score(c.delta_nats, s.forecast) for c, s in zip(found, said, strict=True) if s.forecast]
    assert told.score_nats == pytest.approx(np.mean(scores))
    assert questions(found) == [[0, 1], [2], [3]]


def test_a_grown_run_waits_for_its_control() -> None:
    truth = Truth(HELPS)
    scratch, grown, alone = truth.scratch(64, 10), truth.grown(64, 10, 0.1), truth.grown(64, 20, 0.1)
    assert cases(frame_of([grown])) == ()
    assert waiting_runs(frame_of([grown]), ()) == (grown["run_id"],)
    table = frame_of([scratch, grown, alone])
    (found,) = cases(table)
    assert found.run_id == grown["run_id"]
    assert found.delta_nats == pytest.approx(grown["final_loss"] - scratch["final_loss"])
    assert found.scratch_tokens == pytest.approx(scratch["grown_tokens"])
    assert waiting_runs(table, [found]) == (alone["run_id"],)


@pytest.fixture(scope="module")
def fitted() -> tuple[Truth, Guideline]:
    truth = Truth(HELPS)
    rows = truth.controls((48, 64, 96), (5, 10, 20))
    rows += [truth.grown(width, budget, share) for width in (48, 64) for budget in (5, 10, 20) for share in (0.05, 0.3)]
    return truth, fit_guideline(frame_of(rows), seed=0, outer_scores=False)


def test_a_fitted_guideline_predicts_runs_that_it_has_not_seen(fitted: tuple[Truth, Guideline]) -> None:
    truth, guideline = fitted
    control, grown = truth.scratch(96, 10), truth.grown(96, 10, 0.1)
    (one,) = cases(frame_of([control, grown]))
    forecast = forecast_delta(guideline, one)
    assert forecast is not None
    assert forecast.low_nats < forecast.nats < forecast.high_nats
    assert abs(forecast.nats - one.delta_nats) < 0.02
    loss = forecast_loss(guideline, control["target_params"], control["grown_tokens"], control["compute_flops"])
    assert loss is not None
    assert abs(loss.nats - control["final_loss"]) < 0.03
    # 30 times away it says nothing.
    assert forecast_loss(guideline, 1e9, 1e10, 6e19) is None
    assert forecast_delta(guideline, case(-0.1, size=1e9, compute=6e19)) is None


def test_a_guideline_without_laws_repeats_a_design_and_nothing_else() -> None:
    truth = Truth(HELPS)
    scratch, grown = truth.scratch(64, 10), truth.grown(64, 10, 0.1)
    guideline = fit_guideline(frame_of([scratch, grown]))
    again, other = truth.grown(64, 10, 0.1), truth.grown(64, 10, 0.2)
    found = {one.run_id: one for one in cases(frame_of([scratch, again, other]))}
    repeated = forecast_delta(guideline, found[again["run_id"]])
    assert repeated is not None
    assert repeated.nats == pytest.approx(grown["final_loss"] - scratch["final_loss"])
    assert forecast_delta(guideline, found[other["run_id"]]) is None


def test_rules_are_offered_the_bases_that_were_grown_there() -> None:
    four, two = case(-0.01, name="four"), case(-0.01, name="two", g=2)
    assert rule_decisions(four, [four], None)["null"].decision == "scratch"
    elsewhere = case(-0.01, name="far", g=2, compute=5e13)
    assert rule_decisions(four, [four, elsewhere], None)["null"].decision == "scratch"
    assert rule_decisions(four, [four, two], None)["null"].growth_factor == 2
    assert rule_decisions(two, [four, two], None)["constant_fraction"].growth_factor == 4


def guideline_of(version: int, *, provisional: bool = False) -> Guideline:
    return Guideline(id=f"gl_{version}", name="n", kind="fitted", law="l", version=version, provisional=provisional)


def told(difference: float, low: float, high: float, families: int = 6) -> Comparison:
    return Comparison(num_cases=9, num_families=families, difference_nats=difference, interval_nats=(low, high))


@pytest.mark.parametrize(
    ("comparison", "options", "outcome", "is_active", "words"),
    [
        (told(-0.01, -0.02, -0.001), {}, "promoted", True, "better"),
        (told(0.001, -0.001, 0.0029), {}, "promoted", True, "no worse by more than a tie"),
        (told(0.001, -0.001, 0.0031), {}, "rejected", False, "not shown to be no worse"),
        (told(0.01, 0.005, 0.02), {}, "rejected", False, "worse, so version 1 stays"),
        (told(-0.1, -0.2, -0.05, families=FAMILIES_TO_COMPARE - 1), {}, "waits", False, "4 so far"),
        (None, {}, "waits", False, "0 so far"),
        (None, {"num_families": 4}, "newest", True, "4 of the 5 trunk families"),
        (None, {"withdrawn": ["run_7"]}, "replaces_withdrawn", True, "run_7"),
        (told(-0.01, -0.02, -0.001), {"is_pinned": True}, "pinned", False, "activated by hand and stays: refits scored"),
        (None, {"is_pinned": True, "withdrawn": ["run_7"]}, "pinned", False, "although it rests on"),
    ],
)  # fmt: skip
def test_verdicts(comparison: Any, options: dict[str, Any], outcome: str, is_active: bool, words: str) -> None:
    verdict = judge(guideline_of(2), guideline_of(1), comparison, **{"num_families": 9} | options)
    assert (verdict.outcome, verdict.is_active) == (outcome, is_active)
    assert words in verdict.reason


def test_a_first_version_and_one_after_a_provisional_one_answer() -> None:
    assert judge(guideline_of(1), None, None, num_families=0).outcome == "first"
    after = judge(guideline_of(2), guideline_of(1, provisional=True), None, num_families=9)
    assert (after.outcome, after.is_active) == ("newest", True)


def test_cases_come_from_the_pairs_that_are_fitted() -> None:
    """Delta, family and control of a case are those of the growth data, whatever the order of the rows."""
    truth = Truth(HELPS)
    rows = [*truth.controls((48, 64), (5, 10)), truth.grown(48, 5, 0.1), truth.grown(64, 10, 0.2)]
    ordered, turned = cases(frame_of(rows)), cases(frame_of(reversed(rows)))
    assert ordered == turned
    assert len(ordered) == 2
    assert isinstance(pd.Series([one.delta_nats for one in ordered]).mean(), float)
