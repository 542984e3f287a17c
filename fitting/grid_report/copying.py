"""Which runs had learned to copy from their context, and what that step is worth beside growth.

    gain = loss of a text read first - loss of the same text read again       a run copies: gain > 0.1 nats
    step = mean L of the target's runs that do not copy - mean L of those that do      at one budget

========  =============================================================================  ======
symbol    meaning                                                                        unit
========  =============================================================================  ======
L         final validation loss of a run of the target, from scratch or grown            nats
========  =============================================================================  ======

Models learn to look up what followed an earlier occurrence in one step, with which the loss falls (Olsson et al., arXiv
2209.11895). Where a grid's budgets lie around that step, two arms of one budget may end on different sides of it; their
difference then says when the step came, and nothing of runs that all take it early.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fitting.errors import InputError
from fitting.grid_report.arms import Arm, Run, Target
from fitting.grid_report.gains import Gain

COPYING_FILE = "copying.csv"
# ``model_final_loss`` is that of the model measured: another than the cell's where a repeat on other hardware was.
COPYING_COLUMNS = ("cell", "first_nats", "second_nats", "gain_nats", "standard_error_nats", "model_final_loss")
# Set after the first 49 models were measured (0.3 before): one layer, which cannot look anything up, gains up to 0.05 nats by
# the longer context alone. Gains of larger models are gradual, so counts near the bound depend on it.
COPIES_NATS = 0.1


@dataclass(frozen=True, kw_only=True)
class Share:
    """``num_copying`` of the ``num_measured`` runs of an arm copy."""

    num_copying: int
    num_measured: int


@dataclass(frozen=True, kw_only=True)
class CopyingAt:
    """A target at a budget: its runs from scratch and grown by whether they copy; None where there is none of a kind.

    ``gains_nats`` are the least and the most that any of them gains.

    ``scratch``, ``best_grown`` and ``best_fixed`` are the arms that :class:`fitting.grid_report.gains.Gain` compares.
    """

    target: Target
    budget: int
    num_measured: int
    num_copying: int
    gains_nats: tuple[float, float]
    loss_copying_nats: float | None
    loss_other_nats: float | None
    scratch: Share
    best_grown: Share
    best_fixed: Share
    run_ids: tuple[str, ...]

    @property
    def step_nats(self) -> float | None:
        """How much lower the runs that copy end."""
        if self.loss_copying_nats is None or self.loss_other_nats is None:
            return None
        return self.loss_other_nats - self.loss_copying_nats


def read_copying(folder: Path) -> dict[str, float]:
    """cell -> gain in nats; empty where nothing was measured.

    Raises:
        InputError: a column is missing or a gain is no number.
    """
    path = folder / COPYING_FILE
    if not path.is_file():
        return {}
    table = pd.read_csv(path, dtype={"cell": str})
    for column in ("cell", "gain_nats"):
        if column not in table.columns:
            raise InputError(column, f"is missing from {COPYING_FILE}", "put a copy back, or measure it again")
    gains = pd.to_numeric(table["gain_nats"], errors="coerce")
    if not np.isfinite(gains).all():
        broken = table["cell"][~np.isfinite(gains)].iloc[0]
        raise InputError(
            "gain_nats", f"of {broken} in {COPYING_FILE} is no number", "take the line out and measure it again"
        )
    return dict(zip(table["cell"], gains.astype(float), strict=True))


def copying_at(gains: Sequence[Gain], gain_of_run: Mapping[str, float]) -> list[CopyingAt]:
    """One value a target and budget at which any run was measured; ``gain_of_run``: run id -> gain in nats."""

    def measured(arm: Arm | None, budget: int) -> list[Run]:
        return [run for run in (arm.runs.get(budget, ()) if arm else ()) if run.run_id in gain_of_run]

    def copies(run: Run) -> bool:
        return gain_of_run[run.run_id] > COPIES_NATS

    def share(arm: Arm | None, budget: int) -> Share:
        runs = measured(arm, budget)
        return Share(num_copying=sum(map(copies, runs)), num_measured=len(runs))

    found = []
    for gain in gains:
        target, budget = gain.valley.target, gain.valley.budget
        arms = (*target.of_kind("scratch", reference=False), *target.of_kind("grown", reference=False))
        own = [run for arm in arms for run in measured(arm, budget)]
        if not own:
            continue
        copying = [run.loss_nats for run in own if copies(run)]
        other = [run.loss_nats for run in own if not copies(run)]
        best, fixed = gain.valley.best, None
        if gain.fixed_params is not None:
            fixed = next(arm for arm in target.of_kind("fixed") if arm.params == gain.fixed_params)
        grown = next(
            arm
            for arm in target.of_kind("grown")
            if arm.num_seeds(budget)
            and (arm.growth_factor, arm.timing_tokens) == (best.growth_factor, best.timing_tokens)
        )
        found.append(
            CopyingAt(
                target=target, budget=budget, num_measured=len(own), num_copying=len(copying),
                gains_nats=(min(gain_of_run[run.run_id] for run in own), max(gain_of_run[run.run_id] for run in own)),
                loss_copying_nats=float(np.mean(copying)) if copying else None,
                loss_other_nats=float(np.mean(other)) if other else None,
                scratch=share(target.scratch, budget), best_grown=share(grown, budget), best_fixed=share(fixed, budget),
                run_ids=tuple(run.run_id for run in own),
            )
        )  # fmt: skip
    return found
