"""What the bodies of `POST /grow` and `POST /jobs` share, and the parts of a spec that they become."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

from pydantic import Field

from app.api.bodies import RequestBody
from app.api.problems import Problem
from app.contract import NAME_PATTERN, EvaluationSpec, GrowthSpec, ModelSpec, SpecError
from app.contract.specs import LearningRatePolicy, Operator, OptimizerStatePolicy
from app.corpus.shards import Manifest
from app.jobs.launchers.base import EngineName
from fitting.errors import InputError

# The ways to say what the base is, of which a body names one.
WAYS = ("growth_factor", "num_base_layers", "width_factor")


class TargetModelBody(RequestBody):
    """The target's shape (Llama family); its vocabulary is the corpus's."""

    num_layers: int = Field(ge=1, le=1000)
    hidden_size: int = Field(ge=2, le=65_536)
    num_heads: int = Field(ge=1, le=1024)
    num_kv_heads: int | None = Field(default=None, ge=1, le=1024, description="num_heads where left out")
    intermediate_size: int = Field(ge=1, le=1_000_000)
    context_length: int = Field(ge=2, le=1_000_000)
    tie_embeddings: bool = False


class OptimizationBody(RequestBody):
    """How a run is optimized, but for its schedule."""

    peak_lr: float = Field(gt=0, le=10, allow_inf_nan=False)
    base_peak_lr: float | None = Field(default=None, gt=0, le=10, allow_inf_nan=False)
    batch_sequences: int = Field(default=8, ge=1, le=1_000_000)
    base_batch_sequences: int | None = Field(
        default=None, ge=1, le=1_000_000, description="of the base phase; batch_sequences where left out"
    )
    power_amplitude: float = Field(default=4.0, gt=0, le=1e9, allow_inf_nan=False)
    power_exponent: float = Field(default=-0.51, ge=-2, le=0)
    warmup_tokens: int = Field(default=0, ge=0, le=10**15)
    decay_fraction: float = Field(default=0.2, ge=0, le=1)
    final_lr_fraction: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.1, ge=0, le=10, allow_inf_nan=False)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    gradient_clip: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)


class TrainingBody(OptimizationBody):
    """How every arm is trained; lengths are tokens. `base_peak_lr` is the base phase's, `peak_lr` where left out."""

    schedule: Literal["wsd", "cosine", "power"] = "wsd"


class GrowthBody(RequestBody):
    """How the base grows. Give one of `growth_factor`, `num_base_layers` (any number below the target's: the partial
    stack) and `width_factor` (the base is that much narrower and as deep)."""

    growth_factor: float | None = Field(
        default=None, gt=1, le=1000, description="target layers / base layers; must give whole layers"
    )
    num_base_layers: int | None = Field(default=None, ge=1, le=1000, description="layers of the base")
    width_factor: int | None = Field(default=None, ge=2, le=64, description="target width / base width")
    growth_timing_tokens: int = Field(gt=0, le=10**15, description="tokens the base sees before it is grown")
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


class StartBody(RequestBody):
    """What every start of runs says of where they belong, how they are watched and where they run."""

    name: str = Field(default="growth", pattern=NAME_PATTERN)
    cohort: str = Field(default="default", pattern=NAME_PATTERN)
    corpus: str = Field(pattern=NAME_PATTERN)
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
    engine: EngineName = Field(default="local", description="what runs it; GET /workers lists what there is")
    num_processes: int = Field(
        default=1, ge=1, le=65_536, description="processes that share the model, each with a GPU or CPU slot"
    )
    min_processes: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="fewest that the run may go on with where the ray engine lost a node; it waits for all where left out",
    )
    num_nodes: int = Field(default=1, ge=1, le=65_536, description="machines that the processes are spread over")
    recommendation_id: str | None = Field(
        default=None,
        pattern=r"^rec_[0-9a-z]{26}$",
        description="the answer that this follows; it is kept with the jobs",
    )


@contextlib.contextmanager
def pointing_at(place: Callable[[str], str]) -> Iterator[None]:
    """A spec's error becomes a problem at ``place(field)`` of the body."""
    try:
        yield
    except (SpecError, InputError) as error:
        raise Problem.field(place(error.field), str(error)) from None


def below(pointer: str) -> Callable[[str], str]:
    """The last name of a field, below ``pointer``."""
    return lambda field: f"{pointer}/{field.rsplit('.')[-1]}"


def model_spec(body: TargetModelBody, manifest: Manifest, pointer: str) -> ModelSpec:
    with pointing_at(below(pointer)):
        shape = body.model_dump()
        shape["num_kv_heads"] = shape["num_kv_heads"] or shape["num_heads"]
        return ModelSpec(**shape, vocab_size=manifest.vocab_size)


def growth_spec(body: GrowthBody, target: ModelSpec, pointer: str) -> GrowthSpec:
    num_base_layers = _num_base_layers(body, target.num_layers, pointer)
    others = GrowthBody.model_fields.keys() - set(WAYS)
    with pointing_at(below(pointer)):
        growth = GrowthSpec(
            num_base_layers=num_base_layers, width_factor=body.width_factor or 1, **body.model_dump(include=others)
        )
        growth.base_model(target)
    return growth


def evaluation_spec(body: StartBody, budget_tokens: int, pointer: str = "") -> EvaluationSpec:
    with pointing_at(below(pointer)):
        return EvaluationSpec(
            every_tokens=body.evaluation_every_tokens or max(1, budget_tokens // 40),
            num_windows=body.num_validation_windows,
        )


def checkpoint_every_tokens(body: StartBody, budget_tokens: int) -> int:
    return body.checkpoint_every_tokens or max(1, budget_tokens // 10)


def _num_base_layers(body: GrowthBody, num_layers: int, pointer: str) -> int:
    given = [field for field in WAYS if getattr(body, field) is not None]
    if len(given) != 1:
        raise Problem.field(
            f"{pointer}/growth_factor" if not given else f"{pointer}/{given[1]}",
            f"exactly one of {', '.join(WAYS)} says what the base is, but {', '.join(given) or 'none'} was given; give one",
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
            f"{pointer}/growth_factor",
            f"growth_factor is {body.growth_factor!r}, but {num_layers} layers / growth_factor must be a whole number of "
            "base layers below the target's; "
            + (f"use one of {factors}, or give num_base_layers" if factors else "use a target of several layers"),
        )
    return num_base_layers
