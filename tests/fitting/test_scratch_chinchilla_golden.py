"""The fit against published and recomputed numbers on the 240 Chinchilla rows of Epoch AI (arXiv 2404.10102)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from fitting.scratch import ScratchFit, fit_scratch_law
from fitting.scratch_rows import ScratchRows, read_table, scratch_rows

TABLE = Path(__file__).parents[1] / "data" / "chinchilla" / "svg_points.csv"


@pytest.fixture(scope="module")
def rows() -> ScratchRows:
    return scratch_rows(read_table(TABLE), params="model_size", loss="loss", flops="training_flop", drop_highest=5)


@pytest.fixture(scope="module")
def huber_fit(rows: ScratchRows) -> ScratchFit:
    fit = fit_scratch_law(rows, "chinchilla", knee=1e-3, bootstrap=4000, seed=42)
    assert isinstance(fit, ScratchFit)
    return fit


def test_rows_are_the_240(rows: ScratchRows) -> None:
    assert len(rows) == 240
    assert (np.diff(rows.flops) >= 0).all()


def test_huber_optimum(huber_fit: ScratchFit) -> None:
    assert huber_fit.objective == pytest.approx(1.0182740e-3, rel=1e-6)
    found = huber_fit.parameters
    assert found["A"] == pytest.approx(477.82, abs=0.01)
    assert found["B"] == pytest.approx(2143.4, abs=0.05)
    assert found["E"] == pytest.approx(1.81722, abs=5e-6)
    assert found["alpha"] == pytest.approx(0.34731, abs=5e-6)
    assert found["beta"] == pytest.approx(0.36717, abs=5e-6)
    assert huber_fit.share_of_starts_at_best == 1.0


def test_bootstrap_standard_errors(huber_fit: ScratchFit) -> None:
    errors = huber_fit.standard_errors
    assert errors is not None
    assert huber_fit.draws is not None
    assert huber_fit.draws.num_failed == 0
    for name, published in (("E", 0.02566), ("alpha", 0.01540), ("beta", 0.02060)):
        assert errors[name] == pytest.approx(published, rel=0.05), name


def test_least_absolute_optimum(rows: ScratchRows) -> None:
    fit = fit_scratch_law(rows, "chinchilla", loss_function="lad")
    assert isinstance(fit, ScratchFit)
    found = fit.parameters
    assert found["A"] == pytest.approx(482.006, abs=6e-4)
    assert found["B"] == pytest.approx(2085.436, abs=6e-4)
    assert found["E"] == pytest.approx(1.81686, abs=6e-6)
    assert found["alpha"] == pytest.approx(0.347813, abs=6e-7)
    assert found["beta"] == pytest.approx(0.365854, abs=6e-7)
    residuals = np.log(fit.predict(rows.num_params, rows.tokens) / rows.loss_nats)
    # A least-absolute optimum interpolates as many rows as there are parameters.
    assert np.sum(np.abs(residuals) < 1e-9) == 5


def test_bootstrap_draws_are_optima_of_their_resamples(rows: ScratchRows, huber_fit: ScratchFit) -> None:
    """A handful of draws against scipy started at them: an independent objective finds nothing better."""
    from fitting.estimation.bootstrap import resample_weights

    weights = resample_weights(rows.clusters, 4000, 42)
    log_size, log_tokens, log_loss = np.log(rows.num_params), np.log(rows.tokens), np.log(rows.loss_nats)

    def objective(x: np.ndarray, counts: np.ndarray) -> float:
        predicted = np.logaddexp(np.logaddexp(x[0], x[1] - x[3] * log_size), x[2] - x[4] * log_tokens)
        size = np.abs(predicted - log_loss)
        return 1e3 * float(np.sum(counts * np.where(size < 1e-3, size**2 / 2, 1e-3 * (size - 5e-4))))

    assert huber_fit.draws is not None
    for k in (0, 7, 1999, 3999):
        draw = huber_fit.draws.params[k]
        start = np.array([*np.log(draw[:3]), *draw[3:]])
        here = objective(start, weights[k])
        better = minimize(
            objective, start, args=(weights[k],), method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-9}
        )
        assert here <= better.fun * (1 + 2e-5)


def test_default_knee_is_scale_aware(rows: ScratchRows) -> None:
    fit = fit_scratch_law(rows, "chinchilla")
    assert isinstance(fit, ScratchFit)
    residuals = np.log(fit.predict(rows.num_params, rows.tokens) / rows.loss_nats)
    sd = 1.4826 * np.median(np.abs(residuals)) * np.sqrt(240 / 235)
    assert fit.knee == pytest.approx(1.345 * sd, rel=0.02)


def test_same_rows_in_any_order_and_same_seed_give_the_same_bits() -> None:
    table = read_table(TABLE)
    columns = {"params": "model_size", "loss": "loss", "flops": "training_flop"}
    first = fit_scratch_law(scratch_rows(table, **columns), "chinchilla", bootstrap=50, seed=3)
    shuffled = table.sample(frac=1.0, random_state=0)
    second = fit_scratch_law(scratch_rows(shuffled, **columns), "chinchilla", bootstrap=50, seed=3)
    assert isinstance(first, ScratchFit)
    assert isinstance(second, ScratchFit)
    assert first.parameters == second.parameters
    assert first.draws is not None
    assert second.draws is not None
    assert (first.draws.params == second.draws.params).all()
