"""``python -m app.engine RUN_DIR``: train the run described by RUN_DIR/spec.json.

Exit codes are those of :class:`app.contract.ExitCode`. A directory that has its result is left alone and ends with
the code of that result. SIGTERM and SIGINT ask for a pause: finish the step, save, exit 75. Spec and corpus are
checked before torch is even imported, so a bad one costs a fraction of a second.

Where the spec asks for several processes, this one starts and watches them (:mod:`app.engine.launch`); under torchrun
it is one of them. Rank 0 holds the lock and writes the files; the others obey.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from app.contract import ExitCode, Result, Spec, read_result, read_spec
from app.engine.data import open_corpus
from app.engine.errors import BadDataError, BadSpecError, explain
from app.engine.launch import LOCK_FILE, Launch, Nodes, Pause, start_ranks
from app.engine.metrics import EventsWriter
from app.engine.plan import plan_phases
from app.loading import loading

if TYPE_CHECKING:
    from app.engine.distributed import World

LOCK_POLL_SECONDS = 0.2


def main(arguments: list[str], pause: Pause) -> int:
    """Run the engine; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m app.engine", description="Train one run, resuming if it can.")
    parser.add_argument("run_dir", type=Path, help="directory that holds spec.json")
    run_dir = parser.parse_args(arguments).run_dir
    if not run_dir.is_dir():
        print(
            f"RUN_DIR is {str(run_dir)!r}, but there is no such directory; create it with a spec.json", file=sys.stderr
        )
        return ExitCode.BAD_SPEC
    launch = Launch.from_environment(os.environ)
    if launch is None:
        num_processes, nodes = _num_processes(run_dir), Nodes.from_environment(os.environ)
        if num_processes > 1:
            return start_ranks(str(run_dir), num_processes, nodes, lambda: pause.requested)
        if nodes.rank > 0:
            return ExitCode.DONE  # there is nothing to train, or nothing to share: the first machine says which
        launch = Launch()
    if not launch.is_main:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            return _run_checked(run_dir, launch, pause)
    try:
        lock = _lock(run_dir, pause)
    except OSError as error:
        code, sentence = explain(error)
        print(f"cannot lock {run_dir}: {sentence}", file=sys.stderr)
        return code
    if lock is None:
        return ExitCode.PAUSED
    try:
        return _run_checked(run_dir, launch, pause)
    finally:
        os.close(lock)


def _num_processes(run_dir: Path) -> int:
    """Processes to start here: one where there is nothing to train, or what :func:`_run_checked` is about to refuse."""
    try:
        if read_result(run_dir) is not None:
            return 1
        spec = read_spec(run_dir)
        open_corpus(spec)
        return spec.num_processes
    except ValueError:
        return 1


def _lock(run_dir: Path, pause: Pause) -> int | None:
    """Hold the directory alone: two engines on it would write two curves into one file.

    Waits while another engine holds it (a service that restarted and did not know), None where a pause came first.
    """
    descriptor = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    is_told = False
    while not pause.requested:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not is_told:
                print(f"another engine is at work in {run_dir}; waiting for it to end", flush=True)
                is_told = True
            time.sleep(LOCK_POLL_SECONDS)
        else:
            return descriptor
    os.close(descriptor)
    return None


def _run_checked(run_dir: Path, launch: Launch, pause: Pause) -> int:
    events: EventsWriter | None = None
    world: World | None = None
    try:
        if launch.size > 1:
            # Rank 0 may have waited for the lock: only now, and only it, can say whether there is work left.
            world = _join(_spec(run_dir), launch)
        result = world.main.from_main(lambda: _result(run_dir)) if world else _result(run_dir)
        if result is not None:
            print(f"{run_dir} has its result already: {result.status}", flush=True)
            return ExitCode.DIVERGED if result.status == "diverged" else ExitCode.DONE
        spec = _spec(run_dir)
        phases = plan_phases(spec)
        events = EventsWriter(run_dir if launch.is_main else None)
        corpus = open_corpus(spec)
        world = world or _join(spec, launch)
        with loading():
            from app.engine.run import run

        agree = world.main.any
        code = run(run_dir, spec, phases, corpus, events, lambda: agree(pause.requested), world)
        world.close()  # not after an error: the others may never come
        return code
    except Exception as error:
        code, sentence = explain(error)
        if code is ExitCode.BUG:
            traceback.print_exc()
        if launch.is_main:
            print(sentence, file=sys.stderr, flush=True)
            if code is not ExitCode.DIVERGED:
                _write_failure(run_dir, events, code, sentence)
        elif code not in (ExitCode.BAD_SPEC, ExitCode.BAD_DATA, ExitCode.DIVERGED):  # these rank 0 says too
            print(f"process {launch.rank}: {sentence}", file=sys.stderr, flush=True)
        return code
    finally:
        if events is not None:
            events.close()


def _result(run_dir: Path) -> Result | None:
    try:
        return read_result(run_dir)
    except ValueError as error:
        raise BadSpecError(str(error)) from None


def _spec(run_dir: Path) -> Spec:
    try:
        return read_spec(run_dir)
    except ValueError as error:
        raise BadSpecError(str(error)) from None


def _join(spec: Spec, launch: Launch) -> World:
    """Meet the other ranks. Loads torch, whose thread pools are sized once, as it is loaded."""
    launch.check(spec)
    os.environ.setdefault("OMP_NUM_THREADS", str(spec.num_threads))
    with loading():
        from app.engine.distributed import World
        from app.engine.models import resolve_device

    return World(launch, resolve_device(spec.device).type)


def _write_failure(run_dir: Path, events: EventsWriter | None, code: ExitCode, sentence: str) -> None:
    """Put the end into the story too, where the disk still takes it: the exit code says it anyway."""
    try:
        (events or EventsWriter(run_dir)).write("failed", sentence, exit_code=code)
    except (OSError, BadDataError):
        print("events.jsonl could not take this last line", file=sys.stderr, flush=True)


if __name__ == "__main__":
    on_signal = Pause()
    on_signal.listen()
    sys.exit(main(sys.argv[1:], on_signal))
