"""Recovery from synthetic grids, over 200 replications of each growth law: coverage of delta and of d*, and regret
out of the set.

    growthlaw's evidence that its intervals mean what they say (pytest -m long); one law with few replications runs by default.

Boundary cases (a true best timing at an end of the range) stand apart: there no interval of d* can be two-sided.
"""

from __future__ import annotations

import growth_truth as truth
import numpy as np
import pytest
from scipy.stats import binom

from fitting.growth_data import growth_data, read_growth_table
from fitting.growth_fit import ALL_LAWS, fit_growth_law, fit_scratch_basis
from fitting.growth_laws import Prepared
from fitting.validation.nested import law_weights

NOMINAL = 0.8
NUM_DRAWS = 100
CASES = {
    "equivalent_progress_kappa": [0.3],
    "equivalent_progress_c": [0.03],
    "equivalent_progress_kappa_c": [0.3, 0.03],
    "equivalent_progress_kappa_c_slope": [0.3, 0.03, 0.004],
    "equivalent_progress_kappa_c_p": [0.3, 0.05, 1.5],
    "multiplied_progress": [0.25],
    "fading_head_start": [0.5, 0.15, 0.03],
    "shifted_budget": [0.1, 0.3],
    "constant_speedup": [0.4],
    "token_multiplier": [0.3, -0.08, -0.05],
}
ASKED = truth.points_of(
    np.array([3e9, 1e9, 6e8]), np.array([4.0, 3.0, 2.0]), np.array([3e10, 1e10, 4e9]), np.array([2e11, 4e10, 3e10])
)


def coverage(name: str, noise_nats: float, num_replications: int) -> tuple[np.ndarray, float | None]:
    """Share of replications whose 80% interval held the true delta at each point asked (3,), and d* (None at a boundary)."""
    law, growth = ALL_LAWS[name], np.array(CASES[name])
    expected = law.delta(growth, Prepared.of(ASKED, truth.TRUTH))
    budget = 1e11
    best = truth.true_best_timing(law, growth, truth.TRUTH, 2e9, 4.0, budget)[0]
    interior = law.may_choose_timing and 2e-3 * 4 * budget < best < 0.85 * 4 * budget
    held, held_best = np.zeros(len(expected)), 0
    for replication in range(num_replications):
        data = growth_data(read_growth_table(truth.run_table(law, growth, noise_nats, replication))[0])
        basis = fit_scratch_basis(data.scratch, NUM_DRAWS, replication)
        found = fit_growth_law(
            law, data.points, data.delta_nats, basis, clusters=data.clusters, controls=data.controls, seed=replication
        )
        assert found.draws is not None
        assert basis.draws is not None
        low, high = np.quantile(law.delta(found.draws, Prepared.of(ASKED, basis.draws)), [0.1, 0.9], axis=0)
        held += (low <= expected) & (expected <= high)
        if interior:
            low, high = np.quantile(truth.true_best_timing(law, found.draws, basis.draws, 2e9, 4.0, budget), [0.1, 0.9])
            held_best += int(low <= best <= high)
    return held / num_replications, held_best / num_replications if interior else None


def consistent(share: float, num_replications: int, slack: float) -> bool:
    """Within the central 99% of a binomial at the nominal rate, widened by ``slack``: a bootstrap is not exact."""
    low, high = binom.ppf([0.005, 0.995], num_replications, NOMINAL) / num_replications
    return bool(low - slack <= share <= min(high + slack, 1.0))


def test_coverage_of_delta_in_a_few_replications() -> None:
    shares, best = coverage("equivalent_progress_kappa_c", 0.01, 16)
    assert consistent(float(shares.mean()), 16, 0.05)
    assert best is not None
    assert best >= 0.5


@pytest.mark.long
@pytest.mark.parametrize("noise_nats", [0.005, 0.02])
@pytest.mark.parametrize("name", CASES)
def test_coverage_is_nominal(name: str, noise_nats: float) -> None:
    shares, best = coverage(name, noise_nats, 200)
    print(f"\n{name}, noise {noise_nats}: coverage of delta {np.round(shares, 3)}, of d* {best}")
    for share in shares:
        assert consistent(float(share), 200, 0.05)
    if best is not None:
        assert consistent(best, 200, 0.1)


def averaged_regret(name: str, seed: int) -> float:
    """True loss lost, relative, by the timing that the average of all anchored laws but the true one chooses."""
    law, growth = ALL_LAWS[name], np.array(CASES[name])
    data = growth_data(read_growth_table(truth.run_table(law, growth, 0.005, seed))[0])
    basis = fit_scratch_basis(data.scratch)
    others = {
        other: candidate for other, candidate in ALL_LAWS.items() if candidate.may_choose_timing and other != name
    }
    weights = law_weights(data, others)
    N, g, budget = 2e9, 4.0, 1e11
    grid = np.geomspace(1e-3, 0.9, 200) * budget * g
    full = np.ones(len(grid))
    points = truth.points_of(N * full, g * full, grid, budget * full)
    averaged = np.zeros(len(grid))
    for other, candidate in others.items():
        if weights.by_law[other] > 0:
            found = fit_growth_law(candidate, data.points, data.delta_nats, basis)
            averaged += weights.by_law[other] * candidate.delta(found.params, Prepared.of(points, basis.curve))
    loss, _ = law.grown_loss_and_gradient(growth, Prepared.of(points, truth.TRUTH))
    return float(loss[np.argmin(averaged)] / loss.min() - 1)


def test_regret_of_the_average_where_the_truth_is_outside_the_set() -> None:
    assert averaged_regret("fading_head_start", 0) < 0.003


@pytest.mark.long
@pytest.mark.parametrize("name", ["fading_head_start", "multiplied_progress", "equivalent_progress_kappa_c_p"])
def test_regret_outside_the_set_over_seeds(name: str) -> None:
    regrets = [averaged_regret(name, seed) for seed in range(20)]
    print(f"\n{name}: regret mean {np.mean(regrets):.4%}, worst {np.max(regrets):.4%} of the loss")
    assert np.mean(regrets) < 0.003
