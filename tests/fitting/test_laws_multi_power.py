"""The multi-power law against a loop that follows the paper's sum, its limits, its gradient, and recovery from curves."""

from __future__ import annotations

import numpy as np
import pytest

from fitting.laws.multi_power import PARAMETER_NAMES, Curve, curve_loss, curve_loss_and_gradient, fit_multi_power

TRUTH = np.array([2.6, 0.6, 0.5, 133.0, 1.2, 0.5, 0.6])
PEAK, NUM_STEPS, WARMUP = 9e-4, 1000, 50


def schedule(kind: str) -> np.ndarray:
    steps = np.arange(NUM_STEPS)
    warm = np.minimum((steps + 1) / WARMUP, 1.0)
    share = np.clip((steps - WARMUP) / (NUM_STEPS - WARMUP), 0, 1)
    shapes = {
        "constant": np.ones(NUM_STEPS),
        "cosine": 0.1 + 0.45 * (1 + np.cos(np.pi * share)),
        "wsd": np.where(share > 0.8, 1 - 0.9 * (share - 0.8) / 0.2, 1.0),
    }
    return PEAK * warm * shapes[kind]


def by_the_book(params: np.ndarray, rates: np.ndarray, t: int) -> float:
    L0, A, alpha, B, C, beta, gamma = params
    loss = L0 + A * sum(rates[: t + 1]) ** -alpha
    for k in range(1, t + 1):
        since = sum(rates[k : t + 1])
        loss -= B * (rates[k - 1] - rates[k]) * (1 - (1 + C * rates[k] ** -gamma * since) ** -beta)
    return float(loss)


@pytest.mark.parametrize("kind", ["constant", "cosine", "wsd"])
def test_against_the_sum_written_out(kind: str) -> None:
    rates = schedule(kind)[:400]
    steps = np.array([0, 1, 10, 49, 50, 399])
    expected = [by_the_book(TRUTH, rates, int(t)) for t in steps]
    np.testing.assert_allclose(curve_loss(TRUTH, rates, steps), expected, rtol=1e-10)


def test_constant_rate_is_a_power_law() -> None:
    rates = np.full(1000, PEAK)
    steps = np.array([9, 99, 999])
    np.testing.assert_allclose(curve_loss(TRUTH, rates, steps), 2.6 + 0.6 * (PEAK * (steps + 1)) ** -0.5, rtol=1e-12)


def test_decay_lowers_the_loss_and_the_warm_up_belongs_in_the_sum() -> None:
    last = np.array([NUM_STEPS - 1])
    flat, decayed = curve_loss(TRUTH, schedule("constant"), last), curve_loss(TRUTH, schedule("wsd"), last)
    assert decayed < flat - 0.02
    without = schedule("wsd").copy()
    without[:WARMUP] = PEAK
    # Same sum of rates, no increases: the difference is what the warm-up's own terms are worth.
    loss_without = curve_loss(TRUTH, without, last) + 0.6 * (schedule("wsd").sum() ** -0.5 - without.sum() ** -0.5)
    assert abs(decayed - loss_without)[0] > 0.05


def test_gradient_against_central_differences() -> None:
    rates, steps = schedule("cosine"), np.array([20, 200, 500, 999])
    _, gradient = curve_loss_and_gradient(TRUTH, rates, steps)
    for index, value in enumerate(TRUTH):
        step = np.zeros(7)
        step[index] = 1e-6 * value
        numeric = (curve_loss(TRUTH + step, rates, steps) - curve_loss(TRUTH - step, rates, steps)) / (2 * step[index])
        np.testing.assert_allclose(gradient[:, index], numeric, rtol=1e-5, atol=1e-10)


def test_rate_that_falls_to_zero_is_finite() -> None:
    rates = np.linspace(PEAK, 0, 200)
    loss, gradient = curve_loss_and_gradient(TRUTH, rates, np.array([199]))
    assert np.isfinite(loss).all()
    assert np.isfinite(gradient).all()


def test_fit_on_two_schedules_predicts_a_third() -> None:
    steps = np.unique(np.geomspace(40, NUM_STEPS - 1, 25).astype(int))
    rng = np.random.default_rng(0)
    curves = [
        Curve(
            learning_rates=schedule(kind), steps=steps,
            loss_nats=curve_loss(TRUTH, schedule(kind), steps) * np.exp(rng.normal(0, 0.001, len(steps))),
        )
        for kind in ("constant", "cosine")
    ]  # fmt: skip
    found, error = fit_multi_power(curves)
    assert error < 0.0015
    params = np.array([found[name] for name in PARAMETER_NAMES])
    late = steps[steps > 150]
    np.testing.assert_allclose(
        curve_loss(params, schedule("wsd"), late), curve_loss(TRUTH, schedule("wsd"), late), rtol=0.008
    )


def test_bad_curves_are_refused() -> None:
    rates, steps = schedule("cosine"), np.arange(10)
    with pytest.raises(ValueError, match="the schedule has steps 0 to 999"):
        Curve(learning_rates=rates, steps=np.array([1000]), loss_nats=np.array([3.0]))
    with pytest.raises(ValueError, match="as many"):
        Curve(learning_rates=rates, steps=steps, loss_nats=np.ones(3))
    with pytest.raises(ValueError, match="positive"):
        Curve(learning_rates=rates, steps=steps, loss_nats=np.zeros(10))
    with pytest.raises(ValueError, match="non-negative"):
        Curve(learning_rates=-rates, steps=steps, loss_nats=np.ones(10))
    constant = Curve(learning_rates=np.full(100, PEAK), steps=np.arange(20), loss_nats=np.ones(20))
    with pytest.raises(ValueError, match="no schedule changes"):
        fit_multi_power([constant])
    with pytest.raises(ValueError, match="points needed"):
        fit_multi_power([Curve(learning_rates=rates, steps=np.arange(4), loss_nats=np.ones(4))])
