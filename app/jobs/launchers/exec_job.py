"""One job of the exec launcher: its handle, what the scheduler last said of it, and what it left in its files."""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from app.contract import LOG_FILE, ExitCode
from app.jobs.launchers.base import DeviceKind, Poll
from app.jobs.launchers.exec_command import Answer
from app.jobs.launchers.exec_nodes import Placed, host_names
from app.jobs.launchers.exec_settings import ExecSettings
from app.jobs.launchers.exec_template import Value
from app.records import from_dict

EXEC_DIR = "exec"
# What a scheduler may call a job: it becomes an argument and a file's name.
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@=,+-]{0,199}")
# Answers in a row, after which a job that its scheduler does not know is lost.
NUM_UNKNOWN_ANSWERS = 2
LONGEST_NODES_FILE = 1_000_000


def job_name(job_id: str) -> str:
    """What the scheduler calls every attempt of a job; a DNS label, which Kubernetes wants."""
    return "growthlaw-" + job_id.lower().replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class Handle:
    """A handle of the exec launcher: the scheduler's own id of the job, and what was asked for it."""

    id: str
    job_id: str
    run: str
    attempt: int
    device: DeviceKind
    num_nodes: int
    processes_per_node: int

    @classmethod
    def parse(cls, text: str) -> Handle:
        return from_dict(cls, json.loads(text))

    @property
    def text(self) -> str:
        return json.dumps(asdict(self))


@dataclass(kw_only=True)
class Job:
    """A submitted job as this service knows it.

    Attributes:
        is_known: whether the scheduler has said anything of it to this service.
        said: the scheduler's last words of it; told while they stay the same, as most waits are over by the next.
        trouble: why it is not known better, for people.
        wish: what the service asked of it.
        watching, stopping: what is done about it, a step a look.
    """

    handle: Handle
    run_dir: Path
    poll: Poll = field(default_factory=lambda: Poll(state="waiting"))
    is_known: bool = False
    num_unknown: int = 0
    said: str = ""
    trouble: str = ""
    wish: Literal["cancel", "kill"] | None = None
    watching: Generator[str, None, None] | None = None
    stopping: Generator[str, None, None] | None = None

    @property
    def has_ended(self) -> bool:
        return self.poll.state in ("ended", "lost")

    @property
    def values(self) -> dict[str, Value]:
        return {
            "handle": self.handle.id,
            "job_id": self.handle.job_id,
            "job_name": job_name(self.handle.job_id),
            "run_dir": str(self.run_dir),
            "exec_dir": str(self.run_dir / EXEC_DIR),
            "log_file": str(self.run_dir / LOG_FILE),
        }

    # --- what it left ----------------------------------------------------------------------------------------

    @property
    def exit_code(self) -> int | None:
        """What the job itself wrote down last; None where it did not come to that."""
        try:
            code = int((self.run_dir / EXEC_DIR / f"{self.handle.id}.exit").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return code if 0 <= code <= 255 else None

    @property
    def nodes(self) -> tuple[str, ...]:
        """The machines that it wrote down as it started; none where it has not."""
        try:
            with open(self.run_dir / EXEC_DIR / f"{self.handle.id}.nodes", encoding="utf-8") as file:
                lines = file.read(LONGEST_NODES_FILE).split()
        except (OSError, ValueError):
            return ()
        return tuple(name for line in lines for name in host_names(line))

    @property
    def placed(self) -> Placed:
        handle = self.handle
        return Placed(job_id=handle.job_id, nodes=self.nodes, device=handle.device, count=handle.processes_per_node)

    # --- what the scheduler says -----------------------------------------------------------------------------

    def take_in(self, answer: Answer, settings: ExecSettings) -> None:
        """Learn from an answer of the poll command; one that says nothing leaves the job as it was last known."""
        said = f"{answer.output}\n{answer.errors}"
        found = re.search(settings.poll.pattern, answer.output, re.MULTILINE) if answer.code == 0 else None
        if found is None and answer.code is not None and re.search(settings.poll.unknown, said, re.MULTILINE):
            self._take_in_unknown(settings)
            return
        if answer.code != 0:
            self.trouble = f"{settings.name} does not answer: {answer.said}"
            return
        if found is None:
            self.trouble = f"{settings.name}'s answer is not understood: {answer.said}"
            return
        groups = found.groupdict()
        word = groups["state"] or ""
        kind = settings.poll.kinds.get(word)
        if kind is None:
            self.trouble = f"{settings.name} says {word!r}, which poll.states does not sort"
            return
        self.is_known, self.num_unknown, self.trouble = True, 0, ""
        message = f"{settings.name} says {word}" + (f", {groups['message']}" if groups.get("message") else "")
        if kind == "ended":
            self.poll = Poll(state="ended", exit_code=self._told_exit_code(groups), message=message)
        elif kind == "killed":
            # The scheduler's doing: what exit code it keeps says nothing of the engine, but the job may have saved. A 0
            # is that of a starter which was cut off (srun's as its node fails); a run that is done has its result.
            self.poll = Poll(state="ended", exit_code=self.exit_code or None, message=message)
        elif kind == "out_of_memory":
            self.poll = Poll(state="ended", exit_code=ExitCode.OUT_OF_MEMORY, message=message)
        else:
            self.poll = Poll(state=kind, message=message if kind == "waiting" and message == self.said else "")
        self.said = message

    def _told_exit_code(self, groups: dict[str, str | None]) -> int | None:
        """The engine's exit code, negative for a signal: as the scheduler tells it, else as the job wrote it down."""
        signal, told = groups.get("signal") or "0", groups.get("exit_code") or ""
        if signal.isdecimal() and int(signal):
            return -int(signal)
        return int(told) if told.isdecimal() else self.exit_code

    def _take_in_unknown(self, settings: ExecSettings) -> None:
        """Schedulers forget what ended long ago; the job's own last word stays."""
        self.num_unknown += 1
        exit_code = self.exit_code
        if exit_code is not None:
            self.poll = Poll(state="ended", exit_code=exit_code, message=f"{settings.name} has forgotten it")
        elif self.num_unknown >= NUM_UNKNOWN_ANSWERS:
            self.poll = Poll(state="lost", message=f"{settings.name} does not know job {self.handle.id}")
