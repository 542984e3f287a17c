"""`growthlaw plan replay`: would planning have paid on runs that are all there?"""

from __future__ import annotations

from pathlib import Path

import click


@click.command("replay")
@click.argument("runs_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Folder to write to."
)
@click.option("--orders", default=20, show_default=True, type=click.IntRange(2), help="With the measured losses.")
@click.option(
    "--synthetic",
    default=20,
    show_default=True,
    type=click.IntRange(0),
    help="Orders with losses drawn from the fitted laws.",
)
@click.option(
    "--rounds", default=5, show_default=True, type=click.IntRange(2, 12), help="Each may spend twice as much."
)
@click.option("--draws", default=48, show_default=True, type=click.IntRange(24, 240), help="Of each fit.")
@click.option("--again", is_flag=True, help="Play also the orders that stand in DIR.")
def replay(
    runs_dir: Path, out: Path, orders: int, synthetic: int, rounds: int, draws: int, again: bool
) -> None:  # fmt: skip
    """Replay planning on the grid of RUNS_DIR: from a few known cells, reveal those that `plan next` names, refit, and score
    the decisions; beside random choice and the grid's own order. The same command goes on where it stopped."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from app.report.planning import CSV_FILE, FIGURE_FILE, replay_planning, summary

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("refits", total=None)
        result = replay_planning(
            runs_dir, out, num_orders={"measured": orders, "synthetic": synthetic}, num_rounds=rounds, num_draws=draws,
            again=again, progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    for sentence in summary(result):
        click.echo(sentence)
    for name in (CSV_FILE, FIGURE_FILE):
        click.echo(str(out / name))
