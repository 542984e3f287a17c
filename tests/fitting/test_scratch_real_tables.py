"""Averaged and single laws on real run tables, fitted to the runs of less compute and scored on those of more.

Gadre et al. 2024 (arXiv 2403.08540), three corpora at their own validation set, and Gemstones (McLeish et al. 2025, arXiv
2502.06857). Run with ``-s`` to see the table of errors.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fitting.laws import SCRATCH_LAWS
from fitting.scratch import AveragedScratchFit, fit_scratch_law
from fitting.scratch_rows import ScratchRows, read_table, scratch_rows, split_by_flops

DATA = Path(__file__).parents[1] / "data"


def gadre(corpus: str) -> ScratchRows:
    table = read_table(DATA / "gadre" / "runs.csv")
    part = table[(table["corpus"] == corpus) & table["val_set"].str.startswith("c4_val")]
    return scratch_rows(part, params="params_non_embedding", loss="loss", tokens="tokens")


def gemstones() -> ScratchRows:
    table = read_table(DATA / "gemstones" / "cooled_down.csv")
    return scratch_rows(table, params="params_active_precise", loss="final_loss", tokens="tokens", cluster="run_name")


def percent_error(predicted: np.ndarray, observed: np.ndarray) -> float:
    return float(100 * np.mean(np.abs(predicted / observed - 1)))


@pytest.mark.parametrize("name", ["c4_original", "rpj", "rw_original", "gemstones"])
def test_nothing_explodes_out_of_sample(name: str) -> None:
    rows = gemstones() if name == "gemstones" else gadre(name)
    train, test = split_by_flops(rows, float(rows.flops.max()) / 6)
    assert test is not None
    fit = fit_scratch_law(train, "auto")
    assert isinstance(fit, AveragedScratchFit)
    averaged = percent_error(fit.predict(test.num_params, test.tokens), test.loss_nats)
    single = {
        law: percent_error(f.predict(test.num_params, test.tokens), test.loss_nats) for law, f in fit.fits.items()
    }
    detail = ", ".join(f"{law} {error:.2f}% (weight {fit.weights[law]:.2f})" for law, error in single.items())
    print(f"\n{name}: {len(train)} runs fitted, {len(test)} held out; averaged {averaged:.2f}%; {detail}")
    assert sum(fit.weights.values()) == pytest.approx(1.0)
    assert averaged < 6.0
    used = [error for law, error in single.items() if fit.weights[law] > 0]
    assert averaged <= max(used) + 1e-9
    # Averaging must not lose by much to the law one would have named first.
    assert averaged < single["chinchilla"] + 1.5


def test_laws_keep_their_shape_on_real_tables() -> None:
    rows = gemstones()
    fit = fit_scratch_law(rows, "auto", bootstrap=20, seed=0)
    assert isinstance(fit, AveragedScratchFit)
    assert set(fit.fits) == set(SCRATCH_LAWS)
    grid_n, grid_d = (a.ravel() for a in np.meshgrid(np.geomspace(2e7, 2e10, 12), np.geomspace(5e9, 4e12, 12)))
    for name, weight in fit.weights.items():
        if weight > 0:
            law, params = fit.fits[name].law, fit.fits[name].params
            assert (law.d_loss_d_log_params(params, grid_n, grid_d) < 0).all()
            assert (law.d_loss_d_log_tokens(params, grid_n, grid_d) < 0).all()
            assert (law.loss(params, grid_n, grid_d) > law.floor(params, grid_n)).all()
    low, high = fit.interval(rows.num_params, rows.tokens, 0.8)
    covered = np.mean((low <= rows.loss_nats) & (rows.loss_nats <= high))
    assert 0.6 < covered < 0.97
