"""Queries on refits that were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.store.tables import RefitRow

UNFINISHED = ("queued", "running")


def add_refit(session: Session, refit: RefitRow) -> None:
    session.add(refit)
    session.flush()


def get_refit(session: Session, refit_id: str) -> RefitRow | None:
    return session.get(RefitRow, refit_id)


def set_values(session: Session, refit_id: str, **values: Any) -> None:
    session.execute(update(RefitRow).where(RefitRow.id == refit_id).values(**values))


def unfinished_refits(session: Session, owner: str) -> Sequence[RefitRow]:
    """What a service had not ended when it did, in the order of asking."""
    query = select(RefitRow).where(RefitRow.owner == owner, RefitRow.state.in_(UNFINISHED)).order_by(RefitRow.id)
    return session.scalars(query).all()


def list_refits(
    session: Session, *, cohort: str | None = None, after: str | None = None, limit: int
) -> Sequence[RefitRow]:
    """Refits, newest first; `after` is the last id of the page before."""
    query = select(RefitRow).order_by(RefitRow.id.desc()).limit(limit)
    if cohort is not None:
        query = query.where(RefitRow.cohort == cohort)
    if after is not None:
        query = query.where(RefitRow.id < after)
    return session.scalars(query).all()
