"""Runs of a known truth that arrive in a real store, some at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from app.store import runs as run_store
from app.store.database import Database
from app.store.tables import CohortRow, RunRow
from fitting.flops import Shape, flops_per_token, non_embedding_params
from fitting.growth_laws import GROWTH_LAWS, GrowthLaw, GrowthPoints, Prepared, ScratchCurve
from fitting.laws import scratch_law
from fitting.table import COLUMNS, column_values, read_runs

COHORT = "c"
CHINCHILLA = scratch_law("chinchilla")
CURVE = ScratchCurve(
    law=CHINCHILLA, params=CHINCHILLA.params_of({"E": 1.9, "A": 25.0, "B": 420.0, "alpha": 0.3, "beta": 0.45})
)
LAW: GrowthLaw = GROWTH_LAWS["equivalent_progress_kappa_c"]
HELPS = np.array([0.5, 0.03])  # ln kappa, c: growth gains, by an advantage that stays
HURTS = np.array([-1.5, -0.05])


def shape_of(width: int, num_layers: int = 8) -> Shape:
    return Shape(
        num_layers=num_layers, hidden_size=width, num_heads=4, num_kv_heads=4, intermediate_size=3 * width, vocab_size=1024,
        context_length=128,
    )  # fmt: skip


class Truth:
    """Draws runs; `growth` may be changed midway: the truth then moves. Every trunk family has a noise of its own."""

    def __init__(self, growth: np.ndarray, *, noise_nats: float = 0.003, seed: int = 0) -> None:
        self.growth, self.noise_nats = growth, noise_nats
        self.rng = np.random.default_rng(seed)
        self.count = 0

    def scratch(self, width: int, tokens_per_param: float, num_layers: int = 8) -> dict[str, Any]:
        shape = shape_of(width, num_layers)
        tokens = tokens_per_param * non_embedding_params(shape)
        loss = float(CURVE.loss(np.array([non_embedding_params(shape)]), np.array([tokens]))[0])
        return self._row(shape, tokens, loss, tokens * flops_per_token(shape))

    def grown(self, width: int, tokens_per_param: float, share: float, g: int = 4) -> dict[str, Any]:
        """``share`` of the compute of scratch at ``tokens_per_param`` goes to the base."""
        target, base = shape_of(width), shape_of(width, 8 // g)
        size, small = float(non_embedding_params(target)), float(non_embedding_params(base))
        budget = tokens_per_param * size
        compute = budget * flops_per_token(target)
        d = share * compute / flops_per_token(base)
        tokens = (1 - share) * budget
        one = np.ones(1)
        points = GrowthPoints(
            target_params=size * one, base_params=small * one, growth_factor=g * one, timing_tokens=d * one,
            grown_tokens=tokens * one, scratch_tokens=budget * one,
        )  # fmt: skip
        loss = float(LAW.grown_loss_and_gradient(self.growth, Prepared.of(points, CURVE))[0][0])
        row = self._row(target, tokens, loss, compute)
        return row | {
            "base_params": small, "num_base_layers": 8 // g, "growth_factor": float(g), "growth_timing_tokens": d,
            "operator": "direct", "order": "stack", "base_flops_per_token": flops_per_token(base),
        }  # fmt: skip

    def _row(self, shape: Shape, tokens: float, loss: float, compute: float) -> dict[str, Any]:
        self.count += 1
        run_id = f"run_{self.count:04d}"
        return {
            "run_id": run_id, "cohort": COHORT, "source": "job", "name": run_id, "status": "finished",
            "target_params": float(non_embedding_params(shape)), "num_target_layers": shape.num_layers,
            "hidden_size": shape.hidden_size, "num_heads": shape.num_heads, "num_kv_heads": shape.num_kv_heads,
            "intermediate_size": shape.intermediate_size, "vocab_size": shape.vocab_size,
            "context_length": shape.context_length, "growth_factor": 1.0, "growth_timing_tokens": 0.0,
            "grown_tokens": tokens, "peak_lr": 4e-3, "is_final": True, "trunk_id": run_id, "corpus": "x", "tokenizer": "y",
            "target_flops_per_token": flops_per_token(shape), "compute_flops": compute,
            "final_loss": loss + float(self.rng.normal(0.0, self.noise_nats)),
        }  # fmt: skip

    def controls(self, widths: Iterable[int], budgets: Iterable[float]) -> list[dict[str, Any]]:
        """Scratch runs of every size and budget, the bases alone, and a long run of each, to hold a scratch law."""
        budgets = tuple(budgets)
        return [
            self.scratch(width, budget * factor, layers)
            for width in widths
            for budget in budgets
            for layers, factor in ((8, 1.0), (2, 2.0))
        ]


def frame_of(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    return read_runs(pd.DataFrame(list(rows)).reindex(columns=list(COLUMNS)))


def arrive(database: Database, rows: Iterable[dict[str, Any]], cohort: str = COHORT) -> None:
    """Runs into the store, as an import leaves them."""
    with database.write() as session:
        if run_store.get_cohort(session, cohort) is None:
            run_store.add_cohort(
                session,
                CohortRow(
                    name=cohort, recipe="{}", recipe_hash="h", decision_metric="validation_loss", decision_dataset="x"
                ),
            )
        whole = {column.name for column in RunRow.__table__.columns if column.type.python_type is int}
        for values in column_values(frame_of(rows), list(COLUMNS)):
            del values["created_at"]
            values["cohort"] = cohort
            cells = {
                name: int(value) if name in whole and value is not None else value for name, value in values.items()
            }
            session.add(RunRow(**cells))
