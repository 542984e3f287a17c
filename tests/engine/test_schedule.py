"""Schedules against numpy's interpolation and torch's own scheduler."""

import numpy as np
import pytest
import torch

from app.engine.schedule import Schedule


def schedule(kind: str, **fields: float) -> Schedule:
    values: dict[str, float] = {
        "peak_lr": 4e-3, "num_tokens": 100_000, "warmup_tokens": 10_000, "decay_fraction": 0.2,
        "final_lr_fraction": 0.1,
    }  # fmt: skip
    return Schedule(kind=kind, **(values | fields))  # type: ignore[arg-type]


TOKENS = range(500, 100_001, 500)


def test_a_constant_rate_warms_up_and_holds_its_peak() -> None:
    constant = schedule("constant")
    expected = np.interp(TOKENS, [0, 10_000, 100_000], [0, 4e-3, 4e-3])
    np.testing.assert_allclose([constant.learning_rate(t) for t in TOKENS], expected, rtol=1e-14)


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


# --- power -------------------------------------------------------------------------------------------------


def power(**fields: float) -> Schedule:
    options = {
        "peak_lr": 0.02, "num_tokens": 10**9, "warmup_tokens": 10**7, "batch_tokens": 2**19, "power_amplitude": 4.0,
        "power_exponent": -0.51,
    }  # fmt: skip
    return schedule("power", **(options | fields))


def test_power_is_the_papers_equation() -> None:
    # Eq. 7 and 8 of arXiv 2408.13359 with its a, b and peak, a batch of 128 sequences of 4096 and linear decay.
    for tokens in (10**7, 10**8, 5 * 10**8, 8 * 10**8):
        assert power().learning_rate(tokens) == pytest.approx(min(0.02, 128 * 4 * tokens**-0.51), rel=1e-12)
    assert power().learning_rate(5 * 10**6) == pytest.approx(0.5 * 0.02)
    held = 128 * 4 * (8 * 10**8) ** -0.51
    assert power().learning_rate(9 * 10**8) == pytest.approx(held * 0.55, rel=1e-12)
    assert power().learning_rate(10**9) == pytest.approx(held * 0.1, rel=1e-12)


def test_power_knows_neither_the_runs_length_nor_a_tokens_batch() -> None:
    longer, smaller = power(num_tokens=10**11), power(batch_tokens=2**18)
    for tokens in (6 * 10**8, 8 * 10**8):
        assert longer.learning_rate(tokens) == power().learning_rate(tokens)
        # Half the batch takes two steps at half the rate.
        assert 2 * smaller.learning_rate(tokens) == pytest.approx(power().learning_rate(tokens), rel=1e-12)


# --- where in the schedule a phase starts ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wsd", "cosine", "power", "constant"])
def test_a_phase_reads_its_schedule_from_where_it_starts(kind: str) -> None:
    fields = {"power_amplitude": 1.0, "power_exponent": -0.5}
    whole, later = schedule(kind, **fields), schedule(kind, tokens_before=30_000, **fields)
    assert [later.learning_rate(t) for t in (500, 60_000, 70_000)] == [
        whole.learning_rate(t) for t in (30_500, 90_000, 100_000)
    ]
