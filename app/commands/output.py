"""What verbs share: a JSON body read, and how they speak: JSON on one line for programs, tables and numbers for people."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
url_option = click.option(
    "--url", envvar="GROWTHLAW_URL", default=None, help="The service (GROWTHLAW_URL; default: loopback, port 8000)."
)


def read_body(file: IO[str]) -> Any:
    """The JSON of a request's body from a file that a user names."""
    try:
        return json.load(file)
    except json.JSONDecodeError as error:
        raise click.UsageError(f"{Path(file.name).name} is not JSON ({error}); see /docs of the service") from None


def emit_json(value: Any) -> None:
    """One line of JSON on stdout; a page of the client as it came."""
    click.echo(json.dumps(value, allow_nan=False, default=lambda page: page.json))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A plain table on stdout; numbers are aligned to the right."""
    rows = [list(row) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        numeric = any(isinstance(row[place], (int, float)) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(short(value) if isinstance(value, (int, float)) else str(value or "-") for value in row))
    Console(width=None if Console().is_terminal else 160, soft_wrap=False).print(table)


def short(number: float | None, unit: str = "") -> str:
    """A count as people say it: 1.2M, 6.58B, 3.6e12 beyond a thousand trillions."""
    if number is None:
        return "-"
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size <= abs(number) < size * 1000:
            return f"{number / size:.4g}{suffix}{unit}"
    return f"{number:.4g}{unit}"


def number_option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    """A click option for a count that may be written 7e9."""
    return click.option(*names, type=float, **settings)


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar on stderr for each stage that is told of: (stage, done, total) in bytes."""
    columns = (TextColumn("{task.description:10}"), BarColumn(), TextColumn("{task.fields[mb]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=None, mb="")
            of = f" of {total / 1e6:.1f}" if total else ""
            bars.update(tasks[stage], completed=done, total=total, mb=f"{done / 1e6:.1f}{of} MB")

        yield show
