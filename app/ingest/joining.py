"""A log of a run that was restarted or forked, as the one branch that counts.

Rows come in the order they were written. Where a metric comes back at an earlier step than it has reached, or a training
loss at the same one, the run was rolled back to there: everything logged from that step on is dropped, and the later
branch counts. (An evaluation may be repeated at its step without any training.) What was dropped was
trained all the same: from the last row that stays to the last row dropped.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise

from app.ingest.logs.rows import LogRow
from fitting.errors import InputError

MAX_ROLLBACKS = 1_000


@dataclass(frozen=True, kw_only=True)
class Abandoned:
    """A stretch that was rolled back: the last row kept before it (None: the run's start), and its own rows."""

    after: LogRow | None
    rows: tuple[LogRow, ...]


@dataclass(frozen=True, kw_only=True)
class Joined:
    """The branch that counts, a row a step in rising order, and what was abandoned."""

    rows: tuple[LogRow, ...]
    abandoned: tuple[Abandoned, ...]


def join(rows: Iterable[LogRow], training: Set[str] = frozenset()) -> Joined:
    """
    Args:
        training: the names of training losses, which are logged once a step unless it is trained again.

    Raises:
        InputError: the steps go back so often that this is no one run's log.
    """
    rows = tuple(rows)
    if all(one.step < other.step for one, other in pairwise(rows)):
        return Joined(rows=rows, abandoned=())  # the usual log: nothing comes twice
    steps: list[int] = []
    values: dict[int, dict[str, float]] = {}
    times: dict[int, str] = {}
    reached: dict[str, list[int]] = {}
    abandoned: list[Abandoned] = []

    def row_at(step: int) -> LogRow:
        return LogRow(step=step, values=values[step], time=times[step])

    for row in rows:
        if any(reached[name][-1] + (name in training) > row.step for name in row.values if reached.get(name)):
            if len(abandoned) >= MAX_ROLLBACKS:
                raise InputError(
                    "step", f"goes back over {MAX_ROLLBACKS:,} times", "give one run's log, in the order it was written"
                )
            cut = bisect_left(steps, row.step)
            dropped = tuple(row_at(step) for step in steps[cut:])
            abandoned.append(Abandoned(after=row_at(steps[cut - 1]) if cut else None, rows=dropped))
            for step in steps[cut:]:
                del values[step], times[step]
            del steps[cut:]
            for seen in reached.values():
                del seen[bisect_left(seen, row.step) :]
        if row.step not in values:
            insort(steps, row.step)
            values[row.step], times[row.step] = {}, row.time
        values[row.step].update(row.values)
        times[row.step] = row.time or times[row.step]
        for name in row.values:
            seen = reached.setdefault(name, [])
            if not seen or seen[-1] != row.step:
                seen.append(row.step)
    return Joined(rows=tuple(row_at(step) for step in steps), abandoned=tuple(abandoned))


def last_tokens(tokens: Sequence[int | None]) -> int | None:
    """The largest count that is known."""
    known = [count for count in tokens if count is not None]
    return max(known) if known else None
