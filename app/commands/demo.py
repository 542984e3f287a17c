"""`growthlaw demo`: the whole loop on real text, in one command."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

import click

from app.commands.output import emit_json, json_option

# Columns where the output goes to a file or a pipe.
PIPE_WIDTH = 110


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Being told to end, or losing the terminal, pauses the runs just as Ctrl-C does."""
    raise KeyboardInterrupt


@click.command()
@click.option("--quick", is_flag=True, help="A quarter of the budget: two to three minutes instead of seven.")
@click.option(
    "--data-dir", envvar="GROWTHLAW_DATA_DIR", default="growthlaw-data", show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Everything the demo makes lies here.",
)  # fmt: skip
@json_option
def demo(quick: bool, data_dir: Path, as_json: bool) -> None:
    """Prepare real text, ask the published rule, train a grown model and two controls at equal FLOPs, refit, ask again.

    Starts the service itself, on a free loopback port. Ctrl-C pauses the runs; the same command goes on with them.
    """
    from rich.console import Console

    from app.demo.design import FULL, QUICK
    from app.demo.live import JobFailed
    from app.demo.story import run_demo
    from app.service_process import ServiceDidNotStart, pause_jobs, running_service

    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupt)
    console = Console(stderr=as_json)
    if not console.is_terminal:
        console = Console(stderr=as_json, width=PIPE_WIDTH)
    try:
        with running_service(data_dir) as client:
            try:
                result = run_demo(client, QUICK if quick else FULL, data_dir, console)
            except KeyboardInterrupt:
                console.print("\nstopping: the runs save and pause ...")
                if pause_jobs(client):
                    console.print("Paused. The same command goes on with them.")
                raise
    except (JobFailed, ServiceDidNotStart, TimeoutError) as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        emit_json(result)
