"""One run, several processes, on one machine or several: what torchrun's environment says, and a start without it.

``python -m app.engine RUN_DIR`` starts as many ranks as ``num_processes`` asks for and ends with the run's own exit
code, which torchrun replaces by 1 (paused, diverged and failed would look alike). Under torchrun its environment is found
here and obeyed. Over several machines either will do: torchrun, or this on each of them, told of the others by the
variables of the second half.

=======================  =====================================================================
variable                 meaning
=======================  =====================================================================
``RANK``                 this process's number among all, from 0
``LOCAL_RANK``           its number on this machine; the CUDA device it takes
``WORLD_SIZE``           how many there are
``GROWTHLAW_NUM_NODES``  machines on which the engine is started; each gets equally many ranks
``GROWTHLAW_NODE_RANK``  this machine's number among them, from 0
``MASTER_ADDR``          where the ranks meet: the first machine, as the others reach it
``MASTER_PORT``          a free port of it
=======================  =====================================================================

No torch here: a bad spec must cost a fraction of a second.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType

from app.contract import ExitCode, Spec
from app.engine.errors import BadSpecError

# In the run directory; whoever holds it alone may write there.
LOCK_FILE = ".engine.lock"
POLL_SECONDS = 0.05
# What the other ranks get to say why they stop, once one has ended: their collectives fail within a second or two.
GRACE_SECONDS = 10.0


class Pause:
    """Set by SIGTERM or SIGINT; asked between two steps."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self._request)
        signal.signal(signal.SIGINT, self._request)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A process's place among those of its run."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Launch | None:
        """The place that torchrun or :func:`start_ranks` gave this process; None where neither started it."""
        if "WORLD_SIZE" not in environment:
            return None
        rank = int(environment["RANK"])
        return cls(rank=rank, local_rank=int(environment.get("LOCAL_RANK", rank)), size=int(environment["WORLD_SIZE"]))

    def check(self, spec: Spec) -> None:
        """Refuse to train with another number of processes than the spec's, or fewer than it may go on with.

        Raises:
            BadSpecError: they differ, or do not divide the batch.
        """
        if not (spec.min_processes or spec.num_processes) <= self.size <= spec.num_processes:
            fewest = f" (at least {spec.min_processes})" if spec.min_processes else ""
            raise BadSpecError(
                f"num_processes is {spec.num_processes}{fewest}, but {self.size} were started (WORLD_SIZE); start "
                f"{spec.num_processes} with torchrun, or set num_processes to {self.size}"
            )
        try:
            replace(spec, num_processes=self.size, min_processes=None)
        except ValueError as error:
            raise BadSpecError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """A machine's place among those of its run."""

    rank: int = 0
    count: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Nodes:
        count = int(environment.get("GROWTHLAW_NUM_NODES", 1))
        return cls(rank=int(environment.get("GROWTHLAW_NODE_RANK", 0)), count=count)


def start_ranks(run_dir: str, size: int, nodes: Nodes, pause_requested: Callable[[], bool]) -> int:
    """Run this machine's share of ``size`` ranks of the engine to their end; returns the run's exit code.

    A pause is passed on to all ranks. Once one has ended the others get :data:`GRACE_SECONDS` to end too and are then
    killed: they end together or wait for it in vain. If this process itself is killed the ranks go on; rank 0 holds the
    lock, so another start waits for them.
    """
    if size % nodes.count:
        print(
            f"num_processes is {size}, but {nodes.count} machines get equally many; choose a multiple", file=sys.stderr
        )
        return ExitCode.BAD_SPEC
    num_here = size // nodes.count
    meeting = _meeting_here() if nodes.count == 1 else {}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "app.engine", run_dir],
            env={
                **os.environ,
                "RANK": str(nodes.rank * num_here + place),
                "LOCAL_RANK": str(place),
                "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(num_here),
                **meeting,
            },
        )
        for place in range(num_here)
    ]
    try:
        return _wait(processes, pause_requested)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _meeting_here() -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}


def _wait(processes: list[subprocess.Popen[bytes]], pause_requested: Callable[[], bool]) -> int:
    is_pause_sent = False
    deadline = math.inf
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        if pause_requested() and not is_pause_sent:
            is_pause_sent = True
            for process in processes:
                process.send_signal(signal.SIGTERM)  # does nothing to one that has ended
        if math.isinf(deadline) and any(process.returncode is not None for process in processes):
            deadline = time.monotonic() + GRACE_SECONDS
        time.sleep(POLL_SECONDS)
    return run_code([process.returncode for process in processes if process.returncode is not None])


def run_code(codes: Sequence[int]) -> int:
    """The one exit code for those of the ranks: that which says most, whichever came first.

    Death by a signal counts before all (128 + its number, as shells have it), then a cause that the engine knows, then
    a bug, then that a partner is gone: it went for a reason of its own.

    >>> run_code([74, -9]), run_code([74, 73]), run_code([74, 1]), run_code([75, 75]), run_code([0, 0])
    (137, 73, 1, 75, 0)
    """
    killed = [128 - code for code in codes if code < 0]
    known = [code for code in codes if code > ExitCode.BUG and code != ExitCode.LOST_PROCESS]
    bugs = [code for code in codes if code == ExitCode.BUG]
    return next(iter(killed + known + bugs + [max(codes)]))
