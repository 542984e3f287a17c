"""How the service ends, in bounded time whatever hangs.

==============  ========================================================================================
first signal    SIGTERM or SIGINT: event streams close behind a whole event, nothing more is claimed, no new
                connection is taken; requests in flight have `stop_seconds`
then            the launcher loop and the refitter end after what they have in hand, SECONDS_FOR_LOOPS at most
all the same    the process ends SECONDS_TO_SPARE later: a thread in a long fit or a stuck disk cannot hold it
second signal   the process ends at once
==============  ========================================================================================

The exit code is 0 each time. Ending at once loses nothing either: what was acknowledged is committed, jobs are sessions of
their own, and the next start takes up everything, as it does after `kill -9`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType

import structlog
import uvicorn

log = structlog.get_logger()

SECONDS_FOR_LOOPS = 3.0
SECONDS_TO_SPARE = 1.0


class StoppableServer(uvicorn.Server):
    """uvicorn's server under these rules; `run` in the main thread.

    Args:
        on_stop: called at the first signal, inside its handler.
        on_cut_short: called where the process is about to end without having cleaned up.
    """

    def __init__(
        self, config: uvicorn.Config, *, on_stop: Callable[[], None], on_cut_short: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._on_stop, self._on_cut_short = on_stop, on_cut_short
        self._num_repeats = 0
        # While it runs, uvicorn has handlers of its own. When it has shut down it puts these back and raises the signal
        # that it was stopped by once more, which must not cut short what is left to clean up.
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._outside_of_serving)
        signal.signal(signal.SIGALRM, self._cut_short)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self._cut_short(sig, frame)
        self._on_stop()
        # A timer of the system and no thread: it is on time whatever locks and threads hold each other up.
        seconds = (self.config.timeout_graceful_shutdown or 0) + SECONDS_FOR_LOOPS + SECONDS_TO_SPARE
        signal.setitimer(signal.ITIMER_REAL, seconds)
        super().handle_exit(sig, frame)

    def _outside_of_serving(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            sys.exit(0)
        self._num_repeats += 1
        if self._num_repeats > 1:
            self._cut_short(sig, frame)

    def _cut_short(self, sig: int, frame: FrameType | None) -> None:
        self._on_cut_short()
        why = "it took too long" if sig == signal.SIGALRM else "asked twice"
        # Straight to the descriptor: this interrupts whatever was being written.
        os.write(2, f'{{"event": "stop_cut_short", "level": "warning", "reason": "{why}"}}\n'.encode())
        os._exit(0)


def leave() -> None:
    """End the process, cleaned up as it is, without Python's own clean-up: that frees everything piece by piece and waits
    for threads, which on a starved machine outlasts the patience of whoever stops services."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def stop_loops(stops: Mapping[str, Callable[[], None]], *, seconds: float = SECONDS_FOR_LOOPS) -> None:
    """Stop loops side by side, and go on without those that have not ended after `seconds` together."""
    threads = {name: threading.Thread(target=stop, name=f"stop {name}", daemon=True) for name, stop in stops.items()}
    for thread in threads.values():
        thread.start()
    deadline = time.monotonic() + seconds
    for name, thread in threads.items():
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            log.warning("stopped_without", loop=name, reason="it had not ended; the next start does its work again")
