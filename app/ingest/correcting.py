"""Correcting a stored run: what people said of it may be mended, what was measured may not.

================  ====================================================================================================
column            may become
================  ====================================================================================================
name              any; within its cohort an imported run's name is its own
status            finished (with a final loss), diverged or stopped, once the run has ended
is_final          true only of a finished run with a loss at the end of a schedule
lr_selection      how its learning rate was chosen
control_id        a run of the cohort that was not grown, or none
================  ====================================================================================================

Sizes, tokens, FLOPs, losses and seeds are what the run was: a wrong one means another import, or its removal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from app.ingest.live import Conflict
from app.ingest.storing import SOURCE, check_table
from app.store import jobs as job_store
from app.store import runs as run_store
from app.store.removals import note_correction, remove_run
from app.store.tables import RunRow
from fitting.errors import InputError


def correct(session: Session, run: RunRow, changes: Mapping[str, Any], why: str) -> bool:
    """Apply ``changes`` (column -> value), all or none.

    Returns:
        Whether anything changed.

    Raises:
        Conflict: the run has not ended, or the name is taken.
        InputError: a value cannot be this run's.
    """
    changes = {name: value for name, value in changes.items() if getattr(run, name) != value}
    if changes.keys() & {"status", "is_final"}:
        _require_ended(session, run, "corrected")
    if "name" in changes and run.source == SOURCE:
        other = run_store.imported_run(session, run.cohort, changes["name"])
        if other is not None:
            raise Conflict(f"cohort {run.cohort!r} has a run {changes['name']!r} ({other.run_id}); give another name")
    if changes.get("control_id") is not None:
        _check_control(session, run, changes["control_id"])
    for name, value in changes.items():
        was = getattr(run, name)
        setattr(run, name, value)
        note_correction(run, name, was, why)
    _check_outcome(run)
    if changes:
        check_table(session, run.cohort)
    return bool(changes)


def remove(session: Session, run: RunRow, why: str) -> list[str]:
    """Remove a run that has ended.

    Returns:
        The runs whose control it was.

    Raises:
        Conflict: it has not ended.
    """
    _require_ended(session, run, "removed")
    compared = list(remove_run(session, run, why))
    check_table(session, run.cohort)
    return compared


def _require_ended(session: Session, run: RunRow, what: str) -> None:
    job = job_store.job_of_run(session, run.run_id)
    if job is not None and job.state not in job_store.ENDED_STATES:
        raise Conflict(f"run {run.run_id} cannot be {what} while its job {job.id} is {job.state}; cancel the job first")
    if run.status == "running":
        raise Conflict(
            f"run {run.run_id} has not ended, so it cannot be {what}; POST /runs/{run.run_id}/points with a status ends it"
        )


def _check_outcome(run: RunRow) -> None:
    if run.status == "finished" and run.final_loss is None and run.schedule != "constant":
        raise InputError(
            "status", "is 'finished', but the run has no final loss", "import its log again, or call it stopped"
        )
    if run.is_final and run.status == "finished" and (run.final_loss is None or run.schedule == "constant"):
        raise InputError(
            "is_final", "is true, but the run has no loss at the end of a schedule", "leave it false: its legs decay"
        )


def _check_control(session: Session, run: RunRow, control_id: str) -> None:
    control = run_store.get_run(session, control_id)
    if control is None or control.cohort != run.cohort:
        raise InputError(
            "control_id", f"is {control_id!r}, but cohort {run.cohort!r} has no such run", "name one of it"
        )
    if control.run_id == run.run_id or control.growth_factor != 1:
        raise InputError(
            "control_id", f"is {control_id!r}, which is {'the run itself' if control is run else 'a grown run'}",
            "name a run that was not grown",
        )  # fmt: skip
