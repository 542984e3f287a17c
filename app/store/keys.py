"""API keys: made, told by their token, listed, revoked.

A token is `glk_ID_SECRET`. ID is the key's own, so that a token found somewhere names the key to revoke; SECRET is 256 random
bits. What is stored is the SHA-256 of the token. A slow, salted hash guards passwords, of which there are few enough to try;
of 2^256 tokens none is ever guessed, however fast the hash, and a fast one lets every request be checked.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app.contract import NAME_PATTERN
from app.store import audit
from app.store.ids import new_id
from app.store.tables import KeyRow, utc_now
from fitting.errors import InputError

Scope = Literal["read", "plan", "grow", "admin"]
# Each includes those before it.
SCOPES: tuple[Scope, ...] = get_args(Scope)

_TOKEN = re.compile(r"glk_(?P<id>[0-9a-z]{26})_[A-Za-z0-9_-]{43}")
_SECRET_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key just made, and its token, which is never to be had again."""

    row: KeyRow
    token: str


def includes(scope: str, needed: Scope) -> bool:
    """Whether a key of `scope` may do what needs `needed`."""
    return SCOPES.index(scope) >= SCOPES.index(needed)


def create_key(session: Session, *, name: str, scope: str, actor: str) -> NewKey:
    """Make a key; `actor` is remembered in the audit log.

    Raises:
        InputError: the name or the scope is none, or a key of this name is in use.
    """
    if re.fullmatch(NAME_PATTERN, name) is None or name.startswith("key_"):
        # A name that looked like an id could revoke another key than was meant.
        raise InputError("name", f"is {name!r}, but names match {NAME_PATTERN}, not key_...", "give such a name")
    if scope not in SCOPES:
        raise InputError("scope", f"is {scope!r}", f"give one of {', '.join(SCOPES)}")
    if _active_key(session, name) is not None:
        raise InputError("name", f"is {name!r}, which a key in use has", "give another, or revoke that key first")
    key_id = new_id("key")
    token = f"glk_{key_id.removeprefix('key_')}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    row = KeyRow(id=key_id, name=name, scope=scope, token_hash=_hash(token))
    session.add(row)
    session.flush()
    audit.record(session, actor=actor, action="key.create", subject=key_id, detail=f"{name}, scope {scope}")
    return NewKey(row=row, token=token)


def key_of_token(session: Session, token: str) -> KeyRow | None:
    """The key in use that a token is of; None for every other text. Hashes are compared in constant time."""
    if (found := _TOKEN.fullmatch(token)) is None:
        return None
    row = session.get(KeyRow, f"key_{found['id']}")
    if row is None or not hmac.compare_digest(row.token_hash, _hash(token)) or row.revoked_at is not None:
        return None
    return row


def is_in_use(session: Session, key_id: str) -> bool:
    """Whether a key is there and was not revoked."""
    row = session.get(KeyRow, key_id)
    return row is not None and row.revoked_at is None


def revoke_key(session: Session, name_or_id: str, *, actor: str) -> KeyRow | None:
    """Revoke the key in use of this name or id, from its next request on; None where there is none."""
    row = _active_key(session, name_or_id)
    if row is not None:
        row.revoked_at = utc_now()
        session.flush()
        audit.record(session, actor=actor, action="key.revoke", subject=row.id, detail=row.name)
    return row


def list_keys(session: Session, *, after: str | None = None, limit: int) -> Sequence[KeyRow]:
    """Keys, revoked ones too, newest first; `after` is the last id of the page before."""
    query = select(KeyRow).order_by(KeyRow.id.desc()).limit(limit)
    if after is not None:
        query = query.where(KeyRow.id < after)
    return session.scalars(query).all()


def names_of_keys(session: Session, key_ids: Sequence[str]) -> dict[str, str]:
    """id -> name."""
    return {row.id: row.name for row in session.scalars(select(KeyRow).where(KeyRow.id.in_(key_ids)))}


def any_key_in_use(session: Session) -> bool:
    return session.scalars(select(KeyRow.id).where(KeyRow.revoked_at.is_(None)).limit(1)).first() is not None


def _active_key(session: Session, name_or_id: str) -> KeyRow | None:
    named = or_(KeyRow.name == name_or_id, KeyRow.id == name_or_id)
    return session.scalars(select(KeyRow).where(named, KeyRow.revoked_at.is_(None))).first()


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
