"""`GET /runs`: the canonical table, and each run's points."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, field_validator
from sqlalchemy.orm import Session

from app.api.import_bodies import PRINTABLE
from app.api.problems import Problem, responses
from app.api.service import Page, PageDep, ServiceDep
from app.store import removals
from app.store import runs as run_store
from app.store.runs import RunFilter
from app.store.tables import RunRow

router = APIRouter(tags=["runs"])

Bound = Annotated[float | None, Query(ge=0, le=1e30, allow_inf_nan=False)]


class Correction(BaseModel):
    """What a column was first, when it was corrected last, and why."""

    was: str | float | bool | None
    at: str
    why: str


class Run(BaseModel):
    """The header of one run (units: tokens, FLOPs, nats; sizes in non-embedding parameters)."""

    model_config = ConfigDict(from_attributes=True)

    run_id: str
    cohort: str
    source: str
    name: str
    status: Literal["finished", "diverged", "stopped", "running"]
    target_params: float
    num_target_layers: int | None
    hidden_size: int | None
    num_heads: int | None
    num_kv_heads: int | None
    intermediate_size: int | None
    vocab_size: int | None
    context_length: int | None
    base_params: float | None
    num_base_layers: int | None
    growth_factor: float
    growth_timing_tokens: float
    grown_tokens: float
    operator: str | None
    order: str | None
    optimizer: str | None
    optimizer_state_policy: str | None
    peak_lr: float | None
    base_peak_lr: float | None
    lr_selection: str | None
    schedule: str | None
    warmup_tokens: float | None
    planned_tokens: float | None
    decay_tokens: float | None
    is_final: bool
    batch_tokens: float | None
    tokenizer: str | None
    corpus: str | None
    unique_tokens: float | None
    init_seed: int | None
    data_seed: int | None
    trunk_id: str | None
    control_id: str | None
    parent_run_id: str | None
    base_flops_per_token: float | None
    target_flops_per_token: float | None
    compute_flops: float | None
    final_loss: float | None
    created_at: str
    engine_numerics_version: int | None
    reason: str
    wasted_flops: float
    corrections: dict[str, Correction] = Field(description="by column, what it was before it was corrected")

    @field_validator("corrections", mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return json.loads(value or "{}") if isinstance(value, str) else value


class Point(BaseModel):
    """One measured value; `tokens` counts inside the phase, `compute_flops` over the whole run."""

    model_config = ConfigDict(from_attributes=True)

    seq: int
    phase: str
    tokens: int
    compute_flops: float
    metric: str
    dataset: str
    value: float
    unit: str
    time: str


@router.get("/runs", summary="List runs", responses=responses(422))
def list_runs(
    service: ServiceDep,
    page: PageDep,
    cohort: Annotated[str | None, Query(max_length=64)] = None,
    status: Annotated[Literal["finished", "diverged", "stopped", "running"] | None, Query()] = None,
    source: Annotated[Literal["job", "import", "published"] | None, Query(description="where it comes from")] = None,
    is_final: Annotated[bool | None, Query(description="whether its last loss is final or mid-schedule")] = None,
    search: Annotated[
        str, Query(max_length=200, pattern=PRINTABLE, description="words that stand in the run's name or id")
    ] = "",
    min_target_params: Bound = None,
    max_target_params: Bound = None,
    min_growth_factor: Bound = None,
    max_growth_factor: Bound = None,
    min_growth_timing_tokens: Bound = None,
    max_growth_timing_tokens: Bound = None,
) -> Page[Run]:
    """Newest first; of those that every given condition fits, ends of ranges included. A run that was not grown has growth
    factor 1 and growth timing 0."""
    wanted = RunFilter(
        cohort=cohort,
        status=status,
        source=source,
        is_final=is_final,
        search=search,
        target_params=(min_target_params, max_target_params),
        growth_factor=(min_growth_factor, max_growth_factor),
        growth_timing_tokens=(min_growth_timing_tokens, max_growth_timing_tokens),
    )
    with service.database.read() as session:
        rows = run_store.list_runs(session, wanted, after=page.after, limit=page.limit + 1)
        return page.cut([Run.model_validate(row) for row in rows], "run_id")


@router.get("/runs/{run_id}", summary="One run", responses=responses(404, 410))
def get_run(run_id: str, service: ServiceDep) -> Run:
    """The header of the run, and what of it was corrected."""
    with service.database.read() as session:
        return Run.model_validate(find_run(session, run_id))


def find_run(session: Session, run_id: str) -> RunRow:
    """
    Raises:
        Problem: there is no such run (404), or it was removed (410).
    """
    row = run_store.get_run(session, run_id)
    if row is None:
        removed = removals.get_removed(session, run_id)
        if removed is not None:
            raise Problem(410, f"{removals.told(removed)}; an import with restore brings it back")
        raise Problem.not_found("run", run_id)
    return row


@router.get("/runs/{run_id}/points", summary="The points of a run", responses=responses(404, 410, 422))
def list_points(
    run_id: str,
    service: ServiceDep,
    metric: Annotated[str | None, Query(max_length=64)] = None,
    after: Annotated[int, Query(ge=-1, lt=2**63, description="`seq` of the last point seen")] = -1,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Page[Point]:
    """In the order they were written; `next` is the `seq` of the last."""
    with service.database.read() as session:
        find_run(session, run_id)
        rows = run_store.list_points(session, run_id, metric=metric, after_seq=after, limit=limit + 1)
    points = [Point.model_validate(row) for row in rows[:limit]]
    has_more = len(rows) > limit
    return Page(data=points, has_more=has_more, next=str(points[-1].seq) if has_more else None)
