"""One process of a job on a worker node: is the node fit for it, start it, wait for it, stop it.

The engine's output goes to ``engine.log`` in the run directory, where every launcher puts it; what is printed here goes to
Ray's own log of the job.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from app.contract import LOG_FILE, PROBE_FILE, SPEC_FILE
from app.engine.launch import Pause

POLL_SECONDS = 0.2
SIGNALLED = 128


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the command line of a job says.

    Attributes:
        module: ``app.engine`` or ``app.corpus``.
        probe: what the service's probe file must hold.
        kill_file: its presence in the run directory, once the job was asked to stop, means at once.
    """

    run_dir: Path
    module: str
    probe: str
    kill_file: str
    num_nodes: int = 1
    num_processes: int = 1
    with_gpu: bool = False

    @property
    def is_killed(self) -> bool:
        return (self.run_dir / self.kill_file).exists()

    def unfit(self) -> str:
        """Why this node cannot run the job; empty where it can."""
        runs_dir, node = self.run_dir.parent, socket.gethostname()
        mend = "mount the service's runs directory at the same path on every node, with the same user"
        try:
            seen = (runs_dir / PROBE_FILE).read_text(encoding="utf-8").strip()
        except OSError as error:
            return f"the worker {node} does not see the runs directory {runs_dir} of the service ({error}); {mend}"
        if seen != self.probe:
            return f"the worker {node} sees another directory at {runs_dir} than the service does; {mend}"
        if not (self.run_dir / SPEC_FILE).is_file():
            return f"the worker {node} sees no {SPEC_FILE} in {self.run_dir}; {mend}"
        if not os.access(self.run_dir, os.R_OK | os.W_OK | os.X_OK):
            return f"the worker {node} may not write to {self.run_dir} (it runs as user {os.getuid()}); {mend}"
        return ""

    def start(self, place: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start the engine as a child that dies with this process.

        Args:
            place: environment of one rank among several.
        """
        environment = os.environ | {"PYTHONUNBUFFERED": "1"} | (place or {})
        if self.module == "app.engine":
            environment["OMP_NUM_THREADS"] = "1"
        if not self.with_gpu:
            # Ray hides GPUs only from those who ask for some, but not for all.
            environment["CUDA_VISIBLE_DEVICES"] = ""
        tied = [sys.executable, "-P", "-m", "app.ray_worker.tied", str(os.getpid()), self.module, str(self.run_dir)]
        with open(self.run_dir / LOG_FILE, "ab") as log:
            return subprocess.Popen(
                tied, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=self.run_dir
            )


def run_alone(task: Task, pause: Pause) -> int:
    """Run the job's only process to its end; returns its exit code, 128 + N for death by signal N."""
    process = task.start()
    is_asked = False
    while True:
        try:
            code = process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if pause.requested and task.is_killed:
                process.kill()
            elif pause.requested and not is_asked:
                is_asked = True
                process.send_signal(signal.SIGTERM)
        else:
            return code if code >= 0 else SIGNALLED - code
