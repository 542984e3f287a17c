"""What the engine writes back: points, events, the result and the exit code."""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass
from typing import Literal

from app.contract.checks import CONTRACT_VERSION, ENGINE_NUMERICS_VERSION, require_version

Phase = Literal["base", "growth", "grown", "single"]
RunStatus = Literal["finished", "diverged", "stopped", "running"]


class ExitCode(enum.IntEnum):
    """How a run's process ends; the values follow sysexits.h where one fits.

    UNFIT_WORKER is said before the engine starts, by what a scheduler runs: the node cannot run the job.
    """

    DONE = 0
    BUG = 1
    BAD_SPEC = 64
    BAD_DATA = 65
    UNAVAILABLE = 69
    DIVERGED = 70
    OUT_OF_MEMORY = 71
    UNFIT_WORKER = 72
    NO_SPACE = 73
    LOST_PROCESS = 74
    PAUSED = 75


# The system's errors behind NO_SPACE: a full disk, a quota that is used up, a file-size limit (ulimit -f).
NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True)
class MetricLine:
    """One point of a run. ``tokens`` counts inside the phase, ``compute_flops`` over the whole run."""

    seq: int
    phase: Phase
    tokens: int
    compute_flops: float
    metric: str
    dataset: str
    value: float
    unit: str
    time: str


@dataclass(frozen=True, kw_only=True)
class EventLine:
    """One thing that happened, for people and for the job's story; ``failed`` says the process's exit code too."""

    seq: int
    time: str
    event: str
    message: str
    phase: Phase | None = None
    tokens: int | None = None
    exit_code: int | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended.

    Attributes:
        final_loss_nats: validation loss after the last step; None if it has none.
        base_tokens, final_phase_tokens, compute_flops: of the whole run; a decay leg's include its trunk's part.
        spike_height_nats: first validation loss after growth minus the last before; None without growth.
        healing_tokens: tokens of the grown phase until the loss was back at its level before growth; None if never.
        trunk_id: of a decay leg or a trunk that kept checkpoints; None for all other runs.
    """

    run_id: str
    status: RunStatus
    final_loss_nats: float | None
    base_tokens: int
    final_phase_tokens: int
    compute_flops: float
    base_flops_per_token: float | None
    target_flops_per_token: float
    duration_seconds: float
    reason: str = ""
    spike_height_nats: float | None = None
    healing_tokens: int | None = None
    trunk_id: str | None = None
    engine_numerics_version: int = ENGINE_NUMERICS_VERSION
    version: int = CONTRACT_VERSION

    def __post_init__(self) -> None:
        require_version(self.version)
