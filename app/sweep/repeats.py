"""Cells trained once more, and held against what stands: on one CPU thread every number must be the same to its last bit.

A repeat is a prepared folder (:mod:`app.sweep.prepared`) of cells that stand already, picked at random by a seed that is
told, so that nobody can pick those that come out. A leg takes its trunk along, which is then repeated too. Compared are
the header's columns that training decides, and every point that both hold, but for what measures the machine.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.sweep.collect import OWN_COLUMNS, point_row, thinned
from app.sweep.families import Design, Family
from app.sweep.from_dirs import DirectoryRuns
from app.sweep.runs_folder import POINT_COLUMNS, Row, as_text, read_headers, read_points
from fitting.errors import InputError
from fitting.table import COLUMNS

# Speed, memory and wall time are the machine's, not the run's.
MACHINE_METRICS = ("tokens_per_second", "mfu", "peak_memory", "growth_seconds")
# A run's own, whatever it computes.
_OWN_POINT_COLUMNS = ("run_id", "time")


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A cell beside its repeat.

    Attributes:
        final_loss, final_loss_again: nats, as text to the last bit.
        num_points: compared.
        differences: columns and points that are not equal, the first few; none where all is.
    """

    cell: str
    run_id: str
    final_loss: str
    final_loss_again: str
    num_points: int
    differences: tuple[str, ...]

    @property
    def is_equal(self) -> bool:
        return not self.differences


def picked_families(design: Design, headers: Sequence[Row], *, count: int, seed: int) -> tuple[Family, ...]:
    """The families of ``count`` cells that stand, picked at random; each with its trunk and the picked legs alone.

    Raises:
        InputError: fewer cells stand.
    """
    finished = {row["cell"] for row in headers if row["status"] == "finished"}
    names = sorted(cell.name for _, cell in design.cells() if cell.name in finished)
    if len(names) < count:
        raise InputError("--repeat", f"asks for {count} cells, but {len(names)} stand", f"ask for at most {len(names)}")
    picked = set(random.Random(seed).sample(names, count))
    families = []
    for family in design.families:
        legs = tuple(leg for leg in family.legs if leg.name in picked)
        if legs or family.trunk.name in picked:
            families.append(replace(family, cells=(family.trunk, *legs)))
    return tuple(families)


def compare(design: Design, folders: Sequence[Path], runs_dir: Path) -> list[Repeat]:
    """Every run of the folders that has ended beside the cell that stands.

    Raises:
        InputError: a folder cannot be read, or a cell of it does not stand.
    """
    again = DirectoryRuns(folders, design)
    standing = {row["cell"]: row for row in read_headers(runs_dir)}
    points: dict[str, list[Row]] = {}
    for point in read_points(runs_dir):
        points.setdefault(point["run_id"], []).append(point)
    repeats = []
    for cell, runs in again.runs_by_name(design).items():
        if cell not in standing:
            raise InputError("DIR", f"holds {cell}, which does not stand in {runs_dir}", "collect it: it is no repeat")
        row = standing[cell]
        for run in runs:
            told = {column: as_text(run[column]) for column in COLUMNS}
            new_points = thinned([point_row(told["run_id"], point) for point in again.points(told["run_id"])])
            old, new = _by_seq(points.get(row["run_id"], [])), _by_seq(new_points)
            differences = [
                f"{column} {row[column] or 'empty'} against {told[column] or 'empty'}"
                for column in COLUMNS
                if column not in OWN_COLUMNS and row[column] != told[column]
            ]
            differences += [f"point {seq}: {old.get(seq)} against {new.get(seq)}" for seq in _unequal(old, new)]
            repeats.append(
                Repeat(
                    cell=cell, run_id=row["run_id"], final_loss=row["final_loss"],
                    final_loss_again=told["final_loss"], num_points=len(old), differences=tuple(differences),
                )
            )  # fmt: skip
    return repeats


def _by_seq(points: Sequence[Row]) -> dict[int, tuple[str, ...]]:
    columns = [column for column in POINT_COLUMNS if column not in _OWN_POINT_COLUMNS]
    return {
        int(point["seq"]): tuple(point[column] for column in columns)
        for point in points
        if point["metric"] not in MACHINE_METRICS
    }


def _unequal(old: dict[int, tuple[str, ...]], new: dict[int, tuple[str, ...]]) -> list[int]:
    return sorted(seq for seq in old.keys() | new.keys() if old.get(seq) != new.get(seq))
