"""From trained runs to the files of a runs folder, chunk by chunk.

Where runs come from is a :class:`RunSource`: the service (:class:`ServiceRuns`), or run directories that were trained
without one (:mod:`app.sweep.from_dirs`); rows, points and refusals are the same. A cell's run is the finished (or
diverged) one that bears its name. Rows that stand in the folder stay; the same cell again must say the same, or it is
refused by name. Trained again a run differs in its ids and dates alone.

**Which points.** Every validation loss. Of each other metric at most :data:`POINTS_A_METRIC` a run and phase: every k-th
in the order of ``seq`` with the least k that does, and the last. A grid of 300 runs then packs into a few megabytes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from app.client import Growthlaw
from app.corpus.shards import Manifest
from app.jobs.headers import recipe_of
from app.records import read_json, write_json_atomically
from app.sweep.bodies import job_body, spec_of
from app.sweep.check import DECISION_METRIC
from app.sweep.families import Cell, Design, Family
from app.sweep.runs_folder import (
    COHORTS_FILE,
    HEADER_COLUMNS,
    POINT_COLUMNS,
    Row,
    as_text,
    read_headers,
    read_points,
    write_headers,
    write_points,
)
from fitting.errors import InputError
from fitting.table import COLUMNS

POINTS_A_METRIC = 40
# What is another's when the same run is trained again.
OWN_COLUMNS = ("run_id", "trunk_id", "parent_run_id", "control_id", "created_at", "source")


@dataclass(frozen=True, kw_only=True)
class Collected:
    num_new: int
    num_standing: int
    num_points: int


class RunSource(Protocol):
    """Where finished runs are."""

    def runs_by_name(self, design: Design) -> Mapping[str, list[Mapping[str, Any]]]:
        """Finished and diverged runs of the grid's cohorts by name, each with the columns of the run table."""

    def points(self, run_id: str) -> Iterable[Mapping[str, Any]]:
        """The points of one of them, with the fields of :class:`app.contract.MetricLine`."""

    def manifest(self, design: Design) -> Manifest:
        """The corpus they were trained on."""


@dataclass(frozen=True)
class ServiceRuns:
    """What a service has trained."""

    client: Growthlaw

    def runs_by_name(self, design: Design) -> Mapping[str, list[Mapping[str, Any]]]:
        """Finished and diverged runs of the grid's cohorts by name, oldest first."""
        found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for cohort in sorted({family.cohort for family in design.families}):
            query: dict[str, Any] = {"cohort": cohort, "limit": 1000}
            while True:
                page = self.client.runs(**query)
                for run in page["data"]:
                    if run["status"] in ("finished", "diverged"):
                        found[run["name"]].append(run)
                if not page["has_more"]:
                    break
                query["after"] = page["next"]
        return {name: sorted(runs, key=lambda run: str(run["run_id"])) for name, runs in found.items()}

    def points(self, run_id: str) -> Iterable[Mapping[str, Any]]:
        return self.client.points(run_id)

    def manifest(self, design: Design) -> Manifest:
        name = design.grid.corpus.name
        (corpus,) = (corpus for corpus in self.client.corpora() if corpus["name"] == name)
        return Manifest(
            name=name, content_hash=corpus["content_hash"], vocab_size=corpus["vocab_size"], dtype="uint16",
            splits={}, origin=corpus["origin"], licence=corpus["licence"],
        )  # fmt: skip


def collect(source: RunSource, design: Design, folder: Path) -> Collected:
    """Bring the runs folder up to date with what has finished.

    Raises:
        InputError: a cell stands with other values than this run of it, was trained twice with two results, or its cohort
            stands with another recipe.
    """
    runs = source.runs_by_name(design)
    rows = {row["cell"]: row for row in read_headers(folder)}
    points = read_points(folder)
    fresh = []
    for family, cell in design.cells():
        for run in runs.get(cell.name, []):
            row = _row(family, cell, run)
            if cell.name not in rows:
                rows[cell.name] = row
                fresh.append(row["run_id"])
            else:
                _require_same(cell, rows[cell.name], row)
    for run_id in fresh:
        points += thinned([point_row(run_id, point) for point in source.points(run_id)])
    _name_relations(design, rows)
    # Before anything is written: a cohort of another recipe is refused here.
    recipes = _with_recipes(folder, source.manifest(design), design) if fresh else {}
    if rows:
        folder.mkdir(parents=True, exist_ok=True)
        # Points first: a header without points would be taken for a truncated run.
        write_points(folder, points)
        write_headers(folder, rows.values())
        if fresh:
            write_json_atomically(folder / COHORTS_FILE, {"cohorts": recipes})
    return Collected(num_new=len(fresh), num_standing=len(rows), num_points=len(points))


def thinned(points: list[Row]) -> list[Row]:
    """One run's points by the rule at the head of this module."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for point in sorted(points, key=lambda point: int(point["seq"])):
        groups[point["phase"], point["metric"], point["dataset"]].append(point)
    kept = []
    for (_, metric, _), group in groups.items():
        every = 1 if metric == DECISION_METRIC else math.ceil(len(group) / POINTS_A_METRIC)
        # Counted from the end, so that the last is among them.
        kept += group[::-1][::every]
    return kept


def _row(family: Family, cell: Cell, run: Mapping[str, Any]) -> Row:
    own = {"cell": cell.name, "family": family.name, "step": family.step, "budget_tokens": cell.budget_tokens}
    return {column: as_text(own[column] if column in own else run[column]) for column in HEADER_COLUMNS}


def point_row(run_id: str, point: Mapping[str, Any]) -> Row:
    """A point as the files hold it."""
    return {column: as_text({"run_id": run_id, **point}[column]) for column in POINT_COLUMNS}


def _require_same(cell: Cell, standing: Row, row: Row) -> None:
    different = [name for name in COLUMNS if name not in OWN_COLUMNS and standing[name] != row[name]]
    if different:
        told = ", ".join(f"{name} {standing[name] or 'empty'} against {row[name] or 'empty'}" for name in different)
        raise InputError(
            f"cell {cell.name}",
            f"stands as run {standing['run_id']}, but run {row['run_id']} of it differs: {told}",
            "find out which is right and take the other away",
        )


def _name_relations(design: Design, rows: dict[str, Row]) -> None:
    """Trunks and controls by the ids that stand here: after a lost data directory a trunk is trained again, bit for bit,
    under another id, and a control may have been trained in another chunk."""
    for family, cell in design.cells():
        row = rows.get(cell.name)
        if row is None:
            continue
        if cell is not family.trunk and family.trunk.name in rows:
            row["trunk_id"] = row["parent_run_id"] = rows[family.trunk.name]["run_id"]
        if cell.control in rows:
            row["control_id"] = rows[cell.control]["run_id"]


def _with_recipes(folder: Path, manifest: Manifest, design: Design) -> dict[str, Mapping[str, Any]]:
    """What all runs of each cohort share: the grid's, beside those that stand in the folder."""
    path, grid = folder / COHORTS_FILE, design.grid
    recipes: dict[str, Mapping[str, Any]] = dict(read_json(path)["cohorts"]) if path.exists() else {}
    for cohort, family in {family.cohort: family for family in design.families}.items():
        recipe = recipe_of(spec_of(grid, job_body(grid, family, family.trunk, None)), manifest)
        standing = recipes.setdefault(cohort, recipe)
        different = [name for name in sorted(recipe.keys() | standing.keys()) if recipe.get(name) != standing.get(name)]
        if different:
            told = ", ".join(f"{name} {standing.get(name)!r} against {recipe.get(name)!r}" for name in different)
            raise InputError(
                f"cohort {cohort}",
                f"stands in {path} with another recipe than the grid's ({told}), and losses are compared only within one",
                "give the grid a cohort of its own",
            )
    return dict(sorted(recipes.items()))
