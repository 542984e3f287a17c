"""`Idempotency-Key`: the same key and body do a thing once and give the same answer; another body under the key is a 409.

Where a route makes rows (jobs, runs) these hold key and hash; where it makes none, `requests` holds them with the answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Annotated

from fastapi import Depends, Header
from pydantic import BaseModel
from sqlalchemy.orm import Session

from app.api.access import CallerDep
from app.api.problems import Problem
from app.store.tables import RequestRow

GivenKey = Annotated[
    str | None,
    Header(
        min_length=1, max_length=200, pattern=r"^[\x20-\x7e]*$",
        description="the same key and body do nothing twice, and give the same answer",
    ),
]  # fmt: skip


def _own_key(caller: CallerDep, idempotency_key: GivenKey = None) -> str | None:
    return None if idempotency_key is None else caller.own(idempotency_key)


IdempotencyKey = Annotated[str | None, Depends(_own_key)]


def request_hash(body: BaseModel, *, later_fields: Iterable[str] = ()) -> str:
    """SHA-256 of a body.

    Args:
        later_fields: came after keys were first stored; where they have their defaults, a body hashes as without them.
    """
    values = body.model_dump(mode="json")
    for name in later_fields:
        if values[name] == type(body).model_fields[name].default:
            del values[name]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_same_body(stored_hash: str | None, given_hash: str) -> None:
    """
    Raises:
        Problem: the key came with another body.
    """
    if stored_hash != given_hash:
        raise Problem(409, "this Idempotency-Key came with another body before; send the same body, or another key")


def answered_before(session: Session, route: str, key: str | None, body: BaseModel) -> str | None:
    """The answer, as JSON, that this key and body got from `route` before.

    Raises:
        Problem: the key came with another body.
    """
    row = None if key is None else session.get(RequestRow, (route, key))
    if row is None:
        return None
    check_same_body(row.request_hash, request_hash(body))
    return row.answer


def remember(session: Session, route: str, key: str | None, body: BaseModel, answer: BaseModel) -> None:
    """Keep the answer in the same transaction that does what was asked."""
    if key is not None:
        session.add(
            RequestRow(route=route, request_key=key, request_hash=request_hash(body), answer=answer.model_dump_json())
        )
        session.flush()
