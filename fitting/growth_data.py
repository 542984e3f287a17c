"""What growth laws are fitted to: grown runs with their delta at equal FLOPs, and the scratch runs that the scratch law needs.

    DS = C / f_target        delta = L_grown - L_control        |C_control / C - 1| <= 1%

========  ===============================================================  ======
symbol    meaning                                                          unit
========  ===============================================================  ======
C         compute of the grown run, base included                          FLOPs
f_target  training FLOPs per token of the target                           FLOPs
DS        scratch tokens of the target for the same compute                tokens
control   the target from scratch at C: the row's own ``control_loss``,    nats
          the run its ``control_id`` names, a scratch run at equal
          FLOPs, or the target's scratch curve read between its runs
========  ===============================================================  ======

Pairing and feasibility go by ``compute_flops`` (from the table, else by ``fitting.flops`` or, flagged, 6ND). Rows of one
``trunk_id`` (else ``run_id``) are one cluster.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fitting.cells import EQUAL_COMPUTE_TOLERANCE, usable, with_compute
from fitting.conventions import SAME_SIZE
from fitting.growth_laws.base import GrowthPoints
from fitting.laws.base import Array
from fitting.scratch_rows import ScratchRows, read_table
from fitting.table import data_hash, is_grown, read_runs

if TYPE_CHECKING:
    import pandas as pd

# Scratch runs of one target whose tokens are further apart than this do not make a curve to be read between.
_WIDEST_GAP = 2.0


@dataclass(frozen=True, kw_only=True)
class GrowthData:
    """Pairs (arrays (R,)) and scratch runs of one cohort and basis. ``delta_nats`` is grown - control.

    Pairs of equal ``controls`` share a control run and with it its noise. ``grown_run_ids`` (R,) name the grown run of each.
    """

    cohort: str
    basis: str
    points: GrowthPoints
    delta_nats: Array
    compute_flops: Array
    clusters: np.ndarray
    controls: np.ndarray
    grown_run_ids: np.ndarray
    scratch: ScratchRows
    scratch_compute_flops: Array
    run_ids: tuple[str, ...]
    data_hash: str
    warnings: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.delta_nats)

    def where(self, pairs: np.ndarray, scratch: np.ndarray) -> GrowthData:
        """The pairs and the scratch runs that two masks select."""
        return replace(
            self,
            points=self.points.where(pairs),
            delta_nats=self.delta_nats[pairs],
            compute_flops=self.compute_flops[pairs],
            clusters=self.clusters[pairs],
            controls=self.controls[pairs],
            grown_run_ids=self.grown_run_ids[pairs],
            scratch=self.scratch.where(scratch),
            scratch_compute_flops=self.scratch_compute_flops[scratch],
        )


def read_growth_table(
    source: str | Path | pd.DataFrame, cohort: str | None = None
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """A run table of one cohort, checked, for growth fits; with sentences on what was taken for granted.

    Rows that share a ``run_id`` are points of one curve. Where the table has no ``is_final`` column that makes its losses
    mid-schedule ones, as final and mid-schedule losses are never mixed.

    Raises:
        ValueError: as :func:`fitting.table.read_runs`; or two finished runs of one id where ``is_final`` says so.
    """
    raw = read_table(source) if isinstance(source, str | Path) else source
    taken: tuple[str, ...] = ()
    if "is_final" not in raw.columns and "run_id" in raw.columns and bool(raw["run_id"].duplicated().any()):
        raw = raw.assign(is_final=False)
        taken = ("rows share a run_id: they are taken as points of curves, and all losses as mid-schedule losses",)
    return read_runs(raw, cohort=cohort, one_cohort=True), taken


def growth_data(table: pd.DataFrame) -> GrowthData:
    """Pairs and scratch runs from a checked run table of one cohort (:func:`fitting.table.read_runs`).

    Raises:
        ValueError: no grown run, none with a control, or no scratch run to build on.
    """
    used, basis, excluded = usable(table)
    warnings = [f"{count} run(s) left out: {reason}" for reason, count in sorted(excluded.items())]
    cohort = str(table["cohort"].iloc[0])
    if used.empty or not bool(is_grown(used).any()):
        raise ValueError(
            f"cohort '{cohort}' has no finished grown run (growth_factor above 1 and growth_timing_tokens above 0); "
            "growth laws need at least one"
        )
    used, num_by_6nd = with_compute(used)
    if num_by_6nd:
        warnings.append(f"compute of {num_by_6nd} run(s) is 6ND: they give neither compute_flops nor their shape")
    grown_mask = is_grown(used)
    single = used[used["growth_factor"] == 1]
    grown = used[grown_mask]
    num_random = len(used) - len(grown) - len(single)
    if num_random:
        warnings.append(f"{num_random} grown run(s) with growth_timing_tokens 0 (random stacks) are not fitted")
    scratch_tokens = np.asarray(grown["compute_flops"] / grown["target_flops_per_token"], dtype=np.float64)
    scratch, scratch_compute = _scratch_rows(single, grown, scratch_tokens)
    control, how, num_unequal = _controls(grown, single, scratch_tokens)
    if num_unequal:
        warnings.append(
            f"{num_unequal} control_id(s) name a run of another size or of more than {EQUAL_COMPUTE_TOLERANCE:.0%} other "
            "compute; those controls are not taken"
        )
    paired = np.isfinite(control)
    if not paired.any():
        raise ValueError(
            f"cohort '{cohort}': none of its {len(grown)} grown runs has a control; add scratch runs of the same target "
            "at equal compute_flops, or a control_loss column"
        )
    if not paired.all():
        warnings.append(
            f"{int((~paired).sum())} of {len(grown)} grown runs have no scratch control at equal FLOPs and are not fitted"
        )
    num_read = int(np.sum(how[paired] == "curve"))
    if num_read:
        warnings.append(f"the control of {num_read} pair(s) is read between scratch runs of the target")
    points = GrowthPoints(
        target_params=_column(grown, "target_params"),
        base_params=_column(grown, "base_params"),
        growth_factor=_column(grown, "growth_factor"),
        timing_tokens=_column(grown, "growth_timing_tokens"),
        grown_tokens=_column(grown, "grown_tokens"),
        scratch_tokens=scratch_tokens,
    )
    order = np.lexsort(
        (_column(grown, "final_loss"), points.timing_tokens, points.target_params, _column(grown, "compute_flops"))
    )
    order = order[paired[order]]
    clusters = _families(grown)
    return GrowthData(
        cohort=cohort,
        basis=basis,
        points=points.where(order),
        delta_nats=(_column(grown, "final_loss") - control)[order],
        compute_flops=_column(grown, "compute_flops")[order],
        clusters=clusters[order],
        controls=_control_labels(points, control, how)[order],
        grown_run_ids=np.asarray(grown["run_id"].astype(str))[order],
        scratch=scratch,
        scratch_compute_flops=scratch_compute,
        run_ids=tuple(sorted(set(used["run_id"].astype(str)))),
        data_hash=data_hash(table),
        warnings=tuple(warnings),
    )


def _column(frame: pd.DataFrame, name: str) -> Array:
    return np.asarray(frame[name], dtype=np.float64)


def _families(frame: pd.DataFrame) -> np.ndarray:
    """(R,) the trunk each run belongs to, its own id where it has none."""
    return np.asarray(frame["trunk_id"].where(frame["trunk_id"].notna(), frame["run_id"]).astype(str))


def _scratch_rows(single: pd.DataFrame, grown: pd.DataFrame, scratch_tokens: Array) -> tuple[ScratchRows, Array]:
    """Runs that were not grown, and the control losses of grown rows where no such run stands at their place."""
    sizes, tokens = _column(single, "target_params"), _column(single, "grown_tokens")
    losses, compute = _column(single, "final_loss"), _column(single, "compute_flops")
    target, stated = _column(grown, "target_params"), _column(grown, "control_loss")
    extra: list[int] = []
    for row in np.flatnonzero(np.isfinite(stated)):
        same = np.abs(sizes / target[row] - 1) < SAME_SIZE
        there = same & (np.abs(tokens / scratch_tokens[row] - 1) <= EQUAL_COMPUTE_TOLERANCE)
        twice = any(
            abs(target[row] / target[other] - 1) < SAME_SIZE
            and abs(scratch_tokens[row] / scratch_tokens[other] - 1) < 1e-6
            for other in extra
        )
        if not there.any() and not twice:
            extra.append(int(row))
    trunk = _families(grown)
    rows = ScratchRows(
        num_params=np.concatenate([sizes, target[extra]]),
        tokens=np.concatenate([tokens, scratch_tokens[extra]]),
        loss_nats=np.concatenate([losses, stated[extra]]),
        clusters=np.array([*_families(single), *(f"control of {trunk[row]}" for row in extra)]),
    )
    order = np.lexsort((rows.loss_nats, rows.tokens, rows.num_params))
    all_compute = np.concatenate([compute, _column(grown, "compute_flops")[extra]])
    return rows.where(order), all_compute[order]


def _controls(grown: pd.DataFrame, single: pd.DataFrame, scratch_tokens: Array) -> tuple[Array, np.ndarray, int]:
    """Control loss (R,), nan where there is none, where each comes from (stated, run or curve), and refused controls.

    A control that is named is taken where it is one: the same target at equal FLOPs.
    """
    control = _column(grown, "control_loss").copy()
    how = np.where(np.isfinite(control), "stated", "none").astype(object)
    names = single["run_id"].astype(str).to_numpy()
    num_unequal = 0
    sizes, compute = _column(single, "target_params"), _column(single, "compute_flops")
    losses, tokens = _column(single, "final_loss"), _column(single, "grown_tokens")
    target, total = _column(grown, "target_params"), _column(grown, "compute_flops")
    for row, name in enumerate(grown["control_id"]):
        if np.isfinite(control[row]):
            continue
        same = np.abs(sizes / target[row] - 1) < SAME_SIZE
        equal = same & (np.abs(compute / total[row] - 1) <= EQUAL_COMPUTE_TOLERANCE)
        named = names == str(name)
        if name is not None and named.any():
            if (named & equal).any():
                control[row], how[row] = float(losses[named & equal].mean()), "run"
                continue
            num_unequal += 1
        # Of many runs at equal FLOPs (points of a curve) the nearest ones; of several seeds there, their mean.
        if equal.any():
            gap = np.where(equal, np.abs(np.log(compute / total[row])), np.inf)
            control[row], how[row] = float(losses[gap <= gap.min() + 1e-9].mean()), "run"
        if same.sum() >= 2 and (not equal.any() or same.sum() > 8):
            read = _between(np.log(tokens[same]), np.log(losses[same]), float(np.log(scratch_tokens[row])))
            if np.isfinite(read):
                control[row], how[row] = float(np.exp(read)), "curve"
    return control, how, num_unequal


def _control_labels(points: GrowthPoints, control: Array, how: np.ndarray) -> np.ndarray:
    """(R,) labels: pairs of one target at one budget with the same control loss share it; a read curve is nobody's own."""
    return np.array(
        [
            f"curve {row}"
            if how[row] == "curve"
            else f"{points.target_params[row]:.6g} {points.scratch_tokens[row]:.3g} {control[row]!r}"
            for row in range(len(control))
        ]
    )


def _between(log_tokens: Array, log_losses: Array, at: float) -> float:
    """Power-law interpolation between the two scratch runs around ``at``; nan outside them or across a wide gap."""
    knots, index = np.unique(log_tokens, return_inverse=True)
    values = np.bincount(index, weights=log_losses) / np.bincount(index)
    place = int(np.searchsorted(knots, at))
    if place == 0 or place == len(knots):
        nearest = min(place, len(knots) - 1)
        return float(values[nearest]) if abs(knots[nearest] - at) <= EQUAL_COMPUTE_TOLERANCE else float("nan")
    if knots[place] - knots[place - 1] > np.log(_WIDEST_GAP):
        return float("nan")
    return float(np.interp(at, knots[place - 1 : place + 1], values[place - 1 : place + 1]))
