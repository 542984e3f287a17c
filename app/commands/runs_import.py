"""`growthlaw runs import`: logs of other trainers, or the bundled runs, into the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from app.commands.output import emit_json, json_option, number_option, print_table, url_option
from app.commands.wandb_sources import JOINS, SCHEME, STATES

# A large log is read and stored in seconds; a slow disk may take longer.
IMPORT_SECONDS = 600.0
_PATH = click.Path(path_type=Path, exists=True)


class _Source(click.ParamType):
    """A file or folder of this machine, or a W&B project or run."""

    name = "source"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        is_wandb = isinstance(value, str) and value.startswith(SCHEME)
        return value if is_wandb else _PATH.convert(value, param, ctx)


_SOURCE = _Source()
_RUN_COLUMNS = (
    "run_id", "name", "outcome", "status", "growth_factor", "growth_timing_tokens", "grown_tokens", "wasted_flops",
    "final_loss", "num_points",
)  # fmt: skip
# Options that go into the service's options as they are.
_PLAIN = (
    "cohort", "name", "format", "step", "tokens", "base_tokens", "base_layers", "target_params", "base_params",
    "context_length", "corpus", "tokenizer", "decision_metric", "decision_dataset", "growth_timing_tokens",
    "grown_counts", "status",
)  # fmt: skip


@click.command("import")
@click.argument("sources", nargs=-1, type=_SOURCE, metavar="[SOURCE]...")
@click.option("--bundled", is_flag=True, help="The grid of growth runs that ships with Growthlaw.")
@click.option(
    "--base", "base_sources", multiple=True, type=_SOURCE, metavar="SOURCE", help="Of a growth: the base's log."
)
@click.option(
    "--grown", "grown_sources", multiple=True, type=_SOURCE, metavar="SOURCE", help="Of a growth: the grown stage's."
)
@click.option(
    "--plan", type=_PATH, metavar="plan.json", help="The exported plan of this growth: models and tokens are its."
)
@click.option("--cohort", help="Runs whose losses may be compared.")
@click.option("--name", help="One run's within its cohort; the source's name if left out.")
@click.option(
    "--format",
    help="transformers, megatron, tensorboard, lightning, nanochat, csv, jsonl, parquet, wandb; else told from the content.",
)
@click.option(
    "--map",
    "maps",
    multiple=True,
    metavar="METRIC[:SET]=COLUMN[:UNIT]",
    help="What a column holds, as validation_loss:web=val_web.",
)
@click.option("--step", metavar="COLUMN", help="The column of the trainer's steps, of a table or a W&B run.")
@click.option("--tokens", help="A column, or arithmetic of columns and step, as 'step * 1024 * 4096'.")
@click.option("--base-tokens", help="The same of the base's log, where it counts otherwise.")
@click.option(
    "--batch-ramp", metavar="STEP:TOKENS,...", help="Batch sizes instead of --tokens, as 1:1048576,10000:2097152."
)
@click.option("--config", type=_PATH, metavar="FILE", help="The target's transformers config.json.")
@click.option("--base-config", type=_PATH, metavar="FILE", help="The base's.")
@click.option("--base-layers", type=click.IntRange(1), help="Of a base that is the target with fewer layers.")
@number_option("--target-params", help="Non-embedding, instead of --config; FLOPs are then 6 N D.")
@number_option("--base-params", help="The same of the base.")
@click.option(
    "--context-length", type=click.IntRange(1), help="Tokens of a sequence; the config's maximum if left out."
)
@click.option("--corpus", help="What it was trained on.")
@click.option("--tokenizer", help="What made tokens of it.")
@click.option("--bytes-per-token", multiple=True, metavar="[SET=]BYTES", help="Makes nats of bits per byte.")
@click.option("--decision", "decision_dataset", metavar="SET", help="The validation set that the cohort is judged by.")
@click.option("--decision-metric", help="validation_loss if left out.")
@click.option(
    "--growth-timing-tokens", type=click.IntRange(1), help="Where the base was grown; its log's end if left out."
)
@click.option(
    "--grown-counts", type=click.Choice(["phase", "run"]), help="Whether the grown log's tokens begin at 0 or go on."
)
@click.option(
    "--status", type=click.Choice(["finished", "diverged", "stopped", "running"]), help="Told from the log if left out."
)
@click.option("--not-final", is_flag=True, help="The last loss is a mid-schedule one.")
@click.option(
    "--set", "stated", multiple=True, metavar="COLUMN=VALUE", help="A column of the run table, as optimizer=adamw."
)
@click.option("--recipe", multiple=True, metavar="NAME=VALUE", help="What else all runs of the cohort share.")
@click.option("--replace", is_flag=True, help="Take this log for the run of the same name.")
@click.option("--restore", is_flag=True, help="Bring back what was removed.")
@click.option(
    "--mapping", metavar="NAME|FILE", help="Saved options: of the service, or a .toml or .json; those given go before."
)
@click.option(
    "--save-mapping",
    metavar="NAME|FILE",
    help="Save these options for the project's next run: for the team, or a .json.",
)
@click.option(
    "--filter", "filters", multiple=True, metavar="FIELD=VALUE|JSON", help="Of a W&B project: its own filters."
)
@click.option("--run", "run_patterns", multiple=True, metavar="PATTERN", help="Names or ids of its runs, as 'grow-*'.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(STATES), help="Only these; all that ended if left out."
)
@click.option("--join", type=click.Choice(JOINS), help="W&B runs of one name or group are one run, started again.")
@click.option(
    "--from-config",
    multiple=True,
    metavar="FIELD=KEY",
    help="What W&B configurations say, as peak_lr=optimizer.lr; config=. is all of it; base=KEY names the base's run.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out runs of a project whose logs make no run, and say why.")
@click.option("--wandb-url", metavar="URL", help="A W&B server of your own (WANDB_BASE_URL).")
@click.option(
    "--save-logs",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep what W&B gave; a SOURCE too.",
)
@click.option("--dry-run", is_flag=True, help="Check everything against the store and add nothing.")
@url_option
@json_option
def import_runs(
    url: str | None,
    as_json: bool,
    bundled: bool,
    dry_run: bool,
    mapping: str | None,
    save_mapping: str | None,
    **given: Any,
) -> None:
    """Store runs that were trained elsewhere; a second time adds nothing.

    SOURCE is a log, several of one run in the order they were written, or a folder that a trainer wrote to;
    wandb:ENTITY/PROJECT is every run of a Weights & Biases project, wandb:ENTITY/PROJECT/RUN one of them. A growth comes as
    --base SOURCE --grown SOURCE. Tokens are never guessed: where the log does not count them, --tokens does.
    """
    from app.client import Growthlaw
    from app.commands.import_progress import Progress
    from app.commands.import_request import request_of
    from app.commands.mappings import read_mapping, write_mapping

    has_source = given["sources"] or given["base_sources"] or given["grown_sources"]
    with Growthlaw(url, timeout_seconds=IMPORT_SECONDS) as client, Progress() as progress:
        if bundled:
            if has_source:
                raise click.UsageError("--bundled goes without a SOURCE")
            done = client.import_bundled_runs(dry_run=dry_run, restore=given["restore"])
        else:
            if not has_source:
                raise click.UsageError("give a SOURCE, --base and --grown, or --bundled")
            saved = {} if mapping is None else read_mapping(client, mapping)
            request = request_of(given, _PLAIN, saved, progress.fetching)
            done = client.import_runs(
                request.options,
                request.files,
                base=request.base,
                grown=request.grown,
                dry_run=dry_run,
                on_progress=progress.sending,
            )
            if save_mapping is not None and not dry_run:
                write_mapping(client, save_mapping, request.mapping)
            for note in request.notes:
                click.echo(f"  ! {note}", err=True)
    if as_json:
        emit_json(done)
        return
    _tell(done, dry_run)


def _tell(done: dict[str, Any], dry_run: bool) -> None:
    if done["runs"] or done["left_out"]:
        print_table(_RUN_COLUMNS, [[run[name] for name in _RUN_COLUMNS] for run in done["runs"]])
        for run in done["runs"]:
            for warning in run["warnings"]:
                click.echo(f"  ! {run['name']}: {warning}" if len(done["runs"]) > 1 else f"  ! {warning}")
        for run in done["left_out"]:
            click.echo(f"  left out {run['name']}: {run['reason']}")
    else:
        columns = ("cohort", "num_runs_added", "num_runs_known", "num_runs_removed", "num_points_added")
        print_table(columns, [[cohort[name] for name in columns] for cohort in done["cohorts"]])
    if dry_run:
        click.echo("Nothing was stored: this was a dry run.")
    else:
        click.echo("Guidelines are refitted now; ask one with `growthlaw recommend --guideline active --cohort NAME`.")
