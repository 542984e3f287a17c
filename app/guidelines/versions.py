"""Stored versions: loading one, activating one by hand, and what the active one says where an older one was asked.

A version activated by hand is pinned: refits go on, are compared and stored, and none replaces it until it is released
(activated again without the pin) or another version is activated by hand. What a person decided, no score undoes behind their
back.
"""

from __future__ import annotations

from collections.abc import Callable

from app.store import audit
from app.store import guidelines as guideline_store
from app.store.database import Database
from app.store.tables import LOCAL, GuidelineRow
from fitting.guideline import Guideline
from fitting.recommendation import Question, recommend
from fitting.recommendation.answer import Newer


def load_guideline(database: Database, guideline_id: str) -> Guideline | None:
    """One stored version, None if there is none of this id."""
    with database.read() as session:
        row = guideline_store.get_guideline(session, guideline_id)
    return None if row is None else Guideline.from_json(row.body)


def activate_by_hand(database: Database, guideline_id: str, *, pinned: bool, actor: str = LOCAL) -> GuidelineRow | None:
    """Make a version its cohort's active one, None if there is none of this id.

    Args:
        pinned: hold it against promotions; False lets a better refit replace it.
        actor: who asks for it.
    """
    with database.write() as session:
        row = guideline_store.get_guideline(session, guideline_id)
        if row is None:
            return None
        guideline_store.activate(session, row, is_pinned=pinned)
        audit.record(
            session, actor=actor, action="guideline.activate", subject=guideline_id,
            detail=f"version {row.version} of cohort {row.cohort!r}, {'pinned' if pinned else 'not pinned'}",
        )  # fmt: skip
        session.refresh(row)
        session.expunge(row)
    return row


def newer_answer(
    database: Database,
    guideline: Guideline,
    request: Question,
    load: Callable[[str], Guideline | None] | None = None,
) -> Newer | None:
    """What the active version of the guideline's cohort says to the same question; None where that is no newer one.

    Args:
        load: finds a version by id; reads the store where None.
    """
    if guideline.cohort is None:
        return None
    with database.read() as session:
        active = guideline_store.active_version(session, guideline.cohort)
    if active is None or active[1] <= guideline.version:
        return None
    active_id, version = active
    current = load_guideline(database, active_id) if load is None else load(active_id)
    if current is None:
        return None
    answer = recommend(request, current)
    return Newer(
        guideline_id=active_id,
        version=version,
        answered_by=str(answer.guideline["id"]),
        decision=answer.decision,
        growth_factor=answer.growth_factor,
        growth_timing_tokens=answer.growth_timing_tokens,
        delta_nats=answer.expected.delta_nats,
        delta_interval=answer.expected.delta_interval,
    )
