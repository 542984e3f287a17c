"""The exec launcher: the team's own scheduler, by the commands of a settings file.

Every command runs beside the loop (:mod:`app.jobs.launchers.exec_command`): asking takes no time, the answer is there at
a later look. So a scheduler that hangs holds up nothing, and one that is away is no lost job: its jobs stay as they were
last known, and the story says why. What is done one thing after another is written so, in generators that are resumed
at each look and give the trouble of the moment.

==========================  =========================================================================================
file in the run's `exec/`   what it is
==========================  =========================================================================================
``ATTEMPT-TEMPLATE``        the template, filled
``HANDLE.nodes``            the machines, written by the job as it starts
``HANDLE.exit``             the exit code, written by the job as its last act: it outlives what schedulers forget
``submitting``              locked while a submission is under way, by its command too
==========================  =========================================================================================
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Literal

import structlog

from app.contract import LOG_FILE
from app.jobs.launchers.base import (
    MODULES,
    DeviceKind,
    EngineName,
    Launcher,
    Node,
    Poll,
    SchedulerAway,
    Submission,
    Work,
    engine_command,
    too_large,
)
from app.jobs.launchers.exec_command import Answer, RunningCommand
from app.jobs.launchers.exec_job import EXEC_DIR, ID, Handle, Job, job_name
from app.jobs.launchers.exec_nodes import Machine, machines_of, nodes_of, num_devices
from app.jobs.launchers.exec_settings import ExecSettings
from app.jobs.launchers.exec_template import Value, fill, fill_command
from app.jobs.tail import log_tail
from app.records import write_text_atomically
from app.store.tables import utc_now
from fitting.errors import InputError

log = structlog.get_logger()

LOCK_FILE = "submitting"
MOST_AT_ONCE = 8  # commands; the others wait for their turn
SECONDS_TO_TRY_AGAIN = 15.0
SECONDS_OF_HURRY = 1.0  # between polls of a job that is about to end
SECONDS_FOR_MACHINES = 3.0  # that a look at an old list of machines waits for a new one
NUM_ENDS_KEPT = 1000
_SECONDS_BETWEEN_LOOKS = 0.02

Asking = Generator[str, None, Answer]


class ExecLauncher(Launcher):
    """Runs jobs by the commands of a settings file.

    Args:
        runs_dir: where run directories lie; nothing else is run.
        settings: the file, checked.

    Raises:
        InputError: a command or the template cannot be filled, or the list of machines not be read.
    """

    engine: EngineName = "exec"

    def __init__(self, runs_dir: Path, settings: ExecSettings) -> None:
        self._runs_dir = runs_dir
        self._settings = settings
        self._lock = threading.RLock()
        self._num_at_work = 0
        self._jobs: dict[str, Job] = {}
        self._submissions: dict[tuple[str, int], Generator[str, None, Handle]] = {}
        self._ends: OrderedDict[str, Poll] = OrderedDict()
        self._machines: list[Machine] = []
        self._machines_seen_at = utc_now()
        self._is_asking_for_machines = False
        self._try_filling()
        self._take_in_machines(self._start("nodes", {}).wait(), is_first=True)
        self._machines_watch = self._watching_machines()

    def _try_filling(self) -> None:
        """What would only fail with the first job fails now."""
        work = Work(job_id="job_x", kind="growth", run_dir=self._runs_dir / "run_x")
        values = self._work_values(work, "gpu") | {"script": str(self._script(work))}
        self._fill_template(values)
        for name, command in self._settings.commands.items():
            fill_command(command.command, {**self._settings.values, **values, "handle": "1"}, f"{name}.command")

    def _fill_template(self, values: Mapping[str, Value]) -> str:
        where = f"template {self._settings.template!r}"
        return fill(self._settings.template_text, {**self._settings.values, **values}, where)

    # --- commands --------------------------------------------------------------------------------------------

    def _start(self, name: str, values: Mapping[str, Value], held: int | None = None) -> RunningCommand:
        command = self._settings.commands[name]
        return RunningCommand(
            fill_command(command.command, {**self._settings.values, **values}, f"{name}.command"),
            folder=self._settings.folder,
            timeout_seconds=command.timeout_seconds,
            held=held,
        )

    def _ask(self, name: str, values: Mapping[str, Value], trouble: str = "", held: int | None = None) -> Asking:
        while self._num_at_work >= MOST_AT_ONCE:
            yield trouble
        try:
            running = self._start(name, values, held)
        except OSError as error:  # no file or process is to be had for now
            return Answer(code=None, errors=str(error))
        self._num_at_work += 1
        try:
            while (answer := running.answer()) is None:
                yield trouble
            return answer
        except GeneratorExit:
            # Nobody wants the answer any more; a submission is let be, as it may be done.
            if name != "submit":
                running.kill()
            raise
        finally:
            self._num_at_work -= 1

    @staticmethod
    def _pause(seconds: float, trouble: str = "") -> Generator[str, None, None]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            yield trouble

    # --- room ------------------------------------------------------------------------------------------------

    def fit(self, work: Work) -> Literal["now", "later"]:
        with self._lock:
            next(self._machines_watch)
            machines, num_jobs = self._machines, len(self._jobs) + len(self._submissions)
        if work.num_processes % work.num_nodes:
            raise InputError(
                "num_nodes",
                f"is {work.num_nodes}, but it must divide num_processes, {work.num_processes}: nodes get equally many",
                "change one of them",
            )
        if not machines:
            return "later"  # nobody knows yet what there is
        kind = self._kind(work)
        per_node = work.num_processes // work.num_nodes
        counts = [num_devices(machine, kind, self._settings) for machine in machines]
        if work.num_nodes == 1 and per_node > max(counts):
            raise too_large(work, kind, max(counts))
        num_large = sum(count >= per_node for count in counts)
        if num_large < work.num_nodes:
            what = "GPU" if kind == "gpu" else "CPU slot"
            raise InputError(
                "num_nodes",
                f"is {work.num_nodes}: the job needs {per_node} {what}{'s' if per_node > 1 else ''} on each, {num_large} nodes "
                f"have as many and the largest has {max(counts)}",
                "change num_nodes or num_processes, or attach more nodes",
            )
        return "now" if num_jobs < self._settings.max_jobs else "later"

    def _kind(self, work: Work) -> DeviceKind:
        wants_gpu = work.kind == "growth" and (
            work.device == "cuda" or (work.device == "auto" and any(machine.num_gpus for machine in self._machines))
        )
        return "gpu" if wants_gpu else "cpu"

    # --- starting --------------------------------------------------------------------------------------------

    def submit(self, work: Work) -> Submission | None:
        engine_command(work, self._runs_dir)
        if ID.fullmatch(work.job_id) is None:
            raise InputError("job_id", f"is {work.job_id!r}, but ids hold letters, digits, '_'", "queue it again")
        key = (work.job_id, work.attempt)
        with self._lock:
            for job in self._jobs.values():
                if (job.handle.job_id, job.handle.attempt) == key:
                    return self._submission(job.handle)
            self._forget_earlier(work)
            steps = self._submissions.setdefault(key, self._submitting(work))
            try:
                trouble = next(steps)
            except StopIteration as done:
                del self._submissions[key]
                return self._submission(self._know(done.value).handle)
            except BaseException:
                del self._submissions[key]
                raise
        if trouble:
            raise SchedulerAway(trouble)
        return None

    def _forget_earlier(self, work: Work) -> None:
        """Drop what is left of earlier attempts: another service saw them end."""
        for text in [text for text, job in self._jobs.items() if job.handle.job_id == work.job_id]:
            del self._jobs[text]
        for key in [key for key in self._submissions if key[0] == work.job_id and key[1] != work.attempt]:
            self._submissions.pop(key).close()

    def _submission(self, handle: Handle) -> Submission:
        return Submission(handle=handle.text, where=f"{self._settings.name} job {handle.id}")

    def _submitting(self, work: Work) -> Generator[str, None, Handle]:
        yield ""
        kind = self._kind(work)
        folder = work.run_dir / EXEC_DIR
        if folder.is_symlink():
            raise InputError("run_dir", f"holds {EXEC_DIR!r} as a link", "take the link away")
        folder.mkdir(exist_ok=True)
        lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            yield from self._hold(lock)
            scheduler_id = yield from self._find_or_submit(work, self._work_values(work, kind), lock)
        finally:
            os.close(lock)
        return Handle(
            id=scheduler_id,
            job_id=work.job_id,
            run=work.run_dir.name,
            attempt=work.attempt,
            device=kind,
            num_nodes=work.num_nodes,
            processes_per_node=work.num_processes // work.num_nodes,
        )

    def _hold(self, lock: int) -> Generator[str, None, None]:
        """Wait for a submission of a service that was killed: its command may still be at work, and holds the lock.

        Not for longer than such a command may take: what it left behind, a connection kept open, holds the lock too.
        """
        until = time.monotonic() + self._settings.submit.timeout_seconds
        while time.monotonic() < until:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield ""
            except OSError:
                return  # a file system without locks
            else:
                return

    def _find_or_submit(self, work: Work, values: dict[str, Value], lock: int) -> Generator[str, None, str]:
        """The scheduler's id of the work.

        It is looked for before every try: a command that was cut off, or whose answer holds no id, may have submitted.
        """
        name, submit, script = self._settings.name, self._settings.submit, self._script(work)
        values |= {"script": str(script)}
        trouble = garbled = ""
        while True:
            answer = yield from self._ask("find", values, trouble)
            if answer.code == 0:
                if (found := self._id_in(answer.output, self._settings.find.handle)) is not None:
                    return found
                if garbled:
                    raise OSError(f"{name} took it, but submit.handle finds no id in its answer: {garbled}")
                write_text_atomically(script, self._fill_template(values))
                answer = yield from self._ask("submit", values, trouble, held=lock)
                if answer.code == 0:
                    if (found := self._id_in(answer.output, submit.handle)) is not None:
                        return found
                    garbled = answer.said
                    continue
                if answer.code is not None and not re.search(submit.away, answer.output + answer.errors, re.MULTILINE):
                    raise OSError(f"{name} refused it: {answer.said}")
            trouble = f"{name} does not take it: {answer.said}; tried again every {SECONDS_TO_TRY_AGAIN:g} s"
            yield from self._pause(SECONDS_TO_TRY_AGAIN, trouble)

    @staticmethod
    def _id_in(text: str, pattern: str) -> str | None:
        found = re.search(pattern, text, re.MULTILINE)
        scheduler_id = found["handle"] if found is not None else None
        return scheduler_id if scheduler_id is not None and ID.fullmatch(scheduler_id) else None

    def _script(self, work: Work) -> Path:
        return work.run_dir / EXEC_DIR / f"{work.attempt}-{Path(self._settings.template).name}"

    def _work_values(self, work: Work, kind: DeviceKind) -> dict[str, Value]:
        per_node = work.num_processes // work.num_nodes
        return {
            "job_id": work.job_id,
            "job_name": job_name(work.job_id),
            "attempt": work.attempt,
            "run_dir": str(work.run_dir),
            "exec_dir": str(work.run_dir / EXEC_DIR),
            "log_file": str(work.run_dir / LOG_FILE),
            "python": sys.executable,
            # The package may run from a checkout that the machines' Python does not know.
            "package_root": str(Path(__file__).parents[3]),
            "module": MODULES[work.kind],
            "device": kind,
            "num_processes": work.num_processes,
            "num_nodes": work.num_nodes,
            "processes_per_node": per_node,
            "gpus_per_node": per_node if kind == "gpu" else 0,
            "cpus_per_node": per_node * self._settings.share(kind).cpus_per_process,
        }

    # --- watching --------------------------------------------------------------------------------------------

    def poll(self, handle: str) -> Poll:
        with self._lock:
            if handle in self._ends:
                return self._ends[handle]
            job = self._jobs.get(handle) or self._know(Handle.parse(handle))
            assert job.watching is not None
            next(job.watching)
            if job.stopping is not None:
                next(job.stopping)
            if not job.has_ended:
                return Poll(state=job.poll.state, message=job.trouble or job.poll.message)
            self._jobs.pop(handle, None)
            if job.stopping is not None:
                job.stopping.close()
            # Kept a while: the end of a job is asked for again where it could not be stored at once.
            self._ends[handle] = job.poll
            while len(self._ends) > NUM_ENDS_KEPT:
                self._ends.popitem(last=False)
            return job.poll

    def _know(self, handle: Handle) -> Job:
        job = Job(handle=handle, run_dir=self._runs_dir / handle.run)
        job.watching = self._watching(job)
        return self._jobs.setdefault(handle.text, job)

    def _watching(self, job: Job) -> Generator[str, None, None]:
        while True:
            answer = yield from self._ask("poll", job.values)
            job.take_in(answer, self._settings)
            asked_at = time.monotonic()
            while time.monotonic() < asked_at + self._seconds_between_polls(job):
                yield ""

    def _seconds_between_polls(self, job: Job) -> float:
        is_ending = job.wish is not None or job.num_unknown or job.exit_code is not None
        return SECONDS_OF_HURRY if is_ending else self._settings.poll.every_seconds

    def cancel(self, handle: str, *, kill: bool = False) -> None:
        with self._lock:
            if handle in self._ends:
                return
            job = self._jobs.get(handle) or self._know(Handle.parse(handle))
            job.wish = "kill" if kill or job.wish == "kill" else "cancel"
            job.stopping = job.stopping or self._stopping(job)

    def _stopping(self, job: Job) -> Generator[str, None, None]:
        """Ask it to stop, again and again: what is asked before its process can hear it, or while the scheduler is away,
        is lost."""
        while True:
            while not job.is_known:
                yield ""
            has_started = job.poll.state == "running" or bool(job.nodes)
            name = "cancel" if job.wish == "cancel" and has_started else "kill"
            answer = yield from self._ask(name, job.values)
            if answer.code != 0:
                log.warning("stop_failed", job_id=job.handle.job_id, command=name, said=answer.said)
            until = time.monotonic() + SECONDS_TO_TRY_AGAIN
            while time.monotonic() < until and (name == "kill" or job.wish == "cancel"):
                yield ""

    def logs(self, handle: str | None, run_dir: Path, *, max_bytes: int) -> str:
        text = log_tail(run_dir / LOG_FILE, max_bytes)
        if handle is None or self._settings.logs is None:
            return text
        with self._lock:
            job = self._jobs.get(handle) or Job(handle=Handle.parse(handle), run_dir=run_dir)
        told = self._start("logs", job.values).wait()
        text = f"{text}\n{(told.output if told.code == 0 else told.said).strip()}".strip()
        return text.encode()[-max_bytes:].decode("utf-8", errors="ignore")

    # --- knowing ---------------------------------------------------------------------------------------------

    def recover(self, handles: Mapping[str, str]) -> None:
        with self._lock:
            for handle in handles.values():
                self._know(Handle.parse(handle))

    def nodes(self) -> list[Node]:
        until = time.monotonic() + SECONDS_FOR_MACHINES
        with self._lock:
            next(self._machines_watch)
        while self._is_asking_for_machines and time.monotonic() < until:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            with self._lock:
                next(self._machines_watch)
        with self._lock:
            machines, seen_at, jobs = self._machines, self._machines_seen_at, list(self._jobs.values())
        return nodes_of(machines, [job.placed for job in jobs], self._settings, seen_at)

    def _watching_machines(self) -> Generator[str, None, None]:
        while True:
            yield from self._pause(self._settings.nodes.every_seconds)
            self._is_asking_for_machines = True
            self._take_in_machines((yield from self._ask("nodes", {})))
            self._is_asking_for_machines = False

    def _take_in_machines(self, answer: Answer, *, is_first: bool = False) -> None:
        machines = []
        if answer.code == 0:
            with contextlib.suppress(ValueError):
                machines = machines_of(answer.output, self._settings)
        if machines:
            self._machines, self._machines_seen_at = machines, utc_now()
        elif is_first and answer.code == 0:
            raise InputError("nodes.pattern", f"finds no machine in {answer.output[:200]!r}", "correct it")
        else:
            log.warning("no_machines", scheduler=self._settings.name, said=answer.said)
