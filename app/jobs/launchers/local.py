"""The local launcher: processes of this machine, each job in a session of its own with whole GPUs or CPU slots.

The engine starts its own ranks (:mod:`app.engine.launch`), so a job is one command whatever its number of processes.
It outlives the service on purpose: a service that is restarted, or killed, finds it again by pid and start time (the
system reuses a pid alone), and where even the handle was lost, by its command line.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil

from app.contract import LOG_FILE
from app.jobs.launchers.base import (
    MODULES,
    Device,
    DeviceKind,
    EngineName,
    Launcher,
    Node,
    Poll,
    Submission,
    Work,
    engine_command,
    too_large,
)
from app.jobs.launchers.hardware import Gpu, find_gpus, versions
from app.jobs.tail import log_tail
from app.records import from_dict
from app.store.tables import utc_now
from fitting.errors import InputError

# Two start times of one process as the system tells them, at most this far apart.
SECONDS_OF_ONE_START = 1.0
# Set in every job's environment, so that a process whose handle was lost still says what it holds.
HOLDS = "GROWTHLAW_DEVICES"
NUM_ENDS_KEPT = 1000


@dataclass(frozen=True, kw_only=True)
class Process:
    """A handle of this launcher: the session's leader and the devices it holds."""

    node: str
    pid: int
    started_at: float
    device: DeviceKind
    indices: tuple[int, ...]

    @classmethod
    def parse(cls, handle: str) -> Process:
        return from_dict(cls, json.loads(handle))

    @property
    def handle(self) -> str:
        return json.dumps(asdict(self))

    @property
    def where(self) -> str:
        gpus = f", GPU {', '.join(map(str, self.indices))}" if self.device == "gpu" else ""
        return f"pid {self.pid}{gpus}"


@dataclass(frozen=True, kw_only=True)
class _Held:
    job_id: str
    process: Process


class LocalLauncher(Launcher):
    """Runs jobs on this machine.

    Args:
        runs_dir: where run directories lie; nothing else is run.
        num_slots: CPU processes side by side.
        gpus: what to give to jobs; those of the machine where None.
    """

    engine: EngineName = "local"

    def __init__(self, runs_dir: Path, *, num_slots: int, gpus: list[Gpu] | None = None) -> None:
        self._runs_dir = runs_dir
        self._gpus = find_gpus() if gpus is None else gpus
        self._indices: dict[DeviceKind, list[int]] = {
            "gpu": [gpu.index for gpu in self._gpus],
            "cpu": list(range(num_slots)),
        }
        self._node = socket.gethostname()
        self._versions = versions()
        self._lock = threading.RLock()
        self._held: dict[str, _Held] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._exit_codes: OrderedDict[str, int | None] = OrderedDict()

    # --- room ------------------------------------------------------------------------------------------------

    def fit(self, work: Work) -> Literal["now", "later"]:
        if work.num_nodes > 1:
            raise InputError(
                "num_nodes",
                f"is {work.num_nodes}, but the local engine runs a job on one node",
                "use 1, or an engine that spans nodes",
            )
        kind = self._kind(work)
        if work.num_processes > len(self._indices[kind]):
            raise too_large(work, kind, len(self._indices[kind]))
        if len(self._free(kind)) < work.num_processes:
            # Work that another service took over is not polled here any more, and its devices may be free by now.
            for handle in list(self._held):
                self.poll(handle)
        return "now" if len(self._free(kind)) >= work.num_processes else "later"

    def _kind(self, work: Work) -> DeviceKind:
        wants_gpu = work.kind == "growth" and (
            work.device == "cuda" or (work.device == "auto" and bool(self._indices["gpu"]))
        )
        return "gpu" if wants_gpu else "cpu"

    def _free(self, kind: DeviceKind) -> list[int]:
        with self._lock:
            taken = {
                index for held in self._held.values() if held.process.device == kind for index in held.process.indices
            }
        return [index for index in self._indices[kind] if index not in taken]

    # --- starting --------------------------------------------------------------------------------------------

    def submit(self, work: Work) -> Submission | None:
        command = engine_command(work, self._runs_dir)
        with self._lock:
            held = [held.process for held in self._held.values() if held.job_id == work.job_id]
            process = held[0] if held else self._at_work(work)
            if process is None:
                kind = self._kind(work)
                indices = tuple(self._free(kind)[: work.num_processes])
                if len(indices) < work.num_processes:
                    return None
                process = self._start(work, command, kind, indices)
            self._held[process.handle] = _Held(job_id=work.job_id, process=process)
        return Submission(handle=process.handle, where=process.where)

    def _start(self, work: Work, command: list[str], kind: DeviceKind, indices: tuple[int, ...]) -> Process:
        """Start the command in the run directory; whatever it prints goes to `engine.log` there."""
        environment = os.environ | {"PYTHONUNBUFFERED": "1", HOLDS: f"{kind}:{','.join(map(str, indices))}"}
        if work.kind == "growth":
            environment["OMP_NUM_THREADS"] = "1"
        if self._gpus:
            uuids = {gpu.index: gpu.uuid for gpu in self._gpus}
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(uuids[index] for index in indices if kind == "gpu")
        # The package may run from a checkout that is no longer the working directory.
        package_root = str(Path(__file__).parents[3])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, environment.get("PYTHONPATH")]))
        with open(work.run_dir / LOG_FILE, "ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=work.run_dir,
                start_new_session=True,
            )
        started_at = psutil.Process(child.pid).create_time()
        process = Process(node=self._node, pid=child.pid, started_at=started_at, device=kind, indices=indices)
        self._children[process.handle] = child
        return process

    def _at_work(self, work: Work) -> Process | None:
        """A living process of this work whose handle was never stored: the service died as it started it."""
        end = ["-m", MODULES[work.kind], str(work.run_dir)]
        for found in psutil.process_iter(["cmdline", "create_time"]):
            if (found.info["cmdline"] or [])[-3:] != end:
                continue
            with contextlib.suppress(psutil.Error, OSError, ValueError):
                if os.getsid(found.pid) != found.pid or found.status() == psutil.STATUS_ZOMBIE:
                    continue
                device, _, indices = found.environ().get(HOLDS, "").partition(":")
                return Process(
                    node=self._node,
                    pid=found.pid,
                    started_at=found.info["create_time"],
                    device="gpu" if device == "gpu" else "cpu",
                    indices=tuple(int(index) for index in indices.split(",") if index),
                )
        return None

    # --- watching --------------------------------------------------------------------------------------------

    def poll(self, handle: str) -> Poll:
        process = Process.parse(handle)
        with self._lock:
            if handle in self._exit_codes:
                return Poll(state="ended", exit_code=self._exit_codes[handle])
            if process.node != self._node:
                return Poll(state="lost", message=f"it ran on {process.node}, which this service cannot see")
            child = self._children.get(handle)
            is_running = child.poll() is None if child is not None else self._leader(process) is not None
            if is_running or self._end_left_over(process):
                return Poll(state="running")
            exit_code = child.returncode if child is not None else None
            self._children.pop(handle, None)
            self._held.pop(handle, None)
            # Kept a while: the end of a job is asked for again where it could not be stored at once.
            self._exit_codes[handle] = exit_code
            while len(self._exit_codes) > NUM_ENDS_KEPT:
                self._exit_codes.popitem(last=False)
        return Poll(state="ended", exit_code=exit_code)

    def _leader(self, process: Process) -> psutil.Process | None:
        """The session's leader while it lives; another process of the same pid does not count."""
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(process.pid)
            if self._is_same(found, process) and found.status() != psutil.STATUS_ZOMBIE:
                return found
        return None

    @staticmethod
    def _is_same(found: psutil.Process, process: Process) -> bool:
        return abs(found.create_time() - process.started_at) < SECONDS_OF_ONE_START

    def _members(self, process: Process) -> list[psutil.Process]:
        """Living processes of the session, the leader among them.

        A pid is not given out again while a session bears its number, so a stranger under it means that none is left.
        """
        with contextlib.suppress(psutil.Error):
            if not self._is_same(psutil.Process(process.pid), process):
                return []
        members = []
        for found in psutil.process_iter(["status"]):
            with contextlib.suppress(OSError, psutil.Error):
                if found.info["status"] != psutil.STATUS_ZOMBIE and os.getsid(found.pid) == process.pid:
                    members.append(found)
        return members

    def _end_left_over(self, process: Process) -> bool:
        """Kill what a dead leader left: its devices go to the next job. True while any is left."""
        members = self._members(process)
        for member in members:
            with contextlib.suppress(psutil.Error):
                member.kill()
        return bool(members)

    def cancel(self, handle: str, *, kill: bool = False) -> None:
        process = Process.parse(handle)
        if process.node != self._node:
            return
        if kill:
            self._end_left_over(process)
        elif (leader := self._leader(process)) is not None:
            # To the leader alone, which passes it on to its ranks.
            with contextlib.suppress(psutil.Error):
                leader.send_signal(signal.SIGTERM)

    def logs(self, handle: str | None, run_dir: Path, *, max_bytes: int) -> str:
        return log_tail(run_dir / LOG_FILE, max_bytes)

    # --- knowing ---------------------------------------------------------------------------------------------

    def recover(self, handles: Mapping[str, str]) -> None:
        with self._lock:
            for job_id, handle in handles.items():
                process = Process.parse(handle)
                if process.node == self._node:
                    self._held[handle] = _Held(job_id=job_id, process=process)

    def nodes(self) -> list[Node]:
        with self._lock:
            job_of = {
                (held.process.device, index): held.job_id
                for held in self._held.values()
                for index in held.process.indices
            }
        memory = psutil.virtual_memory()
        gpus = {gpu.uuid: gpu for gpu in (find_gpus() if self._gpus else [])}
        devices = [
            Device(
                kind="gpu",
                index=gpu.index,
                name=gpu.name,
                memory_bytes=gpu.memory_bytes,
                memory_free_bytes=gpus.get(gpu.uuid, gpu).memory_free_bytes,
                job_id=job_of.get(("gpu", gpu.index)),
            )
            for gpu in self._gpus
        ]
        devices += [
            Device(kind="cpu", index=index, name=platform.machine(), job_id=job_of.get(("cpu", index)))
            for index in self._indices["cpu"]
        ]
        drivers = {gpu.driver for gpu in self._gpus if gpu.driver}
        return [
            Node(
                name=self._node,
                engine=self.engine,
                heartbeat_at=utc_now(),
                memory_bytes=memory.total,
                memory_free_bytes=memory.available,
                versions=self._versions | ({"nvidia_driver": ", ".join(sorted(drivers))} if drivers else {}),
                devices=devices,
            )
        ]
