"""The isoFLOP two-step on exact parabolas, edges, and a known timing law."""

from __future__ import annotations

import numpy as np
import pytest

from fitting.growth_data import GrowthData
from fitting.growth_laws import GrowthPoints
from fitting.predictors.isoflop import predicted_delta, timing_law, valleys
from fitting.scratch_rows import ScratchRows

TIMINGS = np.geomspace(1e9, 6.4e10, 7)


def data_of(sizes: list[float], computes: list[float], best: list[float], noise: float = 0.0) -> GrowthData:
    """One valley per entry: delta = -0.05 + 0.02 (ln d - ln best)^2 / 2."""
    num = len(TIMINGS)
    N, C, middle = (np.repeat(np.array(values), num) for values in (sizes, computes, best))
    d = np.tile(TIMINGS, len(sizes))
    delta = -0.05 + 0.01 * np.log(d / middle) ** 2 + np.random.default_rng(0).normal(0, noise, len(d))
    points = GrowthPoints(
        target_params=N, base_params=N / 4, growth_factor=np.full(len(d), 4.0), timing_tokens=d,
        grown_tokens=C / 6 / N - d / 4, scratch_tokens=C / 6 / N,
    )  # fmt: skip
    labels = np.arange(len(d)).astype(str)
    scratch = ScratchRows(
        num_params=N[:3], tokens=points.scratch_tokens[:3], loss_nats=np.full(3, 2.5), clusters=labels[:3]
    )
    return GrowthData(
        cohort="c", basis="final", points=points, delta_nats=delta, compute_flops=C, clusters=labels, controls=labels,
        grown_run_ids=labels,
        scratch=scratch, scratch_compute_flops=C[:3], run_ids=(), data_hash="", warnings=(),
    )  # fmt: skip


def test_exact_parabola() -> None:
    (valley,) = valleys(data_of([1e9], [1e21], [8e9]))
    assert valley.status == "interior"
    assert valley.best_timing_tokens == pytest.approx(8e9, rel=1e-6)
    assert valley.best_delta_nats == pytest.approx(-0.05, abs=1e-9)
    assert valley.curvature_nats == pytest.approx(0.02, rel=1e-6)
    # Within 0.005 nats: (ln d - ln d*)^2 = 0.5.
    low, high = valley.near_optimal(0.005) or (0.0, 0.0)
    assert (low, high) == pytest.approx((8e9 * np.exp(-(0.5**0.5)), 8e9 * np.exp(0.5**0.5)), rel=1e-6)
    assert valley.sd_log_timing >= 0.1


def test_edge_minima_are_dropped() -> None:
    found = valleys(data_of([1e9, 2e9], [1e21, 4e21], [8e9, 5e11]))
    assert [valley.status for valley in found] == ["interior", "edge"]
    law = timing_law(found)
    assert (law.num_valleys, law.num_edge) == (1, 1)
    assert law.best_timing_tokens(1e9, 1e21) == pytest.approx(8e9, rel=1e-6)
    with pytest.raises(ValueError, match="further out"):
        timing_law(found[1:])


def test_timing_law_of_six_valleys() -> None:
    sizes, computes = [5e8, 5e8, 1e9, 1e9, 4e9, 4e9], [1e20, 1e21, 3e20, 3e21, 1e21, 1e22]
    best = [8e9 * (N / 1e9) ** 0.4 * (C / 1e21) ** -0.2 for N, C in zip(sizes, computes, strict=True)]
    found = valleys(data_of(sizes, computes, best, noise=0.0005))
    law = timing_law(found)
    assert law.by_size == pytest.approx(0.4, abs=0.05)
    assert law.by_compute == pytest.approx(-0.2, abs=0.04)
    assert law.best_timing_tokens(2e9, 2e21) == pytest.approx(8e9 * 2**0.4 * 2**-0.2, rel=0.05)
    assert predicted_delta(found, law, 1e9, 1e21, 8e9) == pytest.approx(-0.05, abs=0.002)


def test_too_few_timings_make_no_valley() -> None:
    data = data_of([1e9], [1e21], [8e9])
    few = data.where(np.arange(2), np.arange(3))
    assert valleys(few)[0].status == "too few timings"
    assert valleys(few)[0].near_optimal(0.01) is None
