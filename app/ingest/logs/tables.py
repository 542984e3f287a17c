"""Any CSV, JSON-lines or Parquet table with a row a logged step: numbers by column name, the meaning from a column map.

The step is the column ``step`` (or ``_step``, ``iteration``, ``iter``, ``global_step``, in this order); a table without one
is taken row by row, and then tokens come from a column. Expressions call it ``step`` whatever its name.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from app.ingest.logs.rows import (
    MAX_COLUMNS,
    MAX_ROWS,
    MAX_STEP,
    Log,
    LogFile,
    LogRow,
    check_rows,
    load_json,
    number,
    whole_step,
)
from fitting.errors import InputError

STEP_COLUMNS = ("step", "_step", "iteration", "iter", "global_step")
_LONGEST_CELL = 100_000


def read_csv(file: LogFile, step: str | None = None) -> Log:
    """
    Raises:
        InputError: the file is no table with a header line.
    """
    return table_log("csv", file.name, csv_rows(file), step)


def csv_rows(file: LogFile) -> Iterator[dict[str, str]]:
    """The rows of a CSV file by column name.

    Raises:
        InputError: no header, a column twice, a row longer than the header.
    """
    text = file.text()
    first = text.split("\n", 1)[0]
    delimiter = max((",", ";", "\t"), key=first.count)
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header: list[str] = []
    num_rows = 0
    try:
        for cells in reader:
            if not header:
                header = [cell.strip() for cell in cells]
                _check_header(file.name, header)
            elif cells:
                if len(cells) > len(header):
                    raise InputError(
                        file.name, f"has {len(cells)} cells in line {reader.line_num}, but {len(header)} columns",
                        "quote cells that hold the separator",
                    )  # fmt: skip
                yield dict(zip(header, cells, strict=False))
                num_rows += 1
            if num_rows > MAX_ROWS:
                raise InputError(file.name, f"holds over {MAX_ROWS:,} rows", "keep every tenth row")
    except csv.Error as error:
        raise InputError(file.name, f"is no CSV table ({error})", "give a header line and a row a step") from None


def _check_header(name: str, header: list[str]) -> None:
    twice = [column for column in header if column and header.count(column) > 1] if len(header) <= MAX_COLUMNS else []
    if twice:
        raise InputError(name, f"has the column {twice[0]!r} twice", "keep one of them")
    if len(header) > MAX_COLUMNS:
        raise InputError(
            name, f"holds {len(header):,} columns (limit {MAX_COLUMNS:,})", "keep the columns that are wanted"
        )


def read_jsonl(file: LogFile, step: str | None = None) -> Log:
    """
    Raises:
        InputError: a line is no JSON object.
    """
    return table_log("jsonl", file.name, _objects(file), step)


def _objects(file: LogFile) -> Iterator[Mapping[str, Any]]:
    for place, line in enumerate(file.text().splitlines()):
        if line.strip():
            row = load_json(line, f"{file.name}, line {place + 1},")
            if not isinstance(row, dict):
                raise InputError(file.name, f"has no JSON object in line {place + 1}", "write one object a line")
            yield row


def read_parquet(file: LogFile, step: str | None = None) -> Log:
    """
    Raises:
        InputError: the file is damaged, or larger unpacked than the limits.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(io.BytesIO(file.content))
        shape = parquet.metadata
        if shape.num_rows > MAX_ROWS or shape.num_columns > MAX_COLUMNS:
            raise InputError(
                file.name, f"holds {shape.num_rows:,} rows of {shape.num_columns:,} columns "
                f"(limits {MAX_ROWS:,} and {MAX_COLUMNS:,})", "keep what is wanted",
            )  # fmt: skip
        names = [
            field.name for field in parquet.schema_arrow
            if pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_decimal(field.type)
        ]  # fmt: skip
        rows = (row for batch in parquet.iter_batches(columns=names) for row in batch.to_pylist())
        return table_log("parquet", file.name, rows, step)
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise InputError(file.name, f"is no readable Parquet file ({str(error)[:100]})", "write it again") from None


def table_log(
    format_name: str, where: str, table: Iterable[Mapping[str, Any]], step: str | None = None, **facts: Any
) -> Log:
    """The log of a table.

    Args:
        step: the column of the trainer's steps; the first of `STEP_COLUMNS` that the first row has where None.
        facts: what the table says of itself: further fields of `Log`.
    """
    rows: list[LogRow] = []
    step_column, num_stepless, place = step, 0, -1
    for place, cells in enumerate(table):
        if step_column is None:
            step_column = next((name for name in STEP_COLUMNS if name in cells), None)
        cell = place if step_column is None else cells.get(step_column)
        if cell is None or cell == "":
            num_stepless += 1
            continue
        counted = number(cell)
        values = {
            name: found for name, value in cells.items() if name != step_column and (found := number(value)) is not None
        }
        if counted is None or not 0 <= counted <= MAX_STEP or not counted.is_integer():
            whole_step(cell if counted is None else counted, f"row {place + 1} of {where}")
        rows.append(LogRow(cell if isinstance(cell, int) else int(counted or 0), values))
        if len(rows) > MAX_ROWS:
            break
    if place >= 0 and not rows and step is not None:
        raise InputError("step", f"is the column {step!r}, which no row of {where} has", "name another column")
    return Log(format=format_name, rows=check_rows(rows, where), num_stepless=num_stepless, **facts)
