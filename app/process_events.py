"""`events.jsonl` of a small process of the service (a corpus preparation, an export): the story it tells of itself."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from app.contract import EVENTS_FILE, EventLine

SECONDS_BETWEEN_EVENTS = 0.5


class ProcessEvents:
    """Appends to the file of `run_dir`; another attempt goes on counting where the last one ended."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / EVENTS_FILE
        self._seq = 0
        if self._path.exists():
            whole, newline, torn = self._path.read_bytes().rpartition(b"\n")
            self._seq = len(whole.splitlines())
            if torn:  # by a full disk or a kill: what is not whole was never told
                with open(self._path, "r+b") as file:
                    file.truncate(len(whole) + len(newline))
        self._last = 0.0

    def add(self, event: str, message: str, *, exit_code: int | None = None) -> None:
        line = EventLine(
            seq=self._seq, time=datetime.now(UTC).isoformat(), event=event, message=message, exit_code=exit_code
        )
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(line)) + "\n")
        self._seq += 1

    def fail(self, message: str, exit_code: int) -> None:
        """The last line, where the disk still takes it: the exit code says it anyway."""
        print(message, file=sys.stderr, flush=True)
        try:
            self.add("failed", message, exit_code=exit_code)
        except OSError:
            print("events.jsonl could not take this last line", file=sys.stderr, flush=True)

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """Bytes done of a stage, twice a second at most."""
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_EVENTS:
            self._last = now
            of = f" of {total / 1e6:.1f}" if total else ""
            self.add("progress", f"{stage}: {done / 1e6:.1f}{of} MB")
