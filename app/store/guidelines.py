"""Queries on guideline versions. Every version stays addressable; at most one a cohort is active."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, defer

from app.store.database import Database
from app.store.tables import GuidelineRow, utc_now

# The active version of every cohort that holds imported runs. Asked at every recommendation, so past SQLAlchemy.
_ACTIVE_OF_IMPORTED = (
    "SELECT cohort, id FROM guidelines WHERE is_active AND EXISTS "
    "(SELECT 1 FROM runs WHERE runs.cohort = guidelines.cohort AND runs.source = 'import') ORDER BY cohort"
)


def next_version(session: Session, cohort: str) -> int:
    newest = session.scalar(select(func.max(GuidelineRow.version)).where(GuidelineRow.cohort == cohort))
    return (newest or 0) + 1


def add_guideline(session: Session, guideline: GuidelineRow) -> None:
    """Store a version; if it is active, the one before steps back."""
    if guideline.is_active:
        deactivate(session, guideline.cohort)
        guideline.activated_at = utc_now()
    session.add(guideline)
    session.flush()


def deactivate(session: Session, cohort: str) -> None:
    """No version of the cohort answers any more."""
    session.execute(
        update(GuidelineRow).where(GuidelineRow.cohort == cohort).values(is_active=False, is_pinned=False)
    )  # fmt: skip


def activate(session: Session, guideline: GuidelineRow, *, is_pinned: bool) -> None:
    """Make a stored version the active one of its cohort."""
    deactivate(session, guideline.cohort)
    values = {"is_active": True, "is_pinned": is_pinned, "activated_at": utc_now()}
    session.execute(update(GuidelineRow).where(GuidelineRow.id == guideline.id).values(**values))


def get_guideline(session: Session, guideline_id: str) -> GuidelineRow | None:
    return session.get(GuidelineRow, guideline_id)


def active_guideline(session: Session, cohort: str) -> GuidelineRow | None:
    return session.scalars(
        select(GuidelineRow).where(GuidelineRow.cohort == cohort, GuidelineRow.is_active)
    ).one_or_none()


def active_version(session: Session, cohort: str) -> tuple[str, int] | None:
    """Id and version number of the active one, without its body, which is large."""
    found = session.execute(
        select(GuidelineRow.id, GuidelineRow.version).where(GuidelineRow.cohort == cohort, GuidelineRow.is_active)
    ).one_or_none()
    return None if found is None else (found.id, found.version)


def active_ids(session: Session, cohorts: Sequence[str]) -> dict[str, str]:
    """The active version of each of the cohorts that has one."""
    query = select(GuidelineRow.cohort, GuidelineRow.id).where(GuidelineRow.cohort.in_(cohorts), GuidelineRow.is_active)
    return {row.cohort: row.id for row in session.execute(query)}


def newest_guideline(session: Session, cohort: str) -> GuidelineRow | None:
    """The version that was fitted last, active or not."""
    return session.scalars(
        select(GuidelineRow).where(GuidelineRow.cohort == cohort).order_by(GuidelineRow.version.desc()).limit(1)
    ).first()


def newest_before(session: Session, cohort: str, time: str) -> GuidelineRow | None:
    """The last version that was fitted before a time (ISO 8601, UTC)."""
    query = select(GuidelineRow).where(GuidelineRow.cohort == cohort, GuidelineRow.created_at < time)
    return session.scalars(query.order_by(GuidelineRow.version.desc()).limit(1)).first()


def versions(session: Session, cohort: str) -> dict[str, int]:
    """Version numbers by id."""
    found = session.execute(select(GuidelineRow.id, GuidelineRow.version).where(GuidelineRow.cohort == cohort))
    return {row.id: row.version for row in found}


def versions_with_reports(session: Session, cohort: str) -> Sequence[GuidelineRow]:
    """All versions, oldest first; their bodies, which are large, stay in the store."""
    query = select(GuidelineRow).where(GuidelineRow.cohort == cohort).options(defer(GuidelineRow.body))
    return session.scalars(query.order_by(GuidelineRow.version)).all()


def active_of_imported(database: Database) -> list[tuple[str, str]]:
    """(cohort, id of its active version) of the cohorts that hold imported runs, in the order of their names."""
    return [(cohort, guideline_id) for cohort, guideline_id in database.rows(_ACTIVE_OF_IMPORTED)]


def list_guidelines(
    session: Session, *, cohort: str | None = None, after: str | None = None, limit: int
) -> Sequence[GuidelineRow]:
    """Versions, newest first; `after` is the last id of the page before."""
    query = select(GuidelineRow).order_by(GuidelineRow.id.desc()).limit(limit)
    if cohort is not None:
        query = query.where(GuidelineRow.cohort == cohort)
    if after is not None:
        query = query.where(GuidelineRow.id < after)
    return session.scalars(query).all()
