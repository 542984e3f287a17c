"""The early view on real curves of this project's engine (`tests/data/early_view`), and what it refuses to tell."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from early_view_runs import SHARES, leave_one_out, measure, read_curves
from scipy.stats import binom

from fitting.early_view import Cohort, LossCurve, predict_final
from fitting.errors import InputError


@pytest.fixture(scope="module")
def curves() -> list[LossCurve]:
    return read_curves("first")


@pytest.fixture(scope="module")
def cohort(curves: list[LossCurve]) -> Cohort:
    return Cohort(curves)


@pytest.fixture(scope="module")
def later() -> list[LossCurve]:
    return read_curves("later")


@pytest.mark.parametrize("share", SHARES)
def test_unseen_runs_are_predicted_better_than_by_naive_rules(
    share: float, cohort: Cohort, later: list[LossCurve]
) -> None:
    found = measure(later, lambda curve: cohort, share)
    assert found.num_told == found.num_runs
    assert found.rmse_nats < 0.5 * found.last_value_rmse_nats
    assert found.rmse_nats < found.power_law_rmse_nats
    assert found.rmse_nats < found.cohort_mean_rmse_nats
    # Fewer held intervals than this would come from true 80% intervals once in a hundred sets of runs.
    assert found.num_covered >= binom.ppf(0.01, found.num_runs, 0.8)


def test_the_width_of_intervals_shrinks_as_the_run_goes_on(cohort: Cohort, later: list[LossCurve]) -> None:
    widths = []
    for share in SHARES:
        run = predict_final(later[0].truncated(share), cohort=cohort).run
        assert run.low_nats is not None
        assert run.high_nats is not None
        widths.append(run.high_nats - run.low_nats)
    assert widths == sorted(widths, reverse=True)


@pytest.mark.long
@pytest.mark.parametrize("share", SHARES)
def test_intervals_hold_when_everything_is_made_without_the_run(share: float, curves: list[LossCurve]) -> None:
    found = measure(curves, leave_one_out(curves), share)
    low, high = binom.ppf([0.01, 0.99], found.num_told, 0.8)
    assert low <= found.num_covered <= high
    assert found.rmse_nats < 0.5 * found.last_value_rmse_nats


def test_a_run_clearly_ahead_and_one_clearly_behind(curves: list[LossCurve]) -> None:
    finals = {curve.run_id: curve.final_loss_nats for curve in curves}
    best, worst = min(finals, key=finals.__getitem__), max(finals, key=finals.__getitem__)
    named = {curve.run_id: curve for curve in curves}
    others = Cohort([curve for curve in curves if curve.run_id not in (best, worst)])
    for run, control, expected in ((best, worst, 1.0), (worst, best, 0.0)):
        view = predict_final(named[run].truncated(0.5), cohort=others, control=named[control])
        assert view.chance_below_control == pytest.approx(expected, abs=0.05)
        assert view.control is not None
        assert view.control.status == "finished"
        assert f"{view.chance_below_control:.0%}" in view.sentence


def test_chances_need_ten_replays(curves: list[LossCurve]) -> None:
    view = predict_final(curves[0].truncated(0.5), cohort=curves[4:12], control=curves[1])
    assert view.run.status == "predicted"
    assert view.chance_below_control is None
    assert "8 finished runs" in view.why_no_chance
    assert view.why_no_chance in view.sentence


def test_the_interval_is_stretched_where_replays_were_off(cohort: Cohort) -> None:
    replays = cohort.replay(0.5)
    off = replace(replays, final_nats=replays.final_nats + 1.0)
    assert off.stretch > 5 * replays.stretch
    assert off.half_width(0.02, 0.8) > 5 * replays.half_width(0.02, 0.8)
    hits, pairs = replays.confident_pairs
    assert hits / pairs > 0.8


def test_too_little_is_said_with_what_is_needed(curves: list[LossCurve], cohort: Cohort) -> None:
    run = predict_final(curves[0].truncated(0.12), cohort=curves[1:]).run
    assert run.status == "cannot tell yet"
    assert run.final_loss_nats is None
    assert "more evaluation" in run.needed
    knots = np.append(curves[0].schedule_tokens[:-1], 4 * curves[0].planned_tokens)
    longer = replace(curves[0], run_id="longer", schedule_tokens=knots, tokens=0.36 * curves[0].tokens)
    assert predict_final(longer, cohort=cohort).run.needed == "10% of the planned tokens; it has seen 9%"


def test_no_better_than_the_mean_is_not_told(curves: list[LossCurve]) -> None:
    """A cohort of runs that all end alike: at a quarter of the run the curve adds nothing to knowing that."""
    alike = [curve for curve in curves if curve.grown and 3.64 < curve.final_loss_nats < 3.72]
    unlike = next(curve for curve in curves if curve.grown and curve not in alike)
    assert len(alike) >= 4
    run = predict_final(unlike.truncated(0.25), cohort=alike).run
    assert run.status == "cannot tell yet"
    assert "no better than guessing their mean" in run.needed


def test_without_a_cohort_nothing_is_told(curves: list[LossCurve], later: list[LossCurve]) -> None:
    for cohort, there in (((), "are 0"), (curves[:1], "is 1"), ([c.truncated(0.9) for c in curves], "are 0")):
        view = predict_final(later[0].truncated(0.75), cohort=cohort, control=later[1])
        assert view.run.status == "cannot tell yet"
        assert view.run.needed == f"4 finished runs of its cohort, of which there {there}"
        assert view.chance_below_control is None
        assert view.run.needed in view.sentence


def test_a_finished_run_is_its_own_answer(later: list[LossCurve]) -> None:
    view = predict_final(later[0], control=later[1])
    assert view.run.final_loss_nats == view.run.low_nats == view.run.high_nats == later[0].loss_nats[-1]
    assert view.chance_below_control is None
    assert view.sentence.count("has ended at") == 2


def test_the_answer_is_plain_json(later: list[LossCurve], cohort: Cohort) -> None:
    view = predict_final(later[0].truncated(0.5), cohort=cohort, control=later[1])
    told = json.loads(json.dumps(view.to_dict(), allow_nan=False))
    assert told["run"]["num_replays"] == len(cohort.runs)
    assert told["control"]["interval_nats"] == [later[1].loss_nats[-1]] * 2
    assert told["sentence"] == view.sentence


def test_neither_an_empty_curve_nor_a_run_among_its_own_cohort(curves: list[LossCurve]) -> None:
    empty = replace(curves[0], tokens=np.empty(0), loss_nats=np.empty(0))
    with pytest.raises(InputError, match="first evaluation"):
        predict_final(empty)
    with pytest.raises(InputError, match="leave it out"):
        predict_final(curves[0].truncated(0.5), cohort=curves)
