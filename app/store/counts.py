"""Counts over whole tables, for an operator: a few grouped queries, each on an index or a small table."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Integer, cast, func, select
from sqlalchemy.orm import Session

from app.store.tables import GuidelineRow, JobRow, RunRow


def jobs(session: Session) -> dict[tuple[str, str], int]:
    """(engine, state) -> jobs."""
    query = select(JobRow.engine, JobRow.state, func.count()).group_by(JobRow.engine, JobRow.state)
    return {(engine, state): count for engine, state, count in session.execute(query)}


def runs(session: Session) -> dict[tuple[str, str], int]:
    """(source, status) -> runs."""
    query = select(RunRow.source, RunRow.status, func.count()).group_by(RunRow.source, RunRow.status)
    return {(source, status): count for source, status, count in session.execute(query)}


def guidelines(session: Session) -> tuple[int, int]:
    """How many versions are stored, and how many of them are active (one a cohort)."""
    stored, active = session.execute(select(func.count(), func.sum(cast(GuidelineRow.is_active, Integer)))).one()
    return stored, active or 0


def newest_active_guidelines(session: Session, limit: int) -> Sequence[tuple[str, str]]:
    """(cohort, time it was stored) of active versions, newest first."""
    query = (
        select(GuidelineRow.cohort, GuidelineRow.created_at)
        .where(GuidelineRow.is_active)
        .order_by(GuidelineRow.created_at.desc())
        .limit(limit)
    )
    return [(cohort, created_at) for cohort, created_at in session.execute(query)]
