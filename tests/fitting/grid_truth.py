"""A grid of growth runs whose truth is known: three widths of 8 layers on their own FLOPs, any growth law, noise by trunk.

Columns are those of `data/runs/headers.csv`; cells follow `data/runs/grid.toml` in kind: scratch and smaller depths alone in
three seeds, g = 4 over seven timings, g = 2, other learning rates, an ablation of the optimizer state.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from fitting.flops import Shape, flops_per_token, non_embedding_params
from fitting.growth_laws import GrowthLaw, GrowthPoints, Prepared, ScratchCurve
from fitting.laws import scratch_law

CHINCHILLA = scratch_law("chinchilla")
PARAMS = CHINCHILLA.params_of({"E": 1.9, "A": 25.0, "B": 420.0, "alpha": 0.3, "beta": 0.45})
CURVE = ScratchCurve(law=CHINCHILLA, params=PARAMS)
WIDTHS = {48: (3, 128), 64: (2, 176), 96: (3, 256)}
BUDGETS = (2.5, 5.0, 10.0)
TIMINGS = (0.01, 0.03, 0.1, 0.3, 0.6, 1.0, 2.0)
SHARED_RATE = 4e-3
POLICIES = ("reset", "copy", "keep_old_zero_new", "copy_v_only")
RECIPE = {"vocab_size": 1024, "context_length": 128, "optimizer": "adamw", "schedule": "wsd"}


def shape_of(width: int, num_layers: int = 8) -> Shape:
    heads, intermediate = WIDTHS[width]
    return Shape(
        num_layers=num_layers, hidden_size=width, num_heads=heads, num_kv_heads=heads, intermediate_size=intermediate,
        vocab_size=1024, context_length=128,
    )  # fmt: skip


def grown_loss(law: GrowthLaw, growth: np.ndarray, width: int, g: float, d: Any, budget_tokens: float) -> np.ndarray:
    """True loss (R,) of growing at ``d`` (R,) tokens with the compute of ``budget_tokens`` from scratch."""
    d = np.atleast_1d(np.asarray(d, dtype=float))
    target, base = shape_of(width), shape_of(width, round(8 / g))
    compute = budget_tokens * flops_per_token(target)
    full = np.ones_like(d)
    points = GrowthPoints(
        target_params=non_embedding_params(target) * full, base_params=non_embedding_params(base) * full,
        growth_factor=g * full, timing_tokens=d,
        grown_tokens=(compute - d * flops_per_token(base)) / flops_per_token(target), scratch_tokens=budget_tokens * full,
    )  # fmt: skip
    return np.atleast_1d(law.grown_loss_and_gradient(growth, Prepared.of(points, CURVE))[0])


def scratch_loss(shape: Shape, tokens: float) -> float:
    return float(CURVE.loss(np.array([non_embedding_params(shape)]), np.array([tokens]))[0])


def best_timing(law: GrowthLaw, growth: np.ndarray, width: int, g: float, budget: float) -> float:
    """True best d of a budget in tokens per parameter, on a fine grid."""
    tokens = budget * non_embedding_params(shape_of(width))
    affordable = tokens * flops_per_token(shape_of(width)) / flops_per_token(shape_of(width, round(8 / g)))
    grid = np.geomspace(1e-3, 0.95, 400) * affordable
    return float(grid[np.argmin(grown_loss(law, growth, width, g, grid, tokens))])


class GridTable:
    """Rows under construction; every family draws one noise that all its legs share."""

    def __init__(
        self, law: GrowthLaw, growth: np.ndarray, *, noise_nats: float, seed: int, fixed_gain_nats: float = 0.0
    ) -> None:
        self.law, self.growth, self.noise_nats, self.fixed_gain_nats = law, growth, noise_nats, fixed_gain_nats
        self.rng = np.random.default_rng(seed)
        self.rows: list[dict[str, Any]] = []

    def single(self, width: int, num_layers: int = 8, *, seed: int = 0, rate: float = SHARED_RATE, extra: float = 0.0,
               budgets: tuple[float, ...] = BUDGETS) -> None:  # fmt: skip
        shape = shape_of(width, num_layers)
        noise = self._noise()
        for budget in budgets:
            budget_tokens = budget * non_embedding_params(shape_of(width))
            tokens = budget_tokens * flops_per_token(shape_of(width)) / flops_per_token(shape)
            gain = self.fixed_gain_nats if num_layers < 8 else 0.0
            loss = scratch_loss(shape, tokens) + noise + extra - gain
            self._add(
                f"w{width}-l{num_layers}-r{rate:g}-s{seed}", budget, budget_tokens, shape, seed, rate, loss, tokens
            )

    def grown(self, width: int, g: float, share: float, *, seed: int = 0, rate: float = SHARED_RATE, extra: float = 0.0,
              policy: str = "reset", order: str = "stack", cohort: str = "grid",
              budgets: tuple[float, ...] = BUDGETS) -> None:  # fmt: skip
        """``share`` of the scratch tokens of the largest budget; budgets that leave under 125k tokens are left out."""
        target, base = shape_of(width), shape_of(width, round(8 / g))
        d = round(share * BUDGETS[-1] * non_embedding_params(target) / 1024) * 1024
        noise = self._noise()
        for budget in budgets:
            budget_tokens = budget * non_embedding_params(target)
            tokens = (budget_tokens * flops_per_token(target) - d * flops_per_token(base)) / flops_per_token(target)
            if tokens < 125_000:
                continue
            loss = float(grown_loss(self.law, self.growth, width, g, d, budget_tokens)[0]) + noise + extra
            family = f"{cohort}-w{width}-g{g:g}-d{d}-{policy}-{order}-r{rate:g}-s{seed}"
            self._add(family, budget, budget_tokens, target, seed, rate, loss, tokens, cohort=cohort, base=base, d=d, g=g,
                      policy=policy, order=order)  # fmt: skip

    def _noise(self) -> float:
        return float(self.rng.normal(0.0, self.noise_nats))

    def _add(self, family: str, budget: float, budget_tokens: float, shape: Shape, seed: int, rate: float, loss: float,
             tokens: float, *, cohort: str = "grid", base: Shape | None = None, d: float = 0.0, g: float = 1.0,
             policy: str | None = None, order: str | None = None) -> None:  # fmt: skip
        f_base = flops_per_token(base) if base else np.nan
        compute = tokens * flops_per_token(shape) + (d * f_base if base else 0.0)
        self.rows.append(
            {
                "run_id": f"{family}-b{budget:g}", "cohort": cohort, "source": "job", "name": f"{family}-b{budget:g}",
                "status": "finished", "target_params": non_embedding_params(shape), "num_target_layers": shape.num_layers,
                "hidden_size": shape.hidden_size, "num_heads": shape.num_heads, "num_kv_heads": shape.num_kv_heads,
                "intermediate_size": shape.intermediate_size, "vocab_size": 1024, "context_length": 128,
                "base_params": non_embedding_params(base) if base else np.nan,
                "num_base_layers": base.num_layers if base else np.nan, "growth_factor": g, "growth_timing_tokens": d,
                "grown_tokens": tokens, "operator": "direct" if base else None, "order": order, "optimizer": "adamw",
                "optimizer_state_policy": policy, "peak_lr": rate, "base_peak_lr": SHARED_RATE if base else np.nan,
                "lr_selection": "shared", "schedule": "wsd", "is_final": True, "tokenizer": "demo@0", "corpus": "demo",
                "init_seed": seed, "data_seed": seed, "trunk_id": family, "base_flops_per_token": f_base,
                "target_flops_per_token": flops_per_token(shape), "compute_flops": compute,
                "final_loss": loss + float(self.rng.normal(0.0, 0.2 * self.noise_nats)), "engine_numerics_version": 1,
                "step": 1 if base is None else 2, "family": family, "cell": f"{family}-b{budget:g}",
                "budget_tokens": budget_tokens,
            }
        )  # fmt: skip

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)


def whole_grid(law: GrowthLaw, growth: np.ndarray, *, noise_nats: float = 0.004, seed: int = 0, num_seeds: int = 3,
               policy_effects: dict[str, float] | None = None, rate_effect: float = 0.05,
               fixed_gain_nats: float = 0.0) -> pd.DataFrame:  # fmt: skip
    """Everything at once; other rates end ``rate_effect`` higher, policies by their effect."""
    table = GridTable(law, growth, noise_nats=noise_nats, seed=seed, fixed_gain_nats=fixed_gain_nats)
    for width in WIDTHS:
        for s in range(num_seeds):
            for layers in (1, 2, 4, 8):
                table.single(width, layers, seed=s)
            for share in TIMINGS:
                table.grown(width, 4, share, seed=s)
        for rate in (2e-3, 8e-3):
            table.single(width, rate=rate, extra=rate_effect)
            table.grown(width, 4, 0.6, rate=rate, extra=rate_effect)
    for share in (0.03, 0.1, 0.3, 0.6):
        table.grown(48, 2, share)
        table.grown(64, 2, share)
    for policy in POLICIES:
        effect = (policy_effects or {}).get(policy, 0.0)
        for cohort in ("grid", "grid-rewind"):
            for s in range(5):
                if policy != "reset" or cohort != "grid" or s >= num_seeds:
                    table.grown(48, 4, 0.3, seed=s, policy=policy, cohort=cohort, extra=effect, budgets=(5.0,))
    return table.frame()
