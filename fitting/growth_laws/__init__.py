"""Laws of grown runs. :data:`GROWTH_LAWS` maps their names to instances, simplest first within a family."""

from __future__ import annotations

from fitting.growth_laws.base import GrowthLaw, GrowthPoints, Prepared
from fitting.growth_laws.equivalent_progress import EquivalentProgress
from fitting.growth_laws.fading_head_start import FadingHeadStart
from fitting.growth_laws.liew_kato import LiewKato
from fitting.growth_laws.multiplied_progress import MultipliedProgress
from fitting.growth_laws.scratch_curve import ScratchCurve, with_offsets
from fitting.growth_laws.shifted_budget import ShiftedBudget

GROWTH_LAWS: dict[str, GrowthLaw] = {
    law.name: law
    for law in (
        EquivalentProgress("equivalent_progress", ()),
        EquivalentProgress("equivalent_progress_kappa", ("ln_kappa",)),
        EquivalentProgress("equivalent_progress_c", ("c",)),
        EquivalentProgress("equivalent_progress_kappa_c", ("ln_kappa", "c")),
        EquivalentProgress("equivalent_progress_kappa_c_slope", ("ln_kappa", "c", "c_slope")),
        EquivalentProgress("equivalent_progress_kappa_c_p", ("ln_kappa", "c", "ln_p")),
        MultipliedProgress(),
        FadingHeadStart(),
        ShiftedBudget(),
        LiewKato(),
    )
}

__all__ = ["GROWTH_LAWS", "GrowthLaw", "GrowthPoints", "Prepared", "ScratchCurve", "with_offsets"]
