"""Watching jobs: bars with the live loss on a terminal, a line at every tenth elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from app.client import Growthlaw

ENDED = ("succeeded", "failed", "cancelled")
SECONDS_BETWEEN_LOOKS = 0.5


class JobFailed(Exception):
    """A job of the demo did not succeed; the message says which and why."""


def watch(client: Growthlaw, jobs: Mapping[str, str], console: Console) -> None:
    """Return when all `jobs` (label -> id) have succeeded.

    Raises:
        JobFailed: one failed or was cancelled.
    """
    if console.is_terminal:
        columns = (
            TextColumn("{task.description:10}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bars:
            tasks = {label: bars.add_task(label, total=1.0, said="queued") for label in jobs}
            for label, job in _looks(client, jobs):
                # Without a number to show the bar swings: a preparation knows its end only halfway through.
                total = 1.0 if job["progress"] or job["state"] in ENDED else None
                bars.update(tasks[label], total=total, completed=_fraction(job), said=_said(job))
    else:
        tenths: dict[str, int] = {}
        for label, job in _looks(client, jobs):
            tenth = int(_fraction(job) * 10)
            if job["state"] != "queued" and tenths.get(label) != tenth:
                tenths[label] = tenth
                console.print(f"  {label:10} {_fraction(job):4.0%}  {_said(job)}", highlight=False)


def _looks(client: Growthlaw, jobs: Mapping[str, str]) -> Any:
    """(label, job) again and again until every job has succeeded."""
    waiting = dict(jobs)
    while waiting:
        for label, job_id in list(waiting.items()):
            job = client.job(job_id)
            yield label, job
            if job["state"] == "paused":
                raise JobFailed(f"{label} ({job_id}) was paused; the same command goes on with it")
            if job["state"] in ENDED:
                del waiting[label]
                if job["state"] != "succeeded":
                    raise JobFailed(f"{label} ({job_id}) {job['state']}: {job['reason']}")
        time.sleep(SECONDS_BETWEEN_LOOKS if waiting else 0)


def _fraction(job: dict[str, Any]) -> float:
    if job["state"] == "succeeded":
        return 1.0
    return float(job["progress"]["fraction"]) if job["progress"] else 0.0


def _said(job: dict[str, Any]) -> str:
    progress = job["progress"]
    if job["state"] != "running" and not (progress and job["state"] == "succeeded"):
        return str(job["state"])
    if progress is None:
        return str(job["last_message"])
    validation = progress["validation_loss_nats"]
    speed = progress["tokens_per_second"]
    return (
        f"{progress['phase']:6} {progress['tokens']:>9,} tokens  train {progress['train_loss_nats']:.3f}"
        + (f"  validation {validation:.3f}" if validation is not None else "")
        + (f"  {speed / 1000:.1f}k tokens/s" if speed and job["state"] == "running" else "")
    )
