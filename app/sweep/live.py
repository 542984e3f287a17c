"""What a sweep shows: a bar over its core-seconds and the runs on the cores; off a terminal a line a finished cell."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from app.sweep.runner import Run, Sweep


class Lines:
    """Off a terminal: what is said, and nothing of what moves."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def show(self, sweep: Sweep) -> None:
        pass


class Bars(Lines):
    """On a terminal: lines scroll by above a bar and the current runs."""

    def __init__(self, console: Console, live: Live) -> None:
        super().__init__(console)
        self._live = live

    def show(self, sweep: Sweep) -> None:
        self._live.update(Group(_bar(sweep), _runs(sweep)))


@contextlib.contextmanager
def display(console: Console) -> Iterator[Lines]:
    """Bars on a terminal, lines elsewhere."""
    if not console.is_terminal:
        yield Lines(console)
        return
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        yield Bars(console, live)


def _bar(sweep: Sweep) -> Table:
    row = Table.grid(padding=(0, 1))
    done, total = sweep.done_work, sweep.total_work
    said = f"{done:.3g} of {total:.3g} FLOPs"
    if sweep.unit == "core-seconds":
        said = f"{done / 3600:.2f} of {total / 3600:.2f} core-hours"
    row.add_row(
        ProgressBar(total=total, completed=done, width=40), f"{done / total:5.1%}", f"{said}, {sweep.told_left()}"
    )
    return row


def _runs(sweep: Sweep) -> Table:
    table = Table.grid(padding=(0, 2))
    for run in sweep.active.values():
        table.add_row(Text(run.task.name), f"{run.fraction:4.0%}", _said(run))
    return table


def _said(run: Run) -> str:
    progress = run.job.get("progress")
    if run.job["state"] != "running" or not progress:
        return str(run.job["state"])
    speed, validation = progress["tokens_per_second"], progress["validation_loss_nats"]
    return (
        f"{progress['phase']:6} {progress['tokens']:>10,} tokens  train {progress['train_loss_nats']:.3f}"
        + (f"  validation {validation:.3f}" if validation is not None else "")
        + (f"  {speed / 1000:.1f}k tokens/s" if speed else "")
    )
