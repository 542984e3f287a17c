"""`GET /guidelines`: every version that was ever fitted."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict

from app.api.problems import Problem, responses
from app.api.service import Page, PageDep, ServiceDep
from app.store import guidelines as guideline_store

router = APIRouter(tags=["guidelines"])


class GuidelineSummary(BaseModel):
    """One version; `is_active` marks the one that answers for its cohort, `reason` says why it was stored."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    cohort: str
    version: int
    is_active: bool
    num_runs: int
    data_hash: str
    reason: str
    created_at: str


class GuidelineDetail(GuidelineSummary):
    """A version with all it holds: `body` is what `growthlaw recommend --guideline FILE` reads."""

    body: dict[str, Any]


@router.get("/guidelines", summary="List guideline versions", responses=responses(422))
def list_guidelines(
    service: ServiceDep, page: PageDep, cohort: Annotated[str | None, Query(max_length=64)] = None
) -> Page[GuidelineSummary]:
    """Newest first, of all cohorts or of one."""
    with service.database.read() as session:
        rows = guideline_store.list_guidelines(session, cohort=cohort, after=page.after, limit=page.limit + 1)
        return page.cut([GuidelineSummary.model_validate(row) for row in rows], "id")


@router.get("/guidelines/{guideline_id}", summary="One guideline version", responses=responses(404))
def get_guideline(guideline_id: str, service: ServiceDep) -> GuidelineDetail:
    """Everything that was fitted: laws, draws, pairs, controls, held-out scores."""
    with service.database.read() as session:
        row = guideline_store.get_guideline(session, guideline_id)
    if row is None:
        raise Problem.not_found("guideline", guideline_id)
    summary = GuidelineSummary.model_validate(row)
    return GuidelineDetail(**summary.model_dump(), body=json.loads(row.body))
