"""The launcher interface: how the service hands a job to whatever runs it, and asks what became of it.

========  =====================================================================================
fit       can this work run now, later, or never (an error that says why)?
submit    start it, or take up what an earlier submission of it left running; gives a handle
poll      waiting, running, ended, or lost
cancel    ask it to save and stop, or kill it
logs      the end of what it printed
recover   a service came back: these handles are still out there
nodes     the machines and devices, and which job each runs
========  =====================================================================================

A handle is text that only its launcher reads; it lies in the job's row and outlives the service. The service talks to
the work itself by the files of :mod:`app.contract` and never by the launcher. Every launcher passes
:mod:`app.jobs.launchers.conformance`.
"""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fitting.errors import InputError

EngineName = Literal["local", "ray", "exec"]
DeviceKind = Literal["gpu", "cpu"]
MODULES = {"growth": "app.engine", "corpus": "app.corpus", "export": "app.uploads"}
# What the store's ids are made of. A run directory is handed to shells and schedulers: its own name holds nothing else.
RUN_DIR_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"


class SchedulerAway(RuntimeError):
    """Work cannot be handed over for now, and will be once the scheduler answers again: submit it again later."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a launcher must know of a job.

    Attributes:
        kind: ``growth`` (the engine), ``corpus`` (a preparation) or ``export`` (to a URL).
        run_dir: holds ``spec.json``; the only thing that the process is told.
        num_processes: each takes one GPU or one CPU slot, all on one node unless ``num_nodes`` says otherwise.
        device: as the spec has it; ``auto`` is a GPU where the launcher has any.
        attempt: from 1; a job that goes on from its checkpoint is the same work once more.
    """

    job_id: str
    kind: Literal["growth", "corpus", "export"]
    run_dir: Path
    num_processes: int = 1
    num_nodes: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    attempt: int = 1


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A handle, and where the work runs in words."""

    handle: str
    where: str


@dataclass(frozen=True, kw_only=True)
class Poll:
    """What became of submitted work.

    Attributes:
        state: ``waiting`` in the scheduler's own queue; ``lost`` where nobody knows of it any more.
        exit_code: of ended work; negative is a signal's number, None where nobody kept it.
        message: the launcher's own words, for the job's story.
        is_stopped: somebody ended it by the scheduler's own means; it pauses until it is resumed.
    """

    state: Literal["waiting", "running", "ended", "lost"]
    exit_code: int | None = None
    message: str = ""
    is_stopped: bool = False


@dataclass(frozen=True, kw_only=True)
class Device:
    """What one process of a job takes: a whole GPU, or one CPU slot of a node."""

    kind: DeviceKind
    index: int
    name: str
    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    job_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine as its launcher last saw it; ``heartbeat_at`` says when (ISO 8601, UTC)."""

    name: str
    engine: EngineName
    heartbeat_at: str
    memory_bytes: int | None
    memory_free_bytes: int | None
    versions: Mapping[str, str]
    devices: Sequence[Device]


class Launcher(ABC):
    """One way to run jobs. Methods may be called from several threads; none may block for long."""

    engine: EngineName

    def trouble(self) -> str:
        """Why this launcher can start nothing for now, whatever the work; empty where it can."""
        return ""

    @abstractmethod
    def fit(self, work: Work) -> Literal["now", "later"]:
        """Whether there is room for the work now or only when other work has ended.

        Raises:
            InputError: no worker can ever run it.
        """

    @abstractmethod
    def submit(self, work: Work) -> Submission | None:
        """Start the work; None where there is no room after all.

        Submitting the same work again while it is alive takes it up and starts nothing.

        Raises:
            InputError: its run directory is none that may be run.
            OSError: it cannot be started.
            SchedulerAway: not now, but it is worth another try.
        """

    @abstractmethod
    def poll(self, handle: str) -> Poll:
        """What became of it; ``ended`` only when no process of it is left. Asking again gives the same answer."""

    @abstractmethod
    def cancel(self, handle: str, *, kill: bool = False) -> None:
        """Let the work finish its step, save and stop (SIGTERM), or kill all of it. Does nothing to ended work."""

    @abstractmethod
    def logs(self, handle: str | None, run_dir: Path, *, max_bytes: int) -> str:
        """The last ``max_bytes`` of what the work printed, all attempts together."""

    @abstractmethod
    def recover(self, handles: Mapping[str, str]) -> None:
        """Know again what earlier services submitted: job id -> handle. Called before anything else."""

    @abstractmethod
    def nodes(self) -> list[Node]:
        """The machines that work can run on now."""


def engine_command(work: Work, root: Path) -> list[str]:
    """The one command of a job, as a list: no shell ever sees it.

    Raises:
        InputError: the run directory is not a plain folder right below ``root``, where the service makes them.
    """
    run_dir, mend = work.run_dir, "start the run through the service, which makes its directory"
    if re.fullmatch(RUN_DIR_NAME, run_dir.name) is None or ".." in run_dir.parts:
        raise InputError("run_dir", f"is {str(run_dir)!r}, but its name may hold letters, digits, '.', '_', '-'", mend)
    if run_dir.is_symlink() or run_dir.resolve().parent != root.resolve():
        raise InputError("run_dir", f"is {str(run_dir)!r}, but run directories lie in {str(root)!r}", mend)
    return [sys.executable, "-m", MODULES[work.kind], str(run_dir)]


def too_large(work: Work, kind: DeviceKind, largest: int) -> InputError:
    """That no node has as many devices as the work needs."""
    what = "GPU" if kind == "gpu" else "CPU slot"
    field = "device" if kind == "gpu" and largest == 0 else "num_processes"
    value = work.device if field == "device" else work.num_processes
    return InputError(
        field,
        f"is {value!r}: the job needs {work.num_processes} {what}{'s' if work.num_processes > 1 else ''}, "
        f"the largest node has {largest}",
        "use 'cpu', or attach a node that has one"
        if field == "device"
        else f"lower num_processes, or attach a node with more {what}s",
    )
