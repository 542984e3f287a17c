"""The run's two append-only files: `metrics.jsonl` for numbers, `events.jsonl` for the story.

A metric line's ``seq`` depends on training progress alone, never on wall time. After a restart the engine trains
some steps again, meets the same ``seq`` values and writes only those the file does not hold yet: a reader sees every
point once. A line is one write to the file; what a crash left half-written is cut off at the next start.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.contract import EVENTS_FILE, METRICS_FILE, EventLine, MetricLine, Phase
from app.engine.errors import BadDataError
from app.records import to_dict


class LineFile:
    """An append-only file of JSON lines with a strictly increasing ``seq``, opened for appending.

    Args:
        path: created where it does not exist; a last line that a crash left half-written is cut off.

    Raises:
        BadDataError: the file is damaged before its last line, which no crash of an engine does.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.last_seq, num_bytes = _whole_lines(path)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if os.fstat(self._descriptor).st_size > num_bytes:
            os.ftruncate(self._descriptor, num_bytes)

    def append(self, values: Mapping[str, Any]) -> None:
        """Write one line, visible to readers at once. On a full disk the file is as before."""
        line = (json.dumps(values, allow_nan=False) + "\n").encode()
        end = os.fstat(self._descriptor).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, end)
            raise
        self.last_seq = values["seq"]

    def sync(self) -> None:
        """Make all lines survive a power cut."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class MetricsWriter:
    """Writes points; ``next_seq`` is part of a checkpoint.

    Args:
        run_dir: the run directory; None for a rank that counts along and writes nothing.
    """

    def __init__(self, run_dir: Path | None) -> None:
        self._file = LineFile(run_dir / METRICS_FILE) if run_dir else None
        self.next_seq = 1

    @property
    def last_seq(self) -> int:
        """``seq`` of the last line in the file, 0 while it is empty."""
        return self._file.last_seq if self._file else 0

    def write(
        self, metric: str, value: float, *, phase: Phase, tokens: int, compute_flops: float, dataset: str, unit: str
    ) -> None:
        """Take the next ``seq``; append the point unless an earlier life of this run wrote it."""
        seq = self.next_seq
        self.next_seq += 1
        if self._file is None or seq <= self.last_seq:
            return
        line = MetricLine(
            seq=seq, phase=phase, tokens=tokens, compute_flops=compute_flops, metric=metric, dataset=dataset,
            value=value, unit=unit, time=timestamp(),
        )  # fmt: skip
        self._file.append(to_dict(line))

    def sync(self) -> None:
        if self._file:
            self._file.sync()

    def close(self) -> None:
        if self._file:
            self._file.close()


class EventsWriter:
    """Writes the story, to `events.jsonl` and as a line of the log; ``seq`` is the line's number from 1.

    Args:
        run_dir: the run directory; None for a rank that writes nothing.
    """

    def __init__(self, run_dir: Path | None) -> None:
        self._file = LineFile(run_dir / EVENTS_FILE) if run_dir else None
        self._phase: Phase | None = None
        self._tokens: int | None = None

    def move_to(self, phase: Phase, tokens: int) -> None:
        """Where in the run events happen from now on."""
        self._phase, self._tokens = phase, tokens

    def write(self, event: str, message: str, *, exit_code: int | None = None) -> None:
        if self._file is None:
            return
        line = EventLine(
            seq=self._file.last_seq + 1,
            time=timestamp(),
            event=event,
            message=message,
            phase=self._phase,
            tokens=self._tokens,
            exit_code=exit_code,
        )
        self._file.append(to_dict(line))
        print(f"{event}: {message}", flush=True)

    def close(self) -> None:
        if self._file:
            self._file.close()


def timestamp() -> str:
    """Now, in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _whole_lines(path: Path) -> tuple[int, int]:
    """Last ``seq`` of the file's whole lines, and their length in bytes."""
    last_seq = num_bytes = 0
    if not path.exists():
        return last_seq, num_bytes
    with open(path, "rb") as file:
        for line in file:
            seq = _seq(line)
            if seq is None or seq <= last_seq:
                if file.read(1):
                    raise BadDataError(
                        f"{path} is damaged after seq {last_seq}; restore the file, or start the run in a new directory"
                    )
                break
            last_seq, num_bytes = seq, num_bytes + len(line)
    return last_seq, num_bytes


def _seq(line: bytes) -> int | None:
    """``seq`` of a whole line, None for anything else."""
    try:
        seq = json.loads(line)["seq"]
    except (ValueError, KeyError, TypeError):
        return None
    return seq if isinstance(seq, int) and line.endswith(b"\n") else None
