"""The training plan of one growth: what any trainer must be told, in whole steps. `plan.json` is this, as JSON.

    lr(k) = P k / w                                             0 < k <= w                    warm-up
    lr(k) = P                                                   w < k <= w + h                hold
    lr(k) = r + (P - r) (1 - x)                                 the last e steps, wsd         x = (k - w - h) / e
    lr(k) = r + (P - r) (1 + cos(pi x)) / 2                     the last e steps, cosine      w + h + e = T

======  ==================================================================  ============
symbol  meaning                                                             unit
======  ==================================================================  ============
k, T    step of the stage, counted from 1; steps of the stage               steps
w, h, e steps of warm-up, hold, decay                                       steps
P, r    peak and final learning rate                                        -
======  ==================================================================  ============

It is :class:`app.engine.schedule.Schedule` with lengths in whole steps of one batch. Offsets count sequences of one context
length over the whole run: the first sequence of stage two is the one after the last of stage one.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from app.contract.specs import Family, Operator
from app.records import from_dict, to_dict
from fitting.errors import InputError

PLAN_VERSION = 1
Trainer = Literal["torchtitan", "megatron", "transformers"]
StageName = Literal["base", "grown"]


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """A dense decoder of the Llama family, in the project's own words."""

    family: Family
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int
    context_length: int
    tie_embeddings: bool
    rope_theta: float
    norm_epsilon: float

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, kw_only=True)
class StageSchedule:
    """The learning rate of one stage: warm-up, hold, decay, in steps and in tokens."""

    kind: Literal["constant", "wsd", "cosine"]
    peak_lr: float
    final_lr: float
    warmup_steps: int
    hold_steps: int
    decay_steps: int
    warmup_tokens: int
    hold_tokens: int
    decay_tokens: int

    def learning_rate(self, step: int) -> float:
        """Rate of step ``step`` (1 is the first)."""
        if step <= self.warmup_steps:
            return self.peak_lr * step / self.warmup_steps
        decayed = step - self.warmup_steps - self.hold_steps
        if decayed <= 0:
            return self.peak_lr
        share = decayed / self.decay_steps
        left = 1 - share if self.kind == "wsd" else (1 + math.cos(math.pi * share)) / 2
        return self.final_lr + (self.peak_lr - self.final_lr) * left


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW with decoupled weight decay on matrices, after clipping to a global norm."""

    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float
    gradient_clip: float


@dataclass(frozen=True, kw_only=True)
class DataOffset:
    """Where a stage starts to read. ``steps`` are in the stage's own batch and may be broken."""

    sequences: int
    tokens: int
    steps: float


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One uninterrupted stretch of training: the base, or the grown target.

    Attributes:
        compute_flops: of this stage alone.
        start_checkpoint: what it starts from, relative to the plan's folder; None is random weights.
        checkpoint_dir, run_log: where the trainer writes, relative to the plan's folder.
    """

    name: StageName
    model: ModelArguments
    batch_sequences: int
    batch_tokens: int
    num_steps: int
    num_tokens: int
    flops_per_token: float
    compute_flops: float
    data_offset: DataOffset
    schedule: StageSchedule
    optimizer: Optimizer
    start_checkpoint: str | None
    checkpoint_dir: str
    run_log: str


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of the growth step, run in the plan's folder."""

    what: str
    run: str


@dataclass(frozen=True, kw_only=True)
class GrowthStep:
    """How the base becomes the target, between the stages.

    Attributes:
        source, target: transformers folders of safetensors, relative to the plan's folder.
        commands: the trainer's checkpoint to ``source``, the growth, its proof, ``target`` to the trainer's format.
        conversion: what of the conversion was run where this was written, and what was not.
    """

    direction: Literal["depth", "width"]
    num_base_layers: int
    num_target_layers: int
    width_factor: int
    order: str
    operator: Operator
    noise: float
    operator_seed: int
    optimizer_state: Literal["reset"]
    source: str
    target: str
    commands: tuple[Command, ...]
    conversion: str


@dataclass(frozen=True, kw_only=True)
class DecisionPoint:
    """When to look at what. Losses are given where the recommendation has them.

    Attributes:
        step, tokens: of the stage, once seen.
        run_tokens, compute_flops: of the whole run, base included.
    """

    stage: StageName
    step: int
    tokens: int
    run_tokens: int
    compute_flops: float
    what: str
    expected_loss_nats: float | None = None
    expected_band: tuple[float, float] | None = None
    stop_above_nats: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Both stages and the growth between them.

    Attributes:
        trainer_version: what the files beside were written for.
        source: what asked for this plan.
        rounding: every length that whole batches or steps have moved, as a sentence.
        notes: what else departs from the question, or that the trainer does in another way.
    """

    version: int = PLAN_VERSION
    trainer: Trainer
    trainer_version: str
    source: str
    base: Stage
    grown: Stage
    growth: GrowthStep
    decision_points: tuple[DecisionPoint, ...]
    total_tokens: int
    total_compute_flops: float
    rounding: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def stages(self) -> tuple[Stage, Stage]:
        return self.base, self.grown

    def to_json(self) -> str:
        return json.dumps(to_dict(self), indent=1, allow_nan=False) + "\n"


def plan_from_json(text: str) -> TrainingPlan:
    """A plan as :meth:`TrainingPlan.to_json` wrote it.

    Raises:
        InputError: another version wrote it.
        ValueError: a field is unknown, missing or of the wrong type.
    """
    values: Any = json.loads(text)
    version = values.get("version") if isinstance(values, dict) else None
    if version != PLAN_VERSION:
        raise InputError(
            "version",
            f"is {version!r}, but this program reads plans of version {PLAN_VERSION}",
            "export the plan again",
        )
    return from_dict(TrainingPlan, values)
