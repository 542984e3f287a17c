"""From runs to cells and pairs: seeds averaged, grown runs matched with controls at equal FLOPs.

    delta = mean loss of the grown cell - mean loss of its scratch cell,   |C_grown / C_scratch - 1| <= 1%
    s^2   = (nu0 s0^2 + sum over cells of squared deviations) / (nu0 + nu)

========  =======================================================  ======
symbol    meaning                                                  unit
========  =======================================================  ======
cell      runs of one design that differ in their seeds only       -
C         compute_flops of a run, base included                    FLOPs
s         standard deviation of one run's final loss over seeds    nats
nu        degrees of freedom in repeats found in the table         -
s0, nu0   the assumed noise, and what it counts for                nats, -
========  =======================================================  ======

Final and mid-schedule losses are never mixed: a table with final losses uses those alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fitting.flops import Shape, flops_per_token
from fitting.guideline import Noise, ObservedPair, ObservedSingle
from fitting.table import SHAPE_COLUMNS, is_grown, plain

if TYPE_CHECKING:
    import pandas as pd

EQUAL_COMPUTE_TOLERANCE = 0.01

# Seed spread of final losses at hidden size 64, measured by this project on its demo scale (up to 0.09 at hidden 32;
# larger models are usually quieter). An assumption wherever a table holds no repeat; it counts as four repeats.
DEFAULT_SEED_SD_NATS = 0.015
DEFAULT_NOISE_DEGREES_OF_FREEDOM = 4.0

_TARGET_COLUMNS = ("target_params", *SHAPE_COLUMNS)
_RECIPE_COLUMNS = (
    "optimizer", "peak_lr", "schedule", "warmup_tokens", "decay_tokens", "batch_tokens", "lr_selection",
)  # fmt: skip
_GROWTH_COLUMNS = (
    "base_params", "num_base_layers", "growth_factor", "growth_timing_tokens", "operator", "order",
    "optimizer_state_policy", "base_peak_lr",
)  # fmt: skip
# Together with the target's columns these say what was run; what is left are seeds, names and results.
_DESIGN_COLUMNS = (*_TARGET_COLUMNS, *_GROWTH_COLUMNS, "grown_tokens", *_RECIPE_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Runs of one design. ``losses_nats`` holds one value a seed; ``values`` the design's columns (missing: None)."""

    values: dict[str, Any]
    grown: bool
    compute_flops: float
    base_flops: float
    losses_nats: tuple[float, ...]
    run_ids: tuple[str, ...]
    control_ids: tuple[str, ...]
    control_loss_nats: float | None

    @property
    def loss_nats(self) -> float:
        return float(np.mean(self.losses_nats))

    @property
    def target(self) -> tuple[Any, ...]:
        return tuple(self.values[column] for column in _TARGET_COLUMNS)


def usable(runs: pd.DataFrame) -> tuple[pd.DataFrame, Literal["final", "mid_schedule"], dict[str, int]]:
    """The finished runs of one basis, that basis, and the count of the others by reason.

    Final losses win where the table has any; the mid-schedule ones are then counted out as "mid_schedule".
    """
    excluded = {
        str(status): int(count) for status, count in runs["status"].value_counts().items() if status != "finished"
    }
    finished = runs[(runs["status"] == "finished") & runs["final_loss"].notna()]
    final = finished[finished["is_final"]]
    if final.empty:
        return finished, "mid_schedule", excluded
    if len(final) < len(finished):
        excluded["mid_schedule"] = len(finished) - len(final)
    return final, "final", excluded


def with_compute(runs: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The table with ``compute_flops`` and both ``*_flops_per_token`` filled, and how many rows needed 6 N D.

    Order of preference: the column, FLOPs per token from the columns, from the shape, 6 N.
    """
    filled = runs.copy()
    num_by_6nd = 0
    for index, row in runs.iterrows():
        grown = row["growth_factor"] > 1
        by_shape = _shape(row)
        target = _first(row["target_flops_per_token"], None if by_shape is None else flops_per_token(by_shape))
        base = 0.0
        if grown:
            base_layers = row["num_base_layers"]
            same_width = by_shape is not None and not math.isnan(base_layers)
            base_shape = by_shape.with_layers(int(base_layers)) if by_shape is not None and same_width else None
            base = _first(row["base_flops_per_token"], None if base_shape is None else flops_per_token(base_shape))
        if math.isnan(target) or math.isnan(base):
            # One convention a row: a mixture would make the two sides of a pair incomparable.
            target, base = 6.0 * row["target_params"], 6.0 * row["base_params"] if grown else 0.0
            num_by_6nd += int(math.isnan(row["compute_flops"]))
        filled.loc[index, "target_flops_per_token"] = target
        filled.loc[index, "base_flops_per_token"] = base if grown else math.nan
        if math.isnan(row["compute_flops"]):
            filled.loc[index, "compute_flops"] = base * row["growth_timing_tokens"] + target * row["grown_tokens"]
    return filled, num_by_6nd


def _first(given: float, other: float | None) -> float:
    return float(given) if not math.isnan(given) else math.nan if other is None else other


def _shape(row: pd.Series[Any]) -> Shape | None:
    values = {column: row[column] for column in SHAPE_COLUMNS}
    if any(math.isnan(value) for value in values.values()):
        return None
    num_layers = int(values.pop("num_target_layers"))
    return Shape(num_layers=num_layers, **{name: int(value) for name, value in values.items()})


def cells(runs: pd.DataFrame) -> tuple[Cell, ...]:
    """The runs grouped by design, in order of compute. Runs that repeat a seed count once, by their mean.

    Args:
        runs: rows of one cohort and one basis, compute filled (:func:`usable`, :func:`with_compute`).
    """
    import pandas as pd

    result = []
    grown = is_grown(runs)
    # groupby drops or splits missing values; a text key keeps a missing recipe equal to a missing recipe.
    keys = [tuple(plain(row[column]) for column in _DESIGN_COLUMNS) for _, row in runs.iterrows()]
    for _, rows in runs.groupby(pd.Series([repr(key) for key in keys], index=runs.index), sort=False):
        seeds = [
            row["run_id"] if math.isnan(row["init_seed"]) and math.isnan(row["data_seed"])
            else f"{row['init_seed']:g}/{row['data_seed']:g}"
            for _, row in rows.iterrows()
        ]  # fmt: skip
        by_seed = rows["final_loss"].groupby(pd.Series(seeds, index=rows.index), sort=True).mean()
        first = rows.iloc[0]
        controls = rows["control_loss"].dropna()
        result.append(
            Cell(
                values={column: plain(first[column]) for column in _DESIGN_COLUMNS},
                grown=bool(grown[rows.index[0]]),
                compute_flops=float(rows["compute_flops"].mean()),
                base_flops=float(np.nan_to_num(first["base_flops_per_token"] * first["growth_timing_tokens"])),
                losses_nats=tuple(float(loss) for loss in by_seed),
                run_ids=tuple(sorted(rows["run_id"])),
                control_ids=tuple(sorted({value for value in rows["control_id"] if value is not None})),
                control_loss_nats=float(controls.mean()) if len(controls) else None,
            )
        )
    return tuple(sorted(result, key=lambda cell: (cell.compute_flops, cell.run_ids)))


def noise(cells_: Iterable[Cell]) -> Noise:
    """One run's seed noise: the pooled deviations of repeated cells, joined with the assumed noise."""
    squares, degrees, repeats = 0.0, 0, 0
    for cell in cells_:
        losses = np.array(cell.losses_nats)
        if len(losses) > 1:
            squares += float(np.sum((losses - losses.mean()) ** 2))
            degrees += len(losses) - 1
            repeats += len(losses) - 1
    total = DEFAULT_NOISE_DEGREES_OF_FREEDOM + degrees
    variance = (DEFAULT_NOISE_DEGREES_OF_FREEDOM * DEFAULT_SEED_SD_NATS**2 + squares) / total
    return Noise(sd_nats=math.sqrt(variance), degrees_of_freedom=total, num_repeats=repeats)


def pairs(cells_: Iterable[Cell]) -> tuple[ObservedPair, ...]:
    """Every grown cell that has a scratch control: its ``control_id``, else the same target at equal compute.

    Of several controls the one with the grown run's peak learning rate is taken, else the lowest loss: a badly tuned
    control would make growth look good.
    """
    everything = tuple(cells_)
    singles = [cell for cell in everything if not cell.grown]
    result = []
    for cell in everything:
        if not cell.grown:
            continue
        control = _control(cell, singles)
        if control is None and cell.control_loss_nats is None:
            continue
        scratch_loss = control.loss_nats if control is not None else float(cell.control_loss_nats or math.nan)
        values = cell.values
        result.append(
            ObservedPair(
                target_params=values["target_params"],
                num_target_layers=_int(values["num_target_layers"]),
                hidden_size=_int(values["hidden_size"]),
                base_params=values["base_params"],
                num_base_layers=_int(values["num_base_layers"]),
                growth_factor=values["growth_factor"],
                growth_timing_tokens=values["growth_timing_tokens"],
                grown_tokens=values["grown_tokens"],
                order=values["order"],
                compute_flops=cell.compute_flops,
                base_flops=cell.base_flops,
                grown_loss_nats=cell.loss_nats,
                scratch_loss_nats=scratch_loss,
                delta_nats=cell.loss_nats - scratch_loss,
                num_grown_seeds=len(cell.losses_nats),
                num_scratch_seeds=len(control.losses_nats) if control is not None else 1,
                grown_run_ids=cell.run_ids,
                scratch_run_ids=control.run_ids if control is not None else (),
                comparable=control is not None and _comparable(cell, control),
            )
        )
    return tuple(result)


def singles(cells_: Iterable[Cell]) -> tuple[ObservedSingle, ...]:
    """Every cell that was not grown: the target from scratch, the base alone, other fixed sizes."""
    return tuple(
        ObservedSingle(
            params=cell.values["target_params"],
            num_layers=_int(cell.values["num_target_layers"]),
            hidden_size=_int(cell.values["hidden_size"]),
            tokens=cell.values["grown_tokens"],
            compute_flops=cell.compute_flops,
            loss_nats=cell.loss_nats,
            num_seeds=len(cell.losses_nats),
            run_ids=cell.run_ids,
        )
        for cell in cells_
        if not cell.grown
    )


def recipes(cells_: Iterable[Cell]) -> tuple[dict[str, Any], ...]:
    """The settings of the lowest-loss grown cell of each target size, else of its lowest-loss single-size cell."""
    best: dict[float, Cell] = {}
    for cell in sorted(cells_, key=lambda cell: (not cell.grown, cell.loss_nats)):
        best.setdefault(cell.values["target_params"], cell)
    names = (*_RECIPE_COLUMNS, "base_peak_lr", "optimizer_state_policy", "operator")
    return tuple(
        {
            "target_params": size,
            **{name: best[size].values[name] for name in names if best[size].values[name] is not None},
        }
        for size in sorted(best)
    )


def equal_compute(a: float, b: float) -> bool:
    """Within one per cent of each other."""
    return abs(a / b - 1) <= EQUAL_COMPUTE_TOLERANCE


def _control(cell: Cell, singles_: list[Cell]) -> Cell | None:
    named = [single for single in singles_ if set(single.run_ids) & set(cell.control_ids)]
    candidates = [
        single for single in named or singles_
        if single.target == cell.target and equal_compute(single.compute_flops, cell.compute_flops)
    ]  # fmt: skip
    same_rate = [single for single in candidates if single.values["peak_lr"] == cell.values["peak_lr"]]
    return min(same_rate or candidates, key=lambda single: single.loss_nats, default=None)


def _comparable(cell: Cell, control: Cell) -> bool:
    """Both tuned over learning rates, or sharing one."""
    both_tuned = cell.values["lr_selection"] == control.values["lr_selection"] == "grid tuned"
    return both_tuned or (cell.values["peak_lr"] is not None and cell.values["peak_lr"] == control.values["peak_lr"])


def _int(value: float | None) -> int | None:
    return None if value is None else int(value)
