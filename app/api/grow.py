"""`POST /grow`: start a growth run, and its controls at equal FLOPs, on the attached workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict, Field

from app.api.access import CallerDep
from app.api.idempotency import IdempotencyKey
from app.api.jobs import Job
from app.api.problems import responses
from app.api.run_bodies import (
    GrowthBody,
    StartBody,
    TargetModelBody,
    TrainingBody,
    below,
    checkpoint_every_tokens,
    evaluation_spec,
    growth_spec,
    model_spec,
    pointing_at,
)
from app.api.service import Service, ServiceDep
from app.api.starting import epoch_warnings, start_runs, started_before
from app.contract import Spec, TrainingSpec
from app.corpus.shards import Manifest
from app.jobs.design import GrowthDesign, arm_spec, check_corpus, total_flops, total_tokens
from app.store.ids import new_id
from app.store.tables import JobRow

router = APIRouter(tags=["jobs"])


class GrowBody(StartBody, GrowthBody):
    """A growth design: grow a base of `num_layers / growth_factor` layers after `growth_timing_tokens`.

    Give one of `growth_factor`, `num_base_layers` (any number below the target's: the partial stack) and `width_factor`
    (the base is that much narrower and as deep). `token_budget` is what the target would see from scratch; it fixes the
    FLOPs that each arm gets.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "pilot", "cohort": "demo", "corpus": "demo", "growth_factor": 4,
                    "growth_timing_tokens": 1_200_000, "token_budget": 2_000_000, "controls": ["scratch", "base_only"],
                    "target_model": {
                        "num_layers": 8, "hidden_size": 64, "num_heads": 2, "intermediate_size": 176,
                        "context_length": 128,
                    },
                    "training": {"peak_lr": 4e-3, "warmup_tokens": 50_000},
                }
            ]
        },
    )  # fmt: skip

    target_model: TargetModelBody
    token_budget: int = Field(gt=0, le=10**15, description="tokens a from-scratch run of the target would get")
    controls: list[Literal["scratch", "base_only"]] = Field(
        default=[], max_length=2, description="runs to compare with at equal FLOPs"
    )
    training: TrainingBody


class Arm(BaseModel):
    """One run of a design and what it will cost."""

    role: Literal["grown", "scratch", "base_only"]
    job: Job
    compute_flops: float
    tokens: int = Field(description="tokens read, all phases together")


class Growth(BaseModel):
    group_id: str
    budget_flops: float
    arms: list[Arm]
    warnings: list[str]


def _design(body: GrowBody, service: Service, manifest: Manifest) -> GrowthDesign:
    target = model_spec(body.target_model, manifest, "/target_model")
    growth = growth_spec(body, target, "")
    with pointing_at(below("/training")):
        training = TrainingSpec(**body.training.model_dump(), tokens=body.token_budget)
    return GrowthDesign(
        name=body.name,
        cohort=body.cohort,
        corpus=body.corpus,
        corpus_dir=str((service.settings.corpora_dir / body.corpus).resolve()),
        target_model=target,
        growth=growth,
        token_budget=body.token_budget,
        training=training,
        evaluation=evaluation_spec(body, body.token_budget),
        init_seed=body.init_seed,
        data_seed=body.data_seed,
        device=body.device,
        precision=body.precision,
        checkpoint_every_tokens=checkpoint_every_tokens(body, body.token_budget),
        num_processes=body.num_processes,
        min_processes=body.min_processes,
    )


@router.post(
    "/grow", summary="Start a growth run and its controls", status_code=202, responses=responses(409, 422, 507)
)
def post_grow(
    body: Annotated[GrowBody, Body()], service: ServiceDep, caller: CallerDep, idempotency_key: IdempotencyKey
) -> Growth:
    """Queues the grown run and the controls asked for, at equal FLOPs, as one group."""
    manifest = service.manifest(body.corpus)
    design = _design(body, service, manifest)
    roles = ["grown", *dict.fromkeys(body.controls)]
    with pointing_at(below("")):
        specs = {role: arm_spec(design, role, new_id("run")) for role in roles}
        for spec in specs.values():
            check_corpus(spec, manifest)
    rows = started_before(service, body, idempotency_key) or start_runs(
        service, specs, manifest, body, idempotency_key, caller
    )
    return _answer(design, specs, rows, manifest)


def _answer(design: GrowthDesign, specs: Mapping[str, Spec], rows: Mapping[str, JobRow], manifest: Manifest) -> Growth:
    (group_id,) = {row.group_id for row in rows.values()}
    assert group_id is not None
    arms = [
        Arm(
            role=role,
            job=Job.model_validate(rows[role]),
            compute_flops=total_flops(spec),
            tokens=total_tokens(spec),
        )
        for role, spec in specs.items()
        if role in rows
    ]
    return Growth(
        group_id=group_id,
        budget_flops=design.budget_flops,
        arms=arms,
        warnings=epoch_warnings(specs.values(), manifest),
    )
