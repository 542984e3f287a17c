"""`GET /audit`: who launched, cancelled, activated, corrected and all else that was done here."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from app.api.problems import responses
from app.api.service import Page, ServiceDep
from app.store import audit as audit_store
from app.store import keys as key_store
from app.store.audit import Action
from app.store.tables import LOCAL

router = APIRouter(tags=["keys"])

Id = Annotated[str | None, Query(max_length=64)]


class Deed(BaseModel):
    """One entry; `actor` is the id of a key or "local" (no key), `subject` the id or name of what it was done to."""

    id: int
    time: str
    actor: str
    actor_name: str
    action: Action
    subject: str
    detail: str


@router.get("/audit", responses=responses(422))
def list_audit(
    service: ServiceDep,
    actor: Id = None,
    action: Annotated[Action | None, Query()] = None,
    subject: Id = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="rows a page")] = 50,
    after: Annotated[int | None, Query(ge=0, lt=2**63, description="`next` of the page before")] = None,
) -> Page[Deed]:
    """Newest first."""
    with service.database.read() as session:
        rows = audit_store.list_audit(
            session, actor=actor, action=action, subject=subject, before_id=after, limit=limit + 1
        )
        names = key_store.names_of_keys(session, [row.actor for row in rows]) | {LOCAL: LOCAL}
    deeds = [
        Deed(
            id=row.id, time=row.time, actor=row.actor, actor_name=names.get(row.actor, row.actor), action=row.action,
            subject=row.subject, detail=row.detail,
        )
        for row in rows[:limit]
    ]  # fmt: skip
    has_more = len(rows) > limit
    return Page(data=deeds, has_more=has_more, next=str(deeds[-1].id) if has_more else None)
