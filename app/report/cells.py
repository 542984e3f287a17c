"""How the report writes numbers, intervals, places and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fitting.grid_report.arms import Target
from fitting.grid_report.spread import Interval
from fitting.rules.base import quantity


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return [*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)]


def nats(value: float | None) -> str:
    """A difference with its sign."""
    return "-" if value is None else f"{value:+.4f}"


def span(interval: Interval | None, form: str = "+.4f") -> str:
    """Both ends of an interval."""
    return "-" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"


def tokens(value: float) -> str:
    """A count for people."""
    return ("-" if value < 0 else "") + quantity(abs(value))


def place(target: Target, budget: int) -> tuple[str, str]:
    """The first two cells of most rows: which target, at how many tokens per parameter."""
    return target.label, f"{target.tokens_per_parameter(budget):.3g}"
