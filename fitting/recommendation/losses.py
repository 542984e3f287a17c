"""What a recommendation needs to know of laws: draws of losses, whatever laws stand behind them.

========  =====================================================  =========
symbol    meaning                                                shape
========  =====================================================  =========
K         draws: each one set of law parameters                  -
R         rows asked about                                       -
========  =====================================================  =========
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Losses(Protocol):
    """Draws of final losses in nats of one cohort, base and target described by their non-embedding parameters."""

    @property
    def num_draws(self) -> int: ...

    @property
    def law_of_draw(self) -> NDArray[np.int64]:
        """(K,) index of the law each draw belongs to: their disagreement is a part of the uncertainty."""
        ...

    @property
    def run_noise_nats(self) -> float:
        """Standard deviation of one run's final loss around its law."""
        ...

    @property
    def delta_noise_nats(self) -> float:
        """Standard deviation of an observed grown - scratch around the laws."""
        ...

    def thinned(self, num_draws: int) -> Losses:
        """About ``num_draws`` of the draws, evenly of every law: enough to search by, not to report."""
        ...

    def scratch(self, params: Array, tokens: Array) -> Array:
        """(K, R): ``params`` (R,) trained from random weights on ``tokens`` (R,)."""
        ...

    def grown(self, target_params: float, base_params: Array, timing_tokens: Array, grown_tokens: Array) -> Array:
        """(K, R): bases (R,) trained on ``timing_tokens`` (R,), grown, trained on ``grown_tokens`` (R,) more."""
        ...

    def scratch_tokens(self, params: float, loss_nats: Array) -> Array:
        """(K, R): tokens at which scratch training of ``params`` reaches ``loss_nats`` (K, R); inf if it never does."""
        ...
