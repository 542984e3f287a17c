"""What tests of the pages of jobs share: what a chart on a page holds, and a port that a service can come back on."""

from __future__ import annotations

import socket
from typing import Any

from playwright.sync_api import Page

from app.client import Growthlaw

LOSSES = {"training loss": "train_loss", "validation loss": "validation_loss"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def drawn_losses(page: Page) -> dict[str, list[float]]:
    """The losses in the chart of a job's page, in the order they are drawn; nothing before there is a chart."""
    return page.evaluate(  # type: ignore[no-any-return]
        """names => {
            const chart = document.querySelector("#curve > .chart");
            const traces = (chart?.data ?? []).filter((trace) => names.includes(trace.name));
            return Object.fromEntries(traces.map((trace) => [trace.name, [...trace.y]]));
        }""",
        list(LOSSES),
    )


def stored_losses(client: Growthlaw, run_id: str) -> dict[str, list[float]]:
    return {name: [point.value for point in client.points(run_id, metric=metric)] for name, metric in LOSSES.items()}


def open_job(page: Page, client: Growthlaw, job: Any) -> None:
    page.goto(f"{client.url}/ui/job.html?id={job['id']}")
