"""Laws that give a loss. :data:`SCRATCH_LAWS` maps the names of the scratch laws to their instances.

:mod:`fitting.laws.multi_power` stands apart: it gives the loss along one run's learning-rate schedule, not S(N, D).
"""

from __future__ import annotations

from fitting.laws.base import ScratchLaw
from fitting.laws.chinchilla import Chinchilla
from fitting.laws.coupled import Coupled
from fitting.laws.farseer import Farseer
from fitting.laws.kaplan import Kaplan

SCRATCH_LAWS: dict[str, ScratchLaw] = {law.name: law for law in (Chinchilla(), Kaplan(), Coupled(), Farseer())}


def scratch_law(name: str) -> ScratchLaw:
    """The law called ``name``; ValueError lists the ones there are."""
    if name not in SCRATCH_LAWS:
        raise ValueError(
            f"law is '{name}'; it must be one of {', '.join(SCRATCH_LAWS)} (or 'auto' where laws are averaged)"
        )
    return SCRATCH_LAWS[name]
