"""`growthlaw evaluate`: what checkpoints are worth. Works on folders of this machine, without a service."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from app.commands.corpus import data_dir_option
from app.commands.output import emit_json, json_option, print_table, short
from fitting.errors import InputError

if TYPE_CHECKING:
    from app.engine.assess.checkpoint import CheckpointFolder
    from app.engine.assess.losses import Estimate
    from app.engine.assess.report import Report, TokenSet

MAX_DEFAULT_CONTEXT = 2048
LABELS = ("A", "B")


@click.command()
@click.argument(
    "checkpoints", nargs=-1, required=True, metavar="CHECKPOINT [CHECKPOINT]", type=click.Path(path_type=Path)
)
@click.option("--corpus", metavar="NAME|FOLDER", help="Held-out split of a prepared corpus.")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="NAME=SOURCE",
    help="A named set: a corpus (CORPUS:train for its train split) or text files or folders; repeatable.",
)
@click.option(
    "--windows",
    "num_windows",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Windows of each set, spread evenly over it.",
)
@click.option("--all", "all_windows", is_flag=True, help="Every window of each set.")
@click.option(
    "--context-length",
    type=click.IntRange(1),
    default=None,
    help=f"Targets in a window.  [default: the model's, {MAX_DEFAULT_CONTEXT} at most]",
)
@click.option("--drop-layers", is_flag=True, help="Also the loss rise when each layer is dropped, on the first set.")
@click.option("--copying", "copies", is_flag=True, help="Also whether it copies from its context, on the first set.")
@click.option("--tasks", default="", metavar="A,B", help="Tasks of the LM evaluation harness (the extra eval).")
@click.option("--task-dir", type=click.Path(path_type=Path), default=None, help="Folder of YAML tasks of your own.")
@click.option("--task-limit", type=click.IntRange(1), default=None, help="Questions of each task, from its first.")
@click.option("--fewshot", type=click.IntRange(0), default=None, help="Examples before each question.")
@click.option(
    "--batch-sequences", type=click.IntRange(1), default=None, help="Windows run at once.  [default: 8192 tokens]"
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="auto: bf16 for 16-bit weights on CUDA, else fp32.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--text-column", default="text", show_default=True, help="Of .jsonl and .parquet files.")
@data_dir_option
@json_option
def evaluate(
    checkpoints: tuple[Path, ...],
    corpus: str | None,
    sets: tuple[str, ...],
    num_windows: int,
    all_windows: bool,
    context_length: int | None,
    drop_layers: bool,
    copies: bool,
    tasks: str,
    task_dir: Path | None,
    task_limit: int | None,
    fewshot: int | None,
    batch_sequences: int | None,
    precision: str,
    device: str,
    text_column: str,
    data_dir: Path,
    as_json: bool,
) -> None:
    """Loss, perplexity and bits per byte of CHECKPOINT on named sets; with two, also their paired difference.

    A CHECKPOINT is a transformers folder of safetensors or a run directory (then its exports/final is read). The loss is the
    mean next-token cross-entropy in nats a token over windows of the set; each window starts without context. Errors are
    over windows, and the difference is B - A on the same windows: below 0 B is better.
    """
    if len(checkpoints) > len(LABELS):
        raise click.UsageError("give one checkpoint, or two to compare")
    task_names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    named = _named_sets(corpus, sets)
    if not named and not task_names:
        raise click.UsageError("nothing to evaluate on; give --corpus, --set or --tasks")
    for option, asked in (("--drop-layers", drop_layers), ("--copying", copies)):
        if asked and not named:
            raise click.UsageError(f"{option} needs a set; give --corpus or --set")

    from app.engine.assess.checkpoint import find_checkpoint
    from app.engine.assess.harness import TaskRequest
    from app.engine.assess.report import assess

    folders = [find_checkpoint(path) for path in checkpoints]
    length = context_length or min(MAX_DEFAULT_CONTEXT, *(_longest_context(folder) for folder in folders))
    for folder in folders:
        if length > _longest_context(folder):
            raise InputError(
                "context_length", f"is {length}, but {folder.path} was made for {_longest_context(folder)}", "lower it"
            )
    with tempfile.TemporaryDirectory(prefix="growthlaw-evaluate-") as scratch, _bars() as show:
        opened = [
            _open_set(name, source, folders, data_dir, Path(scratch), text_column) for name, source in named.items()
        ]
        report = assess(
            folders,
            opened,
            context_length=length,
            num_windows=None if all_windows else num_windows,
            drop=drop_layers,
            copies=copies,
            tasks=TaskRequest(names=task_names, folder=task_dir, num_fewshot=fewshot, limit=task_limit)
            if task_names
            else None,
            batch_sequences=batch_sequences,
            precision=precision,
            device=device,
            progress=show,
        )
    if as_json:
        emit_json(dataclasses.asdict(report))
    else:
        _print(report)


def _named_sets(corpus: str | None, sets: tuple[str, ...]) -> dict[str, str]:
    named = {Path(corpus).name: corpus} if corpus else {}
    for item in sets:
        name, equals, source = item.partition("=")
        if not (name and equals and source) or "/" in name:
            raise click.UsageError(f"--set is {item!r}, but it must be NAME=SOURCE")
        if name in named:
            raise click.UsageError(f"two sets are named {name!r}; give them names of their own")
        named[name] = source
    return named


def _longest_context(folder: CheckpointFolder) -> int:
    for field in ("max_position_embeddings", "n_positions"):
        if isinstance(length := folder.config.get(field), int):
            return length
    return MAX_DEFAULT_CONTEXT


def _open_set(
    name: str, source: str, folders: list[CheckpointFolder], data_dir: Path, scratch: Path, text_column: str
) -> TokenSet:
    from app.corpus.evaluation_sets import SPLITS, check_vocabulary, encode_files, is_corpus, is_text, open_corpus_split
    from app.engine.assess.report import TokenSet
    from app.engine.data import TokenStream

    head, _, split = source.rpartition(":")
    corpus, split = (head, split) if head and split in SPLITS else (source, "validation")
    for folder in (Path(corpus), data_dir / "corpora" / corpus):
        if is_corpus(folder):
            opened = open_corpus_split(name, folder, split)
            break
    else:
        path = Path(source)
        if not path.exists() or not is_text(path):
            raise InputError(
                f"set {name}",
                f"is {source!r}, which is neither a prepared corpus in {data_dir / 'corpora'} nor a text file",
                "give one of them (growthlaw corpus list)",
            )
        if folders[0].tokenizer_file is None:
            raise InputError(
                f"set {name}", f"is text, but {folders[0].path} has no tokenizer.json", "put it there or give a corpus"
            )
        opened = encode_files(
            name, path, tokenizer_file=folders[0].tokenizer_file, scratch=scratch, text_column=text_column
        )
    for checkpoint in folders:
        if checkpoint.tokenizer_file is not None:
            check_vocabulary(opened, checkpoint.tokenizer_file)
    return TokenSet(
        name=name,
        source=opened.source,
        content_hash=opened.content_hash,
        stream=TokenStream(list(opened.files), opened.dtype),
        byte_lengths=opened.byte_lengths,
        bytes_per_token=opened.bytes_per_token,
    )


@contextlib.contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield show


def _print(report: Report) -> None:
    """Tables for people; the JSON holds every number in full."""
    labels = [f"{label}: " for label in LABELS] if len(report.checkpoints) > 1 else [""]
    for label, checkpoint in zip(labels, report.checkpoints, strict=False):
        click.echo(
            f"{label}{checkpoint.path} ({checkpoint.model_type}, {checkpoint.num_layers} layers, "
            f"{short(checkpoint.total_params)} parameters, {checkpoint.precision} on {checkpoint.device})"
        )
    if report.sets:
        click.echo(f"windows of {report.context_length} tokens; errors are standard errors over windows")
        columns = ("", "set", "windows", "loss (nats/token)", "perplexity", "bits/byte")
        rows = [
            (label.rstrip(": "), chosen.name, f"{chosen.num_windows} of {chosen.num_windows_available}",
             _with_error(loss.loss_nats), f"{loss.perplexity:.5g}", _with_error(loss.bits_per_byte))
            for place, chosen in enumerate(report.sets)
            for label, loss in zip(labels, (checkpoint.losses[place] for checkpoint in report.checkpoints), strict=False)
        ]  # fmt: skip
        print_table(columns, rows)
        if any(chosen.bytes_basis is None for chosen in report.sets):
            click.echo("no bits per byte where the tokenizer of the tokens is unknown")
    for difference in report.differences:
        click.echo(
            f"{difference.set}: B - A = {_with_error(difference.loss_nats, signed=True)}{_verdict(difference.loss_nats)}"
        )
    for label, checkpoint in zip(labels, report.checkpoints, strict=False):
        if checkpoint.dropped_layers:
            click.echo(f"{label}loss rise when a layer is dropped, nats/token on {report.sets[0].name}")
            print_table(
                ("layer", "copied from", "copy", "rise", "standard error"),
                [
                    (drop.layer, drop.source_layer, drop.copy, f"{drop.rise_nats.value:+.4f}",
                     "-" if drop.rise_nats.standard_error is None else f"{drop.rise_nats.standard_error:.4f}")
                    for drop in checkpoint.dropped_layers
                ],
            )  # fmt: skip
        if copied := checkpoint.copying:
            click.echo(
                f"{label}text of {report.sets[0].name} read twice: {_with_error(copied.first_nats)} nats/token the first time, "
                f"{_with_error(copied.second_nats)} the second; gain {_with_error(copied.gain_nats)}"
            )
        if checkpoint.tasks:
            print_table(
                ("task", "metric", "value", "standard error", "questions", "few-shot"),
                [
                    (label + score.task, score.metric, "-" if score.value is None else f"{score.value:.4f}",
                     "-" if score.standard_error is None else f"{score.standard_error:.4f}",
                     score.num_samples, score.num_fewshot)
                    for score in checkpoint.tasks
                ],
            )  # fmt: skip


def _with_error(estimate: Estimate | None, *, signed: bool = False) -> str:
    if estimate is None:
        return "-"
    value = f"{estimate.value:+.4f}" if signed else f"{estimate.value:.4f}"
    return value if estimate.standard_error is None else f"{value} ± {estimate.standard_error:.4f}"


def _verdict(difference: Estimate) -> str:
    if difference.interval is None:
        return " nats/token; one window tells no error"
    low, high = difference.interval
    better = "B is better" if high < 0 else "A is better" if low > 0 else "no difference is shown"
    return f" nats/token, 95% interval {low:+.4f} to {high:+.4f}: {better}"
