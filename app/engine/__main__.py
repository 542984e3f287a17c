"""``python -m app.engine RUN_DIR``: train the run described by RUN_DIR/spec.json.

Exit codes are those of :class:`app.contract.ExitCode`. A directory that has its result is left alone and ends with
the code of that result. SIGTERM and SIGINT ask for a pause: finish the step, save, exit 75. Spec and corpus are
checked before torch is even imported, so a bad one costs a fraction of a second.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType

from app.contract import ExitCode, read_result, read_spec
from app.engine.data import open_corpus
from app.engine.errors import BadDataError, BadSpecError, explain
from app.engine.metrics import EventsWriter
from app.engine.plan import plan_phases

LOCK_FILE = ".engine.lock"
LOCK_POLL_SECONDS = 0.2


class Pause:
    """Set by SIGTERM or SIGINT; asked between two steps."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self._request)
        signal.signal(signal.SIGINT, self._request)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True


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
    try:
        lock = _lock(run_dir, pause)
    except OSError as error:
        code, sentence = explain(error)
        print(f"cannot lock {run_dir}: {sentence}", file=sys.stderr)
        return code
    if lock is None:
        return ExitCode.PAUSED
    try:
        return _run_checked(run_dir, pause)
    finally:
        os.close(lock)


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


def _run_checked(run_dir: Path, pause: Pause) -> int:
    events: EventsWriter | None = None
    try:
        try:
            result = read_result(run_dir)
            if result is not None:
                print(f"{run_dir} has its result already: {result.status}", flush=True)
                return ExitCode.DIVERGED if result.status == "diverged" else ExitCode.DONE
            spec = read_spec(run_dir)
        except ValueError as error:
            raise BadSpecError(str(error)) from None
        phases = plan_phases(spec)
        events = EventsWriter(run_dir)
        corpus = open_corpus(spec)
        # Before torch is loaded: its thread pools are sized once.
        os.environ.setdefault("OMP_NUM_THREADS", str(spec.num_threads))
        from app.engine.run import run

        return run(run_dir, spec, phases, corpus, events, lambda: pause.requested)
    except Exception as error:
        code, sentence = explain(error)
        if code is ExitCode.BUG:
            traceback.print_exc()
        print(sentence, file=sys.stderr, flush=True)
        if code is not ExitCode.DIVERGED:
            _write_failure(run_dir, events, sentence)
        return code
    finally:
        if events is not None:
            events.close()


def _write_failure(run_dir: Path, events: EventsWriter | None, sentence: str) -> None:
    """Put the end into the story too, where the disk still takes it: the exit code says it anyway."""
    try:
        (events or EventsWriter(run_dir)).write("failed", sentence)
    except (OSError, BadDataError):
        print("events.jsonl could not take this last line", file=sys.stderr, flush=True)


if __name__ == "__main__":
    on_signal = Pause()
    on_signal.listen()
    sys.exit(main(sys.argv[1:], on_signal))
