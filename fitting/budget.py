"""What a compute budget leaves for the target once the base is paid, under both accountings of the base.

    D = (C - cost(d)) / f_target

    cost(d) = rho f_base d                 charged
    cost(d) = rho f_base max(d - t, 0)     sunk, the base has t tokens already
    cost(d) = 0                            sunk, nothing known of the base

========  ==================================================================  ==========
symbol    meaning                                                             unit
========  ==================================================================  ==========
d, D      growth timing, grown tokens                                         tokens
C         compute budget, in FLOPs at the target's utilisation                FLOPs
f         training FLOPs per token                                            FLOPs
t         tokens that an existing base was trained on                         tokens
rho       utilisation of the target over that of the base                     -
========  ==================================================================  ==========
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fitting.layers import BaseOption, Target

Array = NDArray[np.float64]

# The earliest timing worth a look, as a share of what the whole budget would buy of the base.
_EARLIEST = 1e-4
# What a grown phase is left of the budget at least.
LEAST_GROWN_SHARE = 0.005


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A target, its compute budget and the accounting of the base's compute."""

    target: Target
    compute_flops: float
    base_is_sunk: bool = False
    existing_base_tokens: float | None = None
    base_cost_factor: float = 1.0
    least_grown_share: float = LEAST_GROWN_SHARE

    def timings(self, base: BaseOption) -> tuple[float, float] | None:
        """Earliest and latest d to search, None where the budget cannot pay for the base.

        The grown phase is left `least_grown_share` of the budget, unless a base that is there already leaves it less.
        """
        affordable = self.compute_flops / (self.base_cost_factor * base.flops_per_token)
        have = self.existing_base_tokens or 0.0
        earliest = max(_EARLIEST * affordable, have)
        for share in (self.least_grown_share, LEAST_GROWN_SHARE):
            latest = (1.0 - share) * affordable + (have if self.base_is_sunk else 0.0)
            if earliest < latest:
                return earliest, latest
        return None

    def paid_tokens(self, timing_tokens: ArrayLike) -> Array:
        """The base's tokens that count against C, (R,)."""
        share, free = self._charging
        return np.asarray(share * np.maximum(np.asarray(timing_tokens, dtype=np.float64) - free, 0.0))

    def grown_tokens(self, base: BaseOption, timing_tokens: ArrayLike) -> Array:
        """D (R,) of timings (R,); not above 0 where the base costs the whole budget."""
        cost = self.base_cost_factor * base.flops_per_token * self.paid_tokens(timing_tokens)
        return np.asarray((self.compute_flops - cost) / self.target.flops_per_token)

    @property
    def _charging(self) -> tuple[float, float]:
        """The share of the base's tokens that is charged, and how many of them come free first."""
        if not self.base_is_sunk:
            return 1.0, 0.0
        return (0.0, 0.0) if self.existing_base_tokens is None else (1.0, self.existing_base_tokens)


def grown_tokens_of(cases: Sequence[tuple[Budget, BaseOption]], timing_tokens: Array) -> Array:
    """:meth:`Budget.grown_tokens` of many cases at once: (cases, points) from timings (cases, points)."""
    columns = np.array(
        [
            (
                budget.compute_flops / budget.target.flops_per_token,
                budget.base_cost_factor * base.flops_per_token / budget.target.flops_per_token,
                *budget._charging,
            )
            for budget, base in cases
        ]
    )
    everything, price, share, free = (column[:, None] for column in columns.T)
    return np.asarray(everything - price * share * np.maximum(timing_tokens - free, 0.0))
