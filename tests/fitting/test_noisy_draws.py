"""Central intervals of noisy draws against the mixture's own distribution, and noise from few errors against simulation."""

import numpy as np
import pytest
import scipy

from fitting.noisy_draws import TAILS, central_interval, noise_of_errors


def test_interval_is_that_of_the_mixture_of_normals() -> None:
    rng = np.random.default_rng(3)
    draws = rng.normal(size=(200, 2)) * [0.3, 2.0]
    noise = rng.uniform(0.2, 1.5, size=200)
    found = central_interval(draws, noise)
    for column in range(2):
        for end, tail in enumerate(TAILS):

            def above(at: float, column: int = column, tail: float = tail) -> float:
                return float(np.mean(scipy.stats.norm.cdf(at, loc=draws[:, column], scale=noise)) - tail)

            assert found[end, column] == pytest.approx(scipy.optimize.brentq(above, -20, 20), abs=0.06)


def test_without_noise_it_is_the_quantiles_of_the_draws() -> None:
    draws = np.linspace(0, 1, 501)[:, None]
    assert central_interval(draws, 0.0)[:, 0] == pytest.approx(TAILS, abs=2e-3)


@pytest.mark.parametrize("num_folds", [2, 5, 40])
def test_noise_of_few_errors_holds_the_next_one_four_times_in_five(num_folds: int) -> None:
    rng = np.random.default_rng(7)
    errors = rng.normal(size=(40_000, num_folds + 1))
    rms = np.sqrt(np.mean(errors[:, :-1] ** 2, axis=1))
    z = scipy.stats.norm.ppf(TAILS[1])
    held = np.abs(errors[:, -1]) <= z * rms * noise_of_errors(1.0, num_folds)
    # Over 40,000 tries a share of 0.8 has a standard error of 0.002.
    assert held.mean() == pytest.approx(0.8, abs=0.008)
    taken_for_known = np.abs(errors[:, -1]) <= z * rms
    assert taken_for_known.mean() < held.mean()
