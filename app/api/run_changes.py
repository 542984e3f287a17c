"""`PATCH /runs/{id}` and `DELETE /runs/{id}`: mending what was said of a run, and taking it out. Each refits its cohort."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query
from pydantic import BaseModel, ConfigDict, Field, field_validator
from sqlalchemy.orm import Session

from app.api.access import CallerDep
from app.api.bodies import RequestBody
from app.api.import_bodies import PRINTABLE, Word
from app.api.problems import Problem, responses
from app.api.runs import Run, find_run
from app.api.service import ServiceDep
from app.api.train import RUN_ID_PATTERN
from app.ingest.correcting import correct, remove
from app.ingest.live import Conflict
from app.store import audit
from app.store import guidelines as guideline_store
from app.store import runs as run_store

router = APIRouter(tags=["runs"])

_MAY_BE_NONE = ("lr_selection", "control_id")


class CorrectionBody(RequestBody):
    """What to correct; what is left out stays. Sizes, tokens, FLOPs, losses and seeds are measured: a run with a wrong one is
    imported again, or removed."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "additionalProperties": False,
            "examples": [{"status": "diverged", "why": "a node fed it zeros from 2M tokens on"}],
        },
    )

    name: Word | None = Field(default=None, min_length=1)
    status: Literal["finished", "diverged", "stopped"] | None = None
    is_final: bool | None = None
    lr_selection: Literal["grid tuned", "shared", "untuned"] | None = None
    control_id: Annotated[str, Field(pattern=RUN_ID_PATTERN)] | None = Field(
        default=None, description="the run it is compared with; null takes it away"
    )
    why: str = Field(default="", max_length=1000, pattern=PRINTABLE, description="kept beside what the column was")

    @field_validator("name", "status", "is_final", mode="before")
    @classmethod
    def _is_given(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("it cannot be null; leave it out to keep it")
        return value

    def changes(self) -> dict[str, Any]:
        """Column -> value.

        Raises:
            Problem: a field that cannot be corrected, or none at all.
        """
        for name in self.model_extra or {}:
            why = "is what was measured or trained" if name in Run.model_fields else "is not known"
            raise Problem.field(
                f"/{name}", f"{name} {why}, so it cannot be corrected; import the run again, or remove it"
            )
        given = self.model_dump(include=self.model_fields_set - {"why"})
        if not given:
            raise Problem.field(
                "", "there is nothing to correct; give name, status, is_final, lr_selection or control_id"
            )
        return given


class Removed(BaseModel):
    """A run that was taken out with its points; the runs whose control it was have none now."""

    run_id: str
    cohort: str
    reason: str
    control_of: list[str]


@router.patch("/runs/{run_id}", summary="Correct what was said of a run", responses=responses(404, 409, 410))
def patch_run(run_id: str, body: Annotated[CorrectionBody, Body()], service: ServiceDep, caller: CallerDep) -> Run:
    """Refits the cohort. What each column was stays readable in `corrections`."""
    changes = body.changes()
    try:
        with service.database.write() as session:
            run = find_run(session, run_id)
            if correct(session, run, changes, body.why):
                _retire_guideline_without_runs(session, run.cohort)
            audit.record(
                session, actor=caller.id, action="run.correct", subject=run_id,
                detail=json.dumps({"changes": changes, "why": body.why}),
            )  # fmt: skip
            session.flush()
            session.refresh(run)
            corrected = Run.model_validate(run)
    except Conflict as error:
        raise Problem(409, str(error)) from None
    service.refitter.ask(corrected.cohort)
    return corrected


@router.delete("/runs/{run_id}", summary="Remove a run and its points", responses=responses(404, 409, 410))
def delete_run(
    run_id: str,
    service: ServiceDep,
    caller: CallerDep,
    why: Annotated[str, Query(max_length=1000, pattern=PRINTABLE, description="kept with the removal")] = "",
) -> Removed:
    """Refits the cohort. The id answers 410 from then on, and the same log, bundle row or pushed run does not come back
    unless an import says `restore`. Files of a run that was trained here stay."""
    try:
        with service.database.write() as session:
            run = find_run(session, run_id)
            cohort = run.cohort
            control_of = remove(session, run, why)
            _retire_guideline_without_runs(session, cohort)
            audit.record(session, actor=caller.id, action="run.delete", subject=run_id, detail=why)
    except Conflict as error:
        raise Problem(409, str(error)) from None
    service.refitter.ask(cohort)
    return Removed(run_id=run_id, cohort=cohort, reason=why, control_of=control_of)


def _retire_guideline_without_runs(session: Session, cohort: str) -> None:
    """A cohort whose last final loss is gone has nothing to fit: no guideline of its old runs answers any more."""
    if not run_store.has_final_runs(session, cohort):
        guideline_store.deactivate(session, cohort)
