"""A guideline that was fitted elsewhere, put into a database as a refit would put it."""

from __future__ import annotations

from app.store import guidelines as guideline_store
from app.store.database import Database
from app.store.tables import GuidelineRow
from fitting.guideline import Guideline


def store_guideline(database: Database, guideline: Guideline, cohort: str) -> None:
    """Store it as the active version of a cohort that is there."""
    with database.write() as session:
        guideline_store.add_guideline(
            session,
            GuidelineRow(
                id=guideline.id, cohort=cohort, version=guideline.version, is_active=True, num_runs=guideline.num_runs,
                data_hash=guideline.data_hash, reason="fitted", body=guideline.to_json(),
            ),
        )  # fmt: skip
