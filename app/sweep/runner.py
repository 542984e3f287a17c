"""Running a grid through the service: a few runs ahead of its cores, trunk first, then its legs.

Nothing of a sweep is kept but by the service: every run is asked for under a key made of its body, so the same command
asks for the same runs, finds those that stand, resumes those that are paused and starts the rest. A failed or cancelled
run is asked for once more under a second key. A diverged run is a result; no leg can leave it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Protocol

from app.answers import Job
from app.client import Growthlaw, NoService
from app.service_process import bundled_corpus_job, pause_jobs
from app.sweep.bodies import job_body, request_key
from app.sweep.costs import core_seconds, hours, own_flops
from app.sweep.families import Cell, Design, Family
from app.sweep.grid import Grid
from fitting.errors import InputError

ENDED = ("succeeded", "failed", "cancelled")
SECONDS_BETWEEN_LOOKS = 0.5
# Runs in the queue beside those on the cores, so that no core waits for the next look.
NUM_QUEUED_AHEAD = 1
MAX_ATTEMPTS = 2
# Looks in a row that the service left unanswered, after which the sweep gives up.
MAX_SILENCES = 5
# Before so many seconds the speed of this sweep itself is not known.
SECONDS_TO_KNOW_SPEED = 20.0


@dataclass(kw_only=True)
class Run:
    """A cell that the service has."""

    family: Family
    cell: Cell
    attempt: int
    core_seconds: float
    job: dict[str, Any]
    fraction: float = 0.0
    first_fraction: float | None = None

    def take(self, job: dict[str, Any]) -> None:
        self.job = job
        progress = job.get("progress")
        if progress:
            own = own_flops(self.family, self.cell)
            self.fraction = min(1.0, max(0.0, 1 - (self.cell.compute_flops - progress["compute_flops"]) / own))
        if self.first_fraction is None:
            self.first_fraction = self.fraction


class Display(Protocol):
    """How a sweep speaks while it runs."""

    def say(self, text: str) -> None: ...
    def show(self, sweep: Sweep) -> None: ...


@dataclass(kw_only=True)
class Sweep:
    """Families on their way through the service.

    Attributes:
        families: in the order in which they run.
        results: cell name -> what became of it: a final loss in nats, or None where it diverged.
        failures: sentences on runs that failed twice, or that somebody paused.
    """

    client: Growthlaw
    grid: Grid
    families: tuple[Family, ...]
    display: Display
    num_slots: int = 1
    results: dict[str, float | None] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    active: dict[str, Run] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pending = deque(self.families)
        self._legs: deque[tuple[Family, Cell, str]] = deque()
        self._worked_core_seconds = 0.0
        self._done_core_seconds = 0.0
        self._started = time.monotonic()
        self.total_core_seconds = sum(
            core_seconds(self.grid, family, cell) for family in self.families for cell in family.cells
        )

    # --- how far it is -----------------------------------------------------------------------------------------

    @property
    def done_core_seconds(self) -> float:
        """Core-seconds of the plan that are done, running runs by their share."""
        return self._done_core_seconds + sum(run.fraction * run.core_seconds for run in self.active.values())

    def seconds_left(self) -> float:
        """By the speed of this sweep so far; by the plan's where that is not known yet."""
        running = sum((run.fraction - (run.first_fraction or 0)) * run.core_seconds for run in self.active.values())
        worked, elapsed = self._worked_core_seconds + running, time.monotonic() - self._started
        known = worked > 0 and elapsed > SECONDS_TO_KNOW_SPEED
        speed = worked / elapsed if known else float(self.num_slots)
        return max(0.0, self.total_core_seconds - self.done_core_seconds) / speed

    # --- the loop ----------------------------------------------------------------------------------------------

    def run(self, *, until: Callable[[], bool]) -> bool:
        """Run to the end; False where ``until`` came true first (what runs is left running)."""
        self.num_slots = self.client.health()["num_slots"]
        num_silences = 0
        while True:
            self._fill()
            self.display.show(self)
            if not self.active:
                return True
            if until():
                return False
            time.sleep(SECONDS_BETWEEN_LOOKS)
            try:
                for job_id in list(self.active):
                    self._look(self.active[job_id], self.client.job(job_id))
                num_silences = 0
            except NoService:
                # A busy machine may let a call time out; a service that is gone stays silent.
                num_silences += 1
                if num_silences == MAX_SILENCES:
                    raise

    def pause(self, *, everything: bool) -> int:
        """Let the sweep's runs, or everything the service runs, save and stop; returns how many there were."""
        return pause_jobs(self.client, None if everything else set(self.active))

    def _fill(self) -> None:
        while len(self.active) < self.num_slots + NUM_QUEUED_AHEAD:
            # A leg ends its family, so it goes before the next trunk.
            if self._legs:
                family, cell, trunk_run_id = self._legs.popleft()
                self._start(family, cell, trunk_run_id, 0)
            elif self._pending:
                family = self._pending.popleft()
                self._start(family, family.trunk, None, 0)
            else:
                return

    def _start(self, family: Family, cell: Cell, trunk_run_id: str | None, attempt: int) -> None:
        body = job_body(self.grid, family, cell, trunk_run_id)
        job: Job = self.client.train(body, idempotency_key=request_key(body, attempt))
        if job["state"] == "paused":
            job = self.client.resume(job["id"])
        seconds = core_seconds(self.grid, family, cell)
        run = Run(family=family, cell=cell, attempt=attempt, core_seconds=seconds, job=job)
        self.active[job["id"]] = run
        if job["state"] in ENDED:
            run.first_fraction = 1.0
            self._end(run, job)

    def _look(self, run: Run, job: dict[str, Any]) -> None:
        run.take(job)
        if job["state"] in ENDED:
            self._end(run, job)
        elif job["state"] == "paused":
            del self.active[job["id"]]
            self.failures.append(f"{run.cell.name} ({job['id']}) was paused by somebody; the same command resumes it")

    def _end(self, run: Run, job: dict[str, Any]) -> None:
        del self.active[job["id"]]
        family, cell = run.family, run.cell
        stored = self.client.run(job["run_id"])
        if job["state"] == "succeeded":
            self._finish(run, stored["final_loss"])
            if cell is family.trunk:
                self._legs.extend((family, leg, job["run_id"]) for leg in family.legs)
        elif stored["status"] == "diverged":
            self._finish(run, None)
            if cell is family.trunk and family.legs:
                self.display.say(f"{family.name}: its trunk diverged, and with it {len(family.legs)} leg(s)")
                for leg in family.legs:
                    self._done_core_seconds += core_seconds(self.grid, family, leg)
        elif run.attempt + 1 < MAX_ATTEMPTS:
            self.display.say(f"{cell.name} {job['state']}: {job['reason']}; it is tried once more")
            trunk_run_id = stored["parent_run_id"]
            self._start(family, cell, trunk_run_id, run.attempt + 1)
        else:
            self.failures.append(f"{cell.name} ({job['id']}) {job['state']} twice: {job['reason']}")
            self.display.say(self.failures[-1])

    def _finish(self, run: Run, final_loss: float | None) -> None:
        self.results[run.cell.name] = final_loss
        self._done_core_seconds += run.core_seconds
        self._worked_core_seconds += (1 - (run.first_fraction or 0.0)) * run.core_seconds
        ended = f"{final_loss:.4f} nats" if final_loss is not None else "diverged"
        told = "" if run.first_fraction != 1.0 else " (stood)"
        self.display.say(
            f"{run.cell.name}  {ended}{told}  {self.done_core_seconds / self.total_core_seconds:.1%} done, "
            f"{hours(self.seconds_left())} left"
        )


def families_to_run(
    design: Design, standing: Iterable[str], *, steps: tuple[int, ...] = (), pattern: str = "*"
) -> tuple[tuple[Family, ...], int]:
    """The families that are asked for and do not stand whole; and how many of those asked for do.

    Args:
        standing: names of cells whose rows stand in the runs folder.
        steps: all where empty.
        pattern: of family names, as a shell's.

    Raises:
        InputError: a step is none of the grid's, or no family matches.
    """
    numbers = [step.number for step in design.grid.steps]
    for step in steps:
        if step not in numbers:
            raise InputError("--steps", f"names {step}, which is no step of the grid", f"use some of {numbers}")
    asked = [f for f in design.families if (not steps or f.step in steps) and fnmatchcase(f.name, pattern)]
    if not asked:
        raise InputError("--families", f"{pattern!r} matches no family of these steps", "see `growthlaw sweep plan`")
    stands = set(standing)
    left = tuple(family for family in asked if not all(cell.name in stands for cell in family.cells))
    return left, len(asked) - len(left)


def have_corpus(client: Growthlaw, grid: Grid, display: Display) -> None:
    """Have the bundled corpus prepared under the grid's name, and be sure that it is the one the grid was planned on.

    Raises:
        InputError: it is another, or it cannot be prepared.
    """
    need = grid.corpus
    job = bundled_corpus_job(client, need.name, need.vocab_size)
    if job is not None:
        display.say(f"corpus {need.name}: being prepared")
        while job["state"] not in ENDED:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            job = client.job(job["id"])
        if job["state"] != "succeeded":
            raise InputError("corpus.name", f"{need.name!r} could not be prepared: {job['reason']}", "mend that")
    (corpus,) = (corpus for corpus in client.corpora() if corpus["name"] == need.name)
    need.check(vocab_size=corpus["vocab_size"], train_tokens=corpus["train"]["num_tokens"])
