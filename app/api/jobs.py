"""`GET /jobs`, one job, its event stream, and what can be asked of it: cancel, pause, resume, retry."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import Session

from app.api.access import Caller, CallerDep
from app.api.problems import Problem, responses
from app.api.runs import Point
from app.api.service import Page, PageDep, Service, ServiceDep
from app.api.streams import EventStream, Silence, event_bytes
from app.contract import Spec
from app.jobs.design import total_flops
from app.jobs.launchers.base import EngineName
from app.jobs.outcome import Cause
from app.jobs.supervisor import work_of
from app.records import from_dict
from app.store import audit
from app.store import jobs as job_store
from app.store import keys as key_store
from app.store import runs as run_store
from app.store.tables import LOCAL, JobEventRow, JobRow, PointRow

router = APIRouter(tags=["jobs"])

Wish = Literal["cancel", "pause", "resume", "retry"]
_DEED: dict[Wish, audit.Action] = {
    "cancel": "job.cancel", "pause": "job.pause", "resume": "job.resume", "retry": "job.retry",
}  # fmt: skip
State = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
Kind = Literal["growth", "corpus", "export"]
SECONDS_BETWEEN_LOOKS = 0.3
EVENTS_A_LOOK = 500
# An engine writes a training loss and what the machine did meanwhile as one block of lines, of which a reader may see a part.
LINES_OF_A_BLOCK = 16


class Job(BaseModel):
    """A growth job, a corpus preparation or an export.

    `owner` is the id of the key that launched it, or "local" (no key); only that key and admins may touch it. `wish` is what
    was asked of it and is still to happen, `cause` why it failed, `heartbeat_at` when it was last seen alive,
    `recommendation_id` the kept answer that it follows.
    """

    model_config = ConfigDict(from_attributes=True)

    id: str
    kind: Kind
    name: str
    role: str
    group_id: str | None
    run_id: str | None
    cohort: str | None
    state: State
    wish: Literal["cancel", "pause"] | None
    reason: str
    cause: Cause | None
    priority: int
    engine: EngineName
    num_processes: int
    num_nodes: int
    recommendation_id: str | None
    num_attempts: int
    created_at: str
    started_at: str | None
    finished_at: str | None
    heartbeat_at: str | None
    owner: str


class Progress(BaseModel):
    """How far a growth job is: FLOPs done of all, and the last values it logged. `mfu` is null where the peak of its devices is
    not known."""

    phase: str
    tokens: int
    compute_flops: float
    total_flops: float
    fraction: float
    train_loss_nats: float
    validation_loss_nats: float | None
    tokens_per_second: float | None
    mfu: float | None
    peak_memory_bytes: float | None


class ListedJob(Job):
    """A job of the listing, and how far it is."""

    progress: Progress | None


class JobDetail(ListedJob):
    run_dir: str
    last_message: str


class JobEvent(BaseModel):
    """One entry of a job's story."""

    model_config = ConfigDict(from_attributes=True)

    time: str
    event: str
    message: str
    phase: str | None
    tokens: int | None


def find_job(service: Service, job_id: str) -> JobRow:
    with service.database.read() as session:
        job = job_store.get_job(session, job_id)
    if job is None:
        raise Problem.not_found("job", job_id)
    return job


def _listed(service: Service, session: Session, job: JobRow) -> ListedJob:
    shown = Job.model_validate(job)
    if job.state == "queued" and (trouble := service.supervisor.trouble(job.engine)):
        shown.reason = f"it waits: {trouble}"
    return ListedJob(**shown.model_dump(), progress=_progress(session, job))


def _progress(session: Session, job: JobRow) -> Progress | None:
    train = None if job.run_id is None else run_store.last_point(session, job.run_id, "train_loss")
    if job.run_id is None or train is None:
        return None
    total = total_flops(from_dict(Spec, json.loads(job.spec)))
    validation = run_store.last_point(session, job.run_id, "validation_loss")
    after = train.seq - LINES_OF_A_BLOCK
    around = run_store.list_points(session, job.run_id, after_seq=after, limit=2 * LINES_OF_A_BLOCK)
    last = {point.metric: point.value for point in around}
    return Progress(
        phase=train.phase,
        tokens=train.tokens,
        compute_flops=train.compute_flops,
        total_flops=total,
        fraction=min(1.0, train.compute_flops / total),
        train_loss_nats=train.value,
        validation_loss_nats=validation.value if validation else None,
        tokens_per_second=last.get("tokens_per_second"),
        mfu=last.get("mfu"),
        peak_memory_bytes=last.get("peak_memory"),
    )


def _detail(service: Service, job: JobRow) -> JobDetail:
    with service.database.read() as session:
        events = job_store.last_events(session, job.id, 1)
        listed = _listed(service, session, job)
    return JobDetail(**listed.model_dump(), run_dir=job.run_dir, last_message=events[0].message if events else "")


@router.get("/jobs", summary="List jobs", responses=responses(422))
def list_jobs(
    service: ServiceDep,
    page: PageDep,
    state: Annotated[list[State] | None, Query()] = None,
    group_id: Annotated[str | None, Query(max_length=64)] = None,
    run_id: Annotated[str | None, Query(max_length=64, description="the job that trains or trained it")] = None,
    cohort: Annotated[str | None, Query(max_length=64)] = None,
    kind: Annotated[Kind | None, Query()] = None,
) -> Page[ListedJob]:
    """Newest first, each with how far it is."""
    with service.database.read() as session:
        rows = job_store.list_jobs(
            session, states=state or (), group_id=group_id, run_id=run_id, cohort=cohort, kind=kind, after=page.after,
            limit=page.limit + 1,
        )  # fmt: skip
        return page.cut([_listed(service, session, row) for row in rows], "id")


@router.get("/jobs/{job_id}", summary="One job and how far it is", responses=responses(404))
def get_job(job_id: str, service: ServiceDep) -> JobDetail:
    """State, progress and the last words of its process."""
    return _detail(service, find_job(service, job_id))


@router.post("/jobs/{job_id}/cancel", summary="Cancel a job", responses=responses(404, 409))
def cancel_job(job_id: str, service: ServiceDep, caller: CallerDep) -> JobDetail:
    """Stop a job for good; a running one saves first. Its run stays, marked stopped."""
    return _ask(service, caller, job_id, "cancel", ("queued", "running", "paused"))


@router.post("/jobs/{job_id}/pause", summary="Pause a job", responses=responses(404, 409))
def pause_job(job_id: str, service: ServiceDep, caller: CallerDep) -> JobDetail:
    """Let a job save and stop; `resume` lets it go on where it stood."""
    return _ask(service, caller, job_id, "pause", ("queued", "running"))


@router.post("/jobs/{job_id}/resume", summary="Resume a paused job", responses=responses(404, 409, 422))
def resume_job(job_id: str, service: ServiceDep, caller: CallerDep) -> JobDetail:
    """Let a paused job, or a failed one whose cause is mended, go on from its last checkpoint."""
    return _ask(service, caller, job_id, "resume", ("paused", "failed"))


@router.post("/jobs/{job_id}/retry", summary="Try a failed or cancelled job again", responses=responses(404, 409, 422))
def retry_job(job_id: str, service: ServiceDep, caller: CallerDep) -> JobDetail:
    """Let a failed or cancelled job go on from its last checkpoint; a diverged one has its result and cannot."""
    return _ask(service, caller, job_id, "retry", ("failed", "cancelled"))


def _ask(
    service: Service,
    caller: Caller,
    job_id: str,
    wish: Wish,
    allowed: tuple[str, ...],
) -> JobDetail:
    asked = find_job(service, job_id)
    caller.check_may_touch(asked.owner, f"job {job_id}")
    if wish in ("resume", "retry"):
        service.supervisor.check(asked.engine, work_of(asked))
    with service.database.write() as session:
        job = job_store.get_job(session, job_id)
        assert job is not None
        was = job.state
        if was not in allowed:
            raise Problem(409, f"job {job_id} is {was}, but only {' or '.join(allowed)} jobs can {wish}")
        if wish == "pause" and job.wish == "cancel":
            raise Problem(409, f"job {job_id} is being cancelled; it cannot be paused any more")
        if wish in ("resume", "retry"):
            if job.cause == "diverged":
                raise Problem(
                    409,
                    f"job {job_id} diverged and has its result; start another run with a lower rate or another seed",
                )
            if job.run_id is not None and run_store.get_run(session, job.run_id) is None:
                raise Problem(409, f"the run of job {job_id} was removed, so it cannot go on; start another run")
            said = {"resume": "resumed", "retry": "tried again"}[wish]
            job_store.set_state(session, job_id, "queued", f"{said}; it goes on from its last checkpoint", num_deaths=0)
            if job.run_id is not None:
                run_store.finish_run(session, job.run_id, status="running", reason="")
        elif was == "running":
            job_store.set_values(session, job_id, wish=wish)
            job_store.add_event(session, job_id, f"{wish}_asked", "the process finishes its step, saves and stops")
        else:
            job_store.set_state(session, job_id, {"cancel": "cancelled", "pause": "paused"}[wish], "before it ran")
            if wish == "cancel" and job.run_id is not None:
                run_store.stop_run(session, job.run_id, "cancelled before it ran")
        audit.record(session, actor=caller.id, action=_DEED[wish], subject=job_id, detail=f"it was {was}")
    return _detail(service, find_job(service, job_id))


def _stream_start(
    job_id: str, service: ServiceDep, last_event_id: Annotated[str | None, Header(max_length=64)] = None
) -> tuple[int, int]:
    """Where a stream starts. A dependency, because once a stream has begun it is too late to answer with an error."""
    find_job(service, job_id)
    if last_event_id is None:
        return 0, -1
    story, _, seq = last_event_id.partition("-")
    try:
        position = int(story), int(seq)
        if not all(-1 <= number < 2**63 for number in position):
            raise ValueError
        return position
    except ValueError:
        raise Problem(
            422, f"Last-Event-ID is {last_event_id!r}, but it must be an id of this stream; send one or leave it out"
        ) from None


@router.get(
    "/jobs/{job_id}/events",
    summary="Follow a job as server-sent events",
    response_class=EventStream,
    status_code=200,
    responses=responses(404, 422),
)
async def stream_events(
    job_id: str, service: ServiceDep, caller: CallerDep, start: Annotated[tuple[int, int], Depends(_stream_start)]
) -> EventStream:
    """The job's story and points as server-sent events, from the start or from behind `Last-Event-ID`.

    Events: `story` (a `JobEvent`), `point` (a `Point`), at last `end` (the `Job`), after which the stream closes. An id
    is `STORY-POINT`, the last of each that was sent. A stream that closes without `end` was the service's that is being
    stopped, or its key was revoked: ask again with the last id.
    """
    return EventStream(_events(job_id, service, caller, start))


async def _events(job_id: str, service: Service, caller: Caller, start: tuple[int, int]) -> AsyncIterator[bytes]:
    story_id, seq = start
    silence = Silence()
    while True:
        looked = await run_in_threadpool(_look, service, caller, job_id, story_id, seq)
        if looked is None:
            return
        job, story, points = looked
        for entry in story:
            story_id = entry.id
            yield event_bytes("story", JobEvent.model_validate(entry), f"{story_id}-{seq}")
        for point in points:
            seq = point.seq
            yield event_bytes("point", Point.model_validate(point), f"{story_id}-{seq}")
        if story or points:
            silence.broken()
        if service.is_stopping:
            return  # the client takes it up from its last id, at the next service
        if len(story) == EVENTS_A_LOOK or len(points) == EVENTS_A_LOOK:
            continue
        if job.state in job_store.ENDED_STATES:
            yield event_bytes("end", Job.model_validate(job), f"{story_id}-{seq}")
            return
        if word := silence.word():
            yield word
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


def _look(
    service: Service, caller: Caller, job_id: str, story_id: int, seq: int
) -> tuple[JobRow, Sequence[JobEventRow], Sequence[PointRow]] | None:
    """What is new of a job; None where the caller's key was revoked since the stream was opened."""
    # The job is read first: if it has ended then, everything it ever wrote is there to be read after it.
    job = find_job(service, job_id)
    with service.database.read() as session:
        if caller.id != LOCAL and not key_store.is_in_use(session, caller.id):
            return None
        story = job_store.list_events(session, job_id, after_id=story_id, limit=EVENTS_A_LOOK)
        points: Sequence[PointRow] = ()
        if job.run_id is not None:
            points = run_store.list_points(session, job.run_id, after_seq=seq, limit=EVENTS_A_LOOK)
    return job, story, points
