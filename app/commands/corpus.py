"""`growthlaw corpus`: documents in, token shards out. Works on the data directory itself, without a service."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from app.commands.output import emit_json, json_option, print_table

data_dir_option = click.option(
    "--data-dir", envvar="GROWTHLAW_DATA_DIR", default="growthlaw-data", show_default=True,
    type=click.Path(path_type=Path, file_okay=False), help="Where the service keeps its data.",
)  # fmt: skip


@click.group()
def corpus() -> None:
    """Prepare and list corpora."""


@corpus.command()
@click.argument("name")
@click.argument("sources", nargs=-1, type=click.Path())
@click.option("--vocab-size", default=1024, show_default=True, help="Of the byte-level BPE trained on the spot.")
@click.option("--tokenizer", type=click.Path(), default=None, help="Use this tokenizers JSON file instead.")
@click.option("--text-column", default="text", show_default=True, help="Of .jsonl and .parquet files.")
@click.option("--validation-fraction", default=0.05, show_default=True, help="Share of documents held out.")
@data_dir_option
@json_option
def prepare(
    name: str,
    sources: tuple[str, ...],
    vocab_size: int,
    tokenizer: str | None,
    text_column: str,
    validation_fraction: float,
    data_dir: Path,
    as_json: bool,
) -> None:
    """Prepare the corpus NAME from SOURCES: .txt, .jsonl(.gz|.xz), .parquet files or folders of them.

    Without SOURCES it is the bundled one: CPython's documentation and standard library.
    """
    from app.contract import CorpusSpec
    from app.corpus.prepare import prepare_corpus

    spec = CorpusSpec(
        run_id="cli",
        name=name,
        corpus_dir=str((data_dir / "corpora" / name).resolve()),
        sources=sources,
        vocab_size=vocab_size,
        tokenizer=tokenizer,
        text_column=text_column,
        validation_fraction=validation_fraction,
    )
    columns = (TextColumn("{task.description:10}"), BarColumn(), TextColumn("{task.fields[mb]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks = {stage: bars.add_task(stage, total=None, mb="", start=False) for stage in ("read", "tokenize")}

        def show(stage: str, done: int, total: int | None) -> None:
            bars.start_task(tasks[stage])
            of = f" of {total / 1e6:.1f}" if total else ""
            bars.update(tasks[stage], completed=done, total=total, mb=f"{done / 1e6:.1f}{of} MB")

        manifest = prepare_corpus(spec, show)
    train, validation = manifest.splits["train"], manifest.splits["validation"]
    if as_json:
        emit_json(
            {
                "name": name,
                "corpus_dir": spec.corpus_dir,
                "content_hash": manifest.content_hash,
                "vocab_size": manifest.vocab_size,
                "train_tokens": train.num_tokens,
                "validation_tokens": validation.num_tokens,
            }
        )
    else:
        click.echo(
            f"{name}: {train.num_tokens:,} train and {validation.num_tokens:,} validation tokens, vocabulary "
            f"{manifest.vocab_size}, {manifest.bytes_per_token:.2f} bytes a token, in {spec.corpus_dir}"
        )


@corpus.command("list")
@data_dir_option
@json_option
def list_corpora(data_dir: Path, as_json: bool) -> None:
    """Prepared corpora of the data directory."""
    from app.corpus.shards import prepared_corpora

    columns = ("name", "vocab_size", "train_tokens", "validation_tokens", "content_hash")
    rows = [
        (m.name, m.vocab_size, m.splits["train"].num_tokens, m.splits["validation"].num_tokens, m.content_hash[:12])
        for m in prepared_corpora(data_dir / "corpora")
    ]
    if as_json:
        emit_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        print_table(columns, rows)
