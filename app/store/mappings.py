"""Queries on saved mappings of imports."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.store.tables import MappingRow


def get_mapping(session: Session, name: str) -> MappingRow | None:
    return session.get(MappingRow, name)


def put_mapping(session: Session, name: str, body: str) -> MappingRow:
    """Save a mapping; one of this name takes the new content."""
    row = session.get(MappingRow, name)
    if row is None:
        row = MappingRow(name=name, body=body)
        session.add(row)
    row.body = body
    session.flush()
    return row


def delete_mapping(session: Session, row: MappingRow) -> None:
    session.delete(row)


def list_mappings(session: Session, *, after: str | None = None, limit: int) -> Sequence[MappingRow]:
    """By name; `after` is the last name of the page before."""
    query = select(MappingRow).order_by(MappingRow.name).limit(limit)
    if after is not None:
        query = query.where(MappingRow.name > after)
    return session.scalars(query).all()
