"""`POST /grow`: start a growth run, and its controls at equal FLOPs, on the attached workers."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Header
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import IntegrityError

from app.api.jobs import Job
from app.api.problems import Problem, responses
from app.api.service import Service, ServiceDep
from app.contract import NAME_PATTERN, EvaluationSpec, GrowthSpec, ModelSpec, Spec, SpecError, TrainingSpec
from app.contract.specs import LearningRatePolicy, Operator, OptimizerStatePolicy
from app.corpus.shards import Manifest
from app.jobs.design import GrowthDesign, arm_spec, check_corpus, total_flops, total_tokens
from app.jobs.queue import CohortMismatch, enqueue_arms
from app.store import jobs as job_store
from app.store.ids import new_id
from fitting.flops import non_embedding_params

router = APIRouter(tags=["jobs"])

# fp32 weights with two moments, twice (two checkpoints are kept), and two exports of the weights.
BYTES_A_PARAMETER = 4 * 3 * 2 + 4 * 2
BYTES_OF_LOGS = 50_000_000
# Fields of the body that go into the spec's growth as they are.
GROWTH_FIELDS = (
    "growth_timing_tokens", "order", "operator", "noise", "operator_seed", "mask_tokens", "learn_steps",
    "optimizer_state_policy", "learning_rate_policy", "rewarm_tokens",
)  # fmt: skip


class TargetModelBody(BaseModel):
    """The target's shape (Llama family); its vocabulary is the corpus's."""

    model_config = ConfigDict(extra="forbid")

    num_layers: int = Field(ge=1, le=1000)
    hidden_size: int = Field(ge=2, le=65_536)
    num_heads: int = Field(ge=1, le=1024)
    num_kv_heads: int | None = Field(default=None, ge=1, le=1024, description="num_heads where left out")
    intermediate_size: int = Field(ge=1, le=1_000_000)
    context_length: int = Field(ge=2, le=1_000_000)
    tie_embeddings: bool = False


class TrainingBody(BaseModel):
    """How every arm is trained; lengths are tokens. `base_peak_lr` is the base phase's, `peak_lr` where left out."""

    model_config = ConfigDict(extra="forbid")

    peak_lr: float = Field(gt=0, le=10, allow_inf_nan=False)
    base_peak_lr: float | None = Field(default=None, gt=0, le=10, allow_inf_nan=False)
    batch_sequences: int = Field(default=8, ge=1, le=1_000_000)
    base_batch_sequences: int | None = Field(
        default=None, ge=1, le=1_000_000, description="of the base phase; batch_sequences where left out"
    )
    schedule: Literal["wsd", "cosine", "power"] = "wsd"
    power_amplitude: float = Field(default=4.0, gt=0, le=1e9, allow_inf_nan=False)
    power_exponent: float = Field(default=-0.51, ge=-2, le=0)
    warmup_tokens: int = Field(default=0, ge=0, le=10**15)
    decay_fraction: float = Field(default=0.2, ge=0, le=1)
    final_lr_fraction: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.1, ge=0, le=10, allow_inf_nan=False)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    gradient_clip: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)


class GrowBody(BaseModel):
    """A growth design: grow a base of `num_layers / growth_factor` layers after `growth_timing_tokens`.

    Give one of `growth_factor`, `num_base_layers` (any number below the target's: the partial stack) and `width_factor`
    (the base is that much narrower and as deep). `token_budget` is what the target would see from scratch; it fixes the
    FLOPs that each arm gets.
    """

    model_config = ConfigDict(
        extra="forbid",
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

    name: str = Field(default="growth", pattern=NAME_PATTERN)
    cohort: str = Field(default="default", pattern=NAME_PATTERN)
    corpus: str = Field(pattern=NAME_PATTERN)
    target_model: TargetModelBody
    growth_factor: float | None = Field(
        default=None, gt=1, le=1000, description="target layers / base layers; must give whole layers"
    )
    num_base_layers: int | None = Field(default=None, ge=1, le=1000, description="layers of the base")
    width_factor: int | None = Field(default=None, ge=2, le=64, description="target width / base width")
    growth_timing_tokens: int = Field(gt=0, le=10**15, description="tokens the base sees before it is grown")
    token_budget: int = Field(gt=0, le=10**15, description="tokens a from-scratch run of the target would get")
    controls: list[Literal["scratch", "base_only"]] = Field(
        default=[], max_length=2, description="runs to compare with at equal FLOPs"
    )
    order: str = Field(
        default="stack",
        max_length=10_000,
        description="stack, interpose, middle:A:B, solar:M, list:0,1,... or a pattern such as 12-3456*5-56",
    )
    operator: Operator = Field(default="direct", description="how new weights are made")
    noise: float = Field(default=0.0, ge=0, lt=1, description="share of fresh noise mixed into every matrix")
    operator_seed: int = Field(default=0, ge=0, lt=2**31)
    mask_tokens: int | None = Field(
        default=None, gt=0, le=10**15, description="tokens over which `random`'s new branches fade in"
    )
    learn_steps: int | None = Field(default=None, gt=0, le=10**9, description="steps for which `learn` trains its maps")
    optimizer_state_policy: OptimizerStatePolicy = "reset"
    learning_rate_policy: LearningRatePolicy = Field(
        default="rewarm",
        description="at growth: warm up again, rewind to the peak, or keep one schedule over both phases",
    )
    rewarm_tokens: int | None = Field(
        default=None, ge=0, le=10**15, description="of `rewarm`; training.warmup_tokens where left out"
    )
    training: TrainingBody
    evaluation_every_tokens: int | None = Field(
        default=None, gt=0, le=10**15, description="a 40th of the budget where left out"
    )
    num_validation_windows: int = Field(default=64, ge=1, le=100_000)
    checkpoint_every_tokens: int | None = Field(
        default=None, gt=0, le=10**15, description="a 10th of the budget where left out"
    )
    init_seed: int = Field(default=0, ge=0, lt=2**31)
    data_seed: int = Field(default=0, ge=0, lt=2**31)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    priority: int = Field(default=0, ge=-1000, le=1000)


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


@contextlib.contextmanager
def _pointing_at(pointer: str) -> Iterator[None]:
    try:
        yield
    except SpecError as error:
        raise Problem.field(f"{pointer}/{error.field.rsplit('.')[-1]}", str(error)) from None


def _num_base_layers(body: GrowBody) -> int:
    num_layers = body.target_model.num_layers
    ways = {field: getattr(body, field) for field in ("growth_factor", "num_base_layers", "width_factor")}
    given = [field for field, value in ways.items() if value is not None]
    if len(given) != 1:
        raise Problem.field(
            "/growth_factor" if not given else f"/{given[1]}",
            f"exactly one of {', '.join(ways)} says what the base is, but {', '.join(given) or 'none'} was given; give one",
        )
    if body.width_factor is not None:
        return num_layers
    if body.num_base_layers is not None:
        return body.num_base_layers
    assert body.growth_factor is not None
    num_base_layers = round(num_layers / body.growth_factor)
    uneven = abs(num_base_layers * body.growth_factor - num_layers) > 1e-6
    if uneven or not 0 < num_base_layers < num_layers:
        factors = [num_layers // k for k in range(num_layers - 1, 0, -1) if num_layers % k == 0]
        raise Problem.field(
            "/growth_factor",
            f"growth_factor is {body.growth_factor!r}, but {num_layers} layers / growth_factor must be a whole number of "
            "base layers below the target's; "
            + (f"use one of {factors}, or give num_base_layers" if factors else "use a target of several layers"),
        )
    return num_base_layers


def _design(body: GrowBody, service: Service, manifest: Manifest) -> GrowthDesign:
    with _pointing_at("/target_model"):
        shape = body.target_model.model_dump()
        shape["num_kv_heads"] = shape["num_kv_heads"] or shape["num_heads"]
        target = ModelSpec(**shape, vocab_size=manifest.vocab_size)
    with _pointing_at(""):
        growth = GrowthSpec(
            num_base_layers=_num_base_layers(body),
            width_factor=body.width_factor or 1,
            **{field: getattr(body, field) for field in GROWTH_FIELDS},
        )
    with _pointing_at("/training"):
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
        evaluation=EvaluationSpec(
            every_tokens=body.evaluation_every_tokens or max(1, body.token_budget // 40),
            num_windows=body.num_validation_windows,
        ),
        init_seed=body.init_seed,
        data_seed=body.data_seed,
        device=body.device,
        precision=body.precision,
        checkpoint_every_tokens=body.checkpoint_every_tokens or max(1, body.token_budget // 10),
    )


def _check_disk(service: Service, specs: Sequence[Spec]) -> None:
    needed = sum(
        BYTES_A_PARAMETER * (non_embedding_params(spec.model) + 2 * spec.model.vocab_size * spec.model.hidden_size)
        + BYTES_OF_LOGS
        for spec in specs
    )
    free = shutil.disk_usage(service.settings.data_dir).free
    if free < needed:
        raise Problem(
            507,
            f"the data directory {service.settings.data_dir} has {free / 1e9:.2f} GB free, but checkpoints and exports "
            f"of this design need about {needed / 1e9:.2f} GB; free some space or serve another --data-dir",
        )


def _warnings(specs: Sequence[Spec], manifest: Manifest) -> list[str]:
    available = manifest.splits["train"].num_tokens
    return [
        f"{spec.name} reads {total_tokens(spec):,} tokens of a corpus of {available:,}: "
        f"{total_tokens(spec) / available:.1f} epochs, so some text is seen again"
        for spec in specs
        if total_tokens(spec) > available
    ]


def _check_device(body: GrowBody) -> None:
    # The node file is there exactly where a driver is; asking torch would mean importing it.
    if body.device == "cuda" and not Path("/dev/nvidiactl").exists():
        raise Problem.field("/device", "device is 'cuda', but this machine has no NVIDIA device; use 'auto' or 'cpu'")


@router.post("/grow", status_code=202, responses=responses(409, 422, 507))
def post_grow(
    body: Annotated[GrowBody, Body()],
    service: ServiceDep,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=200, description="the same key and body start nothing twice")
    ] = None,
) -> Growth:
    manifest = service.manifest(body.corpus)
    design = _design(body, service, manifest)
    roles = ["grown", *dict.fromkeys(body.controls)]
    with _pointing_at(""):
        specs = {role: arm_spec(design, role, new_id("run")) for role in roles}
    for spec in specs.values():
        check_corpus(spec, manifest)
    request_hash = hashlib.sha256(body.model_dump_json().encode()).hexdigest()
    if known := _known_jobs(service, idempotency_key, request_hash):
        return _answer(design, specs, known, manifest)
    _check_device(body)
    _check_disk(service, list(specs.values()))
    try:
        rows = enqueue_arms(
            service.database,
            service.settings.runs_dir,
            specs,
            manifest,
            priority=body.priority,
            request_key=idempotency_key,
            request_hash=request_hash,
        )
    except CohortMismatch as error:
        raise Problem.field("/cohort", str(error), status=409) from None
    except IntegrityError:
        # The same request arrived twice at once, and the other one was first.
        return _answer(design, specs, _known_jobs(service, idempotency_key, request_hash), manifest)
    return _answer(design, specs, {role: Job.model_validate(row) for role, row in rows.items()}, manifest)


def _known_jobs(service: Service, idempotency_key: str | None, request_hash: str) -> dict[str, Job]:
    """role -> job of an earlier request with the same key and body."""
    if idempotency_key is None:
        return {}
    with service.database.read() as session:
        rows = job_store.find_by_request_key(session, idempotency_key)
    if any(row.request_hash != request_hash for row in rows):
        raise Problem(409, "this Idempotency-Key came with another body before; send the same body, or another key")
    return {row.role: Job.model_validate(row) for row in rows}


def _answer(design: GrowthDesign, specs: dict[str, Spec], jobs: dict[str, Job], manifest: Manifest) -> Growth:
    (group_id,) = {job.group_id for job in jobs.values()}
    assert group_id is not None
    arms = [
        Arm(role=role, job=jobs[role], compute_flops=total_flops(spec), tokens=total_tokens(spec))
        for role, spec in specs.items()
        if role in jobs
    ]
    return Growth(
        group_id=group_id,
        budget_flops=design.budget_flops,
        arms=arms,
        warnings=_warnings(list(specs.values()), manifest),
    )
