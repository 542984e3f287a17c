"""`GET /recommendations`: answers that were kept, when asked for or because a job follows them."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict

from app.api.problems import Problem, responses
from app.api.service import Page, PageDep, ServiceDep
from app.store import recommendations as recommendation_store

router = APIRouter(tags=["recommend"])


class KeptSummary(BaseModel):
    """A kept answer in short; `guideline_id` and `guideline_version` are those of the guideline asked."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    created_at: str
    cohort: str | None
    guideline_id: str
    guideline_version: int
    decision: str


class KeptRecommendation(KeptSummary):
    """The question, and the answer as it was given then. Neither ever changes."""

    question: dict[str, Any]
    answer: dict[str, Any]


@router.get("/recommendations", summary="List kept answers", responses=responses(422))
def list_recommendations(
    service: ServiceDep, page: PageDep, cohort: Annotated[str | None, Query(max_length=64)] = None
) -> Page[KeptSummary]:
    """Newest first."""
    with service.database.read() as session:
        rows = recommendation_store.list_recommendations(session, cohort=cohort, after=page.after, limit=page.limit + 1)
    return page.cut([KeptSummary.model_validate(row) for row in rows], "id")


@router.get("/recommendations/{recommendation_id}", summary="One kept answer", responses=responses(404))
def get_recommendation(recommendation_id: str, service: ServiceDep) -> KeptRecommendation:
    """The stored body: question, guideline asked, and the answer as given."""
    with service.database.read() as session:
        row = recommendation_store.get_recommendation(session, recommendation_id)
    if row is None:
        raise Problem(
            404,
            f"no answer is kept under {recommendation_id!r}; ask with keep: true, or name the answer in POST /grow",
        )
    summary = KeptSummary.model_validate(row)
    return KeptRecommendation(**summary.model_dump(), question=json.loads(row.question), answer=json.loads(row.answer))
