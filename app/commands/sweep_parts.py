"""What the commands of `growthlaw sweep` share: their arguments, the design of a grid, the service they attend."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from app.client import Growthlaw
    from app.sweep.families import Design

DEFAULT_RUNS_DIR = Path("data/runs")
# A guideline fitted anew after every run would take the cores from the runs.
SECONDS_BETWEEN_REFITS = 3600.0

grid_argument = click.argument("grid", type=click.Path(path_type=Path, dir_okay=False))
runs_dir_option = click.option(
    "--runs-dir", default=DEFAULT_RUNS_DIR, show_default=True, type=click.Path(path_type=Path, file_okay=False),
    help="Where collected runs stand.",
)  # fmt: skip
data_dir_option = click.option(
    "--data-dir", envvar="GROWTHLAW_DATA_DIR", default="growthlaw-data", show_default=True,
    type=click.Path(path_type=Path, file_okay=False), help="A service over it is started, unless --url is given.",
)  # fmt: skip
# Not from GROWTHLAW_URL: without --url the command starts a service of its own.
service_url_option = click.option("--url", default=None, help="A service that runs already.")
steps_option = click.option("--steps", default="", help="Only these steps, e.g. 1,2.")
families_option = click.option("--families", "pattern", default="*", help="Only families that match, e.g. 'h48-*'.")


def design_of(path: Path) -> Design:
    """All that a grid asks for, checked."""
    from app.sweep.bodies import check_design
    from app.sweep.families import expand
    from app.sweep.grid import read_grid

    design = expand(read_grid(path))
    check_design(design)
    return design


@contextlib.contextmanager
def service_over(data_dir: Path, url: str | None) -> Iterator[Growthlaw]:
    """A client of the service at ``url``, or of one over ``data_dir`` that runs as long as the block and refits rarely."""
    from app.client import Growthlaw
    from app.service_process import ServiceDidNotStart, running_service

    if url is not None:
        with Growthlaw(url) as client:
            yield client
        return
    try:
        with running_service(data_dir, refit_after_seconds=SECONDS_BETWEEN_REFITS) as client:
            yield client
    except ServiceDidNotStart as error:
        raise click.ClickException(str(error)) from None


def numbers(text: str) -> tuple[int, ...]:
    """The step numbers of `--steps`."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"is {text!r}; write step numbers such as 1,2", param_hint="--steps") from None


def end_as_by_ctrl_c() -> None:
    """Being told to end, or losing the terminal, pauses the runs just as Ctrl-C does."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupt)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
