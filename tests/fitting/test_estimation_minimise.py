"""The batched minimiser against scipy, closed forms and bounds; losses and resampling against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize, rosen, rosen_der
from scipy.special import huber as scipy_huber

from fitting.estimation.bootstrap import resample_weights
from fitting.estimation.identifiability import num_distinct, shortages, weaknesses
from fitting.estimation.losses import checked_knee, huber, robust_sd, scale_aware_knee
from fitting.estimation.minimize import minimise
from fitting.estimation.regression import Regression, fit_point
from fitting.estimation.residuals import fit_residual_model, prediction_interval
from fitting.laws import scratch_law

INFINITE = np.full(4, np.inf)


def rosenbrock(points: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.array([rosen(p) for p in points]), np.array([rosen_der(p) for p in points])


def test_rosenbrock_from_many_starts() -> None:
    starts = np.random.default_rng(1).normal(0, 1.5, (12, 4))
    minima = minimise(rosenbrock, starts, -INFINITE, INFINITE)
    reference = np.array([minimize(rosen, s, jac=rosen_der, method="BFGS", options={"gtol": 1e-9}).fun for s in starts])
    assert minima.converged.all()
    # Rosenbrock in four dimensions has a second local minimum of value 3.70; every start ends in one of the two.
    assert (np.isclose(minima.values, 0, atol=1e-8) | np.isclose(minima.values, 3.7014, atol=1e-3)).all()
    assert (minima.values < 1e-8).sum() >= (reference < 1e-8).sum() - 2


def test_bounds_hold_and_the_bounded_optimum_is_found() -> None:
    upper = np.array([0.5, np.inf, np.inf, np.inf])
    minima = minimise(rosenbrock, np.zeros((1, 4)), -INFINITE, upper)
    reference = minimize(
        rosen, np.zeros(4), jac=rosen_der, method="L-BFGS-B", bounds=[(None, 0.5)] + [(None, None)] * 3,
        options={"ftol": 1e-15, "gtol": 1e-10},
    )  # fmt: skip
    assert minima.points[0, 0] == 0.5
    assert minima.values[0] == pytest.approx(reference.fun, rel=1e-8)


def test_equal_bounds_fix_a_coordinate() -> None:
    fixed = np.array([0.7, -np.inf, -np.inf, -np.inf]), np.array([0.7, np.inf, np.inf, np.inf])
    minima = minimise(rosenbrock, np.full((1, 4), 2.0), *fixed)
    reference = minimize(lambda x: rosen([0.7, *x]), [0.5, 0.2, 0.1], method="BFGS", options={"gtol": 1e-9})
    assert minima.points[0, 0] == 0.7
    assert minima.values[0] == pytest.approx(reference.fun, rel=1e-7)


def test_a_start_without_a_finite_value_is_counted_as_not_converged() -> None:
    def forbidden(points: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value = np.where(points[:, 0] > 5, np.nan, np.sum(points**2, axis=1))
        return value, 2 * points

    minima = minimise(forbidden, np.array([[9.0, 0.0], [1.0, 1.0]]), np.full(2, -np.inf), np.full(2, np.inf))
    assert minima.converged.tolist() == [False, True]
    assert np.isinf(minima.values[0])
    np.testing.assert_allclose(minima.points[1], 0, atol=1e-5)


def test_huber_is_scipys() -> None:
    residuals = np.linspace(-0.01, 0.01, 101)
    rho, psi = huber(residuals, 1e-3)
    np.testing.assert_allclose(rho, scipy_huber(1e-3, residuals), rtol=1e-12)
    np.testing.assert_allclose(psi[1:-1], np.gradient(rho, residuals)[1:-1], atol=1e-4)


def test_knee_follows_the_noise() -> None:
    noise = np.random.default_rng(0).normal(0, 0.02, 100_000)
    assert robust_sd(noise) == pytest.approx(0.02, rel=0.02)
    assert scale_aware_knee(noise, 5) == pytest.approx(1.345 * 0.02, rel=0.02)
    assert checked_knee("auto") is None
    assert checked_knee("1e-3") == 1e-3
    for bad in ("x", 0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="knee"):
            checked_knee(bad)


def test_resampling_draws_whole_clusters_within_levels() -> None:
    clusters = np.array(["a", "a", "b", "b", "c", "x", "y"])
    levels = np.array(["grown"] * 5 + ["control"] * 2)
    weights = resample_weights(clusters, 500, 7, levels)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 2] == weights[:, 3]).all()
    np.testing.assert_array_equal(weights[:, [0, 2, 4]].sum(axis=1), 3)
    np.testing.assert_array_equal(weights[:, [5, 6]].sum(axis=1), 2)
    np.testing.assert_array_equal(weights, resample_weights(clusters, 500, 7, levels))
    assert weights[:, 0].mean() == pytest.approx(1.0, abs=0.15)
    with pytest.raises(ValueError, match="bootstrap"):
        resample_weights(clusters, 0, 7)


def test_residual_model_finds_a_variance_that_falls_and_keeps_one_that_does_not() -> None:
    rng = np.random.default_rng(3)
    z = rng.uniform(40, 50, 4000)
    model = fit_residual_model(rng.normal(0, 0.02 * np.exp(-0.15 * (z - 45))), z, 5)
    assert model.slope == pytest.approx(-0.15, abs=0.02)
    assert float(model.sd(45.0)) == pytest.approx(0.02, rel=0.05)
    assert float(model.sd(60.0)) == float(model.sd(z.max()))
    flat = fit_residual_model(rng.normal(0, 0.02, 60), z[:60], 5)
    assert flat.slope == 0.0


def test_prediction_interval_covers_at_its_nominal_rate() -> None:
    """80% intervals from parameter draws and residual draws, over many synthetic tables."""
    law = scratch_law("chinchilla")
    truth = law.params_of({"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37})
    rng = np.random.default_rng(11)
    inside = 0
    from fitting.scratch import ScratchFit, fit_scratch_law
    from fitting.scratch_rows import ScratchRows

    num_tables = 60
    for _ in range(num_tables):
        sizes, tokens = np.exp(rng.uniform(18, 23, 40)), np.exp(rng.uniform(22, 26, 40))
        loss = law.loss(truth, sizes, tokens) * np.exp(rng.normal(0, 0.01, 40))
        rows = ScratchRows(num_params=sizes, tokens=tokens, loss_nats=loss, clusters=np.arange(40))
        fit = fit_scratch_law(rows, "chinchilla", bootstrap=100, seed=1)
        assert isinstance(fit, ScratchFit)
        low, high = fit.interval([3e9], [1e11], 0.8)
        new = law.loss(truth, [3e9], [1e11]) * np.exp(rng.normal(0, 0.01))
        inside += int((low <= new)[0] and (new <= high)[0])
    # Binomial(60, 0.8): 37 to 58 is the central 99.8%.
    assert 37 <= inside <= 58
    assert prediction_interval(np.ones((5, 1)), np.zeros((5, 1)), 0.5)[0][0] == 1.0
    with pytest.raises(ValueError, match="coverage"):
        prediction_interval(np.ones((5, 1)), np.zeros((5, 1)), 1.5)


def test_shortages_count_what_is_missing() -> None:
    law = scratch_law("chinchilla")
    assert num_distinct(np.array([1e9, 1.001e9, 2e9])) == 2
    words = shortages(law, np.array([1e9] * 7), np.geomspace(1e9, 1e11, 7))
    assert words == ["3 sizes needed, 1 found"]
    assert "6 runs needed for 5 free parameters, 2 found" in shortages(law, np.array([1e9, 2e9]), np.array([1e9, 2e9]))


def test_weaknesses_name_a_ray_and_a_bound() -> None:
    law = scratch_law("chinchilla")
    sizes = np.geomspace(1e8, 1e10, 20)
    tokens = 20 * sizes
    loss = 1.8 + 480 * sizes**-0.35 + 2100 * tokens**-0.37
    noisy = loss * np.exp(np.random.default_rng(0).normal(0, 0.005, 20))
    ray = Regression(law=law, num_params=sizes, tokens=tokens, loss_nats=noisy)
    words = " ".join(weaknesses(ray, fit_point(ray)))
    assert "tokens follow size" in words
    grid = np.random.default_rng(0).permutation(tokens)
    no_data_term = Regression(law=law, num_params=sizes, tokens=grid, loss_nats=1.8 + 480 * sizes**-0.35)
    words = " ".join(weaknesses(no_data_term, fit_point(no_data_term)))
    assert "bound" in words or "not identified" in words


def test_fixed_parameters_stay_and_only_scale_free_ones_can_be_fixed() -> None:
    law = scratch_law("chinchilla")
    sizes, tokens = (a.ravel() for a in np.meshgrid(np.geomspace(1e8, 1e10, 4), np.geomspace(1e10, 1e12, 4)))
    loss = 1.8 + 480 * sizes**-0.35 + 2100 * tokens**-0.37
    regression = Regression(law=law, num_params=sizes, tokens=tokens, loss_nats=loss, fixed={"E": 1.8, "alpha": 0.35})
    found = regression.params(fit_point(regression).coordinates)
    assert found[0] == pytest.approx(1.8, rel=1e-12)
    assert found[3] == pytest.approx(0.35, rel=1e-12)
    assert found[1] == pytest.approx(480, rel=1e-4)
    with pytest.raises(ValueError, match="cannot be fixed"):
        _ = Regression(law=law, num_params=sizes, tokens=tokens, loss_nats=loss, fixed={"A": 480.0}).box
