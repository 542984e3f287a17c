"""The curve's form against the published equation term by term, and the fit against dense generalised least squares."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from fitting.early_view import LossCurve, form
from fitting.early_view.curves import units_of
from fitting.early_view.fit import Noise, fit_curve, measure_noise, weak_prior
from fitting.early_view.form import loss_and_gradient, places
from fitting.errors import InputError

POINT = np.array([3.4, np.log(0.8), np.log(0.5), np.log(0.2), np.log(80.0), np.log(0.04)])


def a_curve(losses: np.ndarray | None = None, *, num: int = 40, grown: bool = False, run_id: str = "r") -> LossCurve:
    """Warm-up to 3e-3 over 30k of 1M tokens, constant to 800k, linear to a tenth; ``num`` evaluations."""
    tokens = np.linspace(1e6 / num, 1e6, num)
    return LossCurve(
        run_id=run_id,
        tokens=tokens,
        loss_nats=np.full(num, 4.0) if losses is None else losses,
        schedule_tokens=np.array([0.0, 3e4, 8e5, 1e6]),
        learning_rates=np.array([0.0, 3e-3, 3e-3, 3e-4]),
        grown=grown,
    )


def test_progress_is_the_integral_of_the_rate() -> None:
    curve = a_curve()
    for tokens in (0.0, 1e4, 3e4, 5e5, 9e5, 1e6):
        area = quad(lambda t: float(curve.rate(t)), 0, tokens, points=[3e4, 8e5], limit=200)[0]
        assert curve.progress(tokens) == pytest.approx(area, rel=1e-9, abs=1e-9)


def test_form_is_the_published_equation() -> None:
    curve = a_curve()
    units = units_of([curve])
    where = places(curve, curve.tokens, units)
    F, D, alpha, B, C, h = POINT[0], *np.exp(POINT[1:])

    def equation(tokens: float, L0: float, A: float) -> float:
        """Equation 1, a sum over pieces of the schedule in plain Python."""
        total = L0 + A * (float(curve.progress(tokens)) / (units.rate * units.tokens) + h) ** -alpha
        piece = int(np.clip(np.ceil(tokens / 1e6 * form.NUM_PIECES), 1, form.NUM_PIECES))
        for k in range(1, piece + 1):
            since = sum(where.rates[k : piece + 1]) * where.piece_tokens
            if where.rates[k] != where.rates[k - 1]:
                x = C * where.rates[k] ** -form.GAMMA * since
                total -= B * (where.rates[k - 1] - where.rates[k]) * (1 - (1 + x) ** -form.BETA)
        return total

    # A from D, and L0 from F, by their definitions.
    tenth, end = equation(1e5, 0, 1) - equation(1e5, 0, 0), equation(1e6, 0, 1) - equation(1e6, 0, 0)
    A = D / (tenth - end)
    L0 = F - equation(1e6, 0, A)
    losses = loss_and_gradient(POINT, where)[0]
    for i in (0, 3, 12, 31, 35, 39):
        assert losses[i] == pytest.approx(equation(curve.tokens[i], L0, A), abs=1e-10)
    assert losses[-1] == pytest.approx(F)


def test_gradient_is_that_of_finite_differences() -> None:
    where = places(a_curve(), a_curve().tokens, units_of([a_curve()]))
    gradient = loss_and_gradient(POINT, where)[1]
    for k in range(6):
        step = 1e-6 * np.eye(6)[k]
        numeric = (loss_and_gradient(POINT + step, where)[0] - loss_and_gradient(POINT - step, where)[0]) / 2e-6
        np.testing.assert_allclose(gradient[:, k], numeric, atol=1e-8)


def test_more_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    curve = a_curve()
    usable = curve.usable().tokens
    coarse = loss_and_gradient(POINT, places(curve, usable, units_of([curve])))[0]
    monkeypatch.setattr(form, "NUM_PIECES", 4 * form.NUM_PIECES)
    fine = loss_and_gradient(POINT, places(curve, usable, units_of([curve])))[0]
    np.testing.assert_allclose(coarse, fine, atol=3e-3)
    np.testing.assert_allclose(coarse[10:], fine[10:], atol=5e-4)


def test_whitening_is_generalised_least_squares() -> None:
    """At the optimum the gradient of the dense AR(1) likelihood plus prior vanishes, and the covariance is its inverse."""
    rng = np.random.default_rng(0)
    noise = Noise(sigma=0.01, rho=0.6)
    units = units_of([a_curve()])
    truth = loss_and_gradient(POINT, places(a_curve(), a_curve().tokens, units))[0]
    curve = a_curve(truth + rng.normal(0, 0.012, len(truth)))
    prior = weak_prior(curve.usable())
    fit = fit_curve(curve, prior, noise, units)
    usable = curve.usable()
    loss, slopes = loss_and_gradient(fit.point, places(curve, usable.tokens, units))
    lag = np.abs(np.subtract.outer(np.arange(len(loss)), np.arange(len(loss))))
    dense = np.linalg.inv(noise.sigma**2 / (1 - noise.rho**2) * noise.rho**lag)
    precision = np.linalg.inv(prior.covariance)
    gradient = slopes.T @ dense @ (loss - usable.loss_nats) + precision @ (fit.point - prior.mean)
    information = slopes.T @ dense @ slopes + precision
    # In units of what one standard deviation of each parameter would change.
    assert np.abs(gradient / np.sqrt(np.diag(information))).max() < 1e-3
    np.testing.assert_allclose(fit.covariance, np.linalg.inv(information), rtol=1e-4, atol=1e-9)


def test_noise_is_found_in_residuals() -> None:
    rng = np.random.default_rng(1)
    fits = []
    for _ in range(40):
        residuals = np.zeros(60)
        for i in range(1, 60):
            residuals[i] = 0.5 * residuals[i - 1] + rng.normal(0, 0.02)
        fit = fit_curve(a_curve(), weak_prior(a_curve()), Noise(sigma=0.01, rho=0.0), units_of([a_curve()]))
        object.__setattr__(fit, "residuals", residuals)
        fits.append(fit)
    noise = measure_noise(fits)
    assert noise.rho == pytest.approx(0.5, abs=0.05)
    assert noise.sigma == pytest.approx(0.02, rel=0.08)


def test_start_of_a_run_does_not_count() -> None:
    assert a_curve().usable().tokens[0] == 5e4
    assert a_curve(grown=True).usable().tokens[0] == pytest.approx(1e5)
    assert a_curve().truncated(0.5).seen_share == 0.5


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"loss_nats": np.full(40, np.nan)}, "loss_nats"),
        ({"loss_nats": np.full(40, -1.0)}, "loss_nats"),
        ({"loss_nats": np.full(39, 4.0)}, "loss_nats"),
        ({"tokens": np.linspace(1e6, 25e3, 40)}, "tokens"),
        ({"tokens": np.linspace(25e3, 2e6, 40)}, "tokens"),
        ({"schedule_tokens": np.array([1.0, 3e4, 8e5, 1e6])}, "schedule_tokens"),
        ({"learning_rates": np.zeros(4)}, "learning_rates"),
        ({"learning_rates": np.array([0.0, 3e-3, -3e-3, 0.0])}, "learning_rates"),
    ],
)
def test_bad_curves_are_refused_by_field(changed: dict[str, np.ndarray], named: str) -> None:
    curve = a_curve()
    fields = {name: getattr(curve, name) for name in ("tokens", "loss_nats", "schedule_tokens", "learning_rates")}
    with pytest.raises(InputError) as refusal:
        LossCurve(run_id="r", **(fields | changed))
    assert refusal.value.field == f"{named} of run 'r'"
