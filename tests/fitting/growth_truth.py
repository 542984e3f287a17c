"""Synthetic run tables whose truth is known: a Chinchilla scratch law and any growth law on top, with run noise in nats."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fitting.growth_laws import GrowthLaw, GrowthPoints, Prepared, ScratchCurve
from fitting.laws import scratch_law

CHINCHILLA = scratch_law("chinchilla")
THETA = CHINCHILLA.params_of({"E": 1.75, "A": 430.0, "B": 1900.0, "alpha": 0.34, "beta": 0.36})
TRUTH = ScratchCurve(law=CHINCHILLA, params=THETA)

SIZES = (2e8, 5e8, 1.2e9, 3e9)
TOKENS_PER_PARAM = (15.0, 40.0, 100.0)
BASE_TOKENS_PER_PARAM = (5.0, 15.0, 45.0, 120.0)
FACTORS = (2.0, 4.0)


def points_of(N: np.ndarray, g: np.ndarray, d: np.ndarray, budget_tokens: np.ndarray) -> GrowthPoints:
    """Points by 6ND whose scratch control gets ``budget_tokens``."""
    return GrowthPoints(
        target_params=N, base_params=N / g, growth_factor=g, timing_tokens=d, grown_tokens=budget_tokens - d / g,
        scratch_tokens=budget_tokens,
    )  # fmt: skip


def run_table(law: GrowthLaw, growth: np.ndarray, noise_nats: float, seed: int) -> pd.DataFrame:
    """A full design: sizes x budgets x factors x timings that leave half the budget, with one scratch control a budget.

    The bases of one (size, factor) are points of one trunk.
    """
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for N in (min(SIZES) / max(FACTORS), min(SIZES) / min(FACTORS), *SIZES):
        for ratio in TOKENS_PER_PARAM:
            loss = float(TRUTH.loss(np.array([N]), np.array([ratio * N]))[0])
            rows.append({"target_params": N, "growth_factor": 1.0, "growth_timing_tokens": 0.0, "grown_tokens": ratio * N,
                         "final_loss": loss, "trunk_id": f"scratch {N:g} {ratio:g}"})  # fmt: skip
    for N in SIZES:
        for g in FACTORS:
            for ratio in TOKENS_PER_PARAM:
                for base_ratio in BASE_TOKENS_PER_PARAM:
                    d, budget = base_ratio * N / g, ratio * N
                    if d / g > 0.5 * budget:
                        continue
                    point = points_of(*(np.array([value]) for value in (N, g, d, budget)))
                    loss = float(law.grown_loss_and_gradient(growth, Prepared.of(point, TRUTH))[0][0])
                    rows.append({"target_params": N, "base_params": N / g, "growth_factor": g, "growth_timing_tokens": d,
                                 "grown_tokens": budget - d / g, "final_loss": loss,
                                 "trunk_id": f"trunk {N:g} {g:g}"})  # fmt: skip
    table = pd.DataFrame(rows)
    table["final_loss"] += rng.normal(0, noise_nats, len(table))
    table["cohort"] = "synthetic"
    table.insert(0, "run_id", [f"run-{i}" for i in range(len(table))])
    return table


def true_best_timing(
    law: GrowthLaw, growth: np.ndarray, curve: ScratchCurve, N: float, g: float, budget: float
) -> np.ndarray:
    """Timing of the lowest loss on a fine grid up to 90% of the budget, one for each draw of ``growth`` (K, P) or (P,)."""
    grid = np.geomspace(1e-3, 0.9, 240) * budget * g
    full = np.ones(len(grid))
    prepared = Prepared.of(points_of(N * full, g * full, grid, budget * full), curve)
    loss, _ = law.grown_loss_and_gradient(growth, prepared)
    return grid[np.argmin(np.atleast_2d(loss), axis=1)]
