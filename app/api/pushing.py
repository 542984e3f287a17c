"""`POST /runs` and `POST /runs/{id}/points`: a run of any trainer that pushes its points while it trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict, Field

from app.api.access import CallerDep
from app.api.bodies import RequestBody
from app.api.idempotency import IdempotencyKey, request_hash
from app.api.import_bodies import PRINTABLE, RunFactsBody, Word
from app.api.problems import Problem, responses
from app.api.runs import Run, find_run
from app.api.service import ServiceDep
from app.ingest.live import Conflict, LivePoint, open_run, owner_of, push_points
from app.store import runs as run_store
from app.store.cohorts import CohortMismatch
from app.store.tables import utc_now

router = APIRouter(tags=["runs"])

_EXAMPLE: dict[str, Any] = {
    "cohort": "mine", "name": "8-layers", "target_params": 4e5, "corpus": "web", "tokenizer": "bpe-1024",
    "decision_dataset": "validation",
}  # fmt: skip
_POINT: dict[str, Any] = {
    "seq": 0, "tokens": 4096, "metric": "validation_loss", "dataset": "validation", "value": 4.1,
}  # fmt: skip


class OpenBody(RunFactsBody):
    """A run that begins; `base_*` and `growth_timing_tokens` where it is grown on its way."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})


class Opened(BaseModel):
    """The run, and the seq with which its next point goes on."""

    run: Run
    next_seq: int


class PointBody(RequestBody):
    """One measured value; `tokens` counts inside the phase."""

    seq: int = Field(ge=0, lt=2**31)
    phase: Literal["base", "grown", "single"] = "single"
    tokens: int = Field(ge=0, le=10**17)
    metric: Word = Field(min_length=1, examples=["validation_loss"])
    dataset: Word = ""
    value: float = Field(allow_inf_nan=False)
    unit: Word = "nats"
    time: Word = Field(default="", description="ISO-8601 in UTC; when it came, where left out")


class PointsBody(RequestBody):
    """Points, and with the last of them how the run ended."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"points": [_POINT]}]})

    points: list[PointBody] = Field(default=[], max_length=10_000)
    status: Literal["finished", "diverged", "stopped"] | None = Field(default=None, description="ends the run")
    reason: str = Field(default="", max_length=1000, pattern=PRINTABLE)


class Pushed(BaseModel):
    """How many points were new, and how the run stands."""

    num_added: int
    next_seq: int
    run: Run


@router.post("/runs", summary="Open a run that pushes its points", responses=responses(409, 422))
def post_run(
    body: Annotated[OpenBody, Body()], service: ServiceDep, caller: CallerDep, idempotency_key: IdempotencyKey
) -> Opened:
    """The same Idempotency-Key and body give the same run again, with the `seq` to go on with."""
    try:
        with service.database.write() as session:
            options = body.options()
            cohort = run_store.get_cohort(session, body.cohort)
            if cohort is not None and options.decision_dataset is None:
                options = replace(
                    options, decision_metric=cohort.decision_metric, decision_dataset=cohort.decision_dataset
                )
            run = open_run(session, options, idempotency_key, request_hash(body), actor=caller.id)
            session.flush()
            return Opened(run=Run.model_validate(run), next_seq=run_store.last_seq(session, run.run_id) + 1)
    except CohortMismatch as error:
        raise Problem.field("/cohort", str(error), status=409) from None
    except Conflict as error:
        raise Problem(409, str(error)) from None


@router.post("/runs/{run_id}/points", summary="Push points of a run", responses=responses(404, 409, 410, 422))
def post_points(run_id: str, body: Annotated[PointsBody, Body()], service: ServiceDep, caller: CallerDep) -> Pushed:
    """Each `seq` counts once; a `status` with the last of them ends the run. It takes the key that opened it or an admin."""
    now = utc_now()
    points = [LivePoint(**point.model_dump() | {"time": point.time or now}) for point in body.points]
    try:
        with service.database.write() as session:
            run = find_run(session, run_id)
            caller.check_may_touch(owner_of(run), f"run {run_id}")
            num_added = push_points(session, run, points, body.status, body.reason)
            session.flush()
            session.refresh(run)
            pushed = Pushed(
                num_added=num_added, next_seq=run_store.last_seq(session, run_id) + 1, run=Run.model_validate(run)
            )
    except Conflict as error:
        raise Problem(409, str(error)) from None
    if body.status is not None:
        service.refitter.ask(pushed.run.cohort)
    return pushed
