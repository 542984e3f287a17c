"""`GET /jobs/{id}/prediction`: what the cohort's guideline says of a job's run without having seen it."""

from __future__ import annotations

import json
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from app.api.jobs import find_job
from app.api.problems import responses
from app.api.service import ServiceDep
from app.contract import Spec
from app.jobs.design import total_flops
from app.jobs.headers import never_decays
from app.records import from_dict
from app.store import guidelines as guideline_store
from app.store.tables import JobRow
from fitting.flops import flops_per_token, non_embedding_params
from fitting.guideline import Guideline
from fitting.prequential.predicting import Forecast, forecast_grown_loss, forecast_loss

router = APIRouter(tags=["jobs"])


class Band(BaseModel):
    """A loss with its 80% interval, in nats."""

    model_config = ConfigDict(from_attributes=True)

    nats: float
    low_nats: float
    high_nats: float


class Prediction(BaseModel):
    """The final loss that a job's run is expected to have; null where nothing is said, and `reason` says why."""

    job_id: str
    final_loss: Band | None
    guideline_id: str | None = Field(description="the version that says so")
    guideline_version: int | None
    made: Literal["before the run", "while it runs"] | None = Field(
        description="whether that version was fitted before the job was made"
    )
    reason: str


@router.get("/jobs/{job_id}/prediction", summary="The final loss expected of a job's run", responses=responses(404))
def get_prediction(job_id: str, service: ServiceDep) -> Prediction:
    """By the last version of its cohort's guideline that was fitted before the job was made; where there was none, by the one
    that answers now, if it has not seen the run."""
    job = find_job(service, job_id)
    if job.kind != "growth" or job.cohort is None:
        return _nothing(job, f"job {job.id} trains no run")
    spec = from_dict(Spec, json.loads(job.spec))
    if never_decays(spec):
        return _nothing(job, "its schedule never decays, so its last loss is no final one")
    with service.database.read() as session:
        before = guideline_store.newest_before(session, job.cohort, job.created_at)
        row = before or guideline_store.active_guideline(session, job.cohort)
    guideline = None if row is None else service.guideline(row.id)
    if row is None or guideline is None:
        return _nothing(job, f"cohort {job.cohort!r} has no guideline yet")
    if job.run_id in guideline.run_ids:
        return _nothing(job, f"there was no guideline before version {row.version}, which was fitted to this very run")
    found = _forecast(guideline, spec)
    return Prediction(
        job_id=job.id,
        final_loss=None if found is None else Band.model_validate(found),
        guideline_id=row.id,
        guideline_version=row.version,
        made="while it runs" if before is None else "before the run",
        reason=_why_not(guideline, row.version) if found is None else "",
    )


def _forecast(guideline: Guideline, spec: Spec) -> Forecast | None:
    params, tokens, compute = float(non_embedding_params(spec.model)), float(spec.training.tokens), total_flops(spec)
    base, growth = spec.base_model, spec.growth
    if growth is None or base is None:
        return forecast_loss(guideline, params, tokens, compute)
    base_params = float(non_embedding_params(base))
    in_depth = growth.direction == "depth"
    return forecast_grown_loss(
        guideline,
        params=params,
        base_params=base_params,
        growth_factor=spec.model.num_layers / growth.num_base_layers if in_depth else params / base_params,
        timing_tokens=float(growth.growth_timing_tokens),
        grown_tokens=tokens,
        scratch_tokens=compute / flops_per_token(spec.model),
        compute_flops=compute,
    )


def _why_not(guideline: Guideline, version: int) -> str:
    if not guideline.laws:
        return f"version {version} rests on {guideline.num_runs} run(s), too few for laws that give a loss"
    return f"the run lies too far from what version {version} knows"


def _nothing(job: JobRow, reason: str) -> Prediction:
    return Prediction(
        job_id=job.id, final_loss=None, guideline_id=None, guideline_version=None, made=None, reason=reason
    )
