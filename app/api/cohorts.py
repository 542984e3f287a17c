"""`GET /cohorts`: runs whose losses may be compared, by what they share."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.api.problems import responses
from app.api.service import Page, PageDep, ServiceDep
from app.store import guidelines as guideline_store
from app.store import runs as run_store

router = APIRouter(tags=["runs"])


class Cohort(BaseModel):
    """What all runs of a cohort share, and what they are judged by."""

    name: str
    decision_metric: str
    decision_dataset: str
    num_runs: int = Field(description="stored, however they ended")
    guideline_id: str | None = Field(description="the version that answers for it")
    recipe: dict[str, Any] = Field(description="what every run of it shares")
    created_at: str


@router.get("/cohorts", summary="List cohorts", responses=responses(422))
def list_cohorts(service: ServiceDep, page: PageDep) -> Page[Cohort]:
    """By name; losses compare only within one."""
    with service.database.read() as session:
        rows = run_store.list_cohorts(session, after=page.after, limit=page.limit + 1)
        counts = run_store.count_runs(session, [row.name for row in rows])
        active = guideline_store.active_ids(session, [row.name for row in rows])
        cohorts = [
            Cohort(
                name=row.name, decision_metric=row.decision_metric, decision_dataset=row.decision_dataset,
                num_runs=counts.get(row.name, 0), guideline_id=active.get(row.name), recipe=json.loads(row.recipe),
                created_at=row.created_at,
            )
            for row in rows
        ]  # fmt: skip
    return page.cut(cohorts, "name")
