"""What to run next: the experiments that lower the expected regret of the decisions ahead the most.

:func:`next_runs` is the door; :mod:`.decisions` says what is at stake, :mod:`.experiments` what could be run,
:mod:`.misfit` how far laws may miss it, :mod:`.value` what a result would be worth, :mod:`.choose` picks.
"""

from __future__ import annotations

from fitting.planning.choose import NextRuns, PlannedStep, next_runs
from fitting.planning.decisions import Decision, decision_of
from fitting.planning.experiments import Experiment, candidates

__all__ = ["Decision", "Experiment", "NextRuns", "PlannedStep", "candidates", "decision_of", "next_runs"]
