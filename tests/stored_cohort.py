"""A cohort in the store whose truth is known: runs by a scratch law and a growth law, and the guideline fitted to them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pandas as pd
from stored_guideline import store_guideline

from app.store import runs as run_store
from app.store.cohorts import join_cohort
from app.store.database import Database
from app.store.tables import RunRow
from fitting.flops import Shape, flops_per_token, non_embedding_params
from fitting.guideline import Guideline
from fitting.refit import fit_guideline
from fitting.table import COLUMNS

COHORT = "known"
SHAPE: dict[str, Any] = {
    "num_layers": 8, "hidden_size": 64, "num_heads": 2, "num_kv_heads": 2, "intermediate_size": 176, "vocab_size": 1024,
    "context_length": 128,
}  # fmt: skip
_TARGET = Shape(**SHAPE)
BUDGETS = (0.5e6, 1e6, 2e6, 4e6, 8e6)


def rows() -> list[RunRow]:
    """Singles of four depths at five budgets, and three growths that end a little lower than their controls."""
    made = []
    for layers in (2, 4, 6, 8):
        shape = _TARGET.with_layers(layers)
        for budget in BUDGETS:
            compute = budget * flops_per_token(_TARGET)
            tokens = compute / flops_per_token(shape)
            loss = 2.6 + 30 / non_embedding_params(shape) ** 0.3 + 2e4 / tokens**0.75
            made.append(_row(f"run_single_{layers}_{budget:g}", shape, tokens, compute, loss))
    for budget in BUDGETS[1:4]:
        base, compute = _TARGET.with_layers(2), budget * flops_per_token(_TARGET)
        timing = 0.6 * budget
        tokens = (compute - timing * flops_per_token(base)) / flops_per_token(_TARGET)
        scratch = next(row for row in made if row.run_id == f"run_single_8_{budget:g}")
        made.append(
            _row(
                f"run_grown_{budget:g}", _TARGET, tokens, compute, (scratch.final_loss or 0) - 0.05, growth_factor=4.0,
                growth_timing_tokens=timing, base_params=float(non_embedding_params(base)), num_base_layers=2,
                order="stack", control_id=scratch.run_id,
            )
        )  # fmt: skip
    return made


@cache
def fitted() -> Guideline:
    """The guideline of all the runs, fitted once a test process."""
    frame = pd.DataFrame([{name: getattr(row, name) for name in COLUMNS} for row in rows()])
    return replace(fit_guideline(frame, COHORT, seed=0), id="gl_01m7zq8es3xxraw5kwsd2qeh91")


def store_cohort(database: Database, *, num_budgets: int = 1) -> None:
    """Store the runs of the first budgets that were grown at, few enough for a guideline to be provisional, and quick."""
    kept = {f"{budget:g}" for budget in BUDGETS[1 : 1 + num_budgets]}
    _store(database, [row for row in rows() if row.run_id.rsplit("_", 1)[1] in kept])


def store_fitted_cohort(database: Database) -> None:
    """Store all runs and the guideline that was fitted to them."""
    _store(database, rows())
    store_guideline(database, fitted(), COHORT)


def _store(database: Database, runs: list[RunRow]) -> None:
    with database.write() as session:
        join_cohort(
            session, COHORT, {"corpus": "c"}, decision_metric="validation_loss", decision_dataset="c/validation"
        )
        for row in runs:
            run_store.add_run(session, row)


def _row(run_id: str, shape: Shape, tokens: float, compute: float, loss: float, **other: Any) -> RunRow:
    sizes = {name: value for name, value in SHAPE.items() if name != "num_layers"}
    values: dict[str, Any] = {
        "growth_factor": 1.0, "growth_timing_tokens": 0.0, "target_flops_per_token": flops_per_token(shape),
    }  # fmt: skip
    return RunRow(
        run_id=run_id, cohort=COHORT, source="import", name=run_id, status="finished", is_final=True,
        target_params=float(non_embedding_params(shape)), num_target_layers=shape.num_layers, grown_tokens=tokens,
        compute_flops=compute, final_loss=loss, peak_lr=4e-3, corpus="c", tokenizer="t", schedule="wsd", **sizes,
        **(values | other),
    )  # fmt: skip
