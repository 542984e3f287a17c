"""`GET|POST|DELETE /keys`: the keys of the service, for admins. The first one is made by `growthlaw keys create`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict, Field

from app.api.access import CallerDep
from app.api.bodies import RequestBody
from app.api.problems import Problem, responses
from app.api.service import Page, PageDep, ServiceDep
from app.contract import NAME_PATTERN
from app.store import keys as key_store
from app.store.keys import Scope

router = APIRouter(tags=["keys"])


class Key(BaseModel):
    """A key; its token was shown once and is not stored."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    scope: Scope
    created_at: str
    revoked_at: str | None


class NewKey(Key):
    token: str = Field(description="shown this once; send it as `Authorization: Bearer TOKEN`")


class KeyBody(RequestBody):
    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "trainer", "scope": "grow"}]})

    name: str = Field(pattern=NAME_PATTERN, description="no other key in use has it")
    scope: Scope


@router.get("/keys", responses=responses(422))
def list_keys(service: ServiceDep, page: PageDep) -> Page[Key]:
    """Newest first, revoked ones too."""
    with service.database.read() as session:
        rows = key_store.list_keys(session, after=page.after, limit=page.limit + 1)
        return page.cut([Key.model_validate(row) for row in rows], "id")


@router.post("/keys", status_code=201, responses=responses(422))
def post_key(body: Annotated[KeyBody, Body()], service: ServiceDep, caller: CallerDep) -> NewKey:
    with service.database.write() as session:
        made = key_store.create_key(session, name=body.name, scope=body.scope, actor=caller.id)
    return NewKey(**Key.model_validate(made.row).model_dump(), token=made.token)


@router.delete("/keys/{name_or_id}", responses=responses(404))
def delete_key(name_or_id: str, service: ServiceDep, caller: CallerDep) -> Key:
    """Revoke a key in use, by its name or id: its next request is refused. What it launched goes on."""
    with service.database.write() as session:
        row = key_store.revoke_key(session, name_or_id, actor=caller.id)
    if row is None:
        raise Problem.not_found("key in use", name_or_id)
    return Key.model_validate(row)
