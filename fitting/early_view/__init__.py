"""Where a run will end, told from its loss curve so far and its learning-rate schedule.

:func:`predict_final` is the face of it. Read :mod:`.form` for the curve, :mod:`.fit` for priors and noise, :mod:`.replay` for
how intervals are tested on finished runs, :mod:`.predict` for the answer.
"""

from __future__ import annotations

from fitting.early_view.curves import LossCurve
from fitting.early_view.predict import EarlyView, FinalLoss, predict_final
from fitting.early_view.replay import Cohort, Replays

__all__ = ["Cohort", "EarlyView", "FinalLoss", "LossCurve", "Replays", "predict_final"]
