"""What can be predicted and then seen: grown runs whose control at equal FLOPs is there, and which runs still wait for one.

    case = (grown run, control),   delta = L_grown - L_control,   |C_control / C - 1| <= 1%

========  ==========================================================================  ======
symbol    meaning                                                                     unit
========  ==========================================================================  ======
delta     observed grown - control at equal FLOPs, as :mod:`fitting.growth_data` pairs  nats
C         compute of the grown run, base included                                     FLOPs
family    trunk of the grown run (its own id without one): what shares its noise      -
control   label of what it is compared with; cases of one label share its noise       -
========  ==========================================================================  ======

A grown run without a control enters no law and no pair of a fit: it waits, and its delta is still unseen when the control
comes, whichever of the two ended first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fitting.cells import usable, with_compute
from fitting.conventions import SAME_SIZE
from fitting.flops import Shape
from fitting.growth_data import growth_data
from fitting.layers import BaseOption, Target
from fitting.table import SHAPE_COLUMNS, is_grown, plain

if TYPE_CHECKING:
    import pandas as pd

_EQUAL_COMPUTE = 0.01


@dataclass(frozen=True, kw_only=True)
class Case:
    """One grown run with its control. ``scratch_tokens`` is what scratch would get for its compute."""

    run_id: str
    family: str
    control: str
    target: Target
    base: BaseOption
    timing_tokens: float
    grown_tokens: float
    scratch_tokens: float
    compute_flops: float
    delta_nats: float

    @property
    def design(self) -> dict[str, float]:
        """What a prediction was about: where this changes, an older prediction was about another run."""
        return {
            "target_params": self.target.params,
            "base_params": self.base.params,
            "growth_factor": self.base.growth_factor,
            "growth_timing_tokens": self.timing_tokens,
            "grown_tokens": self.grown_tokens,
            "compute_flops": self.compute_flops,
        }

    def same_question(self, other: Case) -> bool:
        """Whether a planner could have chosen between the two: one target at one compute."""
        return (
            abs(self.target.params / other.target.params - 1) < SAME_SIZE
            and abs(self.compute_flops / other.compute_flops - 1) <= _EQUAL_COMPUTE
        )


def cases(table: pd.DataFrame) -> tuple[Case, ...]:
    """The cases of a checked run table of one cohort (:func:`fitting.table.read_runs`), in the order of their ids."""
    try:
        data = growth_data(table)
    except ValueError:  # no grown run, or none with a control: nothing to be predicted yet
        return ()
    used, _ = with_compute(usable(table)[0])
    rows: dict[str, dict[str, Any]] = {str(row["run_id"]): row for row in used.to_dict("records")}
    found = [
        Case(
            run_id=str(run_id),
            family=str(data.clusters[place]),
            control=str(data.controls[place]),
            target=_target(rows[str(run_id)]),
            base=_base(rows[str(run_id)]),
            timing_tokens=float(data.points.timing_tokens[place]),
            grown_tokens=float(data.points.grown_tokens[place]),
            scratch_tokens=float(data.points.scratch_tokens[place]),
            compute_flops=float(data.compute_flops[place]),
            delta_nats=float(data.delta_nats[place]),
        )
        for place, run_id in enumerate(data.grown_run_ids)
    ]
    return tuple(sorted(found, key=lambda case: case.run_id))


def waiting_runs(table: pd.DataFrame, found: Sequence[Case]) -> tuple[str, ...]:
    """Ids of usable grown runs that are no case: they wait for a control at equal FLOPs."""
    used, _, _ = usable(table)
    paired = {case.run_id for case in found}
    return tuple(sorted(set(used.loc[is_grown(used), "run_id"].astype(str)) - paired))


def questions(found: Sequence[Case]) -> list[list[int]]:
    """Places of the cases of one target at one compute, question by question in the order of their first case."""
    result: list[list[int]] = []
    for place, case in enumerate(found):
        own = next((places for places in result if found[places[0]].same_question(case)), None)
        if own is None:
            result.append([place])
        else:
            own.append(place)
    return result


def _target(row: dict[str, Any]) -> Target:
    values = {column: plain(row[column]) for column in SHAPE_COLUMNS}
    layers = values.pop("num_target_layers")
    shape = None
    if layers is not None and None not in values.values():
        shape = Shape(num_layers=int(layers), **{name: int(value) for name, value in values.items()})
    return Target(params=row["target_params"], num_layers=None if layers is None else int(layers), shape=shape)


def _base(row: dict[str, Any]) -> BaseOption:
    layers = row["num_base_layers"]
    return BaseOption(
        growth_factor=row["growth_factor"],
        params=row["base_params"],
        num_layers=None if math.isnan(layers) else int(layers),
        order=plain(row["order"]) or "stack",
        connection_rate=None,
        flops_per_token=row["base_flops_per_token"],
    )
