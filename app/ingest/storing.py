"""Imported runs into the store: all of them or none, and a second time nothing.

A run is known by its content. Another content under the same name of the same cohort is refused, unless the import says
that it replaces what stands: a log that has grown since, or was mapped wrongly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy.orm import Session

from app.ingest.imported import ImportedRun
from app.store import audit, removals
from app.store import runs as run_store
from app.store.cohorts import join_cohort
from app.store.database import Database
from app.store.ids import new_id
from app.store.tables import LOCAL, CohortRow, RunRow
from fitting.errors import InputError
from fitting.table import read_runs

SOURCE = "import"


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """What an import did with one run; ``run_id`` is None where a dry run would have added it."""

    run_id: str | None
    outcome: Literal["added", "known", "replaced", "removed"]
    run: ImportedRun

    @property
    def num_points(self) -> int:
        """Points that were written."""
        return len(self.run.points) if self.outcome in ("added", "replaced") else 0


def import_runs(
    database: Database,
    runs: Sequence[ImportedRun],
    *,
    dry_run: bool = False,
    replace: bool | Sequence[bool] = False,
    restore: bool | Sequence[bool] = False,
    actor: str = LOCAL,
) -> list[StoredRun]:
    """Store runs with their points under their cohorts, in one transaction.

    Args:
        actor: who imports them.
        dry_run: check everything against the store and say what would be done, but do nothing.
        replace: a run of the same cohort and name takes the new content and loses its corrections; its id stays.
        restore: a run that was removed comes back, under the id it had; else it stays away. Both for all runs, or one a run.

    Raises:
        CohortMismatch: the store holds a cohort of this name with another recipe.
        InputError: another run has the name, or the cohort's table would not be one that can be fitted.
    """
    with database.write() as session:
        replaces = [replace] * len(runs) if isinstance(replace, bool) else replace
        restores = [restore] * len(runs) if isinstance(restore, bool) else restore
        done = [
            _store(session, run, replace=replaces_it, restore=restores_it)
            for run, replaces_it, restores_it in zip(runs, replaces, restores, strict=True)
        ]
        for cohort in {str(run.header["cohort"]) for run in runs}:
            check_table(session, cohort)
        for stored in done:
            if stored.outcome in ("added", "replaced"):
                audit.record(
                    session, actor=actor, action="run.import", subject=str(stored.run_id),
                    detail=f"{stored.outcome} {stored.run.name!r} in cohort {stored.run.header['cohort']!r}",
                )  # fmt: skip
        if dry_run:
            session.rollback()
            return [_undone(stored) for stored in done]
    return done


def _undone(stored: StoredRun) -> StoredRun:
    return StoredRun(run_id=None, outcome="added", run=stored.run) if stored.outcome == "added" else stored


def _store(session: Session, run: ImportedRun, *, replace: bool, restore: bool) -> StoredRun:
    cohort, content = str(run.header["cohort"]), run.content_hash
    known = run_store.run_of_content(session, content)
    if known is not None:
        return StoredRun(run_id=known.run_id, outcome="known", run=run)
    removed = removals.removed_content(session, content)
    if removed is not None and not restore:
        return StoredRun(run_id=removed.run_id, outcome="removed", run=run)
    removed = removed or removals.removed_name(session, cohort, run.name)
    if removed is not None and not restore:
        raise InputError(
            "name", f"{run.name!r} is that of a run which was taken out: {removals.told(removed)}",
            "give another name, or restore where it shall come back",
        )  # fmt: skip
    enter_cohort(session, cohort, run.recipe, run.decision_metric, run.decision_dataset)
    namesake = run_store.imported_run(session, cohort, run.name)
    if namesake is not None and not replace:
        raise InputError(
            "name", f"{run.name!r} is {namesake.run_id}'s, which holds another log of cohort {cohort!r}",
            "give another name, or --replace where this is the same run, logged further or mapped anew",
        )  # fmt: skip
    values: dict[str, Any] = {**run.header, "reason": run.reason, "wasted_flops": run.wasted_flops}
    values |= {"content_hash": content, "provenance": json.dumps(run.provenance, sort_keys=True)}
    if namesake is None:
        if removed is not None:
            removals.forget_removal(session, removed)
        row = RunRow(run_id=new_id("run") if removed is None else removed.run_id, source=SOURCE, **values)
        run_store.add_run(session, row)
    else:
        row = namesake
        run_store.delete_points(session, row.run_id)
        run_store.finish_run(session, row.run_id, **values, corrections="")
    run_store.copy_points(session, _rows(row.run_id, run))
    return StoredRun(run_id=row.run_id, outcome="added" if namesake is None else "replaced", run=run)


def enter_cohort(session: Session, name: str, recipe: Any, metric: str, dataset: str) -> CohortRow:
    """The cohort that a run from elsewhere belongs to; it is judged by what the cohort is judged by.

    Raises:
        CohortMismatch: the cohort holds runs of another recipe.
        InputError: the cohort is judged by another metric or data set.
    """
    join_cohort(session, name, recipe, decision_metric=metric, decision_dataset=dataset)
    cohort = run_store.get_cohort(session, name)
    assert cohort is not None
    if (cohort.decision_metric, cohort.decision_dataset) != (metric, dataset):
        raise InputError(
            "decision_dataset", f"is {dataset!r} ({metric}), but cohort {name!r} is judged by {cohort.decision_metric} of "
            f"{cohort.decision_dataset!r}", "name that one, or give these runs a cohort of their own",
        )  # fmt: skip
    return cohort


def _rows(run_id: str, run: ImportedRun) -> Iterator[run_store.PointTuple]:
    for seq, (phase, _, tokens, flops, metric, dataset, value, unit, time) in enumerate(run.points):
        yield run_id, seq, phase, tokens, flops, metric, dataset, value, unit, time


def check_table(session: Session, cohort: str) -> None:
    """The cohort as a fit will read it; a row that no fit takes would stop every later one."""
    session.flush()
    session.expire_all()
    frame = run_store.cohort_frame(session, cohort)
    if not frame.empty:
        read_runs(frame, cohort=cohort)
