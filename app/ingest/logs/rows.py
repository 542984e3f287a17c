"""What every reader gives: rows in the order they were written, and what the format itself says of its columns."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from fitting.errors import InputError

MAX_BYTES = 256 * 1024 * 1024
MAX_ROWS = 1_000_000
MAX_COLUMNS = 1_000
MAX_STEP = 10**12
NATS = "nats"
BITS_PER_BYTE = "bits per byte"


@dataclass(frozen=True, kw_only=True)
class LogFile:
    """One file of a log: the name people gave it, and its bytes."""

    name: str
    content: bytes

    def text(self) -> str:
        """The content as UTF-8.

        Raises:
            InputError: it is none.
        """
        try:
            return self.content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(
                self.name, f"is no UTF-8 text ({error.reason} at byte {error.start})", "convert it"
            ) from None


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """What a column holds: a metric of a data set, in a unit ('' where it has none)."""

    column: str
    metric: str
    dataset: str = ""
    unit: str = ""


class LogRow(NamedTuple):
    """What was logged at one step; ``time`` is ISO-8601 in UTC, '' where the log does not say.

    A tuple, as a log may have a million of them and a dataclass takes three times as long to make.
    """

    step: int
    values: Mapping[str, float]
    time: str = ""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a tracker says that a run ended, in words for people where it did not end as planned."""

    status: Literal["stopped", "running"]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Log:
    """One run's log.

    Attributes:
        rows: in the order they were written; a step that comes back later is a restart.
        columns: what the format documents of its columns.
        tokens_column: the column that the format documents as tokens seen by the whole job; None where it has none.
        tokens_hint: an expression that would count them, for the error of a user who gave none.
        planned_steps: where the trainer was to stop.
        name, target_params: of the run, where the log holds several or says so.
        constants: numbers of the run's configuration, by the name an expression of tokens finds them under.
        ended: what the log's tracker says of the run's end; None where it says nothing, or that the run is done.
        num_stepless: rows that hold no step, left out.
    """

    format: str
    rows: tuple[LogRow, ...]
    columns: tuple[ColumnMap, ...] = ()
    tokens_column: str | None = None
    tokens_hint: str = "step * SEQUENCES * CONTEXT"
    planned_steps: int | None = None
    name: str = ""
    target_params: float | None = None
    constants: Mapping[str, float] = field(default_factory=dict)
    ended: Ended | None = None
    num_stepless: int = 0


def identifier(column: str) -> str:
    """The name under which an expression finds a column: ``consumed samples`` is ``consumed_samples``."""
    return re.sub(r"\W+", "_", column, flags=re.ASCII).strip("_")


def whole_step(value: Any, where: str) -> int:
    """A step as a whole number.

    Raises:
        InputError: it is no number, not whole, or out of range.
    """
    try:
        step = int(value) if not isinstance(value, float) or value.is_integer() else None
    except (TypeError, ValueError, OverflowError):
        step = None
    if step is None or not 0 <= step <= MAX_STEP:
        raise InputError("step", f"is {str(value)[:40]!r} in {where}", f"give whole numbers from 0 to {MAX_STEP:,}")
    return step


def number(value: Any) -> float | None:
    """A logged value as a number; None for what is none (texts, lists, empty cells). NaN and infinity stay."""
    if value.__class__ is float:
        return float(value)
    if value is None or isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def utc_time(seconds: float) -> str:
    """Seconds since 1970 as ISO-8601 text; '' where that is no date."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return ""


def load_json(text: str, where: str) -> Any:
    """JSON of a log; NaN and Infinity, which trainers write, are taken.

    Raises:
        InputError: it is none, or nested too deep.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(where, f"is not JSON ({str(error)[:100]})", "give the file as the trainer wrote it") from None


def check_rows(rows: list[LogRow], where: str) -> tuple[LogRow, ...]:
    """The rows, within limits.

    Raises:
        InputError: there are none, or too many rows or columns.
    """
    if not rows:
        raise InputError(where, "holds no logged row", "give the log of a run that has logged something")
    if len(rows) > MAX_ROWS:
        raise InputError(
            where, f"holds {len(rows):,} rows (limit {MAX_ROWS:,})", "log less often, or keep every tenth row"
        )
    names: set[str] = set()
    for row in rows:
        names.update(row.values)
        if len(names) > MAX_COLUMNS:
            raise InputError(where, f"holds over {MAX_COLUMNS:,} columns", "keep the columns that are wanted")
    return tuple(rows)
