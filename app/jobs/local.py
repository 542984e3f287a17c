"""The local launcher: one process a job, in a session of its own, found again by pid and start time.

The process outlives the service on purpose: a service that is restarted, or killed, finds its jobs running and takes
them up again. A pid alone is not proof (the system reuses them), so the start time is kept beside it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.contract import LOG_FILE

MODULES = {"growth": "app.engine", "corpus": "app.corpus"}


@dataclass(frozen=True, kw_only=True)
class ProcessId:
    pid: int
    started_at: float


class LocalLauncher:
    """Starts, finds, signals and reaps the processes of this machine."""

    def __init__(self) -> None:
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, kind: str, run_dir: Path) -> ProcessId:
        """Start `python -m MODULE RUN_DIR`; whatever it prints goes to `engine.log`."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        if kind == "corpus":
            del environment["OMP_NUM_THREADS"]
        # The package may run from a checkout that is no longer the working directory.
        root = str(Path(__file__).parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        with open(run_dir / LOG_FILE, "ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", MODULES[kind], str(run_dir)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=run_dir,
                start_new_session=True,
            )
        self._children[child.pid] = child
        return ProcessId(pid=child.pid, started_at=psutil.Process(child.pid).create_time())

    def is_running(self, process: ProcessId) -> bool:
        child = self._children.get(process.pid)
        if child is not None:
            return child.poll() is None
        try:
            found = psutil.Process(process.pid)
            return abs(found.create_time() - process.started_at) < 1.0 and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def exit_code(self, process: ProcessId) -> int | None:
        """Exit code of an ended process; None where another service started it."""
        child = self._children.get(process.pid)
        return child.poll() if child is not None else None

    def forget(self, process: ProcessId) -> None:
        """Drop an ended process once its end is stored."""
        self._children.pop(process.pid, None)

    def ask_to_stop(self, process: ProcessId) -> None:
        """SIGTERM: the engine finishes its step, saves and exits."""
        self._signal(process, signal.SIGTERM)

    def kill(self, process: ProcessId) -> None:
        self._signal(process, signal.SIGKILL)

    def _signal(self, process: ProcessId, signum: int) -> None:
        if self.is_running(process):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signum)
