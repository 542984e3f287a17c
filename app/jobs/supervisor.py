"""The launcher loop: one thread of the service that moves every job along, a tick at a time.

A tick looks at each running job of this service (take in what it wrote, pass on what a user asked, see whether it ended)
and then claims queued jobs for which a launcher has room. All state is in the database and the run directories, so a new
service simply goes on: work that is still out there is watched again, work that is gone is queued again from its
checkpoint.

**The lease.** A running job belongs to the service that claimed it, which renews its heartbeat in the database. Where
services share a database and the folder of run directories, a job whose heartbeat another service has watched stand still
for the lease is taken over; the slow service, back again, finds that it lost the lease and leaves the job alone. Every
service measures with its own clock, so clocks that differ do no harm.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import structlog
from sqlalchemy.orm import Session
from structlog.contextvars import bound_contextvars

from app.contract import EVENTS_FILE, METRICS_FILE, NO_SPACE_ERRNOS, EventLine, MetricLine, Spec
from app.jobs.headers import result_columns
from app.jobs.launchers.base import EngineName, Launcher, Node, Poll, Work
from app.jobs.outcome import Cause, Outcome, failure, outcome_of
from app.jobs.tail import read_new_lines
from app.records import from_dict
from app.store import jobs as job_store
from app.store import runs as run_store
from app.store.database import Database
from app.store.tables import JobRow
from fitting.errors import InputError

log = structlog.get_logger()

TICK_SECONDS = 0.25
SECONDS_AFTER_TROUBLE = 2.0
# Heartbeats in a lease: a few may be late.
BEATS_A_LEASE = 12
# A process asked to stop finishes its step and saves, which takes a large model a while; then it is killed.
SECONDS_TO_STOP = {"cancel": 60.0, "pause": 900.0}
# How long a launcher must have said the same of a job before its story has it: most waits are over sooner.
SECONDS_TO_TELL = 10.0
# Deaths without a new point between them, after which a job is given up.
MAX_DEATHS = 3
LONGEST_MESSAGE = 500
# Events of a process that say how it stands.
_STANDINGS = ("started", "resumed", "paused", "failed", "diverged", "finished")


def work_of(job: JobRow) -> Work:
    """What a launcher must know of a job."""
    return Work(
        job_id=job.id,
        kind=cast(Any, job.kind),
        run_dir=Path(job.run_dir),
        num_processes=job.num_processes,
        num_nodes=job.num_nodes,
        device=cast(Any, job.device),
        attempt=job.num_attempts,
    )


class Supervisor:
    """Runs the jobs of one service.

    Args:
        database: holds the jobs.
        launchers: one an engine.
        owner: name of this service among those that share the database; the same after a restart.
        on_run_ended: called with the cohort after a run has been stored.
        runs_dir: only jobs whose run directories lie in it are run; all where None.
        lease_seconds: how long a job of a silent service is left alone.
    """

    def __init__(
        self,
        database: Database,
        launchers: Iterable[Launcher],
        *,
        owner: str,
        on_run_ended: Callable[[str], None],
        runs_dir: Path | None = None,
        lease_seconds: float = job_store.LEASE_SECONDS,
    ) -> None:
        self._database = database
        self._launchers = {launcher.engine: launcher for launcher in launchers}
        self._owner = owner
        self._on_run_ended = on_run_ended
        self._runs_dir = None if runs_dir is None else str(runs_dir)
        self._lease_seconds, self._beat_seconds = lease_seconds, lease_seconds / BEATS_A_LEASE
        self._asked_to_stop: dict[str, float] = {}
        self._killed: set[str] = set()
        self._troubles: dict[str, str] = {}
        # Heartbeats of other services' jobs: the last one, and when this service first saw it.
        self._heard: dict[str, tuple[str | None, float]] = {}
        # Cohorts of runs whose end may be stored but was not answered.
        self._unanswered: set[str] = set()
        # What a launcher says of a living job and since when; what of it the job's story has.
        self._said: dict[str, tuple[str, float]] = {}
        self._told: dict[str, str] = {}
        self._has_recovered = False
        self._last_beat = 0.0
        self._last_tick = time.monotonic()
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="launcher", daemon=True)

    def start(self) -> None:
        self._last_tick = time.monotonic()
        self._thread.start()

    def halt(self) -> None:
        """Claim nothing more and end the loop after the job in hand."""
        self._halt.set()

    def stop(self) -> None:
        """End the loop. Running work goes on by itself and is found again by the next service."""
        self.halt()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def seconds_since_tick(self) -> float:
        """Since the loop last went round without an error."""
        return time.monotonic() - self._last_tick

    def _loop(self) -> None:
        while not self._halt.is_set():
            try:
                self.tick()
                self._last_tick = time.monotonic()
            except Exception:  # the loop must outlive a locked database; the log tells
                log.exception("launcher_tick_failed")
                self._halt.wait(SECONDS_AFTER_TROUBLE)
            self._halt.wait(TICK_SECONDS)

    def tick(self) -> None:
        self._take_up()
        while self._unanswered:
            self._on_run_ended(self._unanswered.pop())
        with self._database.read() as session:
            running = job_store.running_jobs(session, self._owner)
        alive = []
        for job in running:
            if self._halt.is_set():
                return
            with bound_contextvars(job_id=job.id):
                try:
                    if self._look_after(job):
                        alive.append(job.id)
                    self._troubles.pop(job.id, None)
                except Exception as error:  # one job's trouble (a full disk, a torn file) must not hold up the others
                    self._tell_trouble(job, error)
                    alive.append(job.id)
        self._beat(alive)
        while not self._halt.is_set() and self._start_next():
            pass

    # --- what launchers tell -------------------------------------------------------------------------------

    def launcher(self, engine: str) -> Launcher:
        """The launcher of an engine.

        Raises:
            InputError: this service has none.
        """
        found = self._launchers.get(cast(EngineName, engine))
        if found is None:
            known = ", ".join(self._launchers)
            raise InputError("engine", f"is {engine!r}, but this service has: {known}", "use one of these")
        return found

    def check(self, engine: str, work: Work) -> None:
        """Refuse work that no worker of this service can ever run.

        Raises:
            InputError: says what it needs and what there is.
        """
        self.launcher(engine).fit(work)

    def trouble(self, engine: str) -> str:
        """Why an engine can start nothing for now; empty where it can, or where this service has no such engine."""
        launcher = self._launchers.get(cast(EngineName, engine))
        return launcher.trouble() if launcher is not None else ""

    def nodes(self) -> list[Node]:
        return [node for launcher in self._launchers.values() for node in launcher.nodes()]

    # --- taking up -----------------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """After a start: what this service left running. Later, now and then: what a silent service left."""
        now = time.monotonic()
        if self._has_recovered and now - self._last_beat < self._beat_seconds:
            return
        with self._database.read() as session:
            running = job_store.running_jobs(session)
        mine = [job for job in running if job.lease_owner == self._owner and not self._has_recovered]
        silent = [job for job in running if job.lease_owner != self._owner and self._is_silent(job, now)]
        self._heard = {job.id: self._heard[job.id] for job in running if job.id in self._heard}
        if mine or silent:
            with self._database.write() as session:
                for job in mine:
                    job_store.add_event(session, job.id, "taken_up", "the service has started again and looks after it")
                for job in silent:
                    if job_store.take_over_job(session, job, self._owner):
                        mine.append(job)
                        job_store.add_event(
                            session, job.id, "taken_over", f"{job.lease_owner or 'its service'} fell silent"
                        )
        for engine, launcher in self._launchers.items():
            launcher.recover({job.id: job.handle for job in mine if job.engine == engine and job.handle})
        self._has_recovered = True

    def _is_silent(self, job: JobRow, now: float) -> bool:
        if self._runs_dir is not None and str(Path(job.run_dir).parent) != self._runs_dir:
            return False
        heartbeat, since = self._heard.get(job.id, (None, now))
        if job.id not in self._heard or heartbeat != job.heartbeat_at:
            since = now
        self._heard[job.id] = (job.heartbeat_at, since)
        return now - since > self._lease_seconds

    def _beat(self, alive: list[str]) -> None:
        if time.monotonic() - self._last_beat < self._beat_seconds:
            return
        if alive:
            with self._database.write() as session:
                job_store.beat(session, self._owner, alive)
        self._last_beat = time.monotonic()

    def _tell_trouble(self, job: JobRow, error: Exception) -> None:
        if self._troubles.get(job.id) == repr(error):
            return
        self._troubles[job.id] = repr(error)
        log.exception("job_look_failed")
        with contextlib.suppress(Exception), self._database.write() as session:
            job_store.add_event(session, job.id, "warning", f"the service cannot look after it: {error}")

    # --- starting ------------------------------------------------------------------------------------------

    def _start_next(self) -> bool:
        """Claim and start the first queued job for which there is room; False where there is none.

        A job that must wait holds back those behind it that want the same devices: large jobs are not starved.
        """
        with self._database.read() as session:
            first = job_store.next_queued_job(session, runs_dir=self._runs_dir)
        if first is None:
            return False
        # A launcher may have to look at its cluster: not while the database is held for writing.
        with contextlib.suppress(InputError):
            self.launcher(first.engine).fit(work_of(first))
        with self._database.write() as session:
            job = self._claim(session)
        if job is None or job.state != "running":
            return job is not None
        with bound_contextvars(job_id=job.id):
            self._submit(job)
        return True

    def _claim(self, session: Session) -> JobRow | None:
        """The job that was claimed, or that failed because nothing can ever run it."""
        skip: set[tuple[str, str]] = set()
        while (job := job_store.next_queued_job(session, skip=skip, runs_dir=self._runs_dir, lock=True)) is not None:
            try:
                if self.launcher(job.engine).fit(work_of(job)) == "now":
                    return job_store.claim_job(session, job.id, self._owner)
                skip.add((job.engine, job.device))
            except InputError as error:
                self._give_up(session, job, failure("no_worker", str(error)))
                return job
        return None

    def _submit(self, job: JobRow) -> None:
        try:
            submission = self.launcher(job.engine).submit(work_of(job))
        except (InputError, OSError) as error:
            is_full = isinstance(error, OSError) and error.errno in NO_SPACE_ERRNOS
            cause: Cause = "bad_spec" if isinstance(error, InputError) else "no_space" if is_full else "bug"
            outcome = failure(cause, f"could not start: {error}")
            with self._database.write() as session:
                if self._mine(session, job) is not None:
                    self._give_up(session, job, outcome)
            return
        if submission is None:
            return
        # Should this not be stored, the next tick submits again, which takes up what was started here.
        with self._database.write() as session:
            if self._mine(session, job) is None:
                return
            where = f"attempt {job.num_attempts}, {submission.where}"
            job_store.set_state(session, job.id, "running", where, handle=submission.handle)
        log.info("job_started", name=job.name, where=submission.where, attempt=job.num_attempts)

    def _mine(self, session: Session, job: JobRow) -> JobRow | None:
        """The job as it is, while this service has the lease of this attempt; asked in the transaction that writes."""
        fresh = job_store.get_job(session, job.id)
        if fresh is not None and (fresh.state, fresh.lease_owner, fresh.num_attempts) == (
            "running", self._owner, job.num_attempts,
        ):  # fmt: skip
            return fresh
        log.warning("lease_lost", name=job.name)
        return None

    def _give_up(self, session: Session, job: JobRow, outcome: Outcome) -> None:
        job_store.set_state(session, job.id, "failed", outcome.reason, cause=outcome.cause)
        if job.run_id is not None:
            run_store.stop_run(session, job.run_id, outcome.reason)
        log.info("job_ended", job_id=job.id, name=job.name, state="failed", reason=outcome.reason)

    # --- watching ------------------------------------------------------------------------------------------

    def _look_after(self, job: JobRow) -> bool:
        """True while the job's work is out there."""
        if job.handle is None:
            self._submit(job)
            return True
        launcher = self.launcher(job.engine)
        # Whether it runs is asked before its files are read: what it wrote last is then never missed.
        poll = launcher.poll(job.handle)
        self._take_in(job)
        if poll.state in ("waiting", "running"):
            self._tell(job, poll.message)
            if job.wish is not None:
                self._stop(launcher, job, job.handle)
            return True
        while self._take_in(job):
            pass
        self._end(job, self._outcome(job, poll))
        self._asked_to_stop.pop(job.handle, None)
        self._killed.discard(job.handle)
        self._said.pop(job.id, None)
        self._told.pop(job.id, None)
        return False

    def _tell(self, job: JobRow, message: str) -> None:
        """Put what a launcher keeps saying of living work, why it waits or cannot be asked for, into its story, once."""
        now = time.monotonic()
        if message != self._said.get(job.id, ("", now))[0]:
            self._said[job.id] = (message, now)
        _, since = self._said.get(job.id, ("", now))
        if message == self._told.get(job.id, "") or (message and now - since < SECONDS_TO_TELL):
            return
        self._told[job.id] = message
        with self._database.write() as session:
            job_store.add_event(session, job.id, "waiting" if message else "going_on", message or "it is seen again")

    def _take_in(self, job: JobRow) -> bool:
        """Store the lines that the job's process has appended; True if there were any."""
        run_dir = Path(job.run_dir)
        points = read_new_lines(run_dir / METRICS_FILE, job.metrics_offset, MetricLine)
        events = read_new_lines(run_dir / EVENTS_FILE, job.events_offset, EventLine)
        if points.offset == job.metrics_offset and events.offset == job.events_offset:
            return False
        with self._database.write() as session:
            if not job_store.move_offsets(
                session, job, self._owner, metrics_offset=points.offset, events_offset=events.offset
            ):
                log.warning("lease_lost", name=job.name)
                return False
            if job.run_id is not None:
                run_store.add_points(session, job.run_id, points.lines)
            job_store.add_event_lines(session, job.id, events.lines)
            for problem in points.bad_lines + events.bad_lines:
                job_store.add_event(session, job.id, "warning", problem)
            if points.lines and job.num_deaths:
                job_store.set_values(session, job.id, num_deaths=0)
                job.num_deaths = 0
        job.metrics_offset, job.events_offset = points.offset, events.offset
        return True

    def _stop(self, launcher: Launcher, job: JobRow, handle: str) -> None:
        now = time.monotonic()
        if handle not in self._asked_to_stop:
            launcher.cancel(handle)
            self._asked_to_stop[handle] = now
        elif now - self._asked_to_stop[handle] > SECONDS_TO_STOP[job.wish or "pause"]:
            launcher.cancel(handle, kill=True)
            if handle not in self._killed:
                self._killed.add(handle)
                with self._database.write() as session:
                    job_store.add_event(session, job.id, "warning", "it did not stop when asked, so it was killed")

    # --- ending --------------------------------------------------------------------------------------------

    def _outcome(self, job: JobRow, poll: Poll) -> Outcome:
        with self._database.read() as session:
            last = job_store.last_process_event(session, job.id, (*_STANDINGS, "running"))
        # Behind the service's own `running` stands what this attempt wrote; before it, what earlier ones did.
        last_event, said = (last.event, last.message) if last is not None and last.event != "running" else ("", "")
        corpus_dir = Path(json.loads(job.spec).get("corpus_dir", job.run_dir))
        outcome = outcome_of(job.kind, Path(job.run_dir), corpus_dir, poll.exit_code, last_event, said, poll.message)
        if poll.is_stopped and outcome.end in ("died", "paused"):
            return Outcome(end="stopped", reason=f"{poll.message}; resume it to go on from its last checkpoint")
        if outcome.end == "died" and poll.message:
            said = poll.message[-LONGEST_MESSAGE:]
            return Outcome(end="died", reason=said if poll.state == "lost" else f"{outcome.reason} ({said})")
        return outcome

    def _end(self, job: JobRow, outcome: Outcome) -> None:
        if job.cohort is not None:
            # Should the database go away as this is committed, nobody knows whether it was: then the refit looks.
            self._unanswered.add(job.cohort)
        with self._database.write() as session:
            fresh = self._mine(session, job)
            if fresh is None:
                return
            state, reason, values = self._next_state(job, outcome, fresh.wish)
            if outcome.result is not None and job.run_id is not None:
                spec = from_dict(Spec, json.loads(job.spec))
                run_store.finish_run(session, job.run_id, **result_columns(spec, outcome.result))
            elif state in ("cancelled", "failed") and job.run_id is not None:
                run_store.stop_run(session, job.run_id, reason)
            job_store.set_state(session, job.id, state, reason, **values)
        log.info("job_ended", name=job.name, state=state, reason=reason)
        if job.cohort is not None:
            self._unanswered.discard(job.cohort)
            if state in job_store.ENDED_STATES:
                self._on_run_ended(job.cohort)

    @staticmethod
    def _next_state(job: JobRow, outcome: Outcome, wish: str | None) -> tuple[str, str, dict[str, Any]]:
        if outcome.end in ("succeeded", "failed"):
            return outcome.end, outcome.reason, {"cause": outcome.cause}
        if wish == "cancel":
            return "cancelled", "cancelled while it ran; its last checkpoint is kept", {}
        if wish == "pause":
            return "paused", "resume it to go on from its last checkpoint", {}
        if outcome.end == "stopped":
            return "paused", outcome.reason, {}
        # A stop that nobody asked the service for is the machine's: it shut down, or its scheduler took it back.
        deaths = job.num_deaths + 1
        if deaths > MAX_DEATHS:
            given_up = failure("lost_worker", f"{outcome.reason}, {deaths} times without progress")
            return "failed", given_up.reason, {"cause": given_up.cause}
        return "queued", f"{outcome.reason}; it will go on from its last checkpoint", {"num_deaths": deaths}
