"""Schedules against numpy's interpolation and torch's own scheduler."""

import numpy as np
import pytest
import torch

from app.engine.schedule import Schedule


def schedule(kind: str, **fields: float) -> Schedule:
    values = {
        "peak_lr": 4e-3, "phase_tokens": 100_000, "warmup_tokens": 10_000, "decay_fraction": 0.2,
        "final_lr_fraction": 0.1,
    }  # fmt: skip
    return Schedule(kind=kind, **(values | fields))  # type: ignore[arg-type]


TOKENS = range(500, 100_001, 500)


def test_trunk_warms_up_and_holds_its_peak() -> None:
    trunk = schedule("trunk")
    expected = np.interp(TOKENS, [0, 10_000, 100_000], [0, 4e-3, 4e-3])
    np.testing.assert_allclose([trunk.learning_rate(t) for t in TOKENS], expected, rtol=1e-14)


def test_wsd_is_piecewise_linear_in_tokens() -> None:
    wsd = schedule("wsd")
    expected = np.interp(TOKENS, [0, 10_000, 80_000, 100_000], [0, 4e-3, 4e-3, 4e-4])
    np.testing.assert_allclose([wsd.learning_rate(t) for t in TOKENS], expected, rtol=1e-12)


def test_cosine_equals_torchs_scheduler_after_warmup() -> None:
    cosine = schedule("cosine", warmup_tokens=0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=4e-3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200, eta_min=4e-4)
    for tokens in TOKENS:
        optimizer.step()
        reference.step()
        assert cosine.learning_rate(tokens) == pytest.approx(reference.get_last_lr()[0], rel=1e-12)


def test_cosine_starts_to_fall_where_warmup_ends() -> None:
    cosine = schedule("cosine")
    rates = [cosine.learning_rate(t) for t in TOKENS]
    assert max(rates) == cosine.learning_rate(10_000) == 4e-3
    assert cosine.learning_rate(55_000) == pytest.approx((4e-3 + 4e-4) / 2)
    assert rates[-1] == pytest.approx(4e-4)


@pytest.mark.parametrize("kind", ["wsd", "cosine"])
def test_the_last_step_is_exactly_on_the_floor_and_the_first_above_zero(kind: str) -> None:
    rates = schedule(kind)
    assert rates.learning_rate(100_000) == pytest.approx(0.1 * 4e-3, rel=1e-14)
    assert rates.learning_rate(1_024) == pytest.approx(0.1024 * 4e-3, rel=1e-14)


def test_a_decay_of_no_length_never_leaves_the_peak() -> None:
    flat = schedule("wsd", decay_fraction=0.0, warmup_tokens=0)
    assert {flat.learning_rate(t) for t in TOKENS} == {4e-3}
