"""Runs through the service: a few ahead of its cores, of a grid trunk first, then its legs.

Nothing of a sweep is kept but by the service: every run is asked for under a key made of its body, so the same command
asks for the same runs, finds those that stand, resumes those that are paused and starts the rest. A failed or cancelled
run is asked for once more under a second key. A diverged run is a result; no leg can leave it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, Protocol

from app.answers import Job
from app.client import Growthlaw, NoService
from app.service_process import bundled_corpus_job, pause_jobs
from app.sweep.bodies import job_body, request_key
from app.sweep.costs import core_seconds, hours, own_flops
from app.sweep.families import Design, Family
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

Unit = Literal["core-seconds", "FLOPs"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A run to ask the service for.

    Attributes:
        body: of `POST /jobs`; told the run id of the trunk where it is a leg, None elsewhere.
        work: of the run, in the sweep's unit.
        compute_flops: of the run as its progress counts them; ``own_flops`` is the part that it trains itself.
        legs: runs that leave this one when it has ended.
    """

    name: str
    body: Callable[[str | None], dict[str, Any]]
    work: float
    compute_flops: float
    own_flops: float
    legs: tuple[Task, ...] = ()

    @property
    def whole_work(self) -> float:
        return self.work + sum(leg.work for leg in self.legs)


def grid_tasks(grid: Grid, families: Iterable[Family]) -> tuple[Task, ...]:
    """The families' trunks in their order, with their legs; work is core-seconds of the plan."""
    tasks = []
    for family in families:
        cells = [
            Task(
                name=cell.name, body=partial(job_body, grid, family, cell), work=core_seconds(grid, family, cell),
                compute_flops=cell.compute_flops, own_flops=own_flops(family, cell),
            )
            for cell in family.cells
        ]  # fmt: skip
        trunk, *legs = cells
        tasks.append(replace(trunk, legs=tuple(legs)))
    return tuple(tasks)


@dataclass(kw_only=True)
class Run:
    """A task that the service has."""

    task: Task
    trunk_run_id: str | None
    attempt: int
    job: dict[str, Any]
    fraction: float = 0.0
    first_fraction: float | None = None

    def take(self, job: dict[str, Any]) -> None:
        self.job = job
        progress = job.get("progress")
        if progress:
            left = self.task.compute_flops - progress["compute_flops"]
            self.fraction = min(1.0, max(0.0, 1 - left / self.task.own_flops))
        if self.first_fraction is None:
            self.first_fraction = self.fraction


class Display(Protocol):
    """How a sweep speaks while it runs."""

    def say(self, text: str) -> None: ...
    def show(self, sweep: Sweep) -> None: ...


@dataclass(kw_only=True)
class Sweep:
    """Runs on their way through the service.

    Attributes:
        tasks: in the order in which they run.
        unit: of all work; core-seconds of a plan say how long it takes before any of it has run, FLOPs do not.
        results: name -> what became of it: a final loss in nats, or None where it diverged or never decays.
        failures: sentences on runs that failed twice, or that somebody paused.
    """

    client: Growthlaw
    tasks: Sequence[Task]
    unit: Unit
    display: Display
    num_slots: int = 1
    results: dict[str, float | None] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    active: dict[str, Run] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pending = deque(self.tasks)
        self._legs: deque[tuple[Task, str]] = deque()
        # Work of this sweep's own time, and all that is done with what stood before.
        self._worked = 0.0
        self._done = 0.0
        self._started = time.monotonic()
        self.total_work = sum(task.whole_work for task in self.tasks)

    # --- how far it is -----------------------------------------------------------------------------------------

    @property
    def done_work(self) -> float:
        """Work that is done, running runs by their share."""
        return self._done + sum(run.fraction * run.task.work for run in self.active.values())

    @property
    def work_left(self) -> float:
        return max(0.0, self.total_work - self.done_work)

    def seconds_left(self) -> float | None:
        """By the speed of this sweep so far; by the plan's where that is not known yet, None where there is none."""
        running = sum((run.fraction - (run.first_fraction or 0)) * run.task.work for run in self.active.values())
        worked, elapsed = self._worked + running, time.monotonic() - self._started
        if worked > 0 and elapsed > SECONDS_TO_KNOW_SPEED:
            return self.work_left / (worked / elapsed)
        if self.unit == "core-seconds" or self.work_left == 0:
            return self.work_left / self.num_slots
        return None

    def told_left(self) -> str:
        """The time left in words."""
        seconds = self.seconds_left()
        return "time left not known yet" if seconds is None else f"{hours(seconds)} left"

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
                leg, trunk_run_id = self._legs.popleft()
                self._start(leg, trunk_run_id, 0)
            elif self._pending:
                self._start(self._pending.popleft(), None, 0)
            else:
                return

    def _start(self, task: Task, trunk_run_id: str | None, attempt: int) -> None:
        body = task.body(trunk_run_id)
        job: Job = self.client.train(body, idempotency_key=request_key(body, attempt))
        if job["state"] == "paused":
            job = self.client.resume(job["id"])
        run = Run(task=task, trunk_run_id=trunk_run_id, attempt=attempt, job=job)
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
            self.failures.append(f"{run.task.name} ({job['id']}) was paused by somebody; the same command resumes it")

    def _end(self, run: Run, job: dict[str, Any]) -> None:
        del self.active[job["id"]]
        task = run.task
        stored = self.client.run(job["run_id"])
        if job["state"] == "succeeded":
            self._finish(run, stored)
            self._legs.extend((leg, job["run_id"]) for leg in task.legs)
        elif stored["status"] == "diverged":
            self._finish(run, stored)
            if task.legs:
                self.display.say(f"{task.name}: this trunk diverged, and with it {len(task.legs)} leg(s)")
                self._done += sum(leg.work for leg in task.legs)
        elif run.attempt + 1 < MAX_ATTEMPTS:
            self.display.say(f"{task.name} {job['state']}: {job['reason']}; it is tried once more")
            self._start(task, run.trunk_run_id, run.attempt + 1)
        else:
            self.failures.append(f"{task.name} ({job['id']}) {job['state']} twice: {job['reason']}")
            self.display.say(self.failures[-1])

    def _finish(self, run: Run, stored: Mapping[str, Any]) -> None:
        final_loss = stored["final_loss"]
        self.results[run.task.name] = final_loss
        self._done += run.task.work
        self._worked += (1 - (run.first_fraction or 0.0)) * run.task.work
        ended = f"{final_loss:.4f} nats" if final_loss is not None else stored["status"]
        told = "" if run.first_fraction != 1.0 else " (stood)"
        self.display.say(
            f"{run.task.name}  {ended}{told}  {self.done_work / self.total_work:.1%} done, {self.told_left()}"
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
