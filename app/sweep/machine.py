"""Where and when prepared runs were trained: `machine.json`, one session a call of the worker.

The worker itself loads no torch: a process of its own says which card there is and what it computes with, while the first
runs start.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from app.records import from_dict, read_json, to_dict, write_json_atomically

MACHINE_FILE = "machine.json"

_PROBE = """
import json, os, platform, sys, torch
names = [line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")] \
    if os.path.exists("/proc/cpuinfo") else []
print(json.dumps({
    "card": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    "cuda": torch.version.cuda,
    "torch": torch.__version__,
    "python": platform.python_version(),
    "processor": names[0] if names else platform.processor() or platform.machine(),
    "num_cores": len(os.sched_getaffinity(0)),
}))
"""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What trained; ``card`` is None where there is no CUDA device."""

    card: str | None
    cuda: str | None
    torch: str
    python: str
    processor: str
    num_cores: int


@dataclass(frozen=True, kw_only=True)
class DoneCell:
    """A cell that ended; ``seconds`` are those of training over all lives of the run."""

    cell: str
    status: str
    tokens: int
    train_flops: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Session:
    """One call of the worker; dates are UTC, ISO 8601."""

    started_at: str
    ended_at: str
    device: str
    precision: str
    num_at_once: int
    num_threads: int
    machine: Machine | None
    cells: tuple[DoneCell, ...]


class MachineProbe:
    """Asks, in the background, which machine this is."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def machine(self) -> Machine | None:
        """The answer, waited for; None where torch does not load here."""
        told, _ = self._process.communicate()
        return from_dict(Machine, json.loads(told)) if self._process.returncode == 0 else None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def read_sessions(path: Path) -> tuple[Session, ...]:
    """The sessions of a `machine.json`; none where there is no such file.

    Raises:
        ValueError: it is damaged.
    """
    if not path.exists():
        return ()
    return tuple(from_dict(Session, values) for values in read_json(path)["sessions"])


def add_sessions(path: Path, sessions: Iterable[Session]) -> None:
    """Write the sessions that `machine.json` does not hold yet behind those it holds, by date; one is known by its start."""
    known = {session.started_at: session for session in read_sessions(path)}
    known |= {session.started_at: session for session in sessions}
    write_json_atomically(path, {"sessions": [to_dict(known[at]) for at in sorted(known)]})
