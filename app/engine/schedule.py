"""Learning-rate schedules as pure functions of tokens.

    lr(t) = warmup(u) x rate(u) x decay(u),    u = t + t0,    warmup(u) = min(1, u / w)

======  ==================================================================================  ===================
symbol  meaning                                                                             unit
======  ==================================================================================  ===================
t       tokens of the phase seen once the step is done: the first step has t = one batch,   tokens
        so its rate is above 0, and the last has t = its length, so it ends on the floor
t0      tokens of the schedule before the phase; below 0 where it starts later              tokens
w       warm-up, linear from 0                                                              tokens
T       length of the schedule                                                              tokens
P       peak rate                                                                           -
r       final learning rate over the rate at which the decay begins                         -
f       share of the schedule that decays (wsd, power)                                      -
a, b    amplitude and exponent of the power law                                             tokens^-b, -
B       batch in sequences of 4096 tokens                                                   4096 tokens
======  ==================================================================================  ===================

    constant  rate = P, decay = 1: a trunk
    wsd       rate = P, decay = 1 up to (1 - f) T, then linear in tokens to r at T     (MiniCPM, arXiv 2404.06395)
    cosine    rate = P, decay = r + (1 - r) (1 + cos(pi (u - w) / (T - w))) / 2        (SGDR, arXiv 1608.03983, eq. 5)
    power     rate = min(P, a B v^b) with v = u between w and (1 - f) T and held outside, decay as wsd
              (Power scheduler, arXiv 2408.13359, eq. 7 and 8; their batch counts sequences of 4096 tokens)

Up to where it decays, a power schedule depends neither on the run's length nor, per token, on its batch: B times the
rate on B times fewer steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ScheduleKind = Literal["constant", "wsd", "cosine", "power"]
POWER_BATCH_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of one phase.

    Example:
        >>> wsd = Schedule(kind="wsd", peak_lr=1.0, num_tokens=100, warmup_tokens=10, decay_fraction=0.2,
        ...                final_lr_fraction=0.1)
        >>> [round(wsd.learning_rate(t), 3) for t in (5, 10, 80, 90, 100)]
        [0.5, 1.0, 1.0, 0.55, 0.1]

    Attributes:
        num_tokens: T, where the schedule ends.
        tokens_before: t0, where in the schedule the phase starts.
        batch_tokens, power_amplitude, power_exponent: 4096 B, a and b; of ``power`` alone.
    """

    kind: ScheduleKind
    peak_lr: float
    num_tokens: int
    warmup_tokens: int
    decay_fraction: float
    final_lr_fraction: float
    tokens_before: int = 0
    batch_tokens: int = POWER_BATCH_TOKENS
    power_amplitude: float = 0.0
    power_exponent: float = 0.0

    def learning_rate(self, tokens: int) -> float:
        """Rate of the step after which the phase has seen ``tokens`` tokens (0 < tokens <= the phase's length)."""
        tokens += self.tokens_before
        return self._rate(tokens) * self._warmup(tokens) * self._decay(tokens)

    def _rate(self, tokens: int) -> float:
        if self.kind != "power":
            return self.peak_lr
        power_tokens = max(self.warmup_tokens, min(tokens, (1.0 - self.decay_fraction) * self.num_tokens))
        if power_tokens == 0:  # all of it decays
            return self.peak_lr
        batch = self.batch_tokens / POWER_BATCH_TOKENS
        return min(self.peak_lr, self.power_amplitude * batch * power_tokens**self.power_exponent)

    def _warmup(self, tokens: int) -> float:
        return min(1.0, tokens / self.warmup_tokens) if self.warmup_tokens else 1.0

    def _decay(self, tokens: int) -> float:
        floor = self.final_lr_fraction
        if self.kind == "constant":
            return 1.0
        if self.kind in ("wsd", "power"):
            decay_tokens = self.decay_fraction * self.num_tokens
            decayed = max(0.0, tokens - (self.num_tokens - decay_tokens))
            return 1.0 - (1.0 - floor) * decayed / decay_tokens if decayed else 1.0
        span = self.num_tokens - self.warmup_tokens
        progress = max(0.0, (tokens - self.warmup_tokens) / span)
        return floor + (1.0 - floor) * (1.0 + math.cos(math.pi * progress)) / 2.0
