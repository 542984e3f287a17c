"""`growthlaw corpus`: documents in, token shards out. Works on the data directory itself, without a service."""

from __future__ import annotations

from pathlib import Path

import click

from app.commands.output import emit_json, json_option, print_table, progress_bars

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
@click.option(
    "--vocab-size", type=int, default=None, help="Of the byte-level BPE trained on the spot.  [default: 1024]"
)
@click.option("--tokenizer", type=click.Path(), default=None, help="Use this tokenizers JSON file instead.")
@click.option("--text-column", default="text", show_default=True, help="Of .jsonl and .parquet files.")
@click.option("--validation-fraction", default=0.05, show_default=True, help="Share of documents held out.")
@click.option("--tokens", multiple=True, metavar="FILE", help="Ready-made tokens: a file or 'train_*.bin'; repeatable.")
@click.option("--validation-tokens", multiple=True, metavar="FILE", help="Ready-made tokens to hold out; repeatable.")
@click.option(
    "--token-dtype",
    type=click.Choice(["uint16", "uint32"]),
    default=None,
    help="Of token files without a header.  [default: found from the ids]",
)
@click.option("--link", is_flag=True, help="Hard-link token files: no copy, but never write into the originals.")
@data_dir_option
@json_option
def prepare(
    name: str,
    sources: tuple[str, ...],
    vocab_size: int | None,
    tokenizer: str | None,
    text_column: str,
    validation_fraction: float,
    tokens: tuple[str, ...],
    validation_tokens: tuple[str, ...],
    token_dtype: str | None,
    link: bool,
    data_dir: Path,
    as_json: bool,
) -> None:
    """Prepare the corpus NAME from SOURCES: .txt, .jsonl (plain, .gz, .xz, .zst), .parquet files or folders of them.

    Without SOURCES it is the bundled one: CPython's documentation and standard library.

    Tokens that you have already go in as they are: nanoGPT's train.bin and val.bin, llm.c's and modded-nanogpt's .bin,
    Megatron's .bin with its .idx. With --tokens, --vocab-size bounds the ids (default: the tokenizer's, else the largest
    id plus one), and --tokenizer names the tokenizer they were made with, which gives bits per byte.
    """
    from app.contract import CorpusSpec
    from app.corpus.prepare import prepare_corpus
    from app.corpus.prepare_tokens import TokenFilesSpec, prepare_token_files

    corpus_dir = str((data_dir / "corpora" / name).resolve())
    if tokens and sources:
        raise click.UsageError("give texts (SOURCES) or ready-made tokens (--tokens), not both")
    if not tokens and (validation_tokens or token_dtype or link):
        raise click.UsageError("--validation-tokens, --token-dtype and --link belong to --tokens; give it too")
    with progress_bars() as show:
        if tokens:
            manifest = prepare_token_files(
                TokenFilesSpec(
                    name=name,
                    corpus_dir=corpus_dir,
                    train=tokens,
                    validation=validation_tokens,
                    token_dtype=token_dtype,
                    vocab_size=vocab_size,
                    tokenizer=tokenizer,
                    validation_fraction=validation_fraction,
                    link=link,
                ),
                show,
            )
        else:
            spec = CorpusSpec(
                run_id="cli",
                name=name,
                corpus_dir=corpus_dir,
                sources=sources,
                vocab_size=1024 if vocab_size is None else vocab_size,
                tokenizer=tokenizer,
                text_column=text_column,
                validation_fraction=validation_fraction,
            )
            manifest = prepare_corpus(spec, show)
    train, validation = manifest.splits["train"], manifest.splits["validation"]
    if as_json:
        emit_json(
            {
                "name": name,
                "corpus_dir": corpus_dir,
                "content_hash": manifest.content_hash,
                "vocab_size": manifest.vocab_size,
                "train_tokens": train.num_tokens,
                "validation_tokens": validation.num_tokens,
                "bytes_per_token": manifest.bytes_per_token,
            }
        )
    else:
        per_token = manifest.bytes_per_token
        size = "bytes a token unknown" if per_token is None else f"{per_token:.2f} bytes a token"
        click.echo(
            f"{name}: {train.num_tokens:,} train and {validation.num_tokens:,} validation tokens, vocabulary "
            f"{manifest.vocab_size}, {size}, in {corpus_dir}"
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
