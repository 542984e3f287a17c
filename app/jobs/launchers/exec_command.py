"""One command at work beside the launcher's loop: started at once, looked at later, ended when it takes too long."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# What the service itself is told by its environment.
SETTINGS_PREFIX = "GROWTHLAW_"
LARGEST_OUTPUT_BYTES = 4_000_000
LONGEST_SAID = 300
_SECONDS_TO_DIE = 1.0
_SECONDS_BETWEEN_LOOKS = 0.02


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a command ended; ``code`` is None where it was ended for its time or size, or could not be started."""

    code: int | None
    output: str = ""
    errors: str = ""

    @property
    def said(self) -> str:
        """Its own words in one line, for people."""
        words = " ".join((self.errors.strip() or self.output.strip()).split())
        return words[-LONGEST_SAID:] or f"exit code {self.code}, no word"


class RunningCommand:
    """A command in a session of its own, without input, its output in files: nothing waits for it but who asks.

    Args:
        arguments: no shell ever sees them.
        folder: where it runs.
        timeout_seconds: after which it is killed with all its children.
        held: a file descriptor that it inherits, so that a lock on it lasts as long as it does.
    """

    def __init__(
        self, arguments: Sequence[str], *, folder: Path, timeout_seconds: float, held: int | None = None
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._deadline = time.monotonic() + timeout_seconds
        self._output, self._errors = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 - closed at its end
        self._process: subprocess.Popen[bytes] | None = None
        self._answer: Answer | None = None
        try:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._errors,
                cwd=folder,
                # A scheduler keeps the environment that a job is submitted from: the service's own settings stay here.
                env={name: value for name, value in os.environ.items() if not name.startswith(SETTINGS_PREFIX)},
                pass_fds=() if held is None else (held,),
                start_new_session=True,
            )
        except OSError as error:
            self._end(Answer(code=None, errors=f"{arguments[0]} cannot be started: {error.strerror or error}"))

    def answer(self) -> Answer | None:
        """How it ended, None while it is at work."""
        if self._answer is not None or self._process is None:
            return self._answer
        code = self._process.poll()
        is_late = time.monotonic() > self._deadline
        is_large = max(os.fstat(file.fileno()).st_size for file in (self._output, self._errors)) > LARGEST_OUTPUT_BYTES
        if code is None and not is_late and not is_large:
            return None
        if code is None:
            self.kill()
        why = f"more than {LARGEST_OUTPUT_BYTES:,} bytes" if is_large else f"no end within {self._timeout_seconds:g} s"
        if code is None or is_large:
            self._end(Answer(code=None, errors=why))
        else:
            self._end(Answer(code=code, output=_text(self._output), errors=_text(self._errors)))
        return self._answer

    def wait(self) -> Answer:
        """Wait until it has ended, at most its time."""
        while (answer := self.answer()) is None:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return answer

    def _end(self, answer: Answer) -> None:
        self._answer = answer
        self._output.close()
        self._errors.close()

    def kill(self) -> None:
        """End it with all its children."""
        if self._process is None or self._answer is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # One that hangs in the kernel dies when it comes back; it is not waited for.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_DIE)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", errors="replace")
