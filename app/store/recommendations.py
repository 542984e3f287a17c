"""Kept answers: the question, the guideline asked, and the answer as it was given. A row is never changed."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.store.tables import RecommendationRow, utc_now
from fitting.recommendation import Recommendation

# Answers that were not kept are remembered so that a job may still name one: about 15 kB each.
MOST_RECENT = 256


@dataclass(frozen=True, kw_only=True)
class Answered:
    """An answer that was given, kept or not; the guideline is the one asked, whether or not it answered itself. The
    question's JSON is made when it is wanted: few answers are kept."""

    id: str
    question: Callable[[], Mapping[str, Any]]
    cohort: str | None
    guideline_id: str
    guideline_version: int
    answer: Recommendation
    created_at: str = field(default_factory=utc_now)


def keep(session: Session, answered: Answered) -> None:
    """Store an answer; one that is there already stays as it is."""
    if session.get(RecommendationRow, answered.id) is not None:
        return
    session.add(
        RecommendationRow(
            id=answered.id,
            cohort=answered.cohort,
            guideline_id=answered.guideline_id,
            guideline_version=answered.guideline_version,
            decision=answered.answer.decision,
            question=json.dumps(answered.question(), sort_keys=True),
            answer=json.dumps(answered.answer.to_dict(), allow_nan=False),
            created_at=answered.created_at,
        )
    )
    session.flush()


def get_recommendation(session: Session, recommendation_id: str) -> RecommendationRow | None:
    return session.get(RecommendationRow, recommendation_id)


def list_recommendations(
    session: Session, *, cohort: str | None = None, after: str | None = None, limit: int
) -> Sequence[RecommendationRow]:
    """Kept answers, newest first; `after` is the last id of the page before."""
    query = select(RecommendationRow).order_by(RecommendationRow.id.desc()).limit(limit)
    if cohort is not None:
        query = query.where(RecommendationRow.cohort == cohort)
    if after is not None:
        query = query.where(RecommendationRow.id < after)
    return session.scalars(query).all()


class RecentAnswers:
    """The last answers of this process, kept or not."""

    def __init__(self) -> None:
        self._rows: OrderedDict[str, Answered] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, answered: Answered) -> None:
        with self._lock:
            self._rows[answered.id] = answered
            while len(self._rows) > MOST_RECENT:
                self._rows.popitem(last=False)

    def get(self, recommendation_id: str) -> Answered | None:
        with self._lock:
            return self._rows.get(recommendation_id)
