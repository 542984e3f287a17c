"""What a spec means in steps: the phases of a run, each with its depth, length, rate and cost.

Lengths in the spec are tokens; a phase trains ``floor(tokens / batch tokens)`` whole steps. Compute is
``fitting.flops.flops_per_token`` of the phase's own shape, evaluations not counted, the base always included:

    compute_flops(grown, t) = d f_base + t f_target

======================  =========================================================  =====
symbol                  meaning                                                    unit
======================  =========================================================  =====
d, t                    base tokens in whole steps; tokens of the grown phase      tokens
f_base, f_target        training FLOPs per token of base and target                FLOPs
======================  =========================================================  =====
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from app.contract import Spec
from app.engine.schedule import Schedule, ScheduleKind
from fitting.flops import flops_per_token

TrainedPhase = Literal["base", "grown", "single"]


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """One stretch of training at a fixed depth."""

    name: TrainedPhase
    num_layers: int
    num_steps: int
    batch_tokens: int
    schedule: Schedule
    flops_per_token: float
    steps_before: int
    flops_before: float

    @property
    def num_tokens(self) -> int:
        return self.num_steps * self.batch_tokens

    def run_tokens(self, num_steps: int) -> int:
        """Tokens of the whole run after ``num_steps`` steps of this phase."""
        return (self.steps_before + num_steps) * self.batch_tokens

    def compute_flops(self, num_steps: int) -> float:
        """Training FLOPs of the whole run after ``num_steps`` steps of this phase."""
        return self.flops_before + num_steps * self.batch_tokens * self.flops_per_token


def plan_phases(spec: Spec) -> tuple[PhasePlan, ...]:
    """The phases of a run in order: (base, grown) where it grows, else (single,)."""
    training, growth = spec.training, spec.growth
    phases: list[PhasePlan] = []
    if growth is not None:
        base_peak_lr = training.peak_lr if training.base_peak_lr is None else training.base_peak_lr
        num_layers, tokens = growth.num_base_layers, growth.growth_timing_tokens
        phases.append(_phase(spec, "base", num_layers, tokens, "trunk", base_peak_lr, after=None))
    phases.append(
        _phase(
            spec, "grown" if phases else "single", spec.model.num_layers, training.tokens, training.schedule,
            training.peak_lr, after=phases[-1] if phases else None,
        )
    )  # fmt: skip
    return tuple(phases)


def _phase(
    spec: Spec,
    name: TrainedPhase,
    num_layers: int,
    tokens: int,
    kind: ScheduleKind,
    peak_lr: float,
    *,
    after: PhasePlan | None,
) -> PhasePlan:
    num_steps = tokens // spec.batch_tokens
    return PhasePlan(
        name=name,
        num_layers=num_layers,
        num_steps=num_steps,
        batch_tokens=spec.batch_tokens,
        schedule=Schedule(
            kind=kind,
            peak_lr=peak_lr,
            phase_tokens=num_steps * spec.batch_tokens,
            warmup_tokens=spec.training.warmup_tokens,
            decay_fraction=spec.training.decay_fraction,
            final_lr_fraction=spec.training.final_lr_fraction,
        ),
        flops_per_token=flops_per_token(replace(spec.model, num_layers=num_layers)),
        steps_before=after.steps_before + after.num_steps if after else 0,
        flops_before=after.compute_flops(after.num_steps) if after else 0.0,
    )
