"""Training a prepared folder on this machine: several engines side by side, no service, no database, no torch here.

All state lies in the run directories. A run with a result is done; one without is started, and the engine goes on from its
last checkpoint; so the same command goes on where it stopped, here or wherever the folder was carried. A trunk comes
before its legs, and legs before the next trunk. A diverged run is a result, and no leg can leave it. A run whose process
was killed from outside is started once more; one that failed is left for the next call, its sentence is told.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.contract import EVENTS_FILE, LOG_FILE, SPEC_FILE, EventLine, Result, read_result, read_spec
from app.corpus.shards import read_manifest
from app.jobs.outcome import Outcome, outcome_of
from app.jobs.tail import read_new_lines
from app.records import to_dict, write_json_atomically
from app.sweep.costs import hours
from app.sweep.machine import MACHINE_FILE, DoneCell, MachineProbe, Session, add_sessions, now
from app.sweep.prepared import CORPUS_DIR, PreparedCell, read_index, run_dir
from fitting.errors import InputError

SECONDS_BETWEEN_LOOKS = 0.1
# What a run gets to finish its step and save before it is killed.
SECONDS_TO_STOP = 120.0
MAX_ATTEMPTS = 2
# Runs that failed before any ended well, after which no more are started: what is wrong is wrong with all of them.
MAX_FIRST_FAILURES = 3
LOCK_FILE = ".work.lock"
LAST_EVENTS = ("started", "resumed", "paused", "failed", "diverged", "finished")


@dataclass(frozen=True, kw_only=True)
class Running:
    cell: PreparedCell
    process: subprocess.Popen[bytes]
    attempt: int


@dataclass(kw_only=True)
class Worker:
    """One call of the worker on one folder.

    Attributes:
        num_at_once: engines side by side, on one card or over the cores.
        num_threads: of each engine; more than one changes a CPU run's sums in the last bits.
        corpus_dir: where the corpus lies, if not in the folder.
        say: takes a line for people.
        failures: sentences on runs that did not end well.
    """

    folder: Path
    num_at_once: int
    num_threads: int = 1
    corpus_dir: Path | None = None
    say: Callable[[str], None] = print
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        self.index = read_index(self.folder)
        self.corpus_dir = None if self.corpus_dir is None else self.corpus_dir.resolve()
        self._check_corpus()
        self._active: list[Running] = []
        self._ready: deque[PreparedCell] = deque()
        self._trunks: deque[PreparedCell] = deque()
        self._done: list[DoneCell] = []
        self._num_standing = self._num_lost = 0
        self._flops_left = self.index.train_flops
        for cell in self.index.cells:
            if cell.trunk is None:
                self._take_family(cell)

    @property
    def num_done(self) -> int:
        """Cells that have their result, and legs that a diverged trunk took along."""
        return self._num_standing + len(self._done) + self._num_lost

    @property
    def is_complete(self) -> bool:
        return self.num_done == len(self.index.cells)

    def run(self, *, max_seconds: float | None = None) -> Session:
        """Train until everything is done or time is over; then let what runs save and stop.

        Raises:
            InputError: another worker is at work in the folder.
        """
        lock = self._lock()
        started_at, started, probe = now(), time.monotonic(), MachineProbe()
        try:
            while True:
                is_over = max_seconds is not None and time.monotonic() - started >= max_seconds
                if is_over or not self._fill():
                    break
                time.sleep(SECONDS_BETWEEN_LOOKS)
                self._look()
        finally:
            self._stop()
            session = Session(
                started_at=started_at, ended_at=now(), device=self.index.device, precision=self.index.precision,
                num_at_once=self.num_at_once, num_threads=self.num_threads, machine=probe.machine(),
                cells=tuple(self._done),
            )  # fmt: skip
            add_sessions(self.folder / MACHINE_FILE, [session])
            self._sum_up(session, time.monotonic() - started)
            os.close(lock)
        return session

    # --- what is to be done --------------------------------------------------------------------------------

    def _take_family(self, trunk: PreparedCell) -> None:
        result = read_result(run_dir(self.folder, trunk.cell))
        if result is None:
            self._trunks.append(trunk)
        else:
            self._num_standing += 1
            self._flops_left -= trunk.train_flops
            self._take_legs(trunk, result)

    def _take_legs(self, trunk: PreparedCell, result: Result) -> None:
        for leg in self.index.cells:
            if leg.trunk != trunk.cell:
                continue
            if read_result(run_dir(self.folder, leg.cell)) is not None:
                self._num_standing += 1
            elif result.status == "diverged":
                self._num_lost += 1
                self.say(f"{leg.cell}  is lost: its trunk diverged")
            else:
                self._ready.append(leg)
                continue
            self._flops_left -= leg.train_flops

    def _check_corpus(self) -> None:
        folder = self.corpus_dir or self.folder / CORPUS_DIR
        try:
            manifest = read_manifest(folder)
        except ValueError as error:
            raise InputError("--corpus-dir", str(error), "name the corpus the folder was prepared on") from None
        if manifest.content_hash != self.index.corpus_hash:
            raise InputError(
                "--corpus-dir", f"{folder} is another corpus than {self.folder} was prepared on",
                f"name the prepared corpus {self.index.corpus!r} with content hash {self.index.corpus_hash[:12]}",
            )  # fmt: skip
        missing = [file for split in manifest.splits.values() for file in split.files if not (folder / file).is_file()]
        if missing:
            raise InputError(
                "--corpus-dir", f"{folder} lacks {missing[0]}", "name a folder that holds the corpus's tokens"
            )

    # --- running -------------------------------------------------------------------------------------------

    def _fill(self) -> bool:
        """Start runs on free places; False where nothing runs and nothing is left to start."""
        if not self._done and len(self.failures) >= MAX_FIRST_FAILURES:
            return bool(self._active)
        while len(self._active) < self.num_at_once and (self._ready or self._trunks):
            self._start((self._ready or self._trunks).popleft(), 0)
        return bool(self._active)

    def _start(self, cell: PreparedCell, attempt: int) -> None:
        path = run_dir(self.folder, cell.cell)
        spec = read_spec(path)
        corpus_dir = f"../../{CORPUS_DIR}" if self.corpus_dir is None else str(self.corpus_dir)
        here = replace(spec, corpus_dir=corpus_dir, num_threads=self.num_threads)
        if here != spec:
            write_json_atomically(path / SPEC_FILE, to_dict(here))
        self._active.append(Running(cell=cell, process=_start_engine(path, self.num_threads), attempt=attempt))

    def _look(self) -> None:
        for run in list(self._active):
            if run.process.poll() is None:
                continue
            self._active.remove(run)
            outcome = self._outcome(run)
            if outcome.result is not None:
                self._end(run.cell, outcome.result)
            elif outcome.end == "died" and run.attempt + 1 < MAX_ATTEMPTS:
                self.say(f"{run.cell.cell}  {outcome.reason}; it is started once more")
                self._start(run.cell, run.attempt + 1)
            elif outcome.end == "paused":
                self.say(f"{run.cell.cell}  was told to stop by somebody; the next call goes on with it")
            else:
                self.failures.append(f"{run.cell.cell} {outcome.end}: {outcome.reason}")
                self.say(self.failures[-1])

    def _outcome(self, run: Running) -> Outcome:
        path = run_dir(self.folder, run.cell.cell)
        event, message, offset = "", "", 0
        while (tail := read_new_lines(path / EVENTS_FILE, offset, EventLine)).offset > offset:
            offset = tail.offset
            for line in tail.lines:
                if line.event in LAST_EVENTS:
                    event, message = line.event, line.message
        return outcome_of("growth", path, self.folder / CORPUS_DIR, run.process.returncode, event, message)

    def _end(self, cell: PreparedCell, result: Result) -> None:
        self._flops_left -= cell.train_flops
        self._done.append(
            DoneCell(
                cell=cell.cell, status=result.status, tokens=cell.tokens, train_flops=cell.train_flops,
                seconds=result.duration_seconds,
            )
        )  # fmt: skip
        if cell.trunk is None:
            self._take_legs(cell, result)
        loss = "diverged" if result.final_loss_nats is None else f"{result.final_loss_nats:.4f} nats"
        speed = cell.tokens / max(result.duration_seconds, 1e-9)
        self.say(
            f"{cell.cell}  {loss}  {cell.tokens:,} tokens, {speed:,.0f} tokens/s  "
            f"{self.num_done} of {len(self.index.cells)} cells, "
            f"{1 - self._flops_left / self.index.train_flops:.1%} of the FLOPs"
        )

    # --- the end -------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """SIGTERM to what runs; whoever does not save in time is killed and goes on from its checkpoint before."""
        if not self._active:
            return
        self.say(f"stopping: {len(self._active)} run(s) save and stop ...")
        for run in self._active:
            run.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + SECONDS_TO_STOP
        while any(run.process.poll() is None for run in self._active):
            if time.monotonic() > deadline:
                for run in self._active:
                    run.process.kill()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        for run in self._active:
            outcome = self._outcome(run)
            if outcome.result is not None:
                self._end(run.cell, outcome.result)
            elif outcome.end != "paused":
                self.say(f"{run.cell.cell}  {outcome.end}: {outcome.reason}")
        self._active.clear()

    def _sum_up(self, session: Session, seconds: float) -> None:
        machine = session.machine
        where = (
            "a machine without torch"
            if machine is None
            else (f"{machine.card or machine.processor}, torch {machine.torch}")
        )
        tokens, flops = sum(cell.tokens for cell in session.cells), sum(cell.train_flops for cell in session.cells)
        self.say(
            f"{len(session.cells)} cells ended in {hours(seconds)} on {where} ({session.started_at}), up to "
            f"{self.num_at_once} at once: {tokens:,} tokens, {tokens / seconds:,.0f} tokens/s and {flops / seconds:.3g} "
            f"FLOPs/s over all; {self.num_done} of {len(self.index.cells)} cells are done"
        )

    def _lock(self) -> int:
        descriptor = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise InputError("DIR", f"{self.folder} is worked on already", "wait for that worker, or end it") from None
        return descriptor


def _start_engine(path: Path, num_threads: int) -> subprocess.Popen[bytes]:
    """The engine on a run directory, and in it: paths of a prepared spec are relative to there.

    A session of its own, so that Ctrl-C reaches the worker alone, which lets it save.
    """
    # The package may run from a checkout that is no longer the working directory.
    package_root = str(Path(__file__).parents[2])
    environment = os.environ | {
        "OMP_NUM_THREADS": str(num_threads),
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")])),
    }
    with open(path / LOG_FILE, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "app.engine", str(path)], stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, env=environment, cwd=path, start_new_session=True,
        )  # fmt: skip
