"""One run's loss curve with its whole learning-rate schedule, and which of its points a fit may use.

    S(t) = integral of eta from 0 to t          e = tokens from where points count

========  ===================================================================  ===================
symbol    meaning                                                              unit
========  ===================================================================  ===================
t         tokens the run has seen in this phase                                tokens
eta(t)    learning rate, straight between the knots of the schedule            -
S         progress: the sum of the learning rate over tokens                   rate x tokens
T         tokens the run will have seen at its end, the last knot              tokens
========  ===================================================================  ===================

Points of the warm-up do not count, nor those of a grown run's first :data:`HEALING_SHARE`: right after growth the loss
jumps and heals within few tokens, which is no part of the slow fall that follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from fitting.errors import InputError
from fitting.laws.base import Array

# A rate this near to its peak ends the warm-up.
_WARM = 0.99
# Shares of the run's tokens that are left out at its start.
HEALING_SHARE = 0.08
OPENING_SHARE = 0.05
# An evaluation this near to the planned end is the final one.
_END = 0.995


@dataclass(frozen=True, kw_only=True, eq=False)
class LossCurve:
    """Losses of one run so far, and its schedule to the end.

    Args:
        run_id: the run's name.
        tokens: (R,) tokens of this phase at each loss, rising.
        loss_nats: (R,) validation losses, or smoothed training losses; one kind within a cohort.
        schedule_tokens: (K,) knots of the schedule, from 0 to the planned end.
        learning_rates: (K,) rates at the knots, straight lines between them.
        grown: the run's model was just grown when this phase began.

    Raises:
        InputError: an array is not finite, not rising, of another length, or lies beyond the schedule.
    """

    run_id: str
    tokens: Array
    loss_nats: Array
    schedule_tokens: Array
    learning_rates: Array
    grown: bool = False

    def __post_init__(self) -> None:
        for field in ("tokens", "loss_nats", "schedule_tokens", "learning_rates"):
            values = np.asarray(getattr(self, field), dtype=np.float64)
            if values.ndim != 1 or not np.isfinite(values).all():
                raise InputError(
                    f"{field} of run {self.run_id!r}", "must be one row of finite numbers", "drop what is not a number"
                )
            object.__setattr__(self, field, values)
        for field, other in (("loss_nats", "tokens"), ("learning_rates", "schedule_tokens")):
            if len(getattr(self, field)) != len(getattr(self, other)):
                raise InputError(
                    f"{field} of run {self.run_id!r}",
                    f"has {len(getattr(self, field))} values for {len(getattr(self, other))} {other}",
                    "give one for each",
                )
        self._require(len(self.schedule_tokens) >= 2, "schedule_tokens", "has fewer than 2 knots", "give start and end")
        self._require(self.schedule_tokens[0] == 0, "schedule_tokens", "does not start at 0", "start the schedule at 0")
        for field in ("tokens", "schedule_tokens"):
            rising = bool((np.diff(getattr(self, field)) > 0).all())
            self._require(rising, field, "must rise strictly", "sort it and drop doubles")
        self._require(
            bool((self.learning_rates >= 0).all()) and self.learning_rates.max() > 0,
            "learning_rates",
            "must not be negative, nor all 0",
            "give the rates that were used",
        )
        self._require(
            bool((self.loss_nats > 0).all()), "loss_nats", "must be positive", "give cross-entropy in nats per token"
        )
        inside = not len(self.tokens) or (self.tokens[0] >= 0 and self.tokens[-1] <= self.planned_tokens * (2 - _END))
        self._require(
            inside,
            "tokens",
            f"must lie between 0 and the schedule's end ({self.planned_tokens:,.0f})",
            "give the tokens of this phase and its whole schedule",
        )

    def _require(self, good: bool, field: str, problem: str, mend: str) -> None:
        if not good:
            raise InputError(f"{field} of run {self.run_id!r}", problem, mend)

    @property
    def planned_tokens(self) -> float:
        """T."""
        return float(self.schedule_tokens[-1])

    @property
    def seen_share(self) -> float:
        """How much of the run its last loss has behind it, 0 to 1."""
        return min(float(self.tokens[-1]) / self.planned_tokens, 1.0) if len(self.tokens) else 0.0

    @property
    def is_finished(self) -> bool:
        return self.seen_share >= _END

    @property
    def final_loss_nats(self) -> float:
        """The last loss of a finished run."""
        assert self.is_finished, f"{self.run_id} has not finished"
        return float(self.loss_nats[-1])

    @cached_property
    def counts_from_tokens(self) -> float:
        """Tokens before which points do not count."""
        warm = self.schedule_tokens[np.argmax(self.learning_rates >= _WARM * self.learning_rates.max())]
        share = HEALING_SHARE if self.grown else OPENING_SHARE
        return max(float(warm), share * self.planned_tokens)

    def usable(self) -> LossCurve:
        """The points that count."""
        counts = self.tokens >= self.counts_from_tokens
        return replace(self, tokens=self.tokens[counts], loss_nats=self.loss_nats[counts])

    def truncated(self, share: float) -> LossCurve:
        """The curve as it stood when ``share`` of the planned tokens were seen."""
        seen = self.tokens <= share * self.planned_tokens * (1 + 1e-9)
        return replace(self, tokens=self.tokens[seen], loss_nats=self.loss_nats[seen])

    def rate(self, tokens: ArrayLike) -> Array:
        """eta at ``tokens`` (any shape)."""
        return np.interp(np.asarray(tokens, dtype=np.float64), self.schedule_tokens, self.learning_rates)

    def progress(self, tokens: ArrayLike) -> Array:
        """S at ``tokens`` (any shape), exact for the straight lines between knots."""
        at = np.clip(np.asarray(tokens, dtype=np.float64), 0.0, self.planned_tokens)
        widths = np.diff(self.schedule_tokens)
        areas = 0.5 * widths * (self.learning_rates[1:] + self.learning_rates[:-1])
        sums = np.concatenate([[0.0], np.cumsum(areas)])
        left = np.clip(np.searchsorted(self.schedule_tokens, at, side="right") - 1, 0, len(widths) - 1)
        return sums[left] + 0.5 * (at - self.schedule_tokens[left]) * (self.learning_rates[left] + self.rate(at))


@dataclass(frozen=True, kw_only=True)
class Units:
    """What a cohort measures rates and tokens in, so that parameters of its runs are of order one and comparable."""

    rate: float
    tokens: float


def units_of(curves: Sequence[LossCurve]) -> Units:
    """Median peak rate and median planned tokens."""
    return Units(
        rate=float(np.median([curve.learning_rates.max() for curve in curves])),
        tokens=float(np.median([curve.planned_tokens for curve in curves])),
    )
