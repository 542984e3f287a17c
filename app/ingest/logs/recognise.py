"""Which format a file has, from its content; and a run's files as one log."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from app.ingest.logs import lightning, megatron, nanochat, tables, tensorboard, trainer_state, wandb
from app.ingest.logs.rows import MAX_BYTES, MAX_ROWS, Log, LogFile
from fitting.errors import InputError

READERS: Mapping[str, Callable[..., Log | tuple[Log, ...]]] = {
    trainer_state.FORMAT: trainer_state.read,
    megatron.FORMAT: megatron.read,
    tensorboard.FORMAT: tensorboard.read,
    lightning.FORMAT: lightning.read,
    nanochat.FORMAT: nanochat.read,
    "csv": tables.read_csv,
    "jsonl": tables.read_jsonl,
    "parquet": tables.read_parquet,
    wandb.FORMAT: wandb.read,
}
FORMATS = tuple(READERS)
# Whose steps may stand in a column of any name; the others' formats say it.
_STEP_NAMED = ("csv", "jsonl", "parquet", wandb.FORMAT)

# What is never opened: archives may unpack to anything, pickles run code.
_REFUSED = {
    b"PK\x03\x04": "a zip archive (or a torch checkpoint)", b"\x1f\x8b": "a gzip archive", b"\xfd7zXZ": "an xz archive",
    b"BZh": "a bzip2 archive", b"\x28\xb5\x2f\xfd": "a zstd archive", b"7z\xbc\xaf": "a 7z archive",
    b"\x80\x02": "a pickle", b"\x80\x03": "a pickle", b"\x80\x04": "a pickle", b"\x80\x05": "a pickle",
    b"SQLite format 3": "a database", b"\x89HDF": "an HDF5 file", b"\x7fELF": "a program",
}  # fmt: skip
_HEAD = 65_536
OFFLINE_MEND = (
    "send it to a server (`wandb sync FOLDER`) and import wandb:ENTITY/PROJECT/RUN, or export its history as CSV"
)


def read_logs(files: Sequence[LogFile], format_name: str | None = None, step: str | None = None) -> tuple[Log, ...]:
    """The logs that some files hold: one of one run, joined in the files' order, or several of a table of runs.

    Args:
        step: the column of the trainer's steps, where a table or a W&B run names it otherwise.

    Raises:
        InputError: no files, files of several formats, a refused or unknown content, or a reader's own words.
    """
    if not files:
        raise InputError("files", "are missing", "give the log of a run")
    size = sum(len(file.content) for file in files)
    if size > MAX_BYTES:
        raise InputError(
            "files", f"hold {size:,} bytes (limit {MAX_BYTES:,})", "give the log without what is not wanted"
        )
    if format_name is not None and format_name not in READERS:
        raise InputError("format", f"is {format_name!r}", f"use one of {', '.join(FORMATS)}, or leave it out")
    if len({file.content for file in files}) < len(files):
        raise InputError("files", "hold one log twice", "give each file once")
    for file in files:
        _refuse(file)
    formats = [format_name or recognise(file) for file in files]
    for one, other in pairwise(formats):
        if one != other:
            raise InputError("files", f"are of several formats ({one}, {other})", "import them one by one")
    if step is not None and formats[0] not in _STEP_NAMED:
        raise InputError("step", f"is given, but a {formats[0]} log says its steps itself", "leave it out")
    named = {} if step is None else {"step": step}
    found = [READERS[name](file, **named) for name, file in zip(formats, files, strict=True)]
    if isinstance(found[0], tuple):
        return tuple(log for logs in found if isinstance(logs, tuple) for log in logs)
    return (_as_one([log for log in found if isinstance(log, Log)]),)


def recognise(file: LogFile) -> str:
    """The format of a file.

    Raises:
        InputError: it is none that is known.
    """
    head = file.content[:_HEAD]
    if head.startswith(b"PAR1"):
        return "parquet"
    # A record of an event file: its length, 8 bytes; a check sum, 4 bytes; then the event, whose first field is the time.
    if len(head) > 12 and head[4:8] == b"\0\0\0\0" and head[12:13] == b"\x09":
        return tensorboard.FORMAT
    text = head.decode("utf-8-sig", errors="ignore")
    if "\0" not in text:
        first = text.lstrip().split("\n", 1)[0]
        if wandb.is_mine(first):
            return wandb.FORMAT
        if first.startswith("{"):
            return trainer_state.FORMAT if '"log_history"' in file.content.decode("utf-8", errors="ignore") else "jsonl"
        if megatron.ITERATION.search(file.content.decode("utf-8", errors="ignore")):
            return megatron.FORMAT
        header = _header(first)
        if len(header) > 1:
            if nanochat.is_mine(header):
                return nanochat.FORMAT
            return lightning.FORMAT if lightning.is_mine(header) else "csv"
    raise InputError(file.name, "is of no known format", f"name it with --format, one of {', '.join(FORMATS)}")


def _header(first: str) -> list[str]:
    delimiter = max((",", ";", "\t"), key=first.count)
    try:
        return [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _refuse(file: LogFile) -> None:
    if file.content.startswith(b":W&B"):
        raise InputError(file.name, "is a run in W&B's own file, which only its client reads", OFFLINE_MEND)
    for magic, what in _REFUSED.items():
        if file.content.startswith(magic):
            raise InputError(file.name, f"is {what}, which is not read", "give the log itself, unpacked")


def _as_one(logs: Sequence[Log]) -> Log:
    """The files of one run behind each other: where steps come back, the later file counts."""
    rows = tuple(row for log in logs for row in log.rows)
    if len(rows) > MAX_ROWS:
        raise InputError("files", f"hold {len(rows):,} rows (limit {MAX_ROWS:,})", "keep every tenth row")
    columns = {column.column: column for log in logs for column in log.columns}
    planned = [log.planned_steps for log in logs if log.planned_steps is not None]
    tokens = {log.tokens_column for log in logs}
    return replace(
        logs[-1],
        rows=rows,
        columns=tuple(columns.values()),
        planned_steps=planned[-1] if planned else None,
        tokens_column=tokens.pop() if len(tokens) == 1 else None,
        num_stepless=sum(log.num_stepless for log in logs),
    )
