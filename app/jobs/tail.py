"""Reading what a run's process appends: whole lines from a byte offset, so a torn last line waits for its end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from app.contract import EventLine, MetricLine
from app.records import from_dict

Line = TypeVar("Line", MetricLine, EventLine)
MAX_BYTES_A_READ = 4_000_000
LONGEST_REPORT = 500


@dataclass(frozen=True, kw_only=True)
class Tail(Generic[Line]):
    lines: list[Line]
    offset: int
    bad_lines: list[str]


def read_new_lines(path: Path, offset: int, kind: type[Line]) -> Tail[Line]:
    """The records appended to `path` since `offset`.

    A file shorter than `offset` was truncated behind a torn line by its writer; whole lines never go away, so the
    offset never lies beyond them. A line that is no record is reported, not raised: one bad line must not stop a job.
    """
    lines: list[Line] = []
    bad_lines: list[str] = []
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(MAX_BYTES_A_READ)
    except FileNotFoundError:
        data = b""
    whole = data[: data.rfind(b"\n") + 1]
    if not whole and len(data) == MAX_BYTES_A_READ:
        # No engine writes such a line; what is left of it is reported as bad lines until its end comes.
        bad_lines.append(f"{path.name}: a line of more than {MAX_BYTES_A_READ} bytes")
        whole = data
    for raw in whole.splitlines():
        try:
            record = from_dict(kind, json.loads(raw, parse_constant=_refuse_constant))
            if any(isinstance(value, int) and not 0 <= value < 2**63 for value in vars(record).values()):
                raise ValueError("a count lies outside 0 to 2**63 - 1")
            lines.append(record)
        except (ValueError, RecursionError) as error:
            bad_lines.append(f"{path.name}: {error}"[:LONGEST_REPORT])
    return Tail(lines=lines, offset=offset + len(whole), bad_lines=bad_lines)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number that can be stored")


def log_tail(path: Path, max_bytes: int = 2_000) -> str:
    """The end of a log file, for people."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - max_bytes))
            return file.read().decode("utf-8", errors="replace").strip()
    except FileNotFoundError:
        return ""
