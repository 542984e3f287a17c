"""`GET /jobs/{id}/logs` and `/checkpoints`: what a job's process printed and what it saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict

from app.api.jobs import find_job
from app.api.problems import responses
from app.api.service import Page, PageDep, ServiceDep
from app.jobs.checkpoints import list_checkpoints

router = APIRouter(tags=["jobs"])

DEFAULT_LOG_BYTES = 65_536
LARGEST_LOG_BYTES = 16_000_000


class Log(BaseModel):
    """The end of a job's log, all attempts together."""

    job_id: str
    text: str


class Checkpoint(BaseModel):
    """One checkpoint folder; `run_tokens` counts over all phases, `problem` says why no run goes on from it."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    path: str
    phase: str | None
    run_tokens: int | None
    keep: str | None
    num_bytes: int
    created_at: str
    problem: str


@router.get("/jobs/{job_id}/logs", summary="The end of what a job printed", responses=responses(404, 422))
def get_logs(
    job_id: str,
    service: ServiceDep,
    max_bytes: Annotated[
        int, Query(ge=1, le=LARGEST_LOG_BYTES, description="how much of the log's end")
    ] = DEFAULT_LOG_BYTES,
) -> Log:
    """All attempts together."""
    job = find_job(service, job_id)
    launcher = service.supervisor.launcher(job.engine)
    return Log(job_id=job.id, text=launcher.logs(job.handle, Path(job.run_dir), max_bytes=max_bytes))


@router.get("/jobs/{job_id}/checkpoints", summary="What a job saved", responses=responses(404))
def get_checkpoints(job_id: str, service: ServiceDep, page: PageDep) -> Page[Checkpoint]:
    """Oldest first. A finished run drops its checkpoints but those kept for decay legs: its exports hold the weights."""
    job = find_job(service, job_id)
    return page.of([Checkpoint.model_validate(found) for found in list_checkpoints(Path(job.run_dir))], "name")
