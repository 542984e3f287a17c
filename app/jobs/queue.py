"""Putting jobs into the queue: the spec is on disk before the row, so a claimed job always finds it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from app.contract import SPEC_FILE, CorpusSpec, Spec, UploadSpec
from app.corpus.shards import Manifest
from app.jobs.headers import DECISION_METRIC, decision_dataset, recipe_of, run_row
from app.records import to_dict, write_json_atomically
from app.store import audit
from app.store import jobs as job_store
from app.store import recommendations as recommendation_store
from app.store import runs as run_store
from app.store.cohorts import CohortMismatch as CohortMismatch
from app.store.cohorts import join_cohort
from app.store.database import Database
from app.store.ids import new_id
from app.store.recommendations import Answered
from app.store.tables import LOCAL, JobRow

EXPORT_PRIORITY = 1_000


def enqueue_arms(
    database: Database,
    runs_dir: Path,
    specs: Mapping[str, Spec],
    manifest: Manifest,
    *,
    priority: int,
    request_key: str | None,
    request_hash: str | None,
    control_run_id: str | None = None,
    engine: str = "local",
    num_nodes: int = 1,
    follows: str | Answered | None = None,
    owner: str = LOCAL,
) -> dict[str, JobRow]:
    """Queue the arms of one design (role -> spec) as a group.

    The others' control is the scratch arm, else the run ``control_run_id``. ``owner`` is the key that launches them.

    Args:
        follows: the recommendation that they follow: a kept one's id, or an answer that is kept with them.

    Raises:
        CohortMismatch: the cohort holds runs of another recipe; nothing is queued.
        OSError: a spec cannot be written; nothing is queued.
    """
    group_id = new_id("group")
    control_run_id = specs["scratch"].run_id if "scratch" in specs else control_run_id
    rows = {}
    for role, spec in specs.items():
        rows[role] = JobRow(
            id=new_id("job"),
            kind="growth",
            name=spec.name,
            role=role,
            group_id=group_id,
            run_id=spec.run_id,
            cohort=spec.cohort,
            control_run_id=control_run_id if role != "scratch" else None,
            state="queued",
            priority=priority,
            engine=engine,
            device=spec.device,
            num_processes=spec.num_processes,
            num_nodes=num_nodes,
            run_dir=str((runs_dir / spec.run_id).resolve()),
            spec=json.dumps(to_dict(spec)),
            request_key=request_key,
            request_hash=request_hash,
            recommendation_id=follows.id if isinstance(follows, Answered) else follows,
            owner=owner,
        )
    first = next(iter(specs.values()))
    recipe = recipe_of(first, manifest)
    written: list[Path] = []
    try:
        for role, spec in specs.items():
            written.append(_write_spec(Path(rows[role].run_dir), spec))
        with database.write() as session:
            join_cohort(
                session, first.cohort, recipe,
                decision_metric=DECISION_METRIC, decision_dataset=decision_dataset(first.corpus),
            )  # fmt: skip
            if isinstance(follows, Answered):
                recommendation_store.keep(session, follows)
            for role, row in rows.items():
                run_store.add_run(session, run_row(specs[role], manifest, row.control_run_id))
                job_store.add_job(session, row)
                audit.record(
                    session, actor=owner, action="job.launch", subject=row.id,
                    detail=f"{role} run {row.run_id}, {row.name!r} in cohort {row.cohort!r}",
                )  # fmt: skip
    except BaseException:
        for run_dir in written:
            shutil.rmtree(run_dir, ignore_errors=True)
        raise
    return rows


def enqueue_corpus(
    database: Database, runs_dir: Path, spec: CorpusSpec, *, priority: int = 0, owner: str = LOCAL
) -> JobRow:
    """Queue a corpus preparation."""
    row = _alone("corpus", runs_dir, spec, priority=priority, owner=owner)
    _add_alone(database, row, spec, "job.launch", row.id, f"corpus {spec.name!r}")
    return row


def enqueue_upload(database: Database, runs_dir: Path, spec: UploadSpec, *, of_job: str, owner: str = LOCAL) -> JobRow:
    """Queue an export of a run's files, before everything that trains: it needs a slot for minutes, not days."""
    row = _alone("export", runs_dir, spec, priority=EXPORT_PRIORITY, owner=owner)
    _add_alone(database, row, spec, "job.export", of_job, f"{spec.source} to {spec.url} by {row.id}")
    return row


def upload_under_way(database: Database, url: str) -> str | None:
    """The job that exports to this URL or waits for it; None where there is none."""
    with database.read() as session:
        active = job_store.list_jobs(session, states=("queued", "running", "paused"), kind="export", limit=1000)
    return next((job.id for job in active if json.loads(job.spec)["url"] == url), None)


def _alone(kind: str, runs_dir: Path, spec: CorpusSpec | UploadSpec, *, priority: int, owner: str) -> JobRow:
    """A job that trains nothing: no run and no group, and a CPU slot is all it takes."""
    return JobRow(
        id=spec.run_id,
        kind=kind,
        name=spec.name,
        role=kind,
        state="queued",
        priority=priority,
        device="cpu",
        run_dir=str((runs_dir / spec.run_id).resolve()),
        spec=json.dumps(to_dict(spec)),
        owner=owner,
    )


def _add_alone(
    database: Database, row: JobRow, spec: CorpusSpec | UploadSpec, action: audit.Action, subject: str, detail: str
) -> None:
    run_dir = _write_spec(Path(row.run_dir), spec)
    try:
        with database.write() as session:
            job_store.add_job(session, row)
            audit.record(session, actor=row.owner, action=action, subject=subject, detail=detail)
    except BaseException:
        shutil.rmtree(run_dir, ignore_errors=True)
        raise


def _write_spec(run_dir: Path, spec: Spec | CorpusSpec | UploadSpec) -> Path:
    run_dir.mkdir(parents=True)
    try:
        write_json_atomically(run_dir / SPEC_FILE, to_dict(spec))
    except BaseException:
        shutil.rmtree(run_dir, ignore_errors=True)
        raise
    return run_dir
