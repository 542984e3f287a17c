"""Refinement replayed: the runs of a folder arrive one by one in a new store, as a service would have seen them.

    error of a pair = |predicted - observed delta|        cumulative regret = sum over questions of what a pick lost so far

The runs of one cohort come in the order in which their last point was measured. Each is stored, and after every `every` of them
the service's own refit (:func:`app.guidelines.refine.refine`) predicts, fits, compares and promotes; held-out scores of the
single versions, which cost most of a fit and change no prediction, are left out. What the active guideline said of each pair
before it was seen stands beside the rules, which hold no number of these runs.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.guidelines.refine import refine
from app.guidelines.said import ACTIVE, CANDIDATE, lines, said_of
from app.ingest.bundle import Bundle, read_bundle
from app.ingest.importing import import_bundle
from app.store import guidelines as guideline_store
from app.store import predictions as prediction_store
from app.store import runs as run_store
from app.store.database import Database, sqlite_url
from app.store.tables import GuidelineRow, PredictionRow
from fitting.conventions import TIE_NATS
from fitting.errors import InputError
from fitting.prequential.cases import Case, cases, questions
from fitting.prequential.predicting import NEVER
from fitting.prequential.scoring import Said, regret
from fitting.table import is_grown, read_runs

# What a figure shows, in this order; the names of rules are those of `published:NAME`.
PREDICTORS = (ACTIVE, CANDIDATE, "gstack", "null", "constant_fraction", "eighty_percent", "staged", NEVER)
DEFAULT_EVERY = 5


@dataclass(frozen=True, kw_only=True)
class Step:
    """One pair that had been predicted before it was seen, and how every predictor stands after it (cumulative sums).

    `num_runs` is how many runs had arrived when the pair was complete, `version` the active version then; errors are only of
    predictors that state numbers.
    """

    num_runs: int
    run_id: str
    family: str
    version: int
    delta_nats: float
    regret_nats: dict[str, float]
    wrong_signs: dict[str, int]
    error_nats: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class VersionStored:
    num_runs: int
    version: int
    outcome: str
    is_active: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Replay:
    """``num_silent`` pairs got no number from the active version: its errors count them as no effect, its picks are those of
    the published rule, which is what its users are answered with."""

    cohort: str
    num_runs: int
    num_grown: int
    every: int
    num_pairs: int
    num_silent: int
    steps: tuple[Step, ...]
    versions: tuple[VersionStored, ...]


def replay(
    runs_dir: Path,
    *,
    cohort: str | None = None,
    every: int = DEFAULT_EVERY,
    progress: Callable[[int, int], None] | None = None,
) -> Replay:
    """Let the runs of a folder (``headers.csv``, ``points.csv.xz``, ``cohorts.json``) arrive.

    Args:
        cohort: whose runs; the one with the most grown runs where None.
        every: runs between two refits; the last runs get one whatever their number.
        progress: told the runs that have arrived, and all.

    Raises:
        InputError: the folder is no bundle of runs, or the cohort is not in it or holds no grown run.
    """
    if every < 1:
        raise InputError("every", f"is {every}, but it must be at least 1", "give the runs between two refits")
    bundle = read_bundle(runs_dir)
    name = _cohort(bundle, cohort)
    rows = _in_order(bundle, name)
    arrived: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="growthlaw-replay-") as folder:
        database = Database(sqlite_url(Path(folder)))
        try:
            database.migrate()
            versions: list[VersionStored] = []
            came: dict[str, int] = {}
            for place, run_id in enumerate(rows, start=1):
                import_bundle(database, _only(bundle, name, run_id))
                arrived[run_id] = place
                if place % every == 0 or place == len(rows):
                    refine(database, name, outer_scores=False)
                    with database.read() as session:
                        predicted = {row.run_id for row in prediction_store.list_predictions(session, name)}
                    for one in predicted - came.keys():
                        # A growth that waited for its control came with that, at the latest now.
                        came[one] = arrived[one] if arrived[one] > place - every else place
                    versions += _new_version(database, name, place, versions)
                if progress is not None:
                    progress(place, len(rows))
            with database.read() as session:
                stored = prediction_store.list_predictions(session, name)
                number_of = guideline_store.versions(session, name)
                table = read_runs(run_store.cohort_frame(session, name), cohort=name)
        finally:
            database.close()
    found = {case.run_id: case for case in cases(table)}
    steps, num_silent = _steps(found, stored, number_of, came)
    return Replay(
        cohort=name, num_runs=len(rows), num_grown=int(is_grown(table).sum()), every=every, num_pairs=len(found),
        num_silent=num_silent, steps=steps, versions=tuple(versions),
    )  # fmt: skip


def _cohort(bundle: Bundle, cohort: str | None) -> str:
    grown = {name: int(is_grown(rows).sum()) for name, rows in bundle.runs.items()}
    name = cohort or max(sorted(grown), key=lambda one: grown[one])
    if name not in grown:
        raise InputError("cohort", f"{name!r} is not among these runs", f"choose one of: {', '.join(sorted(grown))}")
    if grown[name] == 0:
        raise InputError("cohort", f"{name!r} holds no grown run", "a replay needs grown runs with their controls")
    return name


def _in_order(bundle: Bundle, cohort: str) -> list[str]:
    """Run ids by the time of their last point: when a service would have seen them end."""
    ids = [str(run_id) for run_id in bundle.runs[cohort]["run_id"]]
    return sorted(ids, key=lambda run_id: (max(line.time for line in bundle.points[run_id]), run_id))


def _only(bundle: Bundle, cohort: str, run_id: str) -> Bundle:
    rows = bundle.runs[cohort]
    return Bundle(
        runs={cohort: rows[rows["run_id"] == run_id].reset_index(drop=True)},
        recipes={cohort: bundle.recipes[cohort]},
        # Nothing here reads a curve: the headers hold what is fitted.
        points={run_id: ()},
    )


def _new_version(database: Database, cohort: str, num_runs: int, known: Sequence[VersionStored]) -> list[VersionStored]:
    with database.read() as session:
        row: GuidelineRow | None = guideline_store.newest_guideline(session, cohort)
    if row is None or (known and known[-1].version == row.version):
        return []
    return [
        VersionStored(
            num_runs=num_runs, version=row.version, outcome=row.outcome, is_active=row.is_active, reason=row.reason
        )
    ]  # fmt: skip


def _steps(
    found: dict[str, Case], stored: Sequence[PredictionRow], number_of: dict[str, int], came_at: dict[str, int]
) -> tuple[tuple[Step, ...], int]:
    by_predictor = lines(stored)
    own = by_predictor.get(ACTIVE, {})
    # Predictions of one refit were made together; within it the runs stand in the order in which they came.
    came = sorted(
        (run_id for run_id in own if run_id in found),
        key=lambda run_id: (own[run_id].created_at, came_at[run_id], run_id),
    )
    steps: list[Step] = []
    said: dict[str, list[Said]] = {name: [] for name in PREDICTORS}
    for place, run_id in enumerate(came):
        for name in PREDICTORS:
            said[name].append(said_of(by_predictor[name][run_id]))
        so_far = [found[one] for one in came[: place + 1]]
        groups = questions(so_far)
        sure = [i for i, case in enumerate(so_far) if abs(case.delta_nats) > TIE_NATS]
        steps.append(
            Step(
                num_runs=came_at[run_id],
                run_id=run_id,
                family=found[run_id].family,
                version=number_of[own[run_id].guideline_id],
                delta_nats=found[run_id].delta_nats,
                regret_nats={
                    name: math.fsum(regret([so_far[i] for i in group], [ones[i] for i in group]) for group in groups)
                    for name, ones in said.items()
                },
                wrong_signs={
                    name: sum(ones[i].takes(so_far[i]) != (so_far[i].delta_nats < 0) for i in sure)
                    for name, ones in said.items()
                },
                error_nats={
                    name: math.fsum(
                        abs((one.forecast.nats if one.forecast else 0.0) - case.delta_nats)
                        for one, case in zip(said[name], so_far, strict=True)
                    )
                    for name in (ACTIVE, CANDIDATE, NEVER)
                },
            )
        )
    return tuple(steps), sum(one.forecast is None for one in said[ACTIVE])


def summary(result: Replay) -> list[str]:
    """What a replay came to, in sentences; the first says whether the guideline was worth following."""
    if not result.steps:
        return [
            f"{result.cohort}: none of its {result.num_pairs} pairs was predicted before it was seen: nothing can be told yet."
        ]
    last = result.steps[-1]
    ranked = sorted(PREDICTORS, key=lambda name: (last.regret_nats[name], name))
    regrets = ", ".join(f"{TITLES[name]} {last.regret_nats[name]:.4f}" for name in ranked)
    errors = ", ".join(f"{TITLES[name]} {total / len(result.steps):.4f}" for name, total in last.error_nats.items())
    wrong = ", ".join(f"{TITLES[name]} {last.wrong_signs[name]}" for name in ranked)
    promoted = [one for one in result.versions if one.outcome == "promoted"]
    refused = [one for one in result.versions if one.outcome == "rejected"]
    best = min(last.regret_nats[name] for name in PREDICTORS if name not in (ACTIVE, CANDIDATE))
    verdict = "lower than" if last.regret_nats[ACTIVE] < best else "no lower than"
    return [
        f"{result.cohort}: the active guideline's cumulative regret is {verdict} that of the best rule after "
        f"{len(result.steps)} pairs predicted unseen ({result.num_pairs} pairs, {result.num_runs} runs, a refit every "
        f"{result.every}).",
        f"Cumulative regret in nats: {regrets}.",
        f"Mean error of delta in nats, where a number is stated: {errors}; {result.num_silent} pairs got no number from "
        "the active guideline and count as no effect.",
        f"Wrong calls to grow or not: {wrong}.",
        f"{len(result.versions)} versions were stored, {len(promoted)} promoted by their scores, {len(refused)} rejected; the "
        "rest answered because there was nothing to compare by yet, or waited.",
    ]


TITLES = {
    ACTIVE: "active guideline",
    CANDIDATE: "newest refit",
    "gstack": "G_stack (published)",
    "null": "null",
    "constant_fraction": "constant fraction",
    "eighty_percent": "80%",
    "staged": "staged",
    NEVER: "never grow",
}
