"""Every growth law and predictor passes one suite: exact gradients, draws, and the anchors it claims and no others."""

from __future__ import annotations

import numpy as np
import pytest

from fitting.growth_laws import GROWTH_LAWS, GrowthLaw, GrowthPoints, Prepared, ScratchCurve, with_offsets
from fitting.laws import scratch_law
from fitting.predictors import PREDICTORS

ALL = {**GROWTH_LAWS, **PREDICTORS}
CHINCHILLA = scratch_law("chinchilla")
THETA = CHINCHILLA.params_of({"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37})
SMOOTH = ScratchCurve(law=CHINCHILLA, params=THETA)


def points(timing: float | None = None, grown: float | None = None, num: int = 30) -> GrowthPoints:
    rng = np.random.default_rng(4)
    N = np.exp(rng.uniform(np.log(4e8), np.log(7e9), num))
    g = rng.choice([2.0, 3.0, 4.0, 8.0], num)
    d = np.full(num, timing) if timing is not None else np.exp(rng.uniform(np.log(2e9), np.log(5e10), num))
    D2 = np.full(num, grown) if grown is not None else np.exp(rng.uniform(np.log(2e10), np.log(1e12), num))
    return GrowthPoints(
        target_params=N, base_params=N / g, growth_factor=g, timing_tokens=d, grown_tokens=D2, scratch_tokens=D2 + d / g
    )


def example(law: GrowthLaw) -> np.ndarray:
    """Generic parameters: no neutral value (kappa = 1, c = 0) that would meet an anchor by accident."""
    values = {
        "ln_kappa": 0.4, "c": 0.03, "c_slope": 0.004, "ln_p": 0.7, "ln_m": 0.25, "w": 0.2, "j": 0.05, "q": 0.12, "ln_eta": 0.3,
        "ln_E": 0.55, "ln_B": -1.0, "b": 0.3, "ln_A": 0.1, "a1": 0.05, "a2": 0.25, "a3": 0.01,
        "ln_1_plus_s": 0.4, "k0": 0.3, "k1": -0.08, "k2": -0.05,
    }  # fmt: skip
    return np.array([values[name] for name in law.parameter_names])


@pytest.fixture(params=sorted(ALL))
def law(request: pytest.FixtureRequest) -> GrowthLaw:
    return ALL[request.param]


def bent_curve() -> ScratchCurve:
    """A curve with per-target offsets, on the very sizes that are asked about."""
    asked = points()
    rng = np.random.default_rng(9)
    sizes = np.repeat(asked.target_params[:6], 30)
    tokens = np.tile(np.geomspace(5e9, 2e12, 30), 6)
    loss = CHINCHILLA.loss(THETA, sizes, tokens) * np.exp(
        0.01 * np.sin(np.log(tokens)) + rng.normal(0, 0.001, len(sizes))
    )
    return with_offsets(CHINCHILLA, THETA, sizes, tokens, loss)


@pytest.mark.parametrize("curve", ["smooth", "bent"])
def test_gradient_against_central_differences(law: GrowthLaw, curve: str) -> None:
    prepared = Prepared.of(points(), SMOOTH if curve == "smooth" else bent_curve())
    params = example(law)
    delta, gradient = law.delta_and_gradient(params, prepared)
    assert delta.shape == (30,)
    # The quick way to the loss alone, also where all rows are of one size.
    one_size = Prepared.of(
        prepared.points.where(prepared.points.target_params == prepared.points.target_params[0]), prepared.scratch
    )
    for asked in (prepared, one_size):
        np.testing.assert_allclose(
            law.grown_loss(params, asked), law.grown_loss_and_gradient(params, asked)[0], rtol=1e-13
        )
    assert gradient.shape == (30, law.num_parameters)
    for index in range(law.num_parameters):
        step = np.zeros(law.num_parameters)
        step[index] = 1e-6
        numeric = (law.delta(params + step, prepared) - law.delta(params - step, prepared)) / 2e-6
        np.testing.assert_allclose(gradient[:, index], numeric, rtol=2e-4, atol=2e-8)


def test_anchor_at_scratch_is_what_the_flag_says(law: GrowthLaw) -> None:
    """Almost no base: the grown run is the scratch run of the same grown tokens."""
    prepared = Prepared.of(points(timing=1e-2), SMOOTH)
    meets = np.abs(law.delta(example(law), prepared)).max() < 1e-6
    assert meets == law.anchored_at_scratch


def test_anchor_at_base_is_what_the_flag_says(law: GrowthLaw) -> None:
    """Almost no grown tokens: the grown run has the base's own loss."""
    prepared = Prepared.of(points(grown=1.0), SMOOTH)
    loss, _ = law.grown_loss_and_gradient(example(law), prepared)
    meets = np.abs(loss - prepared.base_loss).max() < 1e-6
    assert meets == law.anchored_at_base
    assert law.may_choose_timing == (law.anchored_at_base and law.anchored_at_scratch)


@pytest.mark.parametrize("name", [name for name, law in ALL.items() if law.may_choose_timing])
def test_loss_falls_with_grown_tokens(name: str) -> None:
    law = ALL[name]
    for kappa in (-2.0, 0.4, 3.0):
        params = example(law)
        if "ln_kappa" in law.parameter_names:
            params[law.parameter_names.index("ln_kappa")] = kappa
        grids = [
            law.grown_loss_and_gradient(params, Prepared.of(points(grown=D2), SMOOTH))[0]
            for D2 in np.geomspace(1e8, 1e13, 60)
        ]
        assert (np.diff(np.array(grids), axis=0) < 1e-9).all()


def test_draws_broadcast(law: GrowthLaw) -> None:
    draws = THETA * np.linspace(0.98, 1.02, 5)[:, None]
    growth = np.repeat(example(law)[None], 5, axis=0)
    together = law.delta(growth, Prepared.of(points(), ScratchCurve(law=CHINCHILLA, params=draws)))
    assert together.shape == (5, 30)
    for k in range(5):
        alone = law.delta(growth[k], Prepared.of(points(), ScratchCurve(law=CHINCHILLA, params=draws[k])))
        np.testing.assert_allclose(together[k], alone, rtol=1e-10, atol=1e-14)


def test_starts_lie_within_the_bounds(law: GrowthLaw) -> None:
    starts = law.starts()
    assert starts.shape[1] == law.num_parameters
    assert ((starts >= np.array(law.lower)) & (starts <= np.array(law.upper))).all()


def test_nesting_of_equivalent_progress() -> None:
    prepared = Prepared.of(points(), SMOOTH)
    plain = GROWTH_LAWS["equivalent_progress"].delta(np.empty(0), prepared)
    for name, params in (("kappa", [0.0]), ("c", [0.0]), ("kappa_c", [0.0, 0.0]), ("kappa_c_slope", [0.0, 0.0, 0.0])):
        np.testing.assert_allclose(GROWTH_LAWS[f"equivalent_progress_{name}"].delta(np.array(params), prepared), plain)
    # kappa = 1, c = 0 by hand: S(D2 + d_eq) - S(DS) with d_eq from the closed form of the inverse.
    asked = prepared.points
    base = 1.8 + 480 * asked.base_params**-0.35 + 2100 * asked.timing_tokens**-0.37
    d_eq = ((base - 1.8 - 480 * asked.target_params**-0.35) / 2100) ** (-1 / 0.37)
    by_hand = 2100 * ((asked.grown_tokens + d_eq) ** -0.37 - asked.scratch_tokens**-0.37)
    np.testing.assert_allclose(plain, by_hand, rtol=1e-9)


def test_offsets_bend_the_curve_to_the_runs_and_leave_other_sizes_alone() -> None:
    sizes, tokens = np.full(30, 1e9), np.geomspace(5e9, 2e12, 30)
    truth = CHINCHILLA.loss(THETA, sizes, tokens) * np.exp(0.02 * (np.log(tokens) - 25) / 3)
    curve = with_offsets(CHINCHILLA, THETA, sizes, tokens, truth)
    np.testing.assert_allclose(curve.loss(1e9, tokens), truth, rtol=1e-4)
    np.testing.assert_allclose(curve.loss(2e9, tokens), SMOOTH.loss(2e9, tokens), rtol=1e-15)
    step = 1e-6
    numeric = (curve.loss(1e9, tokens * np.exp(step)) - curve.loss(1e9, tokens * np.exp(-step))) / (2 * step)
    inside = slice(1, -1)
    np.testing.assert_allclose(curve.loss_and_slope(1e9, tokens)[1][inside], numeric[inside], rtol=2e-2)
    one_run = with_offsets(CHINCHILLA, THETA, sizes[:1], tokens[:1], truth[:1])
    moved = np.log(one_run.loss(1e9, tokens[:1]) / SMOOTH.loss(1e9, tokens[:1]))
    np.testing.assert_allclose(moved, 0.5 * np.log(truth[:1] / SMOOTH.loss(1e9, tokens[:1])), rtol=1e-9)
