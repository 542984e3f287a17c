"""How wrong predictions were for finished runs of the cohort, each cut at the same share and predicted from the others.

    e_j = final_j - predicted_j        z_j = e_j / s_j

========  =========================================================================  ======
symbol    meaning                                                                    unit
========  =========================================================================  ======
j         a finished run, left out of the prior that predicts it                     -
s_j       standard deviation that the fit gives its own prediction                   nats
e, z      error, and the error in units of s                                         -
========  =========================================================================  ======

s knows the noise of the curve and the spread of the cohort's parameters, not that the form may be wrong for the rest of the
schedule. z does: where its size differs from 1, intervals of the next prediction are stretched or shrunk by what was seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import t as student

from fitting.early_view.curves import LossCurve, Units, units_of
from fitting.early_view.fit import (
    MIN_COHORT,
    CurveFit,
    Noise,
    cohort_prior,
    fit_alone,
    fit_curve,
)
from fitting.laws.base import Array

# Points without which a curve adds too little to its cohort's prior.
MIN_POINTS = 5
# A chance this high counts as being sure.
SURE = 0.8
# The fit's own s counts as much as this many replays that agree with it.
_TRUST_IN_FIT = 2.0


@dataclass(frozen=True, kw_only=True)
class Replays:
    """Runs replayed at one share: predicted and true final losses (J,) in nats, and s (J,)."""

    run_ids: tuple[str, ...]
    predicted_nats: Array
    final_nats: Array
    sd_nats: Array

    @property
    def num_runs(self) -> int:
        return len(self.run_ids)

    @property
    def rmse_nats(self) -> float:
        """Root mean squared e."""
        return float(np.sqrt(np.mean((self.final_nats - self.predicted_nats) ** 2)))

    @property
    def stretch(self) -> float:
        """What s is multiplied by: root mean square of z, with the fit's own claim of 1 counted as some replays."""
        z = (self.final_nats - self.predicted_nats) / self.sd_nats
        return float(np.sqrt((float(z @ z) + _TRUST_IN_FIT) / (len(z) + _TRUST_IN_FIT)))

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the Student distribution of the next error."""
        return self.num_runs + _TRUST_IN_FIT

    def half_width(self, sd_nats: float, level: float) -> float:
        """Half of the central interval of a prediction with the fit's own ``sd_nats``."""
        return float(student.ppf(0.5 * (1 + level), self.freedom)) * self.scale(sd_nats)

    def scale(self, sd_nats: float) -> float:
        """Scale of the Student distribution of a prediction whose fit claims ``sd_nats``."""
        return self.stretch * sd_nats

    @cached_property
    def confident_pairs(self) -> tuple[int, int]:
        """(pairs it got right, pairs) over those of a replayed run and another run's known end where it was sure.

        Sure means a chance of at least :data:`SURE` for either order, each chance from the other replays' stretch.
        """
        hits = pairs = 0
        for j in range(self.num_runs):
            others = self._without(j)
            against = np.delete(self.final_nats, j)
            chance = student.cdf(
                (against - self.predicted_nats[j]) / others.scale(float(self.sd_nats[j])), others.freedom
            )
            below = self.final_nats[j] < against
            sure_below, sure_above = chance >= SURE, chance <= 1 - SURE
            hits += int(np.sum(sure_below & below) + np.sum(sure_above & ~below))
            pairs += int(np.sum(sure_below) + np.sum(sure_above))
        return hits, pairs

    def _without(self, index: int) -> Replays:
        kept = [i for i in range(self.num_runs) if i != index]
        return Replays(
            run_ids=tuple(self.run_ids[i] for i in kept),
            predicted_nats=self.predicted_nats[kept],
            final_nats=self.final_nats[kept],
            sd_nats=self.sd_nats[kept],
        )


class Cohort:
    """Finished runs as the source of a prior, of the noise and of replays. Fits each run once, replays each share once.

    Args:
        runs: curves of one cohort; those that have not finished, or have too few points, are left out.
    """

    def __init__(self, runs: Sequence[LossCurve]) -> None:
        self.runs = tuple(run for run in runs if run.is_finished and len(run.usable().tokens) >= MIN_POINTS)
        self._replays: dict[float, Replays] = {}

    @property
    def has_prior(self) -> bool:
        return len(self.runs) >= MIN_COHORT

    @cached_property
    def units(self) -> Units:
        return units_of(self.runs)

    @cached_property
    def _alone(self) -> tuple[list[CurveFit], Noise]:
        return fit_alone(self.runs, self.units)

    def predict(self, curve: LossCurve, *, without: str = "") -> CurveFit:
        """Fit ``curve`` under the prior of all runs but ``without``, of those of its own kind where there are enough."""
        others = [i for i, run in enumerate(self.runs) if run.run_id != without]
        alike = [i for i in others if self.runs[i].grown == curve.grown]
        chosen = alike if len(alike) >= MIN_COHORT else others
        fits, noise = self._alone
        prior = cohort_prior([fits[i].point for i in chosen], curve.usable())
        return fit_curve(curve, prior, noise, self.units)

    def replay(self, share: float) -> Replays:
        """Predict every run from its first ``share`` (to the nearest hundredth), its own end unseen."""
        hundredth = round(share, 2)
        if hundredth not in self._replays:
            self._replays[hundredth] = self._replay(hundredth)
        return self._replays[hundredth]

    def _replay(self, share: float) -> Replays:
        replayed = [run for run in self.runs if len(run.truncated(share).usable().tokens) >= MIN_POINTS]
        fits = [self.predict(run.truncated(share), without=run.run_id) for run in replayed]
        return Replays(
            run_ids=tuple(run.run_id for run in replayed),
            predicted_nats=np.array([fit.final_loss_nats for fit in fits]),
            final_nats=np.array([run.final_loss_nats for run in replayed]),
            sd_nats=np.array([fit.final_sd_nats for fit in fits]),
        )


NO_REPLAYS = Replays(run_ids=(), predicted_nats=np.empty(0), final_nats=np.empty(0), sd_nats=np.empty(0))
