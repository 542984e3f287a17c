"""From a spec of the engine to the two stages of a plan, every length in whole steps.

    T_base = floor(d / B_base),   T_grown = floor(D / B),   w = round(w_tokens / B), at least 1,   e = round(f T)

========  ==========================================================  ======
symbol    meaning                                                     unit
========  ==========================================================  ======
d, D      growth timing, grown tokens                                 tokens
B         batch of the stage                                          tokens
w, e      warm-up, decay                                              steps
f         share of the schedule that decays                           -
========  ==========================================================  ======

Steps, offsets and FLOPs are those of :func:`app.engine.plan.plan_phases`, so a plan costs what the engine's own run would.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.contract import ModelSpec, Spec
from app.engine.plan import PhasePlan, plan_phases
from app.export.plan import DataOffset, ModelArguments, Optimizer, Stage, StageName, StageSchedule
from fitting.errors import InputError

BASE_HF = "checkpoints/base-hf"
GROWN_START = "checkpoints/grown-start"
_ADAM_EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)
class ModelDetails:
    """What a spec's model leaves to the engine; the defaults are the engine's own."""

    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5


def stages_of(spec: Spec, details: ModelDetails) -> tuple[Stage, Stage, tuple[str, ...]]:
    """The base stage, the grown stage, and a sentence for each length that whole steps have moved.

    Raises:
        InputError: the design holds what no other trainer can do, or a stage is too short for its schedule.
    """
    _refuse_what_only_the_engine_does(spec)
    base, grown = plan_phases(spec)
    moved: list[str] = []
    stages = tuple(_stage(spec, phase, details, moved) for phase in (base, grown))
    return stages[0], stages[1], tuple(moved)


def _stage(spec: Spec, phase: PhasePlan, details: ModelDetails, moved: list[str]) -> Stage:
    training = spec.training
    name: StageName = "base" if phase.name == "base" else "grown"
    return Stage(
        name=name,
        model=_model(phase.shape, details),
        batch_sequences=phase.batch_sequences,
        batch_tokens=phase.batch_tokens,
        num_steps=phase.num_steps,
        num_tokens=phase.num_tokens,
        flops_per_token=phase.flops_per_token,
        compute_flops=phase.compute_flops(phase.num_steps) - phase.flops_before,
        data_offset=DataOffset(
            sequences=phase.sequences_before,
            tokens=phase.sequences_before * phase.shape.context_length,
            steps=phase.sequences_before / phase.batch_sequences,
        ),
        schedule=_schedule(phase, name, moved),
        optimizer=Optimizer(
            weight_decay=training.weight_decay,
            beta1=training.beta1,
            beta2=training.beta2,
            epsilon=_ADAM_EPSILON,
            gradient_clip=training.gradient_clip,
        ),
        start_checkpoint=None if name == "base" else GROWN_START,
        checkpoint_dir=f"checkpoints/{name}",
        run_log=f"logs/{name}",
    )


def _schedule(phase: PhasePlan, name: StageName, moved: list[str]) -> StageSchedule:
    engine, T, B = phase.schedule, phase.num_steps, phase.batch_tokens
    before = engine.tokens_before
    warmup_tokens = max(0, engine.warmup_tokens - before) if before >= 0 else engine.warmup_tokens
    if before and warmup_tokens:
        raise InputError(
            "warmup_tokens", f"is {engine.warmup_tokens:,}, which 'keep' carries past the growth at {before:,} tokens",
            "warm up in less, or use learning_rate_policy 'rewarm'",
        )  # fmt: skip
    warmup = max(1, round(warmup_tokens / B)) if warmup_tokens else 0
    _tell(moved, f"{name}: warm-up", warmup_tokens, warmup * B, f"{warmup:,} steps")
    if engine.kind == "cosine":
        decay = T - warmup
    else:
        decay_tokens = engine.decay_fraction * engine.num_tokens if engine.kind == "wsd" else 0.0
        # Of a schedule over both stages, what decays lies at its end.
        if before + phase.num_tokens < engine.num_tokens:
            if engine.num_tokens - decay_tokens < phase.num_tokens:
                raise InputError(
                    "decay_fraction", f"is {engine.decay_fraction:g}, which 'keep' starts before the growth",
                    "decay later, or use learning_rate_policy 'rewarm'",
                )  # fmt: skip
            decay_tokens = 0.0
        decay = max(1, round(decay_tokens / B)) if decay_tokens else 0
        _tell(moved, f"{name}: decay", decay_tokens, decay * B, f"{decay:,} steps")
    if warmup + decay > T or (engine.kind == "cosine" and decay < 1):
        raise InputError(
            "warmup_tokens", f"and decay take {warmup:,} and {decay:,} steps of the {name} stage, but it has {T:,}",
            "shorten them, or use a smaller batch",
        )  # fmt: skip
    hold = T - warmup - decay
    return StageSchedule(
        kind="cosine" if engine.kind == "cosine" else "wsd" if decay else "constant",
        peak_lr=engine.peak_lr,
        final_lr=engine.peak_lr * engine.final_lr_fraction if decay else engine.peak_lr,
        warmup_steps=warmup,
        hold_steps=hold,
        decay_steps=decay,
        warmup_tokens=warmup * B,
        hold_tokens=hold * B,
        decay_tokens=decay * B,
    )


def _tell(moved: list[str], what: str, asked_tokens: float, tokens: int, steps: str) -> None:
    if abs(asked_tokens - tokens) >= 1:
        moved.append(f"{what} of {asked_tokens:,.0f} tokens becomes {tokens:,} ({steps})")


def _model(shape: ModelSpec, details: ModelDetails) -> ModelArguments:
    return ModelArguments(
        family=shape.family,
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        context_length=shape.context_length,
        tie_embeddings=shape.tie_embeddings,
        rope_theta=details.rope_theta,
        norm_epsilon=details.norm_epsilon,
    )


def _refuse_what_only_the_engine_does(spec: Spec) -> None:
    growth, training = spec.growth, spec.training
    if growth is None:
        raise InputError("growth", "is missing", "export a design that grows")
    if training.schedule == "power":
        raise InputError(
            "schedule", "is 'power', a law that torchtitan, Megatron-LM and transformers lack", "use 'wsd' or 'cosine'"
        )
    if growth.learning_rate_policy == "keep" and training.schedule == "cosine":
        raise InputError(
            "learning_rate_policy", "is 'keep', but no trainer starts a cosine in the middle",
            "use 'rewarm' or 'rewind', or schedule 'wsd'",
        )  # fmt: skip
    if growth.operator in ("random", "learn"):
        raise InputError(
            "operator", f"is {growth.operator!r}, which needs the engine's own training after growth",
            "use 'direct' or 'zero', or train with growthlaw grow",
        )  # fmt: skip
    if growth.optimizer_state_policy != "reset":
        raise InputError(
            "optimizer_state_policy", f"is {growth.optimizer_state_policy!r}, but the moments in another trainer's "
            "checkpoint are not carried over", "use 'reset'",
        )  # fmt: skip
    if growth.base_checkpoint is not None:
        raise InputError("base_checkpoint", "is given, but a plan trains the base itself", "leave it out")
