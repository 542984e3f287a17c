"""`/guidelines`: every version that was ever fitted, why it answers or not, what changed, and putting another one in charge."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from pydantic import BaseModel, ConfigDict, Field

from app.api.access import CallerDep
from app.api.bodies import RequestBody
from app.api.idempotency import IdempotencyKey, answered_before, remember
from app.api.problems import Problem, responses
from app.api.service import Page, PageDep, Service, ServiceDep
from app.guidelines.said import scores_of_version
from app.guidelines.versions import activate_by_hand
from app.store import audit
from app.store import guidelines as guideline_store
from app.store import predictions as prediction_store
from app.store import refits as refit_store
from app.store import runs as run_store
from fitting.comparison import VersionChanges, compare_versions
from fitting.guideline import Guideline

router = APIRouter(tags=["guidelines"])


class GuidelineSummary(BaseModel):
    """One version; `is_active` marks the one that answers for its cohort, `outcome` and `reason` say why or why not."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    cohort: str
    version: int
    is_active: bool
    is_pinned: bool = Field(description="activated by hand: no promotion replaces it")
    outcome: str = Field(
        description="first, newest, promoted, waits, rejected, replaces_withdrawn or pinned, when it was stored"
    )
    num_runs: int
    data_hash: str
    reason: str
    created_at: str
    activated_at: str | None


class VersionScores(BaseModel):
    """How this version did on runs that it predicted before they were seen, and that still count."""

    num_deltas: int
    delta_score_nats: float | None = Field(description="mean weighted interval score, lower is better")
    delta_coverage: float | None = Field(description="share of deltas inside their 80% intervals")
    num_losses: int
    loss_score_nats: float | None


class GuidelineDetail(GuidelineSummary):
    """A version with all it holds: `report` the scores behind its outcome, `scores` its own so far, `body` what `growthlaw
    recommend --guideline FILE` reads."""

    report: dict[str, Any]
    scores: VersionScores
    body: dict[str, Any]


class ActivateBody(RequestBody):
    pinned: bool = Field(
        default=True,
        description="hold it until it is released (activated with false) or another is activated by hand",
    )


class RefitBody(RequestBody):
    model_config = ConfigDict(json_schema_extra={"examples": [{"cohort": "demo"}]})

    cohort: str = Field(min_length=1, max_length=64)


class Refit(BaseModel):
    """One refit: `state` is queued, running, succeeded, unchanged, impossible or failed; `detail` says what came of it."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    cohort: str
    state: str
    reason: str
    detail: str
    guideline_id: str | None
    num_attempts: int
    asked_at: str
    started_at: str | None
    finished_at: str | None


class VersionDiff(BaseModel):
    """What changed from `before` to `after`, and what both answer to a few standard questions."""

    before: GuidelineSummary
    after: GuidelineSummary
    changes: VersionChanges


@router.get("/guidelines", responses=responses(422), summary="Versions, newest first")
def list_guidelines(
    service: ServiceDep, page: PageDep, cohort: Annotated[str | None, Query(max_length=64)] = None
) -> Page[GuidelineSummary]:
    """Newest first, of all cohorts or of one."""
    with service.database.read() as session:
        rows = guideline_store.list_guidelines(session, cohort=cohort, after=page.after, limit=page.limit + 1)
        return page.cut([GuidelineSummary.model_validate(row) for row in rows], "id")


@router.post(
    "/guidelines/refit",
    status_code=202,
    responses=responses(404, 409, 422),
    summary="Refit a cohort now, in the background",
)
def post_refit(
    body: Annotated[RefitBody, Body()], service: ServiceDep, caller: CallerDep, idempotency_key: IdempotencyKey
) -> Refit:
    route = "POST /guidelines/refit"
    with service.database.read() as session:
        known = answered_before(session, route, idempotency_key, body)
        if known is not None:
            return Refit.model_validate_json(known)
        if run_store.get_cohort(session, body.cohort) is None:
            raise Problem.not_found("cohort", body.cohort)
    refit = Refit.model_validate(service.refitter.ask_now(body.cohort, "asked by POST /guidelines/refit"))
    with service.database.write() as session:
        audit.record(session, actor=caller.id, action="guideline.refit", subject=body.cohort, detail=refit.id)
        remember(session, route, idempotency_key, body, refit)
    return refit


@router.get("/guidelines/refits", responses=responses(422), summary="Refits that were asked for, newest first")
def list_refits(
    service: ServiceDep, page: PageDep, cohort: Annotated[str | None, Query(max_length=64)] = None
) -> Page[Refit]:
    with service.database.read() as session:
        rows = refit_store.list_refits(session, cohort=cohort, after=page.after, limit=page.limit + 1)
        return page.cut([Refit.model_validate(row) for row in rows], "id")


@router.get("/guidelines/refits/{refit_id}", responses=responses(404), summary="How a refit stands")
def get_refit(refit_id: str, service: ServiceDep) -> Refit:
    with service.database.read() as session:
        row = refit_store.get_refit(session, refit_id)
    if row is None:
        raise Problem.not_found("refit", refit_id)
    return Refit.model_validate(row)


@router.get("/guidelines/{guideline_id}", responses=responses(404), summary="One version with its scores")
def get_guideline(guideline_id: str, service: ServiceDep) -> GuidelineDetail:
    """Everything that was fitted: laws, draws, pairs, controls, held-out scores."""
    with service.database.read() as session:
        row = guideline_store.get_guideline(session, guideline_id)
        if row is None:
            raise Problem.not_found("guideline", guideline_id)
        predictions = prediction_store.list_predictions(session, row.cohort)
    summary = GuidelineSummary.model_validate(row)
    scores = VersionScores(**scores_of_version(predictions, guideline_id))
    return GuidelineDetail(
        **summary.model_dump(), report=json.loads(row.report), scores=scores, body=json.loads(row.body)
    )


@router.get(
    "/guidelines/{guideline_id}/diff/{other_id}",
    responses=responses(404, 422),
    summary="What changed between two versions",
)
def get_diff(guideline_id: str, other_id: str, service: ServiceDep) -> VersionDiff:
    before, after = _loaded(service, guideline_id), _loaded(service, other_id)
    if before.cohort != after.cohort:
        raise Problem.field(
            "path:other_id",
            f"{other_id} is of cohort {after.cohort!r} and {guideline_id} of {before.cohort!r}, whose losses may not be "
            "compared; name two versions of one cohort",
        )
    with service.database.read() as session:
        rows = [guideline_store.get_guideline(session, one) for one in (guideline_id, other_id)]
    first, second = (GuidelineSummary.model_validate(row) for row in rows)
    return VersionDiff(before=first, after=second, changes=compare_versions(before, after))


@router.post("/guidelines/{guideline_id}/activate", responses=responses(404, 422), summary="Let this version answer")
def post_activate(
    guideline_id: str, service: ServiceDep, caller: CallerDep, body: Annotated[ActivateBody | None, Body()] = None
) -> GuidelineSummary:
    pinned = True if body is None else body.pinned
    row = activate_by_hand(service.database, guideline_id, pinned=pinned, actor=caller.id)
    if row is None:
        raise Problem.not_found("guideline", guideline_id)
    return GuidelineSummary.model_validate(row)


def _loaded(service: Service, guideline_id: str) -> Guideline:
    found = service.guideline(guideline_id)
    if found is None:
        raise Problem.not_found("guideline", guideline_id)
    return found
