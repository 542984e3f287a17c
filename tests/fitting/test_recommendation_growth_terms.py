"""Borrowed growth terms: their numbers come out of the data again, and a cohort's own pairs move them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares

from fitting.cells import cells, pairs, singles, usable, with_compute
from fitting.growth_laws import GrowthPoints, Prepared, ScratchCurve
from fitting.growth_terms import BORROWING_LAW, SOURCES, Evidence, borrowed_prior, draw_terms, evidence
from fitting.laws import scratch_law
from fitting.rules.staged import hoffmann_loss
from fitting.scratch import ScratchFit, fit_scratch_law
from fitting.scratch_rows import ScratchRows
from fitting.table import read_runs

DATA = Path(__file__).parents[1] / "data"
CHINCHILLA = scratch_law("chinchilla")
PARAMS = CHINCHILLA.params_of({"E": 1.8, "A": 480.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366})


def test_terms_of_the_hidden_64_runs_come_out_again() -> None:
    table, _ = with_compute(usable(read_runs(DATA / "hidden64" / "runs.csv"))[0])
    designs = cells(table)
    controls = singles(designs)
    rows = ScratchRows(
        num_params=np.array([single.params for single in controls]),
        tokens=np.array([single.tokens for single in controls]),
        loss_nats=np.array([single.loss_nats for single in controls]),
        clusters=np.arange(len(controls)),
    )
    fit = fit_scratch_law(rows, "chinchilla")
    assert isinstance(fit, ScratchFit)
    seen = evidence(pairs(designs), 0.015)
    prepared = Prepared.of(seen.points, ScratchCurve(law=fit.law, params=fit.params))
    found = least_squares(lambda x: BORROWING_LAW.delta(x, prepared) - seen.delta_nats, [0.0, 0.05, 1.0])
    assert found.x == pytest.approx(SOURCES["hidden-64 runs of this project"], abs=0.05)
    # Residuals are of the size of the seed noise: sqrt(2) x 0.015.
    assert np.sqrt(np.mean(found.fun**2)) < 0.022


@pytest.mark.parametrize(("target", "params"), [("410M", 410e6), ("1.1B", 1.1e9), ("3B", 3e9)])
def test_terms_of_the_digitised_curves_come_out_again(target: str, params: float) -> None:
    curves = pd.read_csv(DATA / "gstack_curves" / "curves.csv")
    own = curves[curves["target"] == target].sort_values("scratch_equivalent_tokens_billion")
    scratch, grown = own[own["curve"] == "scratch"], own[own["curve"] == "gstack"]
    tokens = scratch["scratch_equivalent_tokens_billion"].to_numpy() * 1e9
    losses = scratch["train_loss_nats"].to_numpy()

    def curve(x: np.ndarray, at: np.ndarray) -> np.ndarray:
        return x[0] + np.exp(x[1]) * (at / 1e10) ** -np.exp(x[2])

    power = least_squares(lambda x: curve(x, tokens) - losses, [1.9, 0.0, -1.0], loss="soft_l1", f_scale=0.01).x
    equal = grown["scratch_equivalent_tokens_billion"].to_numpy() * 1e9
    late = (equal > 1.1 * tokens.min()) & (equal < tokens.max()) & (equal > 0.15 * equal.max())
    equal, loss = equal[late], grown["train_loss_nats"].to_numpy()[late]
    delta = loss - np.interp(np.log(equal), np.log(tokens), losses)
    # d = 10B of a base of N / 4; the base's own curve was not published, so d_eq is read off Hoffmann et al.'s law.
    base_loss = hoffmann_loss(params / 4, 10e9)
    head_start = (2085.436 / (base_loss - 1.81686 - 482.006 / params**0.347813)) ** (1 / 0.365854)
    after = equal - 2.5e9
    u = after / (after + head_start)

    def residuals(x: np.ndarray) -> np.ndarray:
        progress = after + head_start * (1 + (np.exp(x[0]) - 1) * u)
        return curve(power, progress) - x[1] * u - curve(power, equal) - delta

    found = least_squares(residuals, [0.0, 0.02]).x
    assert found == pytest.approx(SOURCES[f"G_stack {target} curve"][:2], abs=0.03)


def test_without_pairs_draws_are_the_prior() -> None:
    prior = borrowed_prior()
    curve = ScratchCurve(law=CHINCHILLA, params=np.repeat(PARAMS[None], 4000, axis=0))
    terms = draw_terms(curve, None, prior, 0)
    # The bounds of the law cut the tails of kappa a little.
    assert terms.mean(axis=0) == pytest.approx(prior.mean, abs=0.15)
    assert terms[:, 1].std() == pytest.approx(prior.sd[1], rel=0.05)


def synthetic(truth: np.ndarray, noise: float, seed: int) -> Evidence:
    rng = np.random.default_rng(seed)
    target, timing, budget = (
        grid.ravel() for grid in np.meshgrid([1e8, 4e8], [2e8, 1e9, 6e9], [2e10, 1e11], indexing="ij")
    )
    base = target / 4
    points = GrowthPoints(
        target_params=target, base_params=base, growth_factor=np.full(len(target), 4.0), timing_tokens=timing,
        grown_tokens=budget - timing / 4, scratch_tokens=budget,
    )  # fmt: skip
    prepared = Prepared.of(points, ScratchCurve(law=CHINCHILLA, params=PARAMS))
    delta = BORROWING_LAW.delta(truth, prepared) + noise * rng.standard_normal(len(target))
    return Evidence(points=points, delta_nats=delta, sd_nats=np.full(len(target), noise))


def test_quiet_pairs_give_the_truth_back() -> None:
    truth = np.array([0.4, 0.03, 1.0])
    curve = ScratchCurve(law=CHINCHILLA, params=np.repeat(PARAMS[None], 50, axis=0))
    terms = draw_terms(curve, synthetic(truth, 1e-4, 0), borrowed_prior(), 0)
    assert terms.mean(axis=0) == pytest.approx(truth, abs=0.02)


def test_intervals_of_terms_cover() -> None:
    """80% intervals of c over 60 synthetic cohorts: the share that covers lies in its binomial interval."""
    truth = np.array([0.4, 0.03, 1.0])
    curve = ScratchCurve(law=CHINCHILLA, params=np.repeat(PARAMS[None], 100, axis=0))
    covered = 0
    for seed in range(60):
        terms = draw_terms(curve, synthetic(truth, 0.01, seed), borrowed_prior(), seed)
        low, high = np.quantile(terms[:, 1], [0.1, 0.9])
        covered += bool(low <= truth[1] <= high)
    assert 38 <= covered <= 58


def test_draws_are_deterministic() -> None:
    curve = ScratchCurve(law=CHINCHILLA, params=np.repeat(PARAMS[None], 20, axis=0))
    seen = synthetic(np.array([0.4, 0.03, 1.0]), 0.01, 0)
    assert np.array_equal(draw_terms(curve, seen, borrowed_prior(), 3), draw_terms(curve, seen, borrowed_prior(), 3))
    assert not np.array_equal(
        draw_terms(curve, seen, borrowed_prior(), 3), draw_terms(curve, seen, borrowed_prior(), 4)
    )
