"""One refit of a cohort: predict what is new, store it, fit, compare, decide. Deterministic but for ids and dates.

Nothing is locked while the cohort is fitted: rows are read in one transaction, predictions written in a second, the version
in a third, which looks whether what it was compared with still stands. A process killed anywhere in between leaves
predictions that were made honestly, and the next refit goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import pandas as pd
from sqlalchemy.orm import Session

from app.guidelines.said import (
    ACTIVE,
    CANDIDATE,
    Contender,
    comparison,
    forecast_of,
    new_predictions,
    seen_now,
    standings,
    void_reason,
)
from app.store import guidelines as guideline_store
from app.store import predictions as prediction_store
from app.store import runs as run_store
from app.store.database import Database
from app.store.ids import new_id
from app.store.tables import GuidelineRow, PredictionRow, utc_now
from fitting.cells import usable
from fitting.errors import InputError
from fitting.guideline import Guideline
from fitting.prequential.cases import Case, cases, waiting_runs
from fitting.prequential.promotion import Verdict, judge
from fitting.prequential.scoring import weighted_interval_score
from fitting.refit import fit_guideline
from fitting.table import data_hash, read_runs

SEED = 0
CORRECTED = "corrected runs"


@dataclass(frozen=True, kw_only=True)
class Refined:
    """What a refit came to; `impossible`: nothing that could be fitted."""

    outcome: Literal["stored", "unchanged", "impossible"]
    detail: str
    guideline_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Versions:
    active: GuidelineRow | None
    newest: GuidelineRow | None

    @property
    def key(self) -> tuple[Any, ...]:
        """What a decision rests on: it must still hold when the decision is stored."""
        active = (self.active.id, self.active.is_pinned) if self.active is not None else None
        return active, self.newest.id if self.newest is not None else None


def refine(database: Database, cohort: str, *, outer_scores: bool = True) -> Refined:
    """Bring the cohort's guidelines up to its runs.

    Args:
        outer_scores: give new versions held-out scores; a replay of many refits saves the time and predicts the same.
    """
    fitted: dict[str, Guideline] = {}
    while True:
        with database.read() as session:
            frame = run_store.cohort_frame(session, cohort)
            versions = _read_versions(session, cohort)
        try:
            table = read_runs(frame, cohort=cohort)
            final = usable(table)[1] == "final" and not usable(table)[0].empty
        except InputError as error:
            _withdraw(database, cohort, frame)
            return Refined(outcome="impossible", detail=str(error))
        found = cases(table)
        waiting = waiting_runs(table, found)
        _predict(database, cohort, table, found, versions)
        told = f"; {len(waiting)} grown run(s) wait for a control at equal FLOPs" if waiting else ""
        if not final:
            _withdraw(database, cohort, table)
            return Refined(outcome="impossible", detail=f"no finished run with a final loss can be fitted yet{told}")
        digest = data_hash(table)
        if versions.active is not None and versions.newest is not None and versions.newest.data_hash == digest:
            detail = f"nothing changed since version {versions.newest.version}{told}"
            return Refined(outcome="unchanged", detail=detail, guideline_id=versions.newest.id)
        if digest not in fitted:
            fitted[digest] = fit_guideline(table, cohort, seed=SEED, outer_scores=outer_scores)
        done = _store(database, cohort, fitted[digest], table, found, waiting, versions)
        if done is not None:
            return done


def _read_versions(session: Session, cohort: str) -> _Versions:
    return _Versions(
        active=guideline_store.active_guideline(session, cohort),
        newest=guideline_store.newest_guideline(session, cohort),
    )


def _contenders(versions: _Versions) -> list[Contender]:
    rows = [(ACTIVE, versions.active)]
    if versions.active is None or versions.newest is None or versions.newest.id != versions.active.id:
        rows.append((CANDIDATE, versions.newest))
    return [
        Contender(
            role=role,
            guideline=Guideline.from_json(row.body),
            waited=frozenset(json.loads(row.report).get("waiting_run_ids", ())),
        )
        for role, row in rows
        if row is not None
    ]


def load(row: GuidelineRow | None) -> Guideline | None:
    return None if row is None else Guideline.from_json(row.body)


def _predict(database: Database, cohort: str, table: pd.DataFrame, found: Sequence[Case], versions: _Versions) -> None:
    """Store what is said of new runs, and hold what was said before against the table as it stands now."""
    seen = seen_now(table, found)
    with database.read() as session:
        stored = prediction_store.list_predictions(session, cohort)
    now = utc_now()
    fresh = new_predictions(cohort, found, seen, stored, _contenders(versions), now)
    ids = frozenset(table["run_id"])
    voided = [(row, reason) for row in stored if row.void_reason is None and (reason := void_reason(row, seen, ids))]
    dead = {id(row) for row, _ in voided}
    moved = [
        row
        for row in stored
        if row.void_reason is None and id(row) not in dead and row.observed != seen[row.run_id].observed
    ]
    if not (fresh or voided or moved):
        return
    with database.write() as session:
        prediction_store.add_predictions(session, fresh)
        for row, reason in voided:
            prediction_store.void(session, row, reason)
        for row in moved:
            observed = seen[row.run_id].observed
            prediction_store.set_observed(session, row, observed=observed, score=_score(row, observed), now=now)


def _score(row: PredictionRow, observed: float) -> float | None:
    forecast = forecast_of(row)
    return None if forecast is None else weighted_interval_score(observed, forecast)


def _store(
    database: Database,
    cohort: str,
    guideline: Guideline,
    table: pd.DataFrame,
    found: Sequence[Case],
    waiting: Sequence[str],
    versions: _Versions,
) -> Refined | None:
    """Decide and store; None where another service or a person changed the versions meanwhile: look again."""
    active = versions.active
    with database.write() as session:
        if _read_versions(session, cohort).key != versions.key:
            return None
        rows = prediction_store.list_predictions(session, cohort)
        version_of = guideline_store.versions(session, cohort)
        compared = None if active is None else comparison(rows, active.id, version_of)
        withdrawn = [] if active is None else withdrawn_runs(active, table)
        verdict = judge(
            guideline,
            load(active),
            compared,
            num_families=len({case.family for case in found}),
            withdrawn=withdrawn,
            is_pinned=active is not None and active.is_pinned,
        )
        version = guideline_store.next_version(session, cohort)
        stored = replace(guideline, id=new_id("gl"), version=version)
        report = {
            "compared_with": None if active is None else {"id": active.id, "version": active.version},
            "comparison": None if compared is None else asdict(compared),
            "standings": standings(found, rows),
            "num_families": len({case.family for case in found}),
            "waiting_run_ids": list(waiting),
            "withdrawn": withdrawn,
        }
        guideline_store.add_guideline(session, _row(cohort, stored, verdict, report, table))
    return Refined(outcome="stored", detail=f"version {version}: {verdict.reason}", guideline_id=stored.id)


def _row(
    cohort: str, guideline: Guideline, verdict: Verdict, report: dict[str, Any], table: pd.DataFrame
) -> GuidelineRow:
    return GuidelineRow(
        id=guideline.id,
        cohort=cohort,
        version=guideline.version,
        is_active=verdict.is_active,
        num_runs=guideline.num_runs,
        data_hash=guideline.data_hash,
        reason=verdict.reason,
        body=guideline.to_json(),
        outcome=verdict.outcome,
        report=json.dumps(report, allow_nan=False),
        rows_hash=_rows_hash(table, guideline.run_ids),
    )


def withdrawn_runs(row: GuidelineRow, table: pd.DataFrame) -> list[str]:
    """What a version rests on and the table no longer says: ids of runs that are gone, or that rows were corrected."""
    guideline = Guideline.from_json(row.body)
    gone = sorted(set(guideline.run_ids) - set(usable(table)[0]["run_id"]))
    if gone:
        return gone
    changed = row.rows_hash is not None and _rows_hash(table, guideline.run_ids) != row.rows_hash
    return [CORRECTED] if changed else []


def _rows_hash(table: pd.DataFrame, run_ids: Sequence[str]) -> str:
    return data_hash(table[table["run_id"].isin(list(run_ids))])


def _withdraw(database: Database, cohort: str, table: pd.DataFrame) -> None:
    """Nothing can be fitted any more: a version whose every run is gone answers no longer, unless a person put it there."""
    there = set(table["run_id"])
    with database.write() as session:
        active = guideline_store.active_guideline(session, cohort)
        if active is not None and not active.is_pinned and not there & set(Guideline.from_json(active.body).run_ids):
            guideline_store.deactivate(session, cohort)
        for row in prediction_store.list_predictions(session, cohort):
            if row.run_id not in there and row.void_reason is None:
                prediction_store.void(session, row, "the run was removed")
