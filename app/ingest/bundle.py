"""A bundle: a folder of finished runs as `data/runs/` of this project is one.

==================  ====================================================================================================
file                content
==================  ====================================================================================================
headers.csv         one row a run: the columns of `fitting.table.COLUMNS`; further columns belong to whoever wrote them
points.csv.xz       run_id, seq, phase, tokens, compute_flops, metric, dataset, value, unit, time; (run_id, seq) once
cohorts.json        {"cohorts": {NAME: RECIPE}}: what all runs of a cohort share, as `app.jobs.headers.recipe_of` has it
==================  ====================================================================================================

Everything is checked before anything is stored: a bundle is taken whole or refused with the file, the row and the mend.
"""

from __future__ import annotations

import itertools
import lzma
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from app.contract import MetricLine, Phase
from app.records import read_json
from fitting.errors import InputError
from fitting.table import read_runs

if TYPE_CHECKING:
    import pandas as pd

HEADERS_FILE = "headers.csv"
POINTS_FILE = "points.csv.xz"
COHORTS_FILE = "cohorts.json"

_POINT_COLUMNS = tuple(MetricLine.__dataclass_fields__)
# Fields of a recipe that the run table holds too.
_RECIPE_COLUMNS = ("vocab_size", "context_length", "optimizer")
_COLLECT_AGAIN = "collect the bundle again from its run directories"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """The checked run table of every cohort, the cohorts' recipes, and every run's points in the order of their seq."""

    runs: Mapping[str, pd.DataFrame]
    recipes: Mapping[str, Mapping[str, Any]]
    points: Mapping[str, tuple[MetricLine, ...]]


def read_bundle(folder: Path) -> Bundle:
    """Read and check a bundle.

    Raises:
        InputError: a file is missing or damaged, a run is no canonical row or has not ended, a cohort lacks its recipe, or
            points and headers do not belong together.
    """
    for name in (HEADERS_FILE, POINTS_FILE, COHORTS_FILE):
        if not (folder / name).is_file():
            raise InputError(name, f"is missing from {folder}", _COLLECT_AGAIN)
    table = read_runs(folder / HEADERS_FILE)
    _check_runs(table)
    recipes = _recipes(folder / COHORTS_FILE)
    runs = {str(name): rows.reset_index(drop=True) for name, rows in table.groupby("cohort", sort=True)}
    for name, rows in runs.items():
        _check_recipe(name, rows, recipes)
    points = _points(folder / POINTS_FILE)
    known = set(table["run_id"])
    strangers = sorted(points.keys() - known)
    if strangers:
        raise InputError(POINTS_FILE, f"holds points of {strangers[0]!r}, which has no header", _COLLECT_AGAIN)
    empty = sorted(known - points.keys())
    if empty:
        raise InputError(POINTS_FILE, f"holds no point of {empty[0]!r} ({len(empty)} such runs)", _COLLECT_AGAIN)
    return Bundle(runs=runs, recipes={name: recipes[name] for name in runs}, points=points)


def _check_runs(table: pd.DataFrame) -> None:
    """What a stored run needs beyond what a fit needs."""
    twice = table["run_id"].duplicated(keep=False)
    if twice.any():
        raise InputError("run_id", f"{table.loc[twice, 'run_id'].iloc[0]!r} stands in several rows", _COLLECT_AGAIN)
    running = table["status"] == "running"
    if running.any():
        raise InputError(
            "status", f"of {table.loc[running, 'run_id'].iloc[0]!r} is 'running', but a bundle holds runs that have ended",
            "leave the run out until it has ended",
        )  # fmt: skip
    for column in ("corpus", "tokenizer", "compute_flops", "engine_numerics_version"):
        missing = table[column].isna()
        if missing.any():
            run = table.loc[missing, "run_id"].iloc[0]
            raise InputError(
                column, f"of {run!r} is empty, so the run cannot be compared or made again", _COLLECT_AGAIN
            )


def _recipes(path: Path) -> dict[str, Mapping[str, Any]]:
    try:
        cohorts = read_json(path).get("cohorts")
    except ValueError as error:
        raise InputError(COHORTS_FILE, f"cannot be read ({error})", _COLLECT_AGAIN) from None
    if not isinstance(cohorts, dict) or not all(isinstance(recipe, dict) and recipe for recipe in cohorts.values()):
        raise InputError(COHORTS_FILE, 'is not {"cohorts": {NAME: RECIPE}}', _COLLECT_AGAIN)
    return cohorts


def _check_recipe(cohort: str, rows: pd.DataFrame, recipes: Mapping[str, Mapping[str, Any]]) -> None:
    if cohort not in recipes:
        raise InputError(
            COHORTS_FILE,
            f"names no recipe for cohort {cohort!r} (it names {', '.join(sorted(recipes)) or 'none'}), so no later run "
            "could be held against these",
            'add {"cohorts": {NAME: RECIPE}} with what all its runs share',
        )
    for column in _RECIPE_COLUMNS:
        stated = recipes[cohort].get(column)
        found = {value for value in rows[column].tolist() if value is not None and value == value}
        if stated is None or found - {stated}:
            raise InputError(
                COHORTS_FILE,
                f"says {column} {stated!r} for cohort {cohort!r}, but its runs have {', '.join(map(repr, sorted(found)))}",
                "mend the recipe, or give the runs cohorts of their own",
            )


def _points(path: Path) -> dict[str, tuple[MetricLine, ...]]:
    import pandas as pd

    try:
        # Numbers are converted one by one below: pandas' own parser may be a bit off in the last place.
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        raise InputError(POINTS_FILE, f"cannot be read ({error})", _COLLECT_AGAIN) from None
    for column in ("run_id", *_POINT_COLUMNS):
        if column not in frame.columns:
            raise InputError(POINTS_FILE, f"has no column {column!r}", _COLLECT_AGAIN)
    found: dict[str, tuple[MetricLine, ...]] = {}
    for run_id, rows in frame.groupby("run_id", sort=False):
        lines = [_line(str(run_id), values) for values in rows[list(_POINT_COLUMNS)].to_dict("records")]
        lines.sort(key=lambda line: line.seq)
        for before, after in itertools.pairwise(lines):
            if before.seq == after.seq:
                raise InputError(POINTS_FILE, f"holds seq {after.seq} of {run_id!r} twice", _COLLECT_AGAIN)
        found[str(run_id)] = tuple(lines)
    return found


def _line(run_id: str, values: Mapping[str, Any]) -> MetricLine:
    try:
        line = MetricLine(
            **{
                **values,
                "seq": int(values["seq"]),
                "tokens": int(values["tokens"]),
                "compute_flops": float(values["compute_flops"]),
                "value": float(values["value"]),
            }
        )
    except ValueError as error:
        raise InputError(POINTS_FILE, f"holds a bad point of {run_id!r} ({error})", _COLLECT_AGAIN) from None
    finite = math.isfinite(line.value) and math.isfinite(line.compute_flops)
    if not finite or line.seq < 0 or line.tokens < 0 or line.phase not in get_args(Phase) or not line.metric:
        raise InputError(POINTS_FILE, f"holds a bad point of {run_id!r} (seq {line.seq})", _COLLECT_AGAIN)
    return line
