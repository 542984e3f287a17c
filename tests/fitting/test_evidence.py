"""Speedups at equal loss against their closed form, and what a guideline's pictures are drawn from."""

from __future__ import annotations

import numpy as np
import pytest
from stored_cohort import fitted

from fitting.evidence import coverage, valleys, weighed_laws
from fitting.speedup import speedups_at_equal_loss
from fitting.validation.scores import binomial_interval


def test_a_power_law_shifted_in_compute_has_one_speedup_everywhere() -> None:
    flops = np.geomspace(1e12, 1e15, 40)
    reference = 2 + 30 * flops**-0.1
    # A run that needs 1 / 1.5 of the FLOPs for every loss; the curve is read between points, straight in log FLOPs.
    found = speedups_at_equal_loss(
        flops=flops / 1.5, loss_nats=reference, reference_flops=flops, reference_loss_nats=reference
    )
    assert found == pytest.approx(0.5)
    between = speedups_at_equal_loss(
        flops=flops, loss_nats=2 + 30 * (1.5 * flops) ** -0.1, reference_flops=flops, reference_loss_nats=reference
    )
    assert between[:-3] == pytest.approx(0.5, abs=2e-3)
    assert np.isnan(between[-3:]).all()  # lower than the reference ever was


def test_losses_that_the_reference_does_not_show_have_no_speedup() -> None:
    found = speedups_at_equal_loss(
        flops=[1.0, 1.0, 1.0],
        loss_nats=[5.1, 4.0, 2.9],
        reference_flops=[1.0, 2.0, 4.0],
        reference_loss_nats=[5.0, 4.0, 3.0],
    )
    assert np.isnan(found[[0, 2]]).all()
    assert found[1] == pytest.approx(1.0)
    assert np.isnan(
        speedups_at_equal_loss(flops=[1.0], loss_nats=[3.0], reference_flops=[], reference_loss_nats=[])
    ).all()


def test_a_reference_that_rises_again_counts_where_it_first_was() -> None:
    found = speedups_at_equal_loss(
        flops=[1.0], loss_nats=[4.0], reference_flops=[1.0, 2.0, 3.0, 8.0], reference_loss_nats=[5.0, 4.0, 4.5, 4.0]
    )
    assert found == pytest.approx([1.0])


def test_valleys_hold_every_pair_once_and_what_the_laws_say_there() -> None:
    guideline = fitted()
    found = valleys(guideline)
    points = [(one.compute_flops, point) for one in found for point in one.observed]
    assert len(points) == len(guideline.pairs)
    for pair in guideline.pairs:
        ((compute, point),) = [one for one in points if one[1].run_ids == pair.grown_run_ids]
        assert compute == pytest.approx(pair.compute_flops, rel=0.01)
        assert (point.delta_nats, point.growth_timing_tokens) == (pair.delta_nats, pair.growth_timing_tokens)
        assert (point.high_nats + point.low_nats) / 2 == pytest.approx(pair.delta_nats)
    for valley in found:
        for point in valley.observed:
            (said,) = [one for one in valley.predicted if one.growth_timing_tokens == point.growth_timing_tokens]
            assert said.low_nats < said.delta_nats < said.high_nats
            # The laws were fitted to exactly these deltas, all -0.05.
            assert said.delta_nats == pytest.approx(point.delta_nats, abs=0.02)


def test_weights_of_laws_sum_to_one_of_each_kind() -> None:
    found = weighed_laws(fitted())
    for kind in ("scratch", "growth"):
        assert sum(one.weight for one in found if one.kind == kind) == pytest.approx(1.0)
    for one in found:
        assert all(p.low <= p.median <= p.high for p in one.parameters)


def test_coverage_has_an_interval_of_its_own() -> None:
    found = coverage("all", [True] * 8 + [False] * 4)
    assert (found.hits, found.cases, found.share, found.interval) == (8, 12, 8 / 12, binomial_interval(8, 12))
    assert coverage("none", []).share is None
