"""``python -m app.ray_worker RUN_DIR ...``: the entrypoint of a Ray job; the service writes its command line.

One process runs right here, on the node and with the device that Ray gave to this entrypoint. Several are placed by Ray
Train (:mod:`app.ray_worker.gang`). The exit code is that of the run (:class:`app.contract.ExitCode`), or UNFIT_WORKER where
a node does not see what the service sees.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from app.contract import ExitCode
from app.engine.launch import Pause
from app.ray_worker.work import Task, run_alone


def parse(arguments: list[str]) -> Task:
    """The task that a command line describes."""
    parser = argparse.ArgumentParser(prog="python -m app.ray_worker", description="Run one job inside a Ray cluster.")
    parser.add_argument("run_dir", type=Path, help="directory that holds spec.json")
    parser.add_argument("--module", choices=["app.engine", "app.corpus"], default="app.engine")
    parser.add_argument("--probe", required=True, help="what the probe file beside the run directory holds")
    parser.add_argument("--kill-file", required=True, help="name of the file in RUN_DIR that means: at once")
    parser.add_argument("--num-processes", type=int, default=1)
    parser.add_argument("--num-nodes", type=int, default=1)
    parser.add_argument("--gpu", dest="with_gpu", action="store_true", help="a GPU for each process")
    return Task(**vars(parser.parse_args(arguments)))


def main(arguments: list[str], pause: Pause) -> int:
    """Run the job; returns the exit code."""
    task = parse(arguments)
    if problem := task.unfit():
        print(problem, file=sys.stderr, flush=True)
        return ExitCode.UNFIT_WORKER
    if task.is_killed:
        return ExitCode.PAUSED
    if task.num_processes == 1:
        return run_alone(task, pause)
    from app.ray_worker.gang import run_gang

    return run_gang(task, pause)


if __name__ == "__main__":
    on_signal = Pause()
    on_signal.listen()
    sys.exit(main(sys.argv[1:], on_signal))
