"""Learning-rate schedules as pure functions of tokens.

    lr(t) = peak x min(1, t / w) x decay(t)

======  ==================================================================================  ======
symbol  meaning                                                                             unit
======  ==================================================================================  ======
t       tokens of the phase seen once the step is done: the first step has t = one batch,   tokens
        so its rate is above 0, and the last has t = T, so it ends exactly on the floor
w       warm-up, linear from 0                                                              tokens
T       length of the phase                                                                 tokens
r       final learning rate over the peak                                                   -
f       share of the phase that decays (wsd)                                                -
======  ==================================================================================  ======

    trunk   decay(t) = 1
    wsd     decay(t) = 1 up to (1 - f) T, then linear in tokens to r at T    (MiniCPM, arXiv 2404.06395)
    cosine  decay(t) = r + (1 - r) (1 + cos(pi (t - w) / (T - w))) / 2       (SGDR, arXiv 1608.03983, eq. 5)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ScheduleKind = Literal["trunk", "wsd", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of one phase.

    Example:
        >>> wsd = Schedule(kind="wsd", peak_lr=1.0, phase_tokens=100, warmup_tokens=10, decay_fraction=0.2,
        ...                final_lr_fraction=0.1)
        >>> [round(wsd.learning_rate(t), 3) for t in (5, 10, 80, 90, 100)]
        [0.5, 1.0, 1.0, 0.55, 0.1]
    """

    kind: ScheduleKind
    peak_lr: float
    phase_tokens: int
    warmup_tokens: int
    decay_fraction: float
    final_lr_fraction: float

    def learning_rate(self, tokens: int) -> float:
        """Rate of the step after which the phase has seen ``tokens`` tokens (0 < tokens <= phase_tokens)."""
        return self.peak_lr * self._warmup(tokens) * self._decay(tokens)

    def _warmup(self, tokens: int) -> float:
        return min(1.0, tokens / self.warmup_tokens) if self.warmup_tokens else 1.0

    def _decay(self, tokens: int) -> float:
        floor = self.final_lr_fraction
        if self.kind == "trunk":
            return 1.0
        if self.kind == "wsd":
            decay_tokens = self.decay_fraction * self.phase_tokens
            decayed = max(0.0, tokens - (self.phase_tokens - decay_tokens))
            return 1.0 - (1.0 - floor) * decayed / decay_tokens if decayed else 1.0
        span = self.phase_tokens - self.warmup_tokens
        progress = max(0.0, (tokens - self.warmup_tokens) / span)
        return floor + (1.0 - floor) * (1.0 + math.cos(math.pi * progress)) / 2.0
