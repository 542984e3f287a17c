"""Several processes of one run, placed on the cluster by Ray Train, and started again by it where one is lost.

Each Ray Train worker holds the GPU or CPU of one rank and runs ``python -m app.engine`` as its child, with the place that
torchrun would have given it. A child, because the engine wants a main thread for its signals and an exit code of its own,
and because a training process that is out of memory must not take Ray's worker along.

**Who decides.** The ranks tell their ends to one small actor, the desk, and wait for each other, as
:func:`app.engine.launch.start_ranks` does on one machine. Where the run itself said how it ended (done, paused, diverged,
bad data...) every worker returns and that is the job's end. Where a rank or its worker was lost, the error goes to Ray
Train, which starts all ranks again on the nodes that are left, at most :data:`MAX_RESTARTS` times; they go on from the
run's last checkpoint by themselves.

**Shrinking.** With ``min_processes`` in the spec Ray Train may start again with fewer workers. The largest number that
divides the batch trains; a worker beyond it idles.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from app.contract import ExitCode, Spec, read_spec
from app.engine.launch import GRACE_SECONDS, LOCK_FILE, Pause, run_code
from app.engine.metrics import EventsWriter
from app.ray_worker.work import SIGNALLED, Task

MAX_RESTARTS = 3
SECONDS_BETWEEN_ASKS = 0.5
# A run with fewer processes than it could have looks this often whether there is room again.
SECONDS_BETWEEN_RESIZES = 300.0
# Ray Train keeps a few small files of its own here while it runs.
TRAIN_DIR = ".ray-train"


class LostRankError(Exception):
    """A rank was lost; Ray Train starts all of them again."""


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where the ranks of one start meet, as rank 0 says."""

    start: int
    size: int
    host: str
    port: int


@dataclass(kw_only=True)
class Desk:
    """An actor on the driver's node that hears how ranks end, and tells all of them that they are to stop.

    A start is one life of all ranks together; what is told of an earlier one does not count.
    """

    start: int = 0
    is_stopping: bool = False
    ends: dict[int, int] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    first_end_at: float | None = None

    def begin(self) -> tuple[int, str]:
        """A new start; its number, and in words how the one before it ended."""
        before = ", ".join(f"process {rank} {_end_words(code)}" for rank, code in sorted(self.ends.items()))
        self.start += 1
        self.ends, self.first_end_at = {}, None
        return self.start, before

    def told(self, start: int, rank: int, code: int, said: str = "") -> None:
        """A rank has ended by itself; negative is a signal."""
        if start == self.start:
            self.ends[rank] = code
            self.first_end_at = self.first_end_at or time.monotonic()
            if said:
                self.said.append(said)

    def stop(self) -> None:
        self.is_stopping = True

    def ask(self, start: int) -> tuple[bool, dict[int, int], float]:
        """Whether to stop, who has ended in this start, and for how many seconds the first has."""
        if start != self.start:
            raise ValueError(f"start {start} is over")
        seconds = time.monotonic() - self.first_end_at if self.first_end_at is not None else 0.0
        return self.is_stopping, self.ends, seconds

    def outcome(self) -> tuple[dict[int, int], list[str]]:
        return self.ends, self.said


def usable_size(spec: Spec, num_workers: int) -> int:
    """The most processes, up to ``num_workers``, that the run can be split among.

    Raises:
        ValueError: there is none from its ``min_processes`` on.
    """
    fewest = spec.min_processes or spec.num_processes
    for size in range(min(num_workers, spec.num_processes), fewest - 1, -1):
        with contextlib.suppress(ValueError):
            return replace(spec, num_processes=size, min_processes=None).num_processes
    raise ValueError(f"{num_workers} workers are too few: the run needs {fewest} processes or more")


class _SharesGpus(Backend):
    # Ranks of a node see each other's GPUs, as under torchrun: LOCAL_RANK picks one, and nccl may go from GPU to GPU.
    share_cuda_visible_devices = True


class _NoProcessGroup(BackendConfig):
    """The engine makes its process group itself, in its own process."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _SharesGpus


def run_gang(task: Task, pause: Pause) -> int:
    """Place the ranks, wait for the run's end and return its exit code."""
    ray.init(address="auto", log_to_driver=True)
    pause.listen()  # which Ray has just taken for itself
    spec = read_spec(task.run_dir)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk = ray.remote(num_cpus=0, scheduling_strategy=here)(Desk).remote()
    trainer = DataParallelTrainer(
        _run_rank,
        train_loop_config={"task": task, "desk": desk},
        backend_config=_NoProcessGroup(),
        scaling_config=_scaling(task, spec),
        run_config=ray.train.RunConfig(
            name="gang",
            storage_path=str(task.run_dir / TRAIN_DIR / ray.get_runtime_context().get_job_id()),
            failure_config=ray.train.FailureConfig(max_failures=MAX_RESTARTS),
        ),
    )
    failures: list[Exception] = []
    # Ray Train waits in a thread of its own: signals come to this one.
    thread = threading.Thread(target=_fit, args=(trainer, failures), daemon=True)
    thread.start()
    is_told = False
    while thread.is_alive():
        thread.join(SECONDS_BETWEEN_ASKS)
        if pause.requested and task.is_killed:
            # The workers die with their driver, and the ranks with the workers.
            os._exit(SIGNALLED + signal.SIGKILL)
        if pause.requested and not is_told:
            is_told = True
            desk.stop.remote()
    ends, said = ray.get(desk.outcome.remote())
    for line in (*said, *map(str, failures)):
        print(line, file=sys.stderr, flush=True)
    shutil.rmtree(task.run_dir / TRAIN_DIR, ignore_errors=True)
    if not ends or (failures and not _is_said(ends)):
        return ExitCode.LOST_PROCESS
    return run_code(list(ends.values()))


def _fit(trainer: DataParallelTrainer, failures: list[Exception]) -> None:
    try:
        trainer.fit()
    except Exception as error:  # told by the caller
        failures.append(error)


def _scaling(task: Task, spec: Spec) -> ray.train.ScalingConfig:
    fewest = spec.min_processes or task.num_processes
    is_elastic = fewest < task.num_processes
    if task.num_nodes == task.num_processes and not is_elastic:
        strategy = "STRICT_SPREAD"
    else:
        # Of several nodes as few as can be: the ranks talk faster. One node means one node, unless the run may shrink.
        strategy = "STRICT_PACK" if task.num_nodes == 1 and not is_elastic else "PACK"
    return ray.train.ScalingConfig(
        num_workers=(fewest, task.num_processes) if is_elastic else task.num_processes,
        use_gpu=task.with_gpu,
        resources_per_worker={"GPU": 1} if task.with_gpu else {"CPU": 1},
        placement_strategy=strategy,
        elastic_resize_monitor_interval_s=SECONDS_BETWEEN_RESIZES,
    )


# --- in a worker -------------------------------------------------------------------------------------------------


def _run_rank(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs.

    Raises:
        LostRankError: a rank was lost and the run itself did not say why it ended.
    """
    task: Task = config["task"]
    desk, context = config["desk"], ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    # Plain values: the actor in between need not import this module.
    called = asdict(_call_meeting(task, desk, num_workers)) if rank == 0 else None
    meeting = Meeting(**broadcast_from_rank_zero(called))
    if rank < meeting.size:
        _take_part(task, desk, meeting, rank, context.get_local_rank())
    ends = _wait_for_all(desk, meeting)
    if not _is_said(ends):
        lost = ", ".join(f"process {rank} {_end_words(code)}" for rank, code in sorted(ends.items()))
        raise LostRankError(lost or "no process ended by itself")


def _call_meeting(task: Task, desk: Any, num_workers: int) -> Meeting:
    start, before = ray.get(desk.begin.remote())
    size = usable_size(read_spec(task.run_dir), num_workers)
    if start > 1:
        _tell_restart(task, f"Ray Train starts {size} processes: {before or 'a worker was lost'}")
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return Meeting(start=start, size=size, host=ray.util.get_node_ip_address(), port=port)


def _tell_restart(task: Task, message: str) -> None:
    """Put the restart into the run's story, unless an engine that is not gone yet still writes it."""
    with open(task.run_dir / LOCK_FILE, "a") as lock, contextlib.suppress(OSError, ValueError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        events = EventsWriter(task.run_dir)
        events.write("restarted", message)
        events.close()


def _take_part(task: Task, desk: Any, meeting: Meeting, rank: int, local_rank: int) -> None:
    """Run one rank to its end and tell the desk; one that had to be killed because the others are gone says nothing."""
    if problem := task.unfit():
        ray.get(desk.told.remote(meeting.start, rank, ExitCode.UNFIT_WORKER, problem))
        return
    process = task.start(_place(meeting, rank, local_rank))
    try:
        is_asked = False
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                ray.get(desk.told.remote(meeting.start, rank, process.wait(SECONDS_BETWEEN_ASKS)))
                return
            is_stopping, ends, seconds = ray.get(desk.ask.remote(meeting.start))
            if ends and seconds > GRACE_SECONDS:
                return
            if is_stopping and not is_asked:
                is_asked = True
                process.send_signal(signal.SIGTERM)
    finally:
        process.kill()
        process.wait()


def _place(meeting: Meeting, rank: int, local_rank: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(meeting.size),
        "MASTER_ADDR": meeting.host,
        "MASTER_PORT": str(meeting.port),
    }


def _wait_for_all(desk: Any, meeting: Meeting) -> Mapping[int, int]:
    """How the ranks ended; those that say nothing within the grace were killed."""
    while True:
        _, ends, seconds = ray.get(desk.ask.remote(meeting.start))
        if len(ends) == meeting.size or (ends and seconds > GRACE_SECONDS + 2 * SECONDS_BETWEEN_ASKS):
            return dict(ends)
        time.sleep(SECONDS_BETWEEN_ASKS)


def _is_said(ends: Mapping[int, int]) -> bool:
    """Whether the run itself said how it ended: starting it again would end the same way."""
    codes = list(ends.values())
    return bool(codes) and run_code(codes) < SIGNALLED and run_code(codes) != ExitCode.LOST_PROCESS


def _end_words(code: int) -> str:
    if code < 0:
        return f"was ended by signal {-code}"
    return "lost its partners" if code == ExitCode.LOST_PROCESS else f"ended with code {code}"
