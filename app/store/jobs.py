"""Queries on jobs and their events. A job is claimed by one statement, so two launchers never start the same one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import not_, select, update
from sqlalchemy.orm import Session

from app.contract import EventLine
from app.store.tables import JobEventRow, JobRow, utc_now

# How long a service may be silent before another takes its jobs over, unless its settings say otherwise.
LEASE_SECONDS = 60.0
ENDED_STATES = ("succeeded", "failed", "cancelled")
STATES = ("queued", "running", "paused", *ENDED_STATES)


def add_job(session: Session, job: JobRow) -> None:
    session.add(job)
    session.flush()
    add_event(session, job.id, "queued", f"{job.name} waits for a free slot")


def get_job(session: Session, job_id: str) -> JobRow | None:
    return session.get(JobRow, job_id)


def job_of_run(session: Session, run_id: str) -> JobRow | None:
    """The job that trained or will train a run; None where the run came from elsewhere."""
    return session.scalars(select(JobRow).where(JobRow.run_id == run_id).limit(1)).first()


def find_by_request_key(session: Session, request_key: str) -> Sequence[JobRow]:
    """The jobs that one request made."""
    return session.scalars(select(JobRow).where(JobRow.request_key == request_key).order_by(JobRow.id)).all()


def list_jobs(
    session: Session,
    *,
    states: Iterable[str] = (),
    group_id: str | None = None,
    cohort: str | None = None,
    kind: str | None = None,
    run_id: str | None = None,
    after: str | None = None,
    limit: int,
) -> Sequence[JobRow]:
    """Jobs, newest first; `after` is the last id of the page before."""
    query = select(JobRow).order_by(JobRow.id.desc()).limit(limit)
    if states := tuple(states):
        query = query.where(JobRow.state.in_(states))
    if group_id is not None:
        query = query.where(JobRow.group_id == group_id)
    if cohort is not None:
        query = query.where(JobRow.cohort == cohort)
    if kind is not None:
        query = query.where(JobRow.kind == kind)
    if run_id is not None:
        query = query.where(JobRow.run_id == run_id)
    if after is not None:
        query = query.where(JobRow.id < after)
    return session.scalars(query).all()


def running_jobs(session: Session, owner: str | None = None) -> Sequence[JobRow]:
    """Running jobs in the order of their ids: all, or those whose lease `owner` holds."""
    query = select(JobRow).where(JobRow.state == "running").order_by(JobRow.id)
    if owner is not None:
        query = query.where(JobRow.lease_owner == owner)
    return session.scalars(query).all()


def next_queued_job(
    session: Session, *, skip: Collection[tuple[str, str]] = (), runs_dir: str | None = None, lock: bool = False
) -> JobRow | None:
    """The first queued job, highest priority first, oldest first, that is none of the (engine, device) pairs `skip`.

    Args:
        runs_dir: only jobs whose run directories lie right in it.
        lock: hold it until the (write) transaction ends; others pass it over.
    """
    query = select(JobRow).where(JobRow.state == "queued").order_by(JobRow.priority.desc(), JobRow.id).limit(1)
    for engine, device in skip:
        query = query.where(not_((JobRow.engine == engine) & (JobRow.device == device)))
    if runs_dir is not None:
        query = query.where(JobRow.run_dir.startswith(runs_dir.rstrip("/") + "/", autoescape=True))
    return session.scalars(query.with_for_update(skip_locked=True) if lock else query).first()


def claim_job(session: Session, job_id: str, owner: str) -> JobRow | None:
    """Mark a queued job running under the lease of `owner`; None where it is queued no more.

    One statement decides, so two launchers never start the same job.
    """
    now = utc_now()
    claim = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.state == "queued")
        .values(
            state="running",
            wish=None,
            num_attempts=JobRow.num_attempts + 1,
            started_at=now,
            reason="",
            cause=None,
            handle=None,
            lease_owner=owner,
            heartbeat_at=now,
        )
        .returning(JobRow)
    )
    return session.scalars(claim, execution_options={"populate_existing": True}).one_or_none()


def take_over_job(session: Session, job: JobRow, owner: str) -> bool:
    """Move the lease of a running job to `owner`; False where its service was heard of since `job` was read."""
    as_read = (
        JobRow.id == job.id,
        JobRow.state == "running",
        JobRow.lease_owner.is_not_distinct_from(job.lease_owner),
        JobRow.heartbeat_at.is_not_distinct_from(job.heartbeat_at),
    )
    taken = update(JobRow).where(*as_read).values(lease_owner=owner, heartbeat_at=utc_now()).returning(JobRow.id)
    return session.scalars(taken).one_or_none() is not None


def beat(session: Session, owner: str, job_ids: Collection[str]) -> None:
    """Say that `owner` has seen these jobs alive now."""
    alive = JobRow.id.in_(job_ids), JobRow.lease_owner == owner, JobRow.state == "running"
    session.execute(update(JobRow).where(*alive).values(heartbeat_at=utc_now()))


def move_offsets(session: Session, job: JobRow, owner: str, *, metrics_offset: int, events_offset: int) -> bool:
    """Say how far the files of a running job are taken in; False where another service did, or has the lease."""
    as_read = (
        JobRow.id == job.id,
        JobRow.lease_owner == owner,
        JobRow.metrics_offset == job.metrics_offset,
        JobRow.events_offset == job.events_offset,
    )
    moved = update(JobRow).where(*as_read).values(metrics_offset=metrics_offset, events_offset=events_offset)
    return session.scalars(moved.returning(JobRow.id)).one_or_none() is not None


def set_state(session: Session, job_id: str, state: str, reason: str = "", **values: Any) -> None:
    """Move a job to another state and tell its story."""
    ended = {"finished_at": utc_now()} if state in ENDED_STATES else {}
    if state != "running":
        values |= {"handle": None, "lease_owner": None, "heartbeat_at": None, "wish": None}
    values = {"cause": None} | values
    session.execute(update(JobRow).where(JobRow.id == job_id).values(state=state, reason=reason, **ended, **values))
    add_event(session, job_id, state, reason)


def set_values(session: Session, job_id: str, **values: Any) -> None:
    session.execute(update(JobRow).where(JobRow.id == job_id).values(**values))


def add_event(session: Session, job_id: str, event: str, message: str) -> None:
    session.add(JobEventRow(job_id=job_id, time=utc_now(), event=event, message=message))
    session.flush()


def add_event_lines(session: Session, job_id: str, lines: Iterable[EventLine]) -> None:
    """Store the events that the job's process wrote."""
    for line in lines:
        session.add(
            JobEventRow(
                job_id=job_id,
                time=line.time,
                event=line.event,
                message=line.message,
                phase=line.phase,
                tokens=line.tokens,
            )
        )
    session.flush()


def list_events(session: Session, job_id: str, *, after_id: int = 0, limit: int = 1000) -> Sequence[JobEventRow]:
    query = (
        select(JobEventRow)
        .where(JobEventRow.job_id == job_id, JobEventRow.id > after_id)
        .order_by(JobEventRow.id)
        .limit(limit)
    )
    return session.scalars(query).all()


def last_events(session: Session, job_id: str, limit: int) -> Sequence[JobEventRow]:
    """The newest events, newest first."""
    query = select(JobEventRow).where(JobEventRow.job_id == job_id).order_by(JobEventRow.id.desc()).limit(limit)
    return session.scalars(query).all()


def last_process_event(session: Session, job_id: str, events: Iterable[str]) -> JobEventRow | None:
    query = (
        select(JobEventRow)
        .where(JobEventRow.job_id == job_id, JobEventRow.event.in_(tuple(events)))
        .order_by(JobEventRow.id.desc())
        .limit(1)
    )
    return session.scalars(query).first()
