"""The launcher loop: one thread of the service that moves every job along, a tick at a time.

A tick looks at each running job (take in what it wrote, pass on what a user asked, see whether it ended) and then
claims queued jobs for the free slots. All state is in the database and the run directories, so a new service simply
goes on: a job whose process still lives is watched again, one whose process is gone is queued again from its checkpoint.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from app.contract import EVENTS_FILE, METRICS_FILE, EventLine, MetricLine, Spec
from app.jobs.headers import result_columns
from app.jobs.local import LocalLauncher, ProcessId
from app.jobs.outcome import Outcome, outcome_of
from app.jobs.tail import read_new_lines
from app.records import from_dict
from app.store import jobs as job_store
from app.store import runs as run_store
from app.store.database import Database
from app.store.tables import JobRow

log = structlog.get_logger()

TICK_SECONDS = 0.25
SECONDS_AFTER_TROUBLE = 2.0
# A process asked to stop finishes its step and saves; after this many ticks it is killed.
TICKS_TO_STOP = 240
# Deaths without a new checkpoint or point between them, after which a job is given up.
MAX_DEATHS = 3


class Supervisor:
    """Runs the jobs of one service. ``on_run_ended`` is called with the cohort after a run has been stored."""

    def __init__(self, database: Database, *, num_slots: int, on_run_ended: Callable[[str], None]) -> None:
        self._database = database
        self._num_slots = num_slots
        self._on_run_ended = on_run_ended
        self._launcher = LocalLauncher()
        self._stopping: dict[str, int] = {}
        self._troubles: dict[str, str] = {}
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="launcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the loop. Running processes go on by themselves and are found again by the next service."""
        self._halt.set()
        self._thread.join(timeout=30)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _loop(self) -> None:
        while not self._halt.is_set():
            try:
                self.tick()
            except Exception:  # the loop must outlive a locked database; the log tells
                log.exception("launcher_tick_failed")
                self._halt.wait(SECONDS_AFTER_TROUBLE)
            self._halt.wait(TICK_SECONDS)

    def tick(self) -> None:
        with self._database.read() as session:
            running = job_store.running_jobs(session)
        for job in running:
            try:
                self._look_after(job)
                self._troubles.pop(job.id, None)
            except Exception as error:  # one job's trouble (a full disk, a torn file) must not hold up the others
                if self._troubles.get(job.id) != repr(error):
                    self._troubles[job.id] = repr(error)
                    log.exception("job_look_failed", job_id=job.id)
        with self._database.read() as session:
            num_running = len(job_store.running_jobs(session))
        for _ in range(self._num_slots - num_running):
            if not self._start_next():
                break

    # --- starting ------------------------------------------------------------------------------------------

    def _start_next(self) -> bool:
        with self._database.read() as session:
            if not job_store.list_jobs(session, states=("queued",), limit=1):
                return False
        with self._database.write() as session:
            job = job_store.claim_next_job(session)
            if job is None:
                return False
            try:
                process = self._launcher.start(job.kind, Path(job.run_dir))
            except OSError as error:
                job_store.set_state(session, job.id, "failed", f"could not start: {error}")
                if job.run_id is not None:
                    run_store.stop_run(session, job.run_id, f"could not start: {error}")
                return True
            attempt = f"attempt {job.num_attempts}, pid {process.pid}"
            job_store.set_state(
                session, job.id, "running", attempt, pid=process.pid, process_started_at=process.started_at
            )
        log.info("job_started", job_id=job.id, name=job.name, pid=process.pid, attempt=job.num_attempts)
        return True

    # --- watching ------------------------------------------------------------------------------------------

    def _look_after(self, job: JobRow) -> None:
        # Whether it runs is asked before its files are read: what it wrote last is then never missed.
        if job.pid is None or job.process_started_at is None:
            is_running, process = False, None
        else:
            process = ProcessId(pid=job.pid, started_at=job.process_started_at)
            is_running = self._launcher.is_running(process)
        self._take_in(job)
        if is_running:
            assert process is not None
            if job.wish is not None:
                self._stop_process(job, process)
            return
        while self._take_in(job):
            pass
        exit_code = self._launcher.exit_code(process) if process is not None else None
        self._end(job, self._outcome(job, exit_code))
        self._stopping.pop(job.id, None)
        if process is not None:
            self._launcher.forget(process)

    def _take_in(self, job: JobRow) -> bool:
        """Store the lines that the job's process has appended; True if there were any."""
        run_dir = Path(job.run_dir)
        points = read_new_lines(run_dir / METRICS_FILE, job.metrics_offset, MetricLine)
        events = read_new_lines(run_dir / EVENTS_FILE, job.events_offset, EventLine)
        if points.offset == job.metrics_offset and events.offset == job.events_offset:
            return False
        with self._database.write() as session:
            if job.run_id is not None:
                run_store.add_points(session, job.run_id, points.lines)
            job_store.add_event_lines(session, job.id, events.lines)
            for problem in points.bad_lines + events.bad_lines:
                job_store.add_event(session, job.id, "warning", problem)
            job.metrics_offset, job.events_offset = points.offset, events.offset
            values = {"metrics_offset": points.offset, "events_offset": events.offset}
            if points.lines and job.num_deaths:
                values["num_deaths"] = job.num_deaths = 0
            job_store.set_values(session, job.id, **values)
        return True

    def _stop_process(self, job: JobRow, process: ProcessId) -> None:
        ticks = self._stopping.get(job.id, 0)
        self._stopping[job.id] = ticks + 1
        if ticks == 0:
            self._launcher.ask_to_stop(process)
        elif ticks == TICKS_TO_STOP:
            log.warning("job_killed", job_id=job.id, reason="did not stop when asked")
            self._launcher.kill(process)

    # --- ending --------------------------------------------------------------------------------------------

    def _outcome(self, job: JobRow, exit_code: int | None) -> Outcome:
        with self._database.read() as session:
            last = job_store.last_process_event(
                session, job.id, ("started", "resumed", "paused", "failed", "diverged", "finished")
            )
        last_event, said = (last.event, last.message) if last is not None else ("", "")
        corpus_dir = Path(json.loads(job.spec)["corpus_dir"])
        return outcome_of(job.kind, Path(job.run_dir), corpus_dir, exit_code, last_event, said)

    def _end(self, job: JobRow, outcome: Outcome) -> None:
        with self._database.write() as session:
            fresh = job_store.get_job(session, job.id)
            wish = fresh.wish if fresh is not None else None
            state, reason, values = self._next_state(job, outcome, wish)
            if outcome.result is not None and job.run_id is not None:
                spec = from_dict(Spec, json.loads(job.spec))
                run_store.finish_run(session, job.run_id, **result_columns(spec, outcome.result))
            elif state in ("cancelled", "failed") and job.run_id is not None:
                run_store.stop_run(session, job.run_id, reason)
            job_store.set_state(session, job.id, state, reason, **values)
        log.info("job_ended", job_id=job.id, name=job.name, state=state, reason=reason)
        if state in job_store.ENDED_STATES and job.cohort is not None:
            self._on_run_ended(job.cohort)

    @staticmethod
    def _next_state(job: JobRow, outcome: Outcome, wish: str | None) -> tuple[str, str, dict[str, int]]:
        if outcome.end in ("succeeded", "failed"):
            return outcome.end, outcome.reason, {}
        if wish == "cancel":
            return "cancelled", "cancelled while it ran; its last checkpoint is kept", {}
        if wish == "pause" or outcome.end == "paused":
            return "paused", "resume it to go on from its last checkpoint", {}
        deaths = job.num_deaths + 1
        if deaths > MAX_DEATHS:
            return "failed", f"{outcome.reason}, {deaths} times without progress; see its log", {}
        return "queued", f"{outcome.reason}; it will go on from its last checkpoint", {"num_deaths": deaths}
