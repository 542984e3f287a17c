"""A grid's runs as files: `headers.csv`, `points.csv.xz` and `cohorts.json`, which :mod:`app.ingest.bundle` reads, and
`copying.csv`, what their models had learned of copying, which only the report reads.

`headers.csv` holds the canonical columns of :data:`fitting.table.COLUMNS` and four of the grid's own: the cell, its family
and step, and the scratch tokens of its budget. Rows stand in the order of their cells' names. Values are text as written:
what is read and written again stays the same, byte for byte.
"""

from __future__ import annotations

import csv
import io
import lzma
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from app.records import fsync_dir
from fitting.errors import InputError
from fitting.grid_report.copying import COPYING_COLUMNS, COPYING_FILE
from fitting.table import COLUMNS

HEADERS_FILE = "headers.csv"
POINTS_FILE = "points.csv.xz"
COHORTS_FILE = "cohorts.json"

GRID_COLUMNS = ("cell", "family", "step", "budget_tokens")
HEADER_COLUMNS = (*GRID_COLUMNS, *COLUMNS)
POINT_COLUMNS = (
    "run_id", "seq", "phase", "tokens", "compute_flops", "metric", "dataset", "value", "unit", "time",
)  # fmt: skip

Row = dict[str, str]


def as_text(value: Any) -> str:
    """A value as a cell of the files: whole numbers without a point, others to their last bit, nothing for None.

    >>> as_text(2048.0), as_text(0.1), as_text(None), as_text(True)
    ('2048', '0.1', '', 'true')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return repr(value) if isinstance(value, float) else str(value)


def read_headers(folder: Path) -> list[Row]:
    """The rows of `headers.csv`; none where there is no such file.

    Raises:
        InputError: a column is missing, or a line has another number of values.
    """
    path = folder / HEADERS_FILE
    return _rows(path.read_text(encoding="utf-8"), HEADER_COLUMNS, HEADERS_FILE) if path.exists() else []


def read_points(folder: Path) -> list[Row]:
    """The rows of `points.csv.xz`; none where there is no such file. Errors as :func:`read_headers`."""
    path = folder / POINTS_FILE
    if not path.exists():
        return []
    try:
        with lzma.open(path, "rt", encoding="utf-8", newline="") as file:
            text = file.read()
    except (lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise InputError(POINTS_FILE, f"cannot be read ({error})", "put a copy back, or collect it again") from None
    return _rows(text, POINT_COLUMNS, POINTS_FILE)


def write_headers(folder: Path, rows: Iterable[Row]) -> None:
    ordered = sorted(rows, key=lambda row: row["cell"])
    _write(folder / HEADERS_FILE, csv_text(HEADER_COLUMNS, ordered).encode())


def write_points(folder: Path, rows: Iterable[Row]) -> None:
    """The points by run, then ``seq``; compressed alike on every machine."""
    ordered = sorted(rows, key=lambda row: (row["run_id"], int(row["seq"])))
    _write(folder / POINTS_FILE, lzma.compress(csv_text(POINT_COLUMNS, ordered).encode(), preset=9))


def read_copying_rows(folder: Path) -> list[Row]:
    """The rows of `copying.csv`; none where there is no such file. Errors as :func:`read_headers`."""
    path = folder / COPYING_FILE
    return _rows(path.read_text(encoding="utf-8"), COPYING_COLUMNS, COPYING_FILE) if path.exists() else []


def write_copying_rows(folder: Path, rows: Iterable[Row]) -> None:
    ordered = sorted(rows, key=lambda row: row["cell"])
    _write(folder / COPYING_FILE, csv_text(COPYING_COLUMNS, ordered).encode())


def csv_text(columns: Sequence[str], rows: Iterable[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rows(text: str, columns: Sequence[str], name: str) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise InputError(missing[0], f"is missing from {name}", "put a copy back, or collect it again")
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise InputError(name, f"has another number of values in line {reader.line_num}", "put a copy back")
        rows.append({column: row[column] for column in columns})
    return rows


def _write(path: Path, data: bytes) -> None:
    """Write beside, fsync, rename."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)
