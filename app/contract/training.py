"""How a run is optimized: rates, batches, schedules, and where it leaves a trunk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from app.contract.checks import SpecError, require, require_positive

ScheduleName = Literal["wsd", "cosine", "power", "constant"]


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """Optimization of one run. Every length is in tokens; the engine turns them into steps.

    ``tokens`` is what the last phase sees: grown tokens D where there is growth, else all of the run's.
    The base phase holds its rate after warm-up (it is a trunk); the last phase follows ``schedule``. How
    it starts at growth is ``growth.learning_rate_policy``.

    Attributes:
        base_batch_sequences: batch of the base phase; ``batch_sequences`` where None.
        schedule: ``wsd``, ``cosine``, ``power``, or ``constant`` for a trunk that decay legs leave.
        power_amplitude, power_exponent: a and b of the power schedule, lr = min(peak, a B t^b) with B the batch in
            units of 4096 tokens (arXiv 2408.13359, section 4, whose fit under muP gave 4 and -0.51).
    """

    tokens: int
    peak_lr: float
    base_peak_lr: float | None = None
    batch_sequences: int = 8
    base_batch_sequences: int | None = None
    schedule: ScheduleName = "wsd"
    warmup_tokens: int = 0
    decay_fraction: float = 0.2
    final_lr_fraction: float = 0.1
    power_amplitude: float = 4.0
    power_exponent: float = -0.51
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    gradient_clip: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "tokens", "peak_lr", "batch_sequences", "gradient_clip", "power_amplitude")
        for field in ("base_peak_lr", "base_batch_sequences"):
            if getattr(self, field) is not None:
                require_positive(self, field)
        choices = get_args(ScheduleName)
        require(
            self.schedule in choices,
            "schedule",
            self.schedule,
            f"it must be one of {', '.join(choices)}",
            "use one of them",
        )
        require(
            self.warmup_tokens >= 0, "warmup_tokens", self.warmup_tokens, "it must not be negative", "use 0 or more"
        )
        for field in ("decay_fraction", "final_lr_fraction"):
            value = getattr(self, field)
            require(0 <= value <= 1, field, value, "it must lie between 0 and 1", "use a fraction")
        require(
            -2 <= self.power_exponent <= 0,
            "power_exponent",
            self.power_exponent,
            "it must lie between -2 and 0",
            "use -0.51 if unsure",
        )
        for field in ("beta1", "beta2"):
            value = getattr(self, field)
            require(0 <= value < 1, field, value, "it must lie in [0, 1)", "use 0.9 and 0.95 if unsure")
        require(
            0 <= self.weight_decay < math.inf,
            "weight_decay",
            self.weight_decay,
            "it must be finite and not negative",
            "use 0.1 if unsure",
        )

    @property
    def decay_starts_at(self) -> float:
        """Share of the last phase after which a decay of ``decay_fraction`` begins; 1 where there is none."""
        return 1 - self.decay_fraction if self.schedule in ("wsd", "power") else 1.0


@dataclass(frozen=True, kw_only=True)
class TrunkSpec:
    """A decay leg: the run goes on from a checkpoint that another run kept, as if the two had been one.

    Attributes:
        trunk_run_dir: the trunk's run directory; the trunk kept a checkpoint (``keep_checkpoints_at_tokens``) there.
        trunk_id: what all legs of the trunk share; its run id.
        branch_tokens: tokens of the last phase at which the leg leaves.
    """

    trunk_run_dir: str
    trunk_id: str
    branch_tokens: int

    def __post_init__(self) -> None:
        require_positive(self, "branch_tokens")
        for field in ("trunk_run_dir", "trunk_id"):
            require(bool(getattr(self, field)), field, getattr(self, field), "it must not be empty", "name the trunk")

    def check(self, training: TrainingSpec) -> None:
        """Whether a leg trained so leaves its trunk before the decay.

        Raises:
            SpecError: its schedule does not decay, or decays before the branch.
        """
        if training.schedule not in ("wsd", "power"):
            raise SpecError(
                "training.schedule",
                f"is {training.schedule!r}, but a leg off a trunk holds the trunk's rate and then decays; "
                "use 'wsd' or 'power'",
            )
        decay_from = training.tokens * training.decay_starts_at
        require(
            self.branch_tokens <= decay_from,
            "trunk.branch_tokens",
            self.branch_tokens,
            f"training decays from token {decay_from:,.0f} of {training.tokens:,} on",
            "branch earlier, lower training.decay_fraction or raise training.tokens",
        )
