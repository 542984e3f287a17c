"""One stage of a run from its log: the branch that counts, every value with its tokens, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from app.ingest.joining import join, last_tokens
from app.ingest.logs.rows import ColumnMap, Ended, Log
from app.ingest.tokens import TokenCount
from fitting.errors import InputError

TRAIN_LOSS = "train_loss"


class StagePoint(NamedTuple):
    """One finite value, with the tokens the stage's own count had reached."""

    step: int
    tokens: int
    column: ColumnMap
    value: float
    time: str


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one log holds once its restarts are joined.

    Attributes:
        end_tokens: the last count of the branch.
        wasted_tokens: rolled back, by the stage's own count, `num_rollbacks` times; `num_from_start` times to its start.
        diverged_at: the step whose loss was no number, where the log ends so; None otherwise.
        ended_early_at: the last step, where the trainer was to go on; None otherwise.
        ended: what the log's tracker says of its end, where that is not the planned one.
        num_unplaced: values at steps whose tokens are not known, left out.
        num_stepless: rows without a step, left out.
    """

    points: tuple[StagePoint, ...]
    end_tokens: int
    wasted_tokens: int
    num_rollbacks: int
    num_from_start: int
    diverged_at: int | None
    ended_early_at: int | None
    ended: Ended | None
    num_unplaced: int
    num_stepless: int
    tokens_described: str
    format: str


def stage_of(
    log: Log,
    columns: Sequence[ColumnMap],
    tokens: str | None,
    batch_ramp: Sequence[tuple[int, int]],
    decision_metric: str,
) -> Stage:
    """
    Args:
        columns: the user's map; it goes before the format's own for the same column, or the same metric and data set.

    Raises:
        InputError: tokens cannot be counted, or no column is known to hold anything.
    """
    count = TokenCount(log, tokens, batch_ramp)
    known = _columns(log, columns)
    joined = join(log.rows, {column.column for column in known if column.metric == TRAIN_LOSS})
    counts = [count.at(row) for row in joined.rows]
    end = last_tokens(counts)
    if end is None:
        raise InputError("tokens", f"({count.described}) can be told at no step of the log", "name another column")
    _check_rising(counts, [row.step for row in joined.rows], count.described)
    points: list[StagePoint] = []
    latest: dict[str, tuple[int, float]] = {}
    num_unplaced = 0
    for row, seen in zip(joined.rows, counts, strict=True):
        for column in known:
            value = row.values.get(column.column)
            if value is None:
                continue
            if column.metric in (TRAIN_LOSS, decision_metric):
                latest[column.column] = (row.step, value)
            if seen is None:
                num_unplaced += 1
            elif math.isfinite(value):
                points.append(StagePoint(row.step, seen, column, value, row.time))
    wasted = 0
    for stretch in joined.abandoned:
        before = 0 if stretch.after is None else (count.at(stretch.after) or 0)
        wasted += max(0, (last_tokens([count.at(row) for row in stretch.rows]) or before) - before)
    diverged = [step for step, value in latest.values() if not math.isfinite(value)]
    last_step = joined.rows[-1].step
    early = log.planned_steps is not None and last_step < log.planned_steps
    return Stage(
        points=tuple(points),
        end_tokens=end,
        wasted_tokens=wasted,
        num_rollbacks=len(joined.abandoned),
        num_from_start=sum(stretch.after is None for stretch in joined.abandoned),
        diverged_at=min(diverged) if diverged else None,
        ended_early_at=last_step if early else None,
        ended=log.ended,
        num_unplaced=num_unplaced,
        num_stepless=log.num_stepless,
        tokens_described=count.described,
        format=log.format,
    )


def _columns(log: Log, given: Sequence[ColumnMap]) -> tuple[ColumnMap, ...]:
    present = {name for row in log.rows for name in row.values}
    for column in given:
        if column.column not in present:
            shown = ", ".join(sorted(present)[:20]) or "none"
            raise InputError(
                "map", f"names the column {column.column!r}, which the log does not have", f"it has {shown}"
            )
    held = {(column.metric, column.dataset) for column in given}
    if len(held) < len(given):
        raise InputError(
            "map", "gives a metric of one data set two columns", "name the data sets apart, as METRIC:DATASET"
        )
    named = {column.column for column in given}
    own = [
        c for c in log.columns if c.column in present and c.column not in named and (c.metric, c.dataset) not in held
    ]
    known = (*given, *own)
    for column in known:
        if not f"{column.metric}{column.dataset}{column.unit}".isprintable() or len(column.dataset) > 64:
            raise InputError("map", f"makes {column.dataset[:40]!r} a data set", "map the column to a short plain name")
    if not known:
        shown = ", ".join(sorted(present)[:20]) or "none"
        raise InputError(
            "map", f"is needed: a {log.format} log does not say what its columns hold ({shown})",
            "give METRIC=COLUMN, as in validation_loss=val_loss",
        )  # fmt: skip
    return known


def _check_rising(counts: Sequence[int | None], steps: Sequence[int], described: str) -> None:
    before = 0
    for step, count in zip(steps, counts, strict=True):
        if count is not None:
            if count < before:
                raise InputError(
                    "tokens", f"fall from {before:,} to {count:,} at step {step:,} ({described})",
                    "name a count of all tokens seen, which never falls",
                )  # fmt: skip
            before = count
