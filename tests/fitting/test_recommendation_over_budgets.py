"""Growing against scratch over budgets: each point is what the whole answer says at that budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
from stored_cohort import SHAPE, fitted

from fitting.flops import Shape
from fitting.recommendation import Request, recommend, surface

REQUEST = Request(target_shape=Shape(**SHAPE), token_budget=2e6, growth_factors=(4.0,))


def test_each_point_is_the_answer_at_its_budget() -> None:
    points = surface(REQUEST, fitted(), num_timings=3, num_budgets=3).budgets
    assert [point.token_budget for point in points] == pytest.approx([2.5e5, 2e6, 1.6e7])
    for point in points:
        answer = recommend(replace(REQUEST, token_budget=point.token_budget), fitted())
        rows = {row.arm: row for row in answer.arms}
        assert point.compute_flops == pytest.approx(answer.flops.scratch)
        assert point.growth_timing_tokens == pytest.approx(rows["grown"].growth_timing_tokens)
        assert point.saved_target_tokens == pytest.approx(answer.expected.saved_target_tokens)
        assert point.grown_loss_nats - point.scratch_loss_nats == pytest.approx(answer.expected.delta_nats)
        for row, band in ((rows["scratch"], point.scratch_interval), (rows["grown"], point.grown_interval)):
            quantiles = row.loss_nats
            assert quantiles is not None
            assert band == pytest.approx((quantiles.p10, quantiles.p90), rel=2e-3)
    first, saved = points[0].saved_interval, points[0].saved_target_tokens
    assert first is not None
    assert saved is not None
    assert first[0] < saved < first[1]


def test_budgets_out_of_reach_are_left_out() -> None:
    far = replace(REQUEST, token_budget=5e7)
    points = surface(far, fitted(), num_timings=3, num_budgets=5).budgets
    assert 0 < len(points) < 5
    assert max(point.token_budget for point in points) < 30 * 4e6


def test_the_near_optimal_limit_is_a_quarter_per_cent_above_the_lowest_loss() -> None:
    found = surface(REQUEST, fitted(), num_timings=9)
    assert found.budgets == ()
    lowest = min(min(row.loss_nats) for row in found.rows)
    assert found.near_optimal_loss_nats == pytest.approx(1.0025 * lowest)
