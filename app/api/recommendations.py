"""`GET /recommendations`: answers that were kept, when asked for or because a job follows them."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, ValidationError

from app.api.problems import Problem, responses
from app.api.questions import RecommendBody
from app.api.service import Page, PageDep, Service, ServiceDep
from app.guidelines.versions import newer_answer
from app.store import recommendations as recommendation_store
from fitting.errors import InputError
from fitting.recommendation.answer import Newer

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
    """The question, and the answer as it was given then. Neither ever changes; `newer` is what the version that answers today
    says to the same question, where that is a newer one."""

    question: dict[str, Any]
    answer: dict[str, Any]
    newer: Newer | None


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
    question = json.loads(row.question)
    return KeptRecommendation(
        **summary.model_dump(), question=question, answer=json.loads(row.answer),
        newer=_newer(service, row.guideline_id, question),
    )  # fmt: skip


def _newer(service: Service, guideline_id: str, question: dict[str, Any]) -> Newer | None:
    guideline = service.guideline(guideline_id)
    if guideline is None:
        return None
    try:
        asked = RecommendBody.model_validate(question).to_question(service.settings.checkpoints_dir)
        return newer_answer(service.database, guideline, asked, service.guideline)
    except (
        ValidationError,
        InputError,
    ):  # such as a base that is no longer there: then only the answer of its day is known
        return None
