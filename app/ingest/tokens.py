"""Tokens seen at a step: from a column, an expression of columns and ``step``, or a table of batch sizes. Never guessed.

ramp: tokens(n) = sum over steps k = 1..n of B(k),   B(k) = batch tokens of the last entry with from_step <= k
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

from app.ingest.arithmetic import Expression
from app.ingest.logs.rows import Log, LogRow, identifier
from fitting.errors import InputError

MAX_TOKENS = 10**17


class TokenCount:
    """How many tokens a run has seen when it logs a row.

    Args:
        log: whose rows are counted, and whose constants an expression may name.
        tokens: a column's name, or an expression of column names and ``step``; None takes what the format documents.
        batch_ramp: (from_step, batch_tokens), rising from step 1; step 1 is the first.

    Raises:
        InputError: nothing says how tokens count, or an expression names what no row has.
    """

    def __init__(self, log: Log, tokens: str | None, batch_ramp: Sequence[tuple[int, int]] = ()) -> None:
        if tokens is not None and batch_ramp:
            raise InputError("batch_ramp", "is given beside tokens", "give one of them")
        columns = {name for row in log.rows for name in row.values}
        self._constants: dict[str, float] = {}
        self._named: list[tuple[str, str]] = []
        self._ramp = _checked_ramp(batch_ramp)
        self._column = tokens if tokens in columns else None
        self._expression: Expression | None = None
        if self._ramp or self._column is not None:
            return
        if tokens is not None:
            self._expression = Expression(tokens, "tokens")
            wanted = self._expression.names - {"step"}
            self._named = [(name, identifier(name)) for name in sorted(columns) if identifier(name) in wanted]
            self._constants = {name: value for name, value in log.constants.items() if name in wanted}
            _check_apart(self._named)
            unknown = wanted - {name for _, name in self._named} - self._constants.keys()
            if unknown:
                known = (
                    ", ".join([*sorted(identifier(name) for name in columns)[:20], *sorted(log.constants)[:20]])
                    or "none"
                )
                raise InputError(
                    "tokens",
                    f"names {sorted(unknown)[0]!r}, which the log does not have",
                    f"use step or one of: {known}",
                )
        elif log.tokens_column is not None and log.tokens_column in columns:
            self._column = log.tokens_column
        else:
            raise InputError(
                "tokens", f"are not in this {log.format} log, and they are never guessed",
                f"say how they count, as in --tokens '{log.tokens_hint}', or give a column or a batch_ramp",
            )  # fmt: skip

    @property
    def described(self) -> str:
        """In words, for the run's provenance."""
        if self._ramp:
            return "batch ramp " + ", ".join(f"{step}:{batch}" for step, batch in self._ramp)
        return f"column {self._column}" if self._expression is None else self._expression.text

    def at(self, row: LogRow) -> int | None:
        """Tokens seen at a row; None where the row does not hold what it takes.

        Raises:
            InputError: the count is negative, or beyond any run.
        """
        if self._ramp:
            found: float | None = float(self._ramp_tokens(row.step))
        elif self._expression is None:
            found = row.values.get(self._column or "")
        else:
            named = {**self._constants, "step": row.step}
            for column, name in self._named:
                if column in row.values:
                    named[name] = row.values[column]
            found = self._expression.value(named)
        if found is None or found != found:
            return None
        if not 0 <= found <= MAX_TOKENS:
            raise InputError(
                "tokens", f"are {found:g} at step {row.step:,} ({self.described})", f"must lie in 0 to {MAX_TOKENS:g}"
            )
        return round(found)

    def _ramp_tokens(self, step: int) -> int:
        steps = [entry[0] for entry in self._ramp]
        place = bisect_right(steps, step) - 1
        if place < 0:
            return 0
        whole = ((after - before) * batch for (before, batch), (after, _) in pairwise(self._ramp))
        return [0, *accumulate(whole)][place] + (step - steps[place] + 1) * self._ramp[place][1]


def _check_apart(named: Sequence[tuple[str, str]]) -> None:
    for (one, name), (other, same) in pairwise(sorted(named, key=lambda pair: pair[1])):
        if name == same:
            raise InputError("tokens", f"names {name!r}, which is both {one!r} and {other!r}", "leave one of them out")


def _checked_ramp(ramp: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    if not ramp:
        return ()
    steps = [step for step, _ in ramp]
    if steps[0] != 1 or any(one >= other for one, other in pairwise(steps)) or any(batch <= 0 for _, batch in ramp):
        raise InputError(
            "batch_ramp",
            f"is {str(list(ramp))[:100]}",
            "begin at step 1, with rising steps and batches above 0",
        )
    return tuple((int(step), int(batch)) for step, batch in ramp)
