"""What a spec means in steps: the phases of a run, each with its shape, length, rate and cost.

Lengths in the spec are tokens; a phase trains ``floor(tokens / batch tokens)`` whole steps. Compute is
``fitting.flops.flops_per_token`` of the phase's own shape, evaluations not counted, the base always included:

    compute_flops(grown, t) = d f_base + t f_target

======================  =========================================================  =====
symbol                  meaning                                                    unit
======================  =========================================================  =====
d, t                    base tokens in whole steps; tokens of the grown phase      tokens
f_base, f_target        training FLOPs per token of base and target                FLOPs
======================  =========================================================  =====

Base and grown phase may differ in their batch, so a position in the data is counted in sequences, over all phases.
The steps in which ``learn`` trains its maps are the first of the grown phase: they read its tokens at its cost.

The rate at growth (``growth.learning_rate_policy``)::

    rewarm      a schedule of its own over the grown phase, warmed up over rewarm_tokens (else warmup_tokens)
    rewind      the same without warm-up: the first step stands at the peak
    keep        one schedule over both phases, d + D tokens long
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from app.contract import ModelSpec, Spec
from app.engine.schedule import Schedule, ScheduleKind
from fitting.flops import flops_per_token

TrainedPhase = Literal["base", "grown", "single"]


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """One stretch of training at a fixed shape and batch.

    Attributes:
        shape: the model's; its context length turns sequences into tokens.
        num_learn_steps: the first steps of the phase, in which the growth operator ``learn`` trains its maps.
        is_given: the base comes as a checkpoint and is not trained here; a step of it is then one sequence.
        kept_steps: steps after which a checkpoint is kept for good.
    """

    name: TrainedPhase
    shape: ModelSpec
    num_steps: int
    batch_sequences: int
    schedule: Schedule
    flops_per_token: float
    sequences_before: int
    flops_before: float
    num_learn_steps: int = 0
    is_given: bool = False
    kept_steps: frozenset[int] = frozenset()

    @property
    def num_layers(self) -> int:
        return self.shape.num_layers

    @property
    def batch_tokens(self) -> int:
        return self.batch_sequences * self.shape.context_length

    @property
    def num_tokens(self) -> int:
        return self.num_steps * self.batch_tokens

    def run_sequences(self, num_steps: int) -> int:
        """Sequences of the whole run after ``num_steps`` steps of this phase: the index of the next one to read."""
        return self.sequences_before + num_steps * self.batch_sequences

    def run_tokens(self, num_steps: int) -> int:
        """Tokens of the whole run after ``num_steps`` steps of this phase."""
        return self.run_sequences(num_steps) * self.shape.context_length

    def compute_flops(self, num_steps: int) -> float:
        """Training FLOPs of the whole run after ``num_steps`` steps of this phase."""
        return self.flops_before + num_steps * self.batch_tokens * self.flops_per_token


def plan_phases(spec: Spec) -> tuple[PhasePlan, ...]:
    """The phases of a run in order: (base, grown) where it grows, else (single,)."""
    last_steps = spec.training.tokens // spec.batch_tokens
    kept = frozenset(tokens // spec.batch_tokens for tokens in spec.keep_checkpoints_at_tokens)
    if spec.growth is None:
        schedule = _schedule(
            spec, spec.training.schedule, num_tokens=last_steps * spec.batch_tokens, batch_tokens=spec.batch_tokens
        )
        return (_phase(spec, "single", spec.model, last_steps, spec.training.batch_sequences, schedule, kept=kept),)
    base = _plan_base(spec, last_steps * spec.batch_tokens)
    num_learn_steps = spec.growth.learn_steps or 0
    grown = _phase(
        spec, "grown", spec.model, last_steps, spec.training.batch_sequences,
        _grown_schedule(spec, base, last_steps, num_learn_steps), after=base, num_learn_steps=num_learn_steps, kept=kept,
    )  # fmt: skip
    return base, grown


def _plan_base(spec: Spec, grown_tokens: int) -> PhasePlan:
    growth, training = spec.growth, spec.training
    assert growth is not None
    assert spec.base_model is not None
    is_given = growth.base_checkpoint is not None
    batch_sequences = 1 if is_given else spec.base_batch_sequences
    batch_tokens = batch_sequences * spec.model.context_length
    num_steps = growth.growth_timing_tokens // batch_tokens
    num_tokens = num_steps * batch_tokens
    if growth.learning_rate_policy == "keep":
        schedule = _schedule(spec, training.schedule, num_tokens=num_tokens + grown_tokens, batch_tokens=batch_tokens)
    else:
        # A base is a trunk: it holds its rate to the end, on the power law where the run is on it.
        schedule = _schedule(
            spec,
            "power" if training.schedule == "power" else "constant",
            num_tokens=num_tokens,
            batch_tokens=batch_tokens,
            peak_lr=training.base_peak_lr,
            decay_fraction=0.0,
        )
    return _phase(spec, "base", spec.base_model, num_steps, batch_sequences, schedule, is_given=is_given)


def _grown_schedule(spec: Spec, base: PhasePlan, num_steps: int, num_learn_steps: int) -> Schedule:
    growth, kind = spec.growth, spec.training.schedule
    assert growth is not None
    num_tokens, learn_tokens = num_steps * spec.batch_tokens, num_learn_steps * spec.batch_tokens
    if growth.learning_rate_policy == "keep":
        return _schedule(
            spec, kind, num_tokens=base.num_tokens + num_tokens, batch_tokens=spec.batch_tokens,
            tokens_before=base.num_tokens,
        )  # fmt: skip
    # The schedule starts with the first step that trains the target itself.
    return _schedule(
        spec, kind, num_tokens=num_tokens - learn_tokens, batch_tokens=spec.batch_tokens, tokens_before=-learn_tokens,
        warmup_tokens=0 if growth.learning_rate_policy == "rewind" else growth.rewarm_tokens,
    )  # fmt: skip


def _schedule(
    spec: Spec,
    kind: ScheduleKind,
    *,
    num_tokens: int,
    batch_tokens: int,
    tokens_before: int = 0,
    peak_lr: float | None = None,
    warmup_tokens: int | None = None,
    decay_fraction: float | None = None,
) -> Schedule:
    """The spec's schedule; what is None is the spec's own."""
    training = spec.training
    return Schedule(
        kind=kind,
        peak_lr=training.peak_lr if peak_lr is None else peak_lr,
        num_tokens=num_tokens,
        warmup_tokens=training.warmup_tokens if warmup_tokens is None else warmup_tokens,
        decay_fraction=training.decay_fraction if decay_fraction is None else decay_fraction,
        final_lr_fraction=training.final_lr_fraction,
        tokens_before=tokens_before,
        batch_tokens=batch_tokens,
        power_amplitude=training.power_amplitude,
        power_exponent=training.power_exponent,
    )


def _phase(
    spec: Spec,
    name: TrainedPhase,
    shape: ModelSpec,
    num_steps: int,
    batch_sequences: int,
    schedule: Schedule,
    *,
    after: PhasePlan | None = None,
    num_learn_steps: int = 0,
    is_given: bool = False,
    kept: frozenset[int] = frozenset(),
) -> PhasePlan:
    return PhasePlan(
        name=name,
        shape=shape,
        num_steps=num_steps,
        batch_sequences=batch_sequences,
        schedule=schedule,
        flops_per_token=flops_per_token(shape),
        sequences_before=after.run_sequences(after.num_steps) if after else 0,
        flops_before=after.compute_flops(after.num_steps) if after else 0.0,
        num_learn_steps=num_learn_steps,
        is_given=is_given,
        kept_steps=kept,
    )
