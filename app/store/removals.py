"""Removing a run, and knowing it when it comes again."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.store import runs as run_store
from app.store.tables import RemovedRunRow, RunRow, utc_now


def note_correction(run: RunRow, column: str, was: Any, why: str) -> None:
    """Write down in ``run`` what a column was before it was corrected: the first value, whatever came between. A column
    that has it again was not corrected."""
    noted = json.loads(run.corrections) if run.corrections else {}
    first = noted[column]["was"] if column in noted else was
    noted.pop(column, None)
    if getattr(run, column) != first:
        noted[column] = {"was": first, "at": utc_now(), "why": why}
    run.corrections = json.dumps(noted) if noted else ""


def remove_run(session: Session, run: RunRow, reason: str) -> Sequence[str]:
    """Remove a run with its points and leave a :class:`RemovedRunRow`.

    Runs whose control it was have none after that, and say so among their corrections. `trunk_id` and `parent_run_id` of
    its legs stay: they tell which runs share a history, which stays true.

    Returns:
        The ids of the runs whose control it was.
    """
    session.add(
        RemovedRunRow(
            run_id=run.run_id, cohort=run.cohort, name=run.name, source=run.source, reason=reason,
            content_hash=run.content_hash, request_key=run.request_key,
        )
    )  # fmt: skip
    compared = session.scalars(select(RunRow).where(RunRow.control_id == run.run_id)).all()
    for other in compared:
        other.control_id = None
        note_correction(
            other, "control_id", run.run_id, f"that run was removed: {reason}" if reason else "it was removed"
        )
    run_store.delete_points(session, run.run_id)
    session.delete(run)
    session.flush()
    return [other.run_id for other in compared]


def get_removed(session: Session, run_id: str) -> RemovedRunRow | None:
    return session.get(RemovedRunRow, run_id)


def removed_ids(session: Session, run_ids: Collection[str]) -> set[str]:
    """Those of the ids whose runs were removed."""
    found = session.scalars(select(RemovedRunRow.run_id)).all()
    return set(found) & set(run_ids)


def removed_content(session: Session, content_hash: str) -> RemovedRunRow | None:
    """The removed run that was imported with this content."""
    return session.scalars(select(RemovedRunRow).where(RemovedRunRow.content_hash == content_hash)).first()


def removed_request(session: Session, request_key: str) -> RemovedRunRow | None:
    """The removed run that was pushed with this Idempotency-Key."""
    return session.scalars(select(RemovedRunRow).where(RemovedRunRow.request_key == request_key)).first()


def removed_name(session: Session, cohort: str, name: str) -> RemovedRunRow | None:
    """The removed run from elsewhere that had this name within its cohort, the last where there were several."""
    query = select(RemovedRunRow).where(
        RemovedRunRow.cohort == cohort, RemovedRunRow.name == name, RemovedRunRow.source == "import"
    )
    return session.scalars(query.order_by(RemovedRunRow.removed_at.desc())).first()


def forget_removal(session: Session, removed: RemovedRunRow) -> None:
    """The run comes back because someone asked for it."""
    session.delete(removed)
    session.flush()


def told(removed: RemovedRunRow) -> str:
    """When it was removed and why, for people."""
    return f"run {removed.run_id} was removed on {removed.removed_at[:10]}" + (
        f" ({removed.reason})" if removed.reason else ""
    )
