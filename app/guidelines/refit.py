"""Refitting a cohort's guideline from its stored runs. Deterministic: the same runs and seed give the same guideline."""

from __future__ import annotations

from dataclasses import replace

import structlog

from app.store import guidelines as guideline_store
from app.store import runs as run_store
from app.store.database import Database
from app.store.ids import new_id
from app.store.tables import GuidelineRow
from fitting.guideline import Guideline
from fitting.refit import fit_guideline
from fitting.table import data_hash, read_runs

log = structlog.get_logger()

SEED = 0


def refit_cohort(database: Database, cohort: str) -> str | None:
    """Fit the cohort's ended runs and store the result as its active version.

    Returns:
        The id of the new version; None where no run has a final loss (trunks alone decide nothing), or nothing changed
        since the active version.
    """
    while True:
        with database.read() as session:
            runs = run_store.cohort_frame(session, cohort)
            active = guideline_store.active_guideline(session, cohort)
        if not ((runs["status"] == "finished") & runs["is_final"].astype(bool)).any():
            return None
        if active is not None and active.data_hash == data_hash(read_runs(runs, cohort=cohort)):
            return None
        guideline = fit_guideline(runs, cohort, seed=SEED)
        stored = _store(database, cohort, guideline, active.id if active is not None else None)
        if stored is not None:
            return stored


def _store(database: Database, cohort: str, guideline: Guideline, active_id: str | None) -> str | None:
    """Make it the cohort's active version, where that still is `active_id`.

    None where another service that shares the database stored a version meanwhile, perhaps of more runs: look again.
    """
    with database.write() as session:
        active = guideline_store.active_guideline(session, cohort)
        if (active.id if active is not None else None) != active_id:
            return None
        version = guideline_store.next_version(session, cohort)
        guideline = replace(guideline, id=new_id("gl"), version=version)
        reason = "provisional: it only reports what was observed" if guideline.provisional else "fitted"
        guideline_store.add_guideline(
            session,
            GuidelineRow(
                id=guideline.id,
                cohort=cohort,
                version=version,
                is_active=True,
                num_runs=guideline.num_runs,
                data_hash=guideline.data_hash,
                reason=reason,
                body=guideline.to_json(),
            ),
        )
    log.info("guideline_refitted", cohort=cohort, guideline_id=guideline.id, version=version, runs=guideline.num_runs)
    return guideline.id


def load_guideline(database: Database, guideline_id: str) -> Guideline | None:
    """One stored version, None if there is none of this id."""
    with database.read() as session:
        row = guideline_store.get_guideline(session, guideline_id)
    return None if row is None else Guideline.from_json(row.body)
