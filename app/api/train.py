"""`POST /jobs`: start one run of the engine: a single size, a growth run, a trunk, or a decay leg off a trunk.

`POST /grow` makes a design with its controls; this starts exactly the run it is told. Lengths are cut to whole batches.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from fastapi import APIRouter, Body
from pydantic import ConfigDict, Field
from sqlalchemy.orm import Session

from app.api.access import CallerDep
from app.api.bodies import RequestBody
from app.api.idempotency import IdempotencyKey
from app.api.jobs import Job
from app.api.problems import Problem, responses
from app.api.run_bodies import (
    GrowthBody,
    OptimizationBody,
    StartBody,
    TargetModelBody,
    below,
    checkpoint_every_tokens,
    evaluation_spec,
    growth_spec,
    model_spec,
    pointing_at,
)
from app.api.service import Service, ServiceDep
from app.api.starting import epoch_warnings, start_runs, started_before
from app.contract import Spec, TrainingSpec, TrunkSpec, check_leg
from app.corpus.shards import Manifest
from app.jobs.design import check_corpus, in_whole_batches, total_flops, total_tokens
from app.jobs.headers import never_decays
from app.records import from_dict
from app.store import jobs as job_store
from app.store import runs as run_store
from app.store.ids import new_id
from app.store.tables import JobRow, RunRow
from fitting.cells import equal_compute
from fitting.flops import non_embedding_params

router = APIRouter(tags=["jobs"])

# What `app.store.ids` makes. A run's directory is looked up, never put together from what a body says.
RUN_ID_PATTERN = r"^run_[0-9a-z]{26}$"
RunId = Annotated[str, Field(pattern=RUN_ID_PATTERN)]
Tokens = Annotated[int, Field(gt=0, le=10**15)]
# Fields of a spec, or of its checks, that a body names otherwise; all others stand where the spec has them.
_PLACES = {"evaluation.num_windows": "num_validation_windows", "batch_sequences": "training.batch_sequences"}


class RunTrainingBody(OptimizationBody):
    """How the run is trained. On `constant` it is a trunk and no more; `decay_fraction` and `final_lr_fraction` are then
    its legs'."""

    tokens: Tokens = Field(description="of the last phase: grown tokens where the run grows, else all of them")
    schedule: Literal["wsd", "cosine", "power", "constant"] = "wsd"


class TrunkBody(RequestBody):
    """A decay leg: the run goes on from a checkpoint that the trunk `run_id` kept, as if the two had been one."""

    run_id: RunId
    branch_tokens: Tokens = Field(description="tokens of the last phase at which the leg leaves")


class TrainBody(StartBody):
    """One run.

    A trunk keeps checkpoints at `keep_checkpoints_at_tokens`, where legs may leave it: all along on `constant`, before
    its own decay on `wsd` or `power`. A leg repeats its trunk's model, growth, training and seeds; its `training.tokens`
    count from the start of the last phase, and it decays over the last `decay_fraction` of them.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "trunk", "cohort": "grid", "corpus": "demo",
                    "model": {
                        "num_layers": 8, "hidden_size": 64, "num_heads": 2, "intermediate_size": 176,
                        "context_length": 128,
                    },
                    "growth": {"growth_factor": 4, "growth_timing_tokens": 204_800},
                    "training": {"tokens": 3_276_800, "peak_lr": 4e-3, "warmup_tokens": 51_200, "schedule": "constant"},
                    "keep_checkpoints_at_tokens": [819_200, 1_638_400, 3_276_800],
                }
            ]
        },
    )  # fmt: skip

    model: TargetModelBody
    growth: GrowthBody | None = None
    training: RunTrainingBody
    keep_checkpoints_at_tokens: list[Tokens] = Field(default=[], max_length=1000, description="of the last phase")
    trunk: TrunkBody | None = None
    control_run_id: RunId | None = Field(
        default=None, description="the run of this cohort that it is compared with at equal FLOPs"
    )


class StartedJob(Job):
    """The job, and what its run will cost; a leg's FLOPs and tokens are those of the undivided run it equals."""

    compute_flops: float
    tokens: int = Field(description="tokens read, all phases together")
    warnings: list[str]


@router.post("/jobs", summary="Start one run", status_code=202, responses=responses(409, 422, 507))
def post_job(
    body: Annotated[TrainBody, Body()], service: ServiceDep, caller: CallerDep, idempotency_key: IdempotencyKey
) -> StartedJob:
    """A single size, a growth run, a trunk at constant rate, or a decay leg that leaves a trunk."""
    manifest = service.manifest(body.corpus)
    rows = started_before(service, body, idempotency_key)
    if not rows:
        spec = _spec(body, service, manifest)
        rows = start_runs(
            service, {_role(spec): spec}, manifest, body, idempotency_key, caller, control_run_id=body.control_run_id
        )
    (row,) = rows.values()
    return _answer(row, service, manifest)


def _spec(body: TrainBody, service: Service, manifest: Manifest) -> Spec:
    model = model_spec(body.model, manifest, "/model")
    growth = growth_spec(body.growth, model, "/growth") if body.growth is not None else None
    with pointing_at(below("/training")):
        training = TrainingSpec(**body.training.model_dump())
    trunk, trunk_of = None, None
    with service.database.read() as session:
        if body.control_run_id is not None:
            _known_run(session, body.control_run_id, body.cohort, "/control_run_id")
        if body.trunk is not None:
            trunk, trunk_of = _trunk(session, body.trunk, body.cohort)
    evaluation = evaluation_spec(body, training.tokens)
    with pointing_at(_place_in_body):
        spec = Spec(
            run_id=new_id("run"),
            name=body.name,
            cohort=body.cohort,
            corpus=body.corpus,
            corpus_dir=str((service.settings.corpora_dir / body.corpus).resolve()),
            model=model,
            training=training,
            evaluation=evaluation,
            growth=growth,
            trunk=trunk,
            keep_checkpoints_at_tokens=tuple(body.keep_checkpoints_at_tokens),
            init_seed=body.init_seed,
            data_seed=body.data_seed,
            device=body.device,
            precision=body.precision,
            checkpoint_every_tokens=checkpoint_every_tokens(body, training.tokens),
            num_processes=body.num_processes,
            min_processes=body.min_processes,
        )
        spec = in_whole_batches(spec)
        if trunk_of is not None:
            check_leg(spec, trunk_of)
        check_corpus(spec, manifest)
    if spec.trunk is not None and trunk_of is not None:
        _check_branch(spec, spec.trunk, trunk_of)
    return spec


def _place_in_body(field: str) -> str:
    return "/" + _PLACES.get(field, field).replace(".", "/")


def _role(spec: Spec) -> str:
    if spec.trunk is not None:
        return "leg"
    if never_decays(spec) or spec.keep_checkpoints_at_tokens:
        return "trunk"
    return "grown" if spec.growth is not None else "single"


def _known_run(session: Session, run_id: str, cohort: str, pointer: str) -> RunRow:
    run = run_store.get_run(session, run_id)
    if run is None:
        raise Problem.field(pointer, f"there is no run {run_id!r}; GET /runs?cohort={cohort} lists those there are")
    if run.cohort != cohort:
        raise Problem.field(
            pointer,
            f"run {run_id} belongs to cohort {run.cohort!r}, but this run to {cohort!r}, and losses are compared only "
            f"within one; give a run of {cohort!r}, or this run the cohort {run.cohort!r}",
        )
    return run


def _trunk(session: Session, asked: TrunkBody, cohort: str) -> tuple[TrunkSpec, Spec]:
    """Where the leg starts, and the trunk's own spec."""
    run = _known_run(session, asked.run_id, cohort, "/trunk/run_id")
    job = job_store.job_of_run(session, run.run_id)
    if job is None:
        raise Problem.field(
            "/trunk/run_id",
            f"run {run.run_id} was not trained by this service, which has no checkpoint of it; train a trunk here",
        )
    if run.status == "running":
        raise Problem.field(
            "/trunk/run_id",
            f"run {run.run_id} has not finished (its job {job.id} is {job.state}); start the leg when it has: "
            f"GET /jobs/{job.id}/events tells",
            status=409,
        )
    if run.status != "finished":
        raise Problem.field(
            "/trunk/run_id", f"run {run.run_id} has {run.status} ({run.reason}); train another trunk", status=409
        )
    if run.parent_run_id is not None:
        raise Problem.field(
            "/trunk/run_id", f"run {run.run_id} is itself a leg; leave its trunk {run.parent_run_id} instead"
        )
    trunk = TrunkSpec(trunk_run_dir=job.run_dir, trunk_id=run.run_id, branch_tokens=asked.branch_tokens)
    return trunk, from_dict(Spec, json.loads(job.spec))


def _check_branch(leg: Spec, asked: TrunkSpec, trunk: Spec) -> None:
    kept = trunk.keep_checkpoints_at_tokens
    if asked.branch_tokens not in kept:
        known = ", ".join(f"{tokens:,}" for tokens in kept) or "no"
        raise Problem.field(
            "/trunk/branch_tokens",
            f"branch_tokens is {asked.branch_tokens:,} (in whole batches), but run {trunk.run_id} kept checkpoints at "
            f"{known} tokens of its last phase; use one of these, or train a trunk with keep_checkpoints_at_tokens",
        )
    if leg.keep_checkpoints_at_tokens:
        raise Problem.field(
            "/keep_checkpoints_at_tokens",
            "no leg can leave a leg; keep the checkpoints on the trunk, or leave them out",
        )


def _answer(row: JobRow, service: Service, manifest: Manifest) -> StartedJob:
    spec = from_dict(Spec, json.loads(row.spec))
    warnings = epoch_warnings([spec], manifest)
    if never_decays(spec) and not spec.keep_checkpoints_at_tokens:
        warnings.append(
            f"{spec.name} never decays and keeps no checkpoint: it has no final loss, and no leg can leave it"
        )
    if row.control_run_id is not None:
        with service.database.read() as session:
            control = run_store.get_run(session, row.control_run_id)
        if control is not None:
            warnings += _control_warnings(spec, control)
    return StartedJob(
        **Job.model_validate(row).model_dump(),
        compute_flops=total_flops(spec),
        tokens=total_tokens(spec),
        warnings=warnings,
    )


def _control_warnings(spec: Spec, control: RunRow) -> list[str]:
    """Why no pair can be made of a run and its control, where that is plain before they have run."""
    why = []
    if control.growth_factor > 1:
        why.append("is a grown run itself")
    if control.target_params != non_embedding_params(spec.model):
        why.append("is of another size")
    if control.schedule == "constant":
        why.append("never decays, so its loss is no final one")
    flops = (control.planned_tokens or 0) * (control.target_flops_per_token or 0)
    if control.growth_factor == 1 and not equal_compute(flops, total_flops(spec)):
        why.append(f"plans {flops:.4g} FLOPs against this run's {total_flops(spec):.4g}")
    return [f"the control {control.run_id} {', '.join(why)}: the two make no pair at equal FLOPs"] if why else []
