"""What an import says while it lasts, on stderr and on a terminal alone: what is fetched, sent, and waited for."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


class Progress:
    """A bar that is there while the import lasts."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console,
            transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def fetching(self, what: str) -> None:
        """What is being read from elsewhere; nobody knows how much there will be."""
        self._show(f"fetching {what}", None, None)

    def sending(self, stage: str, done: int, total: int | None) -> None:
        """A stage of the import and how much of it is done, in the stage's own unit; total None where nobody knows."""
        self._show(stage, done, total)

    def _show(self, text: str, done: int | None, total: int | None) -> None:
        if self._task is None:
            self._task = self._bar.add_task(text, total=total)
        self._bar.update(self._task, description=text, completed=done or 0, total=total)
