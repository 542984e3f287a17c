"""`POST /jobs/{id}/export`: send a run's weights or one of its checkpoints to a URL that the service's owner allows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Body
from pydantic import ConfigDict, Field

from app.api.access import CallerDep
from app.api.bodies import RequestBody
from app.api.jobs import Job, find_job
from app.api.problems import Problem, responses
from app.api.service import ServiceDep
from app.contract import CHECKPOINTS_DIR, EXPORTS_DIR, UploadSpec
from app.jobs.checkpoints import list_checkpoints
from app.jobs.queue import enqueue_upload, upload_under_way
from app.store import jobs as job_store
from app.store.ids import new_id
from app.store.tables import JobRow
from app.uploads.targets import checked_target

router = APIRouter(tags=["jobs"])


class ExportBody(RequestBody):
    """What to export and where to; `url` names a folder where nothing is yet, below one that the service allows."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"url": "s3://bucket/models/pilot", "source": "final"}]})

    url: str = Field(min_length=1, max_length=1000)
    source: Literal["final", "base"] | Annotated[str, Field(pattern=r"^tokens-[0-9]+$")] = Field(
        default="final", description="the trained model, the base as it was grown, or the name of a checkpoint"
    )


@router.post(
    "/jobs/{job_id}/export", summary="Export a run or a checkpoint", status_code=202, responses=responses(404, 409, 422)
)
def post_export(job_id: str, body: Annotated[ExportBody, Body()], service: ServiceDep, caller: CallerDep) -> Job:
    """Start an export; the answer is its job. `growthlaw-export.json` at the URL says that it is whole."""
    job = find_job(service, job_id)
    caller.check_may_touch(job.owner, f"job {job_id}")
    source = _source(job, body.source)
    url = checked_target(body.url, service.settings.allowed_export_urls)
    other = upload_under_way(service.database, url)
    if other is not None:
        raise Problem.field("/url", f"url is {url!r}, which job {other} exports to already; choose another", status=409)
    assert job.run_id is not None
    spec = UploadSpec(
        run_id=new_id("job"), name=job.name, source_run_id=job.run_id, source=source,
        source_dir=str(Path(job.run_dir) / source), url=url, allowed_urls=service.settings.allowed_export_urls,
    )  # fmt: skip
    row = enqueue_upload(service.database, service.settings.runs_dir, spec, of_job=job.id, owner=caller.id)
    return Job.model_validate(row)


def _source(job: JobRow, name: str) -> str:
    """The folder of the run that `name` means.

    Raises:
        Problem: it has none, or it may still change.
    """
    if job.kind != "growth":
        raise Problem(409, f"job {job.id} is no run, so there is nothing to export; name the job of a run")
    run_dir = Path(job.run_dir)
    if name in ("final", "base"):
        if not (run_dir / EXPORTS_DIR / name).is_dir():
            raise Problem.field(
                "/source", f"job {job.id} is {job.state} and has no {name!r} weights (a run writes 'base' as it grows and "
                "'final' as it ends); wait for them, or export a checkpoint", status=409,
            )  # fmt: skip
        return f"{EXPORTS_DIR}/{name}"
    found = {checkpoint.name: checkpoint for checkpoint in list_checkpoints(run_dir)}.get(name)
    if found is None or found.problem:
        why = found.problem if found else f"it has {', '.join(one.name for one in list_checkpoints(run_dir)) or 'none'}"
        raise Problem.field(
            "/source", f"checkpoint {name!r} cannot be exported: {why}; list its checkpoints", status=409
        )
    if found.keep != "always" and job.state not in (*job_store.ENDED_STATES, "paused"):
        raise Problem.field(
            "/source", f"job {job.id} is {job.state} and may drop checkpoint {name!r} at any time; pause it first",
            status=409,
        )  # fmt: skip
    return f"{CHECKPOINTS_DIR}/{name}"
