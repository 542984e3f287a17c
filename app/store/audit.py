"""The audit log: who did what to which subject. Written in the transaction of the deed, so neither is there alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.store.tables import AuditRow

Action = Literal[
    "job.launch", "job.cancel", "job.pause", "job.resume", "job.retry", "job.export",
    "run.open", "run.import", "run.correct", "run.delete",
    "guideline.refit", "guideline.activate",
    "key.create", "key.revoke",
]  # fmt: skip


def record(session: Session, *, actor: str, action: Action, subject: str, detail: str = "") -> None:
    """Remember a deed; it stands once the session's transaction commits.

    Args:
        actor: the id of the key that it was asked with, or `LOCAL`.
        subject: the id (or the name) of what it was done to.
        detail: a few words for people; never a secret.
    """
    session.add(AuditRow(actor=actor, action=action, subject=subject, detail=detail))
    session.flush()


def list_audit(
    session: Session,
    *,
    actor: str | None = None,
    action: str | None = None,
    subject: str | None = None,
    before_id: int | None = None,
    limit: int,
) -> Sequence[AuditRow]:
    """Deeds, newest first; `before_id` is the last id of the page before."""
    query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
    for column, wanted in ((AuditRow.actor, actor), (AuditRow.action, action), (AuditRow.subject, subject)):
        if wanted is not None:
            query = query.where(column == wanted)
    if before_id is not None:
        query = query.where(AuditRow.id < before_id)
    return session.scalars(query).all()
