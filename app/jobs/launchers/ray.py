"""The Ray launcher: jobs on a cluster to which workers attach with Ray's own ``ray start --address``.

The service speaks HTTP with the cluster's dashboard (:mod:`app.jobs.launchers.ray_api`) and does not have Ray installed.
A job is one submission of Ray's Jobs API whose entrypoint is ``python -m app.ray_worker RUN_DIR``: it runs a single process
where Ray put the entrypoint, and lets Ray Train place several.

====================  ==========================================================================================
what happens          what comes of it
====================  ==========================================================================================
Ray does not answer   the work goes on unseen and its files are read; after ``seconds_away`` without an answer it
                      is lost, and goes on from its checkpoint once Ray is back
the token is refused  the same, but never lost: Ray is there and only the service is shut out
the head is new       it knows nothing of the job, which died with its head: lost at once
stopped in Ray        by hand, in its dashboard or with ``ray job stop``: the job is paused
submitted twice       Ray answers 500 to a known submission id, so the launcher looks first, by job id
====================  ==========================================================================================

Ray's own stop is SIGTERM to all processes of the entrypoint and, :data:`SECONDS_UNTIL_RAY_KILLS` later, SIGKILL; Ray has
no call for "now", so a file in the run directory tells the entrypoint, which Ray then stops.
"""

from __future__ import annotations

import json
import re
import shlex
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from app.contract import LOG_FILE
from app.jobs.launchers.base import (
    MODULES,
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
from app.jobs.launchers.ray_api import RayApi, RayAwayError
from app.jobs.launchers.ray_nodes import RayNode, parse_nodes
from app.jobs.launchers.ray_probe import probe
from app.jobs.tail import log_tail
from app.records import from_dict
from fitting.errors import InputError

SECONDS_AWAY = 300.0
SECONDS_UNTIL_RAY_KILLS = 1_000
# Ray tells usage this late: what was submitted since is counted by hand.
SECONDS_OF_LAG = 8.0
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_TELL = 60.0
NUM_ENDS_KEPT = 1000
_JOB_KEY, _TRAIN_WORKER = "growthlaw_job", "RayTrainWorker"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_GOING_ON: tuple[str, ...] = ("PENDING", "RUNNING")


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A handle of this launcher: Ray's name of the job, and what it takes."""

    submission_id: str
    device: DeviceKind
    num_processes: int

    @classmethod
    def parse(cls, handle: str) -> Submitted:
        return from_dict(cls, json.loads(handle))

    @property
    def handle(self) -> str:
        return json.dumps(asdict(self))


@dataclass(kw_only=True)
class _Held:
    """A job of this service, and what Ray last said of it."""

    job_id: str
    submitted: Submitted
    run_dir: Path | None = None
    since: float
    asked_at: float = float("-inf")
    poll: Poll | None = None
    details: Mapping[str, Any] | None = None
    is_killed: bool = False


class RayLauncher(Launcher):
    """Runs jobs on one Ray cluster.

    Args:
        runs_dir: where run directories lie, for the service and, at the same path, for every worker.
        api: the cluster.
        python: the Python of the worker nodes that has this package, as their shells find it.
        seconds_away: how long nobody may answer before work counts as lost.
    """

    engine: EngineName = "ray"

    def __init__(
        self, runs_dir: Path, api: RayApi, *, python: str = "python", seconds_away: float = SECONDS_AWAY
    ) -> None:
        self._runs_dir, self._api, self._python, self._seconds_away = runs_dir, api, python, seconds_away
        self._lock = threading.RLock()
        self._held: dict[str, _Held] = {}
        self._ends: OrderedDict[str, Poll] = OrderedDict()
        self._cluster: list[RayNode] = []
        self._cluster_at = float("-inf")
        self._version = ""

    # --- room ------------------------------------------------------------------------------------------------

    def trouble(self) -> str:
        try:
            self._look()
        except OSError as error:
            return str(error)
        return ""

    def fit(self, work: Work) -> Literal["now", "later"]:
        try:
            cluster = self._look()
        except OSError:
            return "later"
        kind = self._kind(work, cluster)
        total = _room([node.total[kind] for node in cluster], work)
        if total < work.num_processes:
            raise self._never(work, kind, cluster)
        now = time.monotonic()
        with self._lock:
            unseen = sum(
                held.submitted.num_processes
                for held in self._held.values()
                if held.submitted.device == kind and now - held.since < SECONDS_OF_LAG
            )
        free = [node.free(kind) for node in cluster]
        has_room = min(_room(free, work), sum(free) - unseen) >= work.num_processes
        return "now" if has_room else "later"

    def _kind(self, work: Work, cluster: list[RayNode]) -> DeviceKind:
        has_gpus = any(node.total["gpu"] for node in cluster)
        wants_gpu = work.kind == "growth" and (work.device == "cuda" or (work.device == "auto" and has_gpus))
        return "gpu" if wants_gpu else "cpu"

    @staticmethod
    def _never(work: Work, kind: DeviceKind, cluster: list[RayNode]) -> InputError:
        totals = [node.total[kind] for node in cluster]
        if work.num_nodes == 1 or not any(totals):
            return too_large(work, kind, max(totals, default=0))
        what = "GPU" if kind == "gpu" else "CPU slot"
        return InputError(
            "num_nodes",
            f"is {work.num_nodes}: the job needs {work.num_processes} {what}s on {work.num_nodes} nodes, but Ray has "
            f"{', '.join(map(str, sorted(totals, reverse=True)))} on its {len(totals)}",
            "lower num_processes, or attach more nodes with `ray start --address`",
        )

    def _look(self) -> list[RayNode]:
        """The cluster as it was a second ago at most."""
        with self._lock:
            if time.monotonic() - self._cluster_at < SECONDS_BETWEEN_LOOKS:
                return self._cluster
        cluster = parse_nodes(self._api.nodes())
        version = self._version or self._api.version()
        with self._lock:
            self._cluster, self._cluster_at, self._version = cluster, time.monotonic(), version
        return cluster

    # --- starting --------------------------------------------------------------------------------------------

    def submit(self, work: Work) -> Submission | None:
        command = engine_command(work, self._runs_dir)
        try:
            cluster = self._look()
            known = [job for job in self._api.jobs() if (job.get("metadata") or {}).get(_JOB_KEY) == work.job_id]
            submission_id = f"growthlaw-{work.job_id}-{work.attempt}"
            mine = [job for job in known if job["status"] in _GOING_ON or job["submission_id"] == submission_id]
            kind = self._kind(work, cluster)
            if mine:
                submission_id = str(max(mine, key=lambda job: job.get("start_time") or 0)["submission_id"])
            submitted = Submitted(submission_id=submission_id, device=kind, num_processes=work.num_processes)
            if not mine:
                self._api.submit(self._body(work, command, submitted))
        except RayAwayError:
            # It may have been heard all the same: then the next submission finds it.
            return None
        held = _Held(job_id=work.job_id, submitted=submitted, run_dir=work.run_dir, since=time.monotonic())
        with self._lock:
            self._held[submitted.handle] = held
        return Submission(handle=submitted.handle, where=f"Ray at {self._api.address}, submission {submission_id}")

    def _body(self, work: Work, command: list[str], submitted: Submitted) -> dict[str, Any]:
        task = [
            self._python, "-P", "-m", "app.ray_worker", command[-1], "--module", MODULES[work.kind],
            "--probe", probe(self._runs_dir), "--kill-file", _kill_file(submitted.submission_id),
            "--num-processes", str(work.num_processes), "--num-nodes", str(work.num_nodes),
        ]  # fmt: skip
        task += ["--gpu"] if submitted.device == "gpu" else []
        body: dict[str, Any] = {
            # Ray gives this to a shell, which must be replaced: it would not pass signals on.
            "entrypoint": f"exec {shlex.join(task)}",
            "submission_id": submitted.submission_id,
            "metadata": {
                _JOB_KEY: work.job_id,
                "growthlaw_run": work.run_dir.name,
                "growthlaw_attempt": str(work.attempt),
            },
            "runtime_env": {
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(SECONDS_UNTIL_RAY_KILLS), "RAY_DEDUP_LOGS": "0"}
            },
        }
        if work.num_processes == 1:
            body["entrypoint_num_gpus" if submitted.device == "gpu" else "entrypoint_num_cpus"] = 1
        return body

    # --- watching --------------------------------------------------------------------------------------------

    def poll(self, handle: str) -> Poll:
        with self._lock:
            if handle in self._ends:
                return self._ends[handle]
            held = self._held.get(handle) or _Held(job_id="", submitted=Submitted.parse(handle), since=time.monotonic())
        if held.poll is not None and time.monotonic() - held.asked_at < SECONDS_BETWEEN_LOOKS:
            return held.poll
        try:
            details = self._api.job(held.submitted.submission_id)
        except OSError as error:
            poll = self._unseen(held, error)
        else:
            held.details = details
            poll = _poll_of(details, held)
        held.poll, held.asked_at = poll, time.monotonic()
        if poll.state in ("ended", "lost"):
            self._forget(handle, held, poll)
        return poll

    def _unseen(self, held: _Held, error: OSError) -> Poll:
        if self._api.seconds_away > self._seconds_away:
            return Poll(state="lost", message=f"{error}, for more than {self._seconds_away:.0f} s")
        state = held.poll.state if held.poll is not None else "running"
        return Poll(state=state, message=f"{error}; the job may go on all the same, so it is waited for")

    def _forget(self, handle: str, held: _Held, poll: Poll) -> None:
        if held.run_dir is not None and (held.details or {}).get("status") not in _GOING_ON:
            (held.run_dir / _kill_file(held.submitted.submission_id)).unlink(missing_ok=True)
        with self._lock:
            self._held.pop(handle, None)
            # Usage is as late to fall as it is to rise: the next look must not be an old one.
            self._cluster_at = float("-inf")
            self._ends[handle] = poll
            while len(self._ends) > NUM_ENDS_KEPT:
                self._ends.popitem(last=False)

    def cancel(self, handle: str, *, kill: bool = False) -> None:
        with self._lock:
            held = self._held.get(handle)
            if held is None or handle in self._ends:
                return
        if kill:
            held.is_killed = True
            run_dir = held.run_dir or self._run_dir(held)
            if run_dir is not None:
                (run_dir / _kill_file(held.submitted.submission_id)).touch()
        self._api.stop(held.submitted.submission_id)

    def _run_dir(self, held: _Held) -> Path | None:
        """Where a job runs that an earlier service submitted, as Ray remembers it."""
        details = held.details or self._api.job(held.submitted.submission_id)
        name = ((details or {}).get("metadata") or {}).get("growthlaw_run")
        held.run_dir = self._runs_dir / Path(name).name if name else None
        return held.run_dir

    def logs(self, handle: str | None, run_dir: Path, *, max_bytes: int) -> str:
        """The end of the engine's log; where it never started, of what Ray keeps of the entrypoint."""
        text = log_tail(run_dir / LOG_FILE, max_bytes)
        if text or handle is None:
            return text
        try:
            printed = self._api.log(Submitted.parse(handle).submission_id)
        except OSError:
            return ""
        return printed.encode()[-max_bytes:].decode("utf-8", errors="ignore").strip()

    # --- knowing ---------------------------------------------------------------------------------------------

    def recover(self, handles: Mapping[str, str]) -> None:
        with self._lock:
            for job_id, handle in handles.items():
                if handle not in self._held and handle not in self._ends:
                    self._held[handle] = _Held(job_id=job_id, submitted=Submitted.parse(handle), since=time.monotonic())

    def nodes(self) -> list[Node]:
        """The living nodes; those last seen, with their old heartbeats, while Ray does not answer."""
        placed: dict[str, dict[DeviceKind, list[str]]] = {}
        try:
            cluster = self._look()
            for held in self._running():
                for node_id, count in self._places(held).items():
                    jobs = placed.setdefault(node_id, {}).setdefault(held.submitted.device, [])
                    jobs += [held.job_id] * count
        except OSError:
            with self._lock:
                cluster = self._cluster
        versions = {"ray": self._version} if self._version else {}
        return [node.as_node(versions, placed.get(node.node_id, {})) for node in cluster]

    def _running(self) -> list[_Held]:
        with self._lock:
            return list(self._held.values())

    def _places(self, held: _Held) -> dict[str, int]:
        """Node -> devices that a job holds there."""
        details = held.details
        if details is None or details["status"] == "PENDING" or not details.get("driver_node_id"):
            details = held.details = self._api.job(held.submitted.submission_id)
        if details is None or details["status"] != "RUNNING":
            return {}
        if held.submitted.num_processes == 1:
            return {details["driver_node_id"]: 1} if details.get("driver_node_id") else {}
        places: dict[str, int] = {}
        for actor in self._api.actors(details["job_id"]) if details.get("job_id") else ():
            if _TRAIN_WORKER in str(actor.get("class_name")):
                places[actor["node_id"]] = places.get(actor["node_id"], 0) + 1
        return places


def _room(devices: list[int], work: Work) -> int:
    """How many processes of the work find a device: on the largest node, or on as many nodes as it may use."""
    largest = sorted(devices, reverse=True)[: work.num_nodes]
    if work.num_nodes > 1 and work.num_nodes == work.num_processes:
        return sum(count > 0 for count in largest)
    return sum(largest)


def _kill_file(submission_id: str) -> str:
    return f".kill-{submission_id}"


def _poll_of(details: Mapping[str, Any] | None, held: _Held) -> Poll:
    """What Ray's details of a submission say (``JobDetails`` of its Jobs API)."""
    if details is None:
        return Poll(state="lost", message="Ray does not know the job: its head was started anew")
    status, message = details["status"], _COLOURS.sub("", str(details.get("message") or "")).strip()
    if status == "PENDING":
        if held.is_killed:
            # Ray keeps the stop for when it begins, which then ends before it does anything.
            return Poll(state="ended", message="stopped before Ray had room for it")
        # Starting takes Ray some seconds, which is nothing to tell.
        is_long = time.monotonic() - held.since > SECONDS_TO_TELL
        return Poll(state="waiting", message="it waits in Ray's own queue for room" if is_long else "")
    if status == "RUNNING":
        return Poll(state="running")
    if status == "STOPPED":
        return Poll(state="ended", message="stopped in Ray", is_stopped=True)
    return Poll(state="ended", exit_code=details.get("driver_exit_code"), message=message)
