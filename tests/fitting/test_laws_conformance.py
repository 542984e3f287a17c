"""Every scratch law passes the same suite: gradients, signs, floor, inverse, units, batching, and finding itself again."""

from __future__ import annotations

import numpy as np
import pytest

from fitting.estimation.regression import Regression, fit_point
from fitting.laws import SCRATCH_LAWS, scratch_law
from fitting.laws.base import ScratchLaw
from fitting.laws.shape import shape_faults

# A realistic parameter vector of each law: published fits where there are any.
EXAMPLES: dict[str, dict[str, float]] = {
    "chinchilla": {"E": 1.81722, "A": 477.82, "B": 2143.4, "alpha": 0.34731, "beta": 0.36717},
    # Kaplan et al. 2020, table 5: Nc 6.4e13, alpha_N 0.076; Dc 1.8e13, alpha_D 0.103.
    "kaplan": {"A": 6.4e13**0.076, "B": 1.8e13**0.103, "alpha": 0.076, "beta": 0.103},
    "coupled": {"E": 1.7, "A": 400.0, "B": 1500.0, "K": 300.0, "alpha": 0.34, "beta": 0.35, "u": 0.12, "v": 0.2},
    "farseer": {"S0": 10.5, "s": 0.9, "q": -0.09, "Q": 2.0, "r": 0.1, "b": -0.02, "T": -2.2, "t": 0.05, "a": 0.01},
}
rng = np.random.default_rng(0)
N = np.exp(rng.uniform(np.log(2e7), np.log(3e10), 40))
D = np.exp(rng.uniform(np.log(2e9), np.log(3e12), 40))


@pytest.fixture(params=sorted(SCRATCH_LAWS))
def law(request: pytest.FixtureRequest) -> ScratchLaw:
    return scratch_law(request.param)


def example(law: ScratchLaw) -> np.ndarray:
    return law.params_of(EXAMPLES[law.name])


def test_every_law_has_an_example() -> None:
    assert set(EXAMPLES) == set(SCRATCH_LAWS)


def test_gradient_against_central_differences(law: ScratchLaw) -> None:
    params = example(law)
    loss, gradient = law.loss_and_gradient(params, N, D)
    assert gradient.shape == (40, law.num_parameters)
    np.testing.assert_allclose(loss, law.loss(params, N, D), rtol=1e-13)
    for index, value in enumerate(params):
        step = 1e-5 * max(abs(value), 1e-3)
        up, down = params.copy(), params.copy()
        up[index] += step
        down[index] -= step
        numeric = (law.loss(up, N, D) - law.loss(down, N, D)) / (2 * step)
        np.testing.assert_allclose(gradient[:, index], numeric, rtol=3e-6, atol=1e-9 * np.abs(gradient[:, index]).max())


def test_slopes_against_central_differences_and_signs(law: ScratchLaw) -> None:
    params, step = example(law), 1e-5
    by_size = (law.loss(params, N * np.exp(step), D) - law.loss(params, N * np.exp(-step), D)) / (2 * step)
    by_tokens = (law.loss(params, N, D * np.exp(step)) - law.loss(params, N, D * np.exp(-step))) / (2 * step)
    np.testing.assert_allclose(law.d_loss_d_log_params(params, N, D), by_size, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(law.d_loss_d_log_tokens(params, N, D), by_tokens, rtol=1e-5, atol=1e-9)
    assert (law.d_loss_d_log_params(params, N, D) < 0).all()
    assert (law.d_loss_d_log_tokens(params, N, D) < 0).all()


def test_loss_stays_above_its_floor_and_tends_to_it(law: ScratchLaw) -> None:
    params = example(law)
    floor = law.floor(params, N)
    assert (floor > 0).all()
    assert (law.loss(params, N, D) > floor).all()
    np.testing.assert_allclose(law.loss(params, N, 1e120), floor, rtol=1e-3)
    assert shape_faults(law, params, (2e7, 3e10), (2e9, 3e12)) == []


def test_inverse_round_trip(law: ScratchLaw) -> None:
    params = example(law)
    loss = law.loss(params, N, D)
    np.testing.assert_allclose(law.tokens_for_loss(params, N, loss), D, rtol=1e-7)
    # The law's own inverse, where it has one, is the bisection's.
    np.testing.assert_allclose(ScratchLaw.tokens_for_loss(law, params, N, loss), D, rtol=1e-7)
    assert np.isinf(law.tokens_for_loss(params, N, 0.99 * law.floor(params, N))).all()
    assert np.isinf(law.tokens_for_loss(params, N, law.floor(params, N))).all()


def test_draws_broadcast(law: ScratchLaw) -> None:
    params = example(law)
    draws = params * np.linspace(0.97, 1.03, 6)[:, None]
    loss, gradient = law.loss_and_gradient(draws, N, D)
    assert loss.shape == (6, 40)
    assert gradient.shape == (6, 40, law.num_parameters)
    for k in range(6):
        np.testing.assert_array_equal(loss[k], law.loss_and_gradient(draws[k], N, D)[0])
        np.testing.assert_allclose(law.slopes(draws, N, D)[1][k], law.slopes(draws[k], N, D)[1], rtol=1e-13)
        np.testing.assert_allclose(
            law.tokens_for_loss(draws, N, 3.0)[k], law.tokens_for_loss(draws[k], N, 3.0), rtol=1e-10
        )


def test_rescaled_is_the_same_function_in_other_units(law: ScratchLaw) -> None:
    size, tokens = law.centre(N, D)
    params = example(law)
    centred = law.rescaled(params, 1 / size, 1 / tokens)
    np.testing.assert_allclose(law.loss(centred, N / size, D / tokens), law.loss(params, N, D), rtol=1e-11)
    np.testing.assert_allclose(law.rescaled(centred, size, tokens), params, rtol=1e-9)


def test_fit_finds_the_law_that_made_the_rows(law: ScratchLaw) -> None:
    params = example(law)
    sizes, tokens = (axis.ravel() for axis in np.meshgrid(np.geomspace(2e7, 3e10, 9), np.geomspace(2e9, 3e12, 9)))
    loss = law.loss(params, sizes, tokens)
    regression = Regression(law=law, num_params=sizes, tokens=tokens, loss_nats=loss)
    fit = fit_point(regression)
    assert np.abs(fit.residuals).max() < 2e-4
    lower, upper = regression.box
    assert ((fit.coordinates >= lower) & (fit.coordinates <= upper)).all()


def test_starts_lie_in_the_box_and_are_several(law: ScratchLaw) -> None:
    loss = law.loss(example(law), N, D)
    regression = Regression(law=law, num_params=N, tokens=D, loss_nats=loss)
    starts = regression.cold_starts()
    lower, upper = regression.box
    assert len(starts) >= 8
    assert np.isfinite(starts).all()
    assert ((starts >= lower) & (starts <= upper)).all()


def test_params_of_names_what_is_wrong(law: ScratchLaw) -> None:
    with pytest.raises(ValueError, match="missing"):
        law.params_of({"nonsense": 1.0})


def test_unknown_law_lists_the_known() -> None:
    with pytest.raises(ValueError, match="chinchilla"):
        scratch_law("chinchila")


def test_shape_faults_are_found() -> None:
    farseer = scratch_law("farseer")
    # A data exponent that falls with size, from 0.4 at 1e8, while neither the floor nor the scale falls enough.
    at_1e8 = np.log(1e8)
    rising = farseer.params_of(
        {
            "S0": 0.6,
            "s": 1e-5,
            "q": 0.0,
            "Q": 0.5,
            "r": 1e-5,
            "b": 0.0,
            "T": np.log(0.4) + 0.3 * at_1e8,
            "t": -0.3,
            "a": 0.0,
        }
    )
    assert any("rises with size" in fault for fault in shape_faults(farseer, rising, (2e7, 3e10), (2e9, 3e12)))
