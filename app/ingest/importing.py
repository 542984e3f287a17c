"""A bundle into the store: whole or not at all, and a second time nothing.

A run that is there already must be the same run, number by number; a row that differs is refused by name, as one of the two
would have to be wrong. A run this service trained itself keeps its ``source``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from app.ingest.bundle import Bundle
from app.jobs.headers import DECISION_METRIC, decision_dataset
from app.store import audit, removals
from app.store import runs as run_store
from app.store.cohorts import join_cohort
from app.store.database import Database
from app.store.tables import LOCAL, RunRow
from fitting.errors import InputError
from fitting.table import COLUMNS, column_values

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "import"
# What may differ between two records of one run: where it came from, when it was stored, what people call it, and which
# other runs stand beside it (a collector names the control and the trunk that stand in its folder).
_FREE_COLUMNS = ("source", "name", "created_at", "control_id", "trunk_id", "parent_run_id")
_WHOLE_NUMBERS = tuple(
    column.name for column in RunRow.__table__.columns if column.name in COLUMNS and column.type.python_type is int
)


@dataclass(frozen=True, kw_only=True)
class CohortImport:
    """What an import did to one cohort; runs known before were the same and stay as they are, and those
    that were removed stay away."""

    cohort: str
    num_runs_added: int
    num_runs_known: int
    num_runs_removed: int
    num_points_added: int


def import_bundle(
    database: Database, bundle: Bundle, *, dry_run: bool = False, restore: bool = False, actor: str = LOCAL
) -> list[CohortImport]:
    """Store the bundle's runs and points under their cohorts, in one transaction.

    Args:
        actor: who imports them.
        dry_run: check everything against the store and say what would be added, but add nothing.
        restore: runs that were removed come back.

    Raises:
        CohortMismatch: the store holds a cohort of this name with another recipe.
        InputError: the store holds another run under the id of one of these.
    """
    rows = {name: _rows(table) for name, table in bundle.runs.items()}
    with database.write() as session:
        done = [_import_cohort(session, name, rows[name], bundle, restore) for name in rows]
        for cohort in done:
            if cohort.num_runs_added:
                audit.record(
                    session, actor=actor, action="run.import", subject=cohort.cohort,
                    detail=f"{cohort.num_runs_added} runs of the bundle",
                )  # fmt: skip
        if dry_run:
            session.rollback()
    return done


def _import_cohort(
    session: Session, name: str, rows: list[dict[str, Any]], bundle: Bundle, restore: bool
) -> CohortImport:
    join_cohort(
        session, name, bundle.recipes[name],
        decision_metric=DECISION_METRIC, decision_dataset=decision_dataset(rows[0]["corpus"]),
    )  # fmt: skip
    fresh = []
    removed = removals.removed_ids(session, [row["run_id"] for row in rows])
    if restore:
        for run_id in removed:
            row_of_removal = removals.get_removed(session, run_id)
            assert row_of_removal is not None
            removals.forget_removal(session, row_of_removal)
        removed = set()
    for row in rows:
        if row["run_id"] in removed:
            continue
        known = run_store.get_run(session, row["run_id"])
        if known is None:
            fresh.append(row)
        else:
            _check_same(known, row)
    for row in fresh:
        session.add(RunRow(**row))
    session.flush()
    for row in fresh:
        run_store.add_points(session, row["run_id"], bundle.points[row["run_id"]])
    return CohortImport(
        cohort=name,
        num_runs_added=len(fresh),
        num_runs_known=len(rows) - len(fresh) - len(removed),
        num_runs_removed=len(removed),
        num_points_added=sum(len(bundle.points[row["run_id"]]) for row in fresh),
    )


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as the store takes them: whole numbers as int, a name for everyone, no date of creation made up."""
    result = []
    for values in column_values(table, list(COLUMNS)):
        row = dict(values) | {"source": SOURCE, "name": values["name"] or values["run_id"]}
        for column in _WHOLE_NUMBERS:
            if row[column] is not None:
                if row[column] != math.floor(row[column]):
                    raise InputError(
                        column,
                        f"of {row['run_id']!r} is {row[column]!r}, but it must be a whole number",
                        "mend the row",
                    )
                row[column] = int(row[column])
        if row["created_at"] is None:
            del row["created_at"]
        result.append(row)
    return result


def _check_same(known: RunRow, row: Mapping[str, Any]) -> None:
    corrected = json.loads(known.corrections) if known.corrections else {}
    for column in COLUMNS:
        if column in _FREE_COLUMNS or column in corrected:
            continue
        stored, given = getattr(known, column), row[column]
        if stored != given:
            raise InputError(
                column,
                f"of run {row['run_id']!r} is {given!r}, but the store holds this run with {stored!r}",
                "import into another data directory, or find out which of the two is right",
            )
