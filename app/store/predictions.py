"""Queries on predictions: written once, then only what was observed, and whether they still count, may change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.store.database import add_missing
from app.store.tables import PredictionRow

_KEY = ("cohort", "run_id", "predictor", "guideline_id")


def add_predictions(session: Session, rows: Iterable[dict[str, Any]]) -> None:
    """Store predictions; one that is there already stays as it was first made."""
    add_missing(session, PredictionRow, list(rows), key=_KEY)


def list_predictions(session: Session, cohort: str, *, run_id: str | None = None) -> Sequence[PredictionRow]:
    """Predictions in the order in which they were made."""
    query = select(PredictionRow).where(PredictionRow.cohort == cohort)
    if run_id is not None:
        query = query.where(PredictionRow.run_id == run_id)
    # Sorted here: databases order text by the rules of their locale, and scores must not depend on those.
    return sorted(
        session.scalars(query), key=lambda row: (row.created_at, row.run_id, row.predictor, row.guideline_id)
    )  # fmt: skip


def set_observed(session: Session, row: PredictionRow, *, observed: float, score: float | None, now: str) -> None:
    """What the run table says now of the run that was predicted."""
    session.execute(_this(row).values(observed=observed, score=score, observed_at=now))


def void(session: Session, row: PredictionRow, reason: str) -> None:
    """It counts no more."""
    session.execute(_this(row).values(void_reason=reason))


def _this(row: PredictionRow) -> Any:
    return update(PredictionRow).where(*(getattr(PredictionRow, name) == getattr(row, name) for name in _KEY))
