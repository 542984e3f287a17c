"""How a run takes its growth: the height of the spike, and the tokens until it has healed.

    spike = L(0) - L_before,    healing tokens = min {t : L(t) <= L_before + 1e-4}

======  ==========================================================================================  ======
symbol  meaning                                                                                     unit
======  ==========================================================================================  ======
L(t)    validation loss after t tokens of the grown phase; L(0) is the first after growth, for the  nats
        operator ``learn`` the first after its maps are trained and folded
L       the base's last validation loss, on the very same windows                                   nats
_before
======  ==========================================================================================  ======

1e-4 nats lets rounding of function-preserving growth pass. Evaluations are apart, so healing is known to within the
tokens between two of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

HEALED_WITHIN_NATS = 1e-4


@dataclass(frozen=True, kw_only=True)
class Healing:
    """A growth's spike and healing so far; None is not known yet."""

    loss_before_nats: float
    spike_height_nats: float | None = None
    healing_tokens: int | None = None

    def after(self, tokens: int, loss_nats: float) -> Healing:
        """With one more validation loss, after ``tokens`` tokens of the grown phase.

        >>> healing = Healing(loss_before_nats=3.0).after(0, 3.5).after(100, 3.2).after(200, 2.9).after(300, 2.8)
        >>> healing.spike_height_nats, healing.healing_tokens
        (0.5, 200)
        """
        spike = self.spike_height_nats
        is_healed = self.healing_tokens is None and loss_nats <= self.loss_before_nats + HEALED_WITHIN_NATS
        return replace(
            self,
            spike_height_nats=loss_nats - self.loss_before_nats if spike is None else spike,
            healing_tokens=tokens if is_healed else self.healing_tokens,
        )
