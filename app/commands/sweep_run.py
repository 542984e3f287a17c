"""`growthlaw sweep run`: the cells of a grid, or the runs that `growthlaw plan next` chose, trained through the service."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from app.commands.output import emit_json, json_option
from app.commands.sweep_parts import (
    data_dir_option,
    design_of,
    end_as_by_ctrl_c,
    families_option,
    numbers,
    runs_dir_option,
    service_over,
    service_url_option,
    steps_option,
)

if TYPE_CHECKING:
    from app.client import Growthlaw
    from app.sweep.runner import Display, Sweep, Task, Unit

# Columns where the output goes to a file or a pipe.
PIPE_WIDTH = 160
_OF_A_GRID = {"steps": "--steps", "pattern": "--families", "runs_dir": "--runs-dir"}


@dataclass(frozen=True, kw_only=True)
class _Selection:
    """What is to run. ``tasks`` and ``ready`` ask the service; ``told`` says it before there is one, ``then`` comes last."""

    num_runs: int
    cohorts: tuple[str, ...]
    unit: Unit
    told: str
    then: str
    tasks: Callable[[Growthlaw], Sequence[Task]]
    ready: Callable[[Growthlaw, Display], None]


@click.command()
@click.argument("what", metavar="GRID|DIR", type=click.Path(path_type=Path))
@data_dir_option
@service_url_option
@steps_option
@families_option
@click.option("--max-minutes", type=click.FloatRange(min=0, min_open=True), help="Pause after so many minutes.")
@runs_dir_option
@json_option
@click.pass_context
def run(
    context: click.Context, what: Path, data_dir: Path, url: str | None, steps: str, pattern: str,
    max_minutes: float | None, runs_dir: Path, as_json: bool,
) -> None:  # fmt: skip
    """Train runs through the service, one a core: the cells of a grid, or the runs of DIR, which `growthlaw plan next
    --out DIR` wrote. The same command goes on where it stopped.

    Of a grid, families that stand whole in --runs-dir are skipped; the runs of DIR start in the order of their names.
    Ctrl-C, and the end of --max-minutes, let the runs save and pause. A service that was started for it refits its
    guidelines when all has run.
    """
    from rich.console import Console

    from app.sweep.live import display
    from app.sweep.runner import Sweep

    where = f"--url {url}" if url else f"--data-dir {shlex.quote(str(data_dir))}"
    selection = _of_folder(context, what) if what.is_dir() else _of_grid(what, steps, pattern, runs_dir, where)
    end_as_by_ctrl_c()
    console = Console(stderr=as_json)
    if not console.is_terminal:
        console = Console(stderr=as_json, width=PIPE_WIDTH)
    console.print(selection.told, highlight=False, soft_wrap=True)
    if not selection.num_runs:
        return
    deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    with service_over(data_dir, url) as client, display(console) as shown:
        state = Sweep(client=client, tasks=selection.tasks(client), unit=selection.unit, display=shown)
        try:
            selection.ready(client, shown)
            ended = state.run(until=lambda: deadline is not None and time.monotonic() >= deadline)
        except BaseException:
            shown.say("stopping: the runs save and pause ...")
            num_paused = state.pause(everything=url is None)
            shown.say(f"{num_paused} run(s) paused. The same command goes on with them.")
            raise
        if not ended:
            num_paused = state.pause(everything=url is None)
            shown.say(
                f"{max_minutes:g} minutes are over: {num_paused} run(s) paused. The same command goes on with them."
            )
        elif url is None:
            _refit(client, selection.cohorts, shown)
    console.print(
        f"{len(state.results)} of {selection.num_runs} runs stand in the service, {state.told_left()}; next: {selection.then}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if as_json:
        emit_json({"ended": ended, "results": state.results, "failures": state.failures} | _left(state))
    if state.failures:
        raise click.ClickException("\n".join(state.failures))


def _of_grid(grid: Path, steps: str, pattern: str, runs_dir: Path, where: str) -> _Selection:
    from app.sweep.check import standing_cells
    from app.sweep.runner import families_to_run, grid_tasks, have_corpus
    from app.sweep.runs_folder import read_headers

    design = design_of(grid)
    standing = standing_cells(design, read_headers(runs_dir))
    families, num_standing = families_to_run(design, standing, steps=numbers(steps), pattern=pattern)
    return _Selection(
        num_runs=sum(len(family.cells) for family in families),
        cohorts=tuple(dict.fromkeys(family.cohort for family in families)),
        unit="core-seconds",
        told=f"{len(families)} families to run, {num_standing} stand in {runs_dir}",
        then=f"growthlaw sweep collect {grid} {where} --out {runs_dir}",
        tasks=lambda client: grid_tasks(design.grid, families),
        ready=lambda client, shown: have_corpus(client, design.grid, shown),
    )


def _of_folder(context: click.Context, folder: Path) -> _Selection:
    from app.sweep.planned import planned_tasks, read_planned

    for name, option in _OF_A_GRID.items():
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"{option} chooses among a grid's runs, but {folder} is a folder of planned ones")
    runs = read_planned(folder)
    cohorts = tuple(dict.fromkeys(run.body.cohort for run in runs))
    return _Selection(
        num_runs=len(runs),
        cohorts=cohorts,
        unit="FLOPs",
        told=f"{len(runs)} planned runs of {folder}, for cohort {', '.join(cohorts)}",
        then=f"growthlaw plan next --cohort {cohorts[0]} --flops-budget FLOPS",
        tasks=lambda client: planned_tasks(runs, client.corpora()),
        ready=lambda client, shown: None,
    )


def _refit(client: Growthlaw, cohorts: Sequence[str], shown: Display) -> None:
    from app.service_process import refitted

    for cohort in cohorts:
        shown.say(f"cohort {cohort}: its guideline is refitted")
        refit = refitted(client, cohort)
        shown.say(f"cohort {cohort}: {refit['state']}. {refit['detail']}")


def _left(state: Sweep) -> dict[str, Any]:
    return {f"{state.unit.lower().replace('-', '_')}_left": state.work_left}
