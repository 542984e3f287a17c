"""`growthlaw runs`: the stored run table, the runs that ship with Growthlaw, and the report on such a folder of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from app.commands.mappings import mappings
from app.commands.output import emit_json, json_option, print_table, url_option
from app.commands.runs_import import import_runs

COLUMNS = (
    "run_id", "cohort", "name", "status", "target_params", "growth_factor", "growth_timing_tokens", "grown_tokens",
    "compute_flops", "final_loss",
)  # fmt: skip


@click.group()
def runs() -> None:
    """List, import, correct and remove stored runs, report on a folder of them, replay how they refine."""


@runs.command("cohorts")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000))
@url_option
@json_option
def list_cohorts(limit: int, url: str | None, as_json: bool) -> None:
    """Cohorts: runs whose losses may be compared, and which guideline answers for them."""
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        page = client.cohorts(limit=limit)
    if as_json:
        emit_json(page)
        return
    columns = ("name", "num_runs", "decision_metric", "decision_dataset", "guideline_id")
    print_table(columns, [[cohort[name] for name in columns] for cohort in page])


@runs.command("list")
@click.option("--cohort", default=None)
@click.option("--status", type=click.Choice(["finished", "diverged", "stopped", "running"]), default=None)
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000))
@url_option
@json_option
def list_runs(url: str | None, as_json: bool, **query: Any) -> None:
    """Runs, newest first."""
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        page = client.runs(**{name: value for name, value in query.items() if value is not None})
    if as_json:
        emit_json(page)
    else:
        print_table(COLUMNS, [[run[name] for name in COLUMNS] for run in page["data"]])


@runs.command()
@click.argument("run_id")
@url_option
@json_option
def show(url: str | None, as_json: bool, run_id: str) -> None:
    """One run's header."""
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        run = client.run(run_id)
    if as_json:
        emit_json(run)
        return
    for name, value in run.items():
        click.echo(f"{name:26}{value if value not in (None, '') else '-'}")


@runs.command()
@click.argument("run_id")
@click.option("--metric", default=None, help="Only this metric, e.g. validation_loss.")
@url_option
@json_option
def points(url: str | None, as_json: bool, run_id: str, metric: str | None) -> None:
    """A run's points in the order they were written."""
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        rows = client.points(run_id, metric)
    if as_json:
        emit_json(rows)
        return
    columns = ("seq", "phase", "tokens", "compute_flops", "metric", "value", "unit")
    print_table(columns, [[row[name] for name in columns] for row in rows])


@runs.command()
@click.argument("run_id")
@click.option("--name", default=None)
@click.option("--status", type=click.Choice(["finished", "diverged", "stopped"]), default=None)
@click.option("--final/--not-final", "is_final", default=None, help="Whether its last loss ends a schedule.")
@click.option("--lr-selection", type=click.Choice(["grid tuned", "shared", "untuned"]), default=None)
@click.option("--control", "control_id", default=None, metavar="RUN", help="The run it is compared with.")
@click.option("--why", default="", help="Kept beside what each column was.")
@url_option
@json_option
def correct(url: str | None, as_json: bool, run_id: str, **changes: Any) -> None:
    """Correct what was said of a run; its cohort is refitted. What was measured stays."""
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        run = client.correct_run(run_id, **{name: value for name, value in changes.items() if value is not None})
    if as_json:
        emit_json(run)
        return
    for column, correction in run["corrections"].items():
        click.echo(f"{column}: {run[column]}, was {correction['was']}")


@runs.command()
@click.argument("run_id")
@click.option("--why", default="", help="Kept with the removal.")
@url_option
@json_option
def remove(url: str | None, as_json: bool, run_id: str, why: str) -> None:
    """Remove a run and its points; its cohort is refitted. It stays away when it is imported again, without --restore."""
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        removed = client.remove_run(run_id, why=why)
    if as_json:
        emit_json(removed)
        return
    click.echo(f"{run_id} is removed from cohort {removed['cohort']}")
    for other in removed["control_of"]:
        click.echo(f"  ! {other} has no control now")


runs.add_command(import_runs)
runs.add_command(mappings)


@runs.command()
@click.argument("runs_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Folder to write to."
)
@click.option("--seed", default=0, show_default=True, help="Seed of all resampling.")
def report(runs_dir: Path, out: Path, seed: int) -> None:
    """Write REPORT.md with figures on the growth runs of RUNS_DIR (a folder with headers.csv): what they say and what not."""
    from app.report.writing import write_report

    for path in write_report(runs_dir, out, seed=seed):
        click.echo(str(path))


@runs.command()
@click.argument("runs_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Folder to write to."
)
@click.option("--cohort", default=None, help="Whose runs; the cohort with the most grown runs where left out.")
@click.option("--every", default=5, show_default=True, type=click.IntRange(1), help="Runs between two refits.")
def replay(runs_dir: Path, out: Path, cohort: str | None, every: int) -> None:
    """Let the runs of RUNS_DIR arrive one by one in a new store; write how the guideline did beside the rules."""
    from rich.console import Console
    from rich.progress import Progress

    from app.report.refinement import write_replay
    from app.report.replay import replay as replay_runs
    from app.report.replay import summary

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("runs", total=None)
        result = replay_runs(
            runs_dir,
            cohort=cohort,
            every=every,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    written = write_replay(result, out)
    for sentence in summary(result):
        click.echo(sentence)
    for path in written:
        click.echo(str(path))
