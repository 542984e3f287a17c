"""`growthlaw sweep`: plan, run, collect and check a grid of growth runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.commands.output import emit_json, json_option, print_table, short
from app.commands.sweep_parts import (
    DEFAULT_RUNS_DIR,
    data_dir_option,
    design_of,
    end_as_by_ctrl_c,
    families_option,
    grid_argument,
    numbers,
    runs_dir_option,
    service_over,
    service_url_option,
    steps_option,
)
from app.commands.sweep_run import run

if TYPE_CHECKING:
    from app.sweep.grid import Device, Precision

# Shown of the cell table; all of it with --out or --json.
SHOWN_COLUMNS = (
    "place", "step", "cell", "timing_over_budget", "tokens", "tokens_per_parameter", "num_epochs", "compute_flops",
    "core_seconds", "core_hours_so_far",
)  # fmt: skip


@click.group()
def sweep() -> None:
    """Plan, run, collect and check a grid of growth runs; run what `growthlaw plan next` chose."""


sweep.add_command(run)


@sweep.command()
@grid_argument
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the whole cell table as CSV.")
@json_option
def plan(grid: Path, out: Path | None, as_json: bool) -> None:
    """Every cell in the order in which they run, what it costs, what was left out and why. Needs no service."""
    from app.sweep.costs import step_totals
    from app.sweep.plan import plan_rows
    from app.sweep.runs_folder import as_text, csv_text

    design = design_of(grid)
    rows, totals, costs = plan_rows(design), step_totals(design), design.grid.costs
    core_hours = sum(total.core_seconds for total in totals) / 3600
    within = costs.core_hours_at_least <= core_hours <= costs.core_hours_at_most
    if out is not None:
        text = csv_text(list(rows[0]), [{name: as_text(value) for name, value in row.items()} for row in rows])
        out.write_text(text, encoding="utf-8")
    if as_json:
        emit_json(
            {
                "cells": rows,
                "dropped": [vars(dropped) for dropped in design.dropped],
                "totals": [vars(total) for total in totals],
                "core_hours": core_hours,
                "within_core_hours": within,
            }
        )
        return
    if out is None:
        print_table(SHOWN_COLUMNS, [[row[name] for name in SHOWN_COLUMNS] for row in rows])
    for dropped in design.dropped:
        click.echo(f"left out in step {dropped.step}: {dropped.name}: {dropped.reason}")
    click.echo()
    print_table(
        ("step", "families", "cells", "train FLOPs", "core-hours", "kept on disk", ""),
        [
            [t.step, t.num_families, t.num_cells, f"{t.train_flops:.3g}", f"{t.core_seconds / 3600:.2f}",
             short(t.disk_bytes, "B"), t.title]
            for t in totals
        ],
    )  # fmt: skip
    span = f"{costs.core_hours_at_least:g} to {costs.core_hours_at_most:g}"
    verdict = f"within the {span} planned" if within else f"NOT within the {span} planned"
    click.echo(
        f"{len(design.families)} families, {len(rows)} cells, {core_hours:.2f} core-hours: {verdict}; "
        f"{short(sum(t.disk_bytes for t in totals), 'B')} on disk when all have run"
    )


@sweep.command()
@grid_argument
@click.option(
    "--corpus-dir", required=True, type=click.Path(path_type=Path, file_okay=False), help="The grid's corpus, prepared."
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="The folder to be carried."
)
@click.option("--without-tokens", is_flag=True, help="Leave the corpus's tokens; `work` is told where they lie.")
@steps_option
@families_option
@click.option(
    "--repeat", type=click.IntRange(min=1), help="So many cells that stand, picked at random, in place of missing ones."
)
@click.option("--pick-seed", type=int, default=0, show_default=True, help="Of the picking.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="In place of the grid's, to rehearse elsewhere.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="In place of the grid's, to rehearse elsewhere.")
@runs_dir_option
@json_option
def prepare(
    grid: Path, corpus_dir: Path, out: Path, without_tokens: bool, steps: str, pattern: str, repeat: int | None,
    pick_seed: int, device: Device | None, precision: Precision | None, runs_dir: Path, as_json: bool,
) -> None:  # fmt: skip
    """Write run directories that can be carried to another machine and trained there with `growthlaw sweep work`.

    Of every family that does not stand whole in --runs-dir; with --repeat of cells that do, which `growthlaw sweep compare`
    then holds against their repeats. Needs no service.
    """
    from dataclasses import replace

    from app.records import to_dict
    from app.sweep.check import standing_cells
    from app.sweep.prepared import prepare as write_runs
    from app.sweep.repeats import picked_families
    from app.sweep.runner import families_to_run
    from app.sweep.runs_folder import read_headers

    design = design_of(grid)
    planned = design.grid
    design = replace(
        design,
        grid=replace(planned, device=device or planned.device, precision=precision or planned.precision),
    )
    headers = read_headers(runs_dir)
    standing = standing_cells(design, headers)
    families, num_standing = families_to_run(design, standing, steps=numbers(steps), pattern=pattern)
    if repeat is not None:
        if steps or pattern != "*":
            raise click.UsageError("--repeat picks from all that stands: leave --steps and --families out")
        families, standing = picked_families(design, headers, count=repeat, seed=pick_seed), set()
    if not families:
        click.echo(f"nothing to prepare: {num_standing} families stand in {runs_dir}", err=as_json)
        return
    index = write_runs(design, families, standing, corpus_dir, out, with_tokens=not without_tokens)
    if as_json:
        emit_json(to_dict(index))
        return
    num_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    click.echo(
        f"{len(index.cells)} cells of {len(families)} families ({index.train_flops:.3g} FLOPs, {index.device} "
        f"{index.precision}) lie in {out}, {short(num_bytes, 'B')}; {num_standing} families stand in {runs_dir}. "
        f"Carry it, then: growthlaw sweep work {out.name}"
    )
    if (design.grid.device, design.grid.precision) != (planned.device, planned.precision):
        click.echo(f"A rehearsal: the grid is {planned.device} {planned.precision}, and will not take these runs.")


@sweep.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--at-once", type=click.IntRange(min=1), help="Engines side by side.  [default: cores over --threads]")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads of each engine.")
@click.option("--max-minutes", type=click.FloatRange(min=0, min_open=True), help="Save and stop after so many minutes.")
@click.option(
    "--corpus-dir", type=click.Path(path_type=Path, file_okay=False), help="Where the corpus lies, if not in DIR."
)
def work(folder: Path, at_once: int | None, threads: int, max_minutes: float | None, corpus_dir: Path | None) -> None:
    """Train the prepared runs of DIR on this machine, without a service. The same command goes on where it stopped.

    One line a finished cell, and `machine.json` in DIR. Ctrl-C, and the end of --max-minutes, let the runs save and stop.
    """
    from app.sweep.work import Worker

    end_as_by_ctrl_c()
    worker = Worker(
        folder=folder, num_at_once=at_once or max(1, len(os.sched_getaffinity(0)) // threads), num_threads=threads,
        corpus_dir=corpus_dir, say=_say,
    )  # fmt: skip
    worker.run(max_seconds=None if max_minutes is None else 60 * max_minutes)
    if worker.failures:
        raise click.ClickException("\n".join(worker.failures))


@sweep.command()
@grid_argument
@data_dir_option
@service_url_option
@click.option(
    "--from-dirs", "folders", multiple=True, type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A prepared folder that was worked on, in place of a service; may be given several times.",
)  # fmt: skip
@click.option(
    "--out", default=DEFAULT_RUNS_DIR, show_default=True, type=click.Path(path_type=Path, file_okay=False),
    help="headers.csv, points.csv.xz and cohorts.json; runs that stand there are kept.",
)  # fmt: skip
@json_option
def collect(grid: Path, data_dir: Path, url: str | None, folders: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Write the finished cells' headers and points into a folder, beside those of earlier chunks."""
    from app.sweep.collect import ServiceRuns
    from app.sweep.collect import collect as collect_runs
    from app.sweep.from_dirs import collect_dirs

    design = design_of(grid)
    if folders:
        if url is not None:
            raise click.UsageError("--url and --from-dirs exclude each other: collect from one after the other")
        done = collect_dirs(folders, design, out)
    else:
        with service_over(data_dir, url) as client:
            done = collect_runs(ServiceRuns(client), design, out)
    if as_json:
        emit_json(vars(done))
    else:
        click.echo(
            f"{done.num_new} cells are new; {done.num_standing} cells and {done.num_points:,} points stand in {out}"
        )


@sweep.command()
@grid_argument
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@runs_dir_option
@json_option
def compare(grid: Path, folders: tuple[Path, ...], runs_dir: Path, as_json: bool) -> None:
    """Hold cells that were trained again (`prepare --repeat`, `work`) against those that stand, bit by bit.

    Exit code 1 where any number differs.
    """
    from app.sweep.repeats import compare as compare_runs

    repeats = compare_runs(design_of(grid), folders, runs_dir)
    if as_json:
        emit_json([vars(repeat) | {"is_equal": repeat.is_equal} for repeat in repeats])
    else:
        for repeat in repeats:
            said = (
                "equal" if repeat.is_equal else f"{len(repeat.differences)} differences, first: {repeat.differences[0]}"
            )
            click.echo(
                f"{repeat.cell}  {repeat.final_loss} again {repeat.final_loss_again}  {repeat.num_points} points  {said}"
            )
        click.echo(f"{sum(repeat.is_equal for repeat in repeats)} of {len(repeats)} cells are equal to the last bit")
    if not repeats or not all(repeat.is_equal for repeat in repeats):
        raise click.exceptions.Exit(1)


@sweep.command()
@grid_argument
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--corpus-dir",
    required=True,
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="The grid's corpus, prepared.",
)
@click.option(
    "--windows", "num_windows", type=click.IntRange(min=2), default=256, show_default=True, help="Texts read twice."
)
@click.option(
    "--within",
    "within_nats",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="How far, in nats, a model's final loss may lie from its cell's: of cells trained again on another processor.",
)
@runs_dir_option
@json_option
def copying(
    grid: Path, folders: tuple[Path, ...], corpus_dir: Path, num_windows: int, within_nats: float, runs_dir: Path,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure which cells' models had learned to copy from their context, into copying.csv beside the collected runs.

    DIR is a data directory whose service trained them, or a prepared folder that was worked on. What is measured stays.
    """
    from app.corpus.evaluation_sets import open_corpus_split
    from app.engine.assess.checkpoint import find_checkpoint, load_checkpoint
    from app.engine.assess.copying import copying as measure
    from app.engine.data import TokenStream, validation_windows
    from app.sweep.copying import Measured, measure_copying
    from app.sweep.prepared import checked_manifest

    design = design_of(grid)
    checked_manifest(design.grid, corpus_dir)
    length = design.grid.recipe.context_length
    chosen = open_corpus_split(design.grid.corpus.name, corpus_dir)
    stream = TokenStream(list(chosen.files), chosen.dtype)
    available = stream.num_windows(length)
    windows = validation_windows(num_available=available, num_windows=min(available, num_windows))

    def measured(path: Path) -> Measured:
        loaded = load_checkpoint(find_checkpoint(path), device="auto", precision="fp32")
        found = measure(loaded, stream, windows, context_length=length)
        assert found.gain_nats.standard_error is not None, "two windows or more"
        return found.first_nats.value, found.second_nats.value, found.gain_nats.value, found.gain_nats.standard_error

    say = (lambda text: None) if as_json else _say
    done = measure_copying(design, folders, runs_dir, measured, say, within_nats=within_nats)
    if as_json:
        emit_json(vars(done))
    else:
        click.echo(
            f"{done.num_new} cells are new; {done.num_standing} stand in {runs_dir}, of {len(done.unmeasured)} finished cells "
            "no model is here"
        )


@sweep.command()
@grid_argument
@runs_dir_option
@click.option("--step", type=int, help="Only the cells of this step must be there.")
@click.option("--partial", is_flag=True, help="Cells may be missing; what stands must be right.")
@json_option
def check(grid: Path, runs_dir: Path, step: int | None, partial: bool, as_json: bool) -> None:
    """Hold the collected runs against the design: every cell's FLOPs, tokens, seeds and rates, none twice, none truncated.

    Exit code 1 where a cell is missing (unless --partial) or anything is wrong.
    """
    from app.sweep.check import check_runs

    design = design_of(grid)
    numbers = [known.number for known in design.grid.steps]
    if step is not None and step not in numbers:
        raise click.BadParameter(f"{step} is no step of the grid; use one of {numbers}", param_hint="--step")
    verdict = check_runs(design, runs_dir, step=step)
    if as_json:
        emit_json(vars(verdict))
    else:
        for said in verdict.wrong:
            click.echo(f"wrong: {said}")
        diverged = f", {verdict.num_diverged} of them lost to divergence" if verdict.num_diverged else ""
        missing = f", missing: {', '.join(verdict.missing)}" if verdict.missing else ""
        click.echo(f"{verdict.num_cells - len(verdict.missing)} of {verdict.num_cells} cells{diverged}{missing}")
    if verdict.wrong or (verdict.missing and not partial):
        raise click.exceptions.Exit(1)


def _say(text: str) -> None:
    """A line at once, also into a pipe."""
    print(text, flush=True)
