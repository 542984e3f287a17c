"""`growthlaw backup`: a consistent copy of a service's data, while it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from app.commands.output import emit_json, json_option, progress_bars


def where_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the service keeps its things; the same options and variables as of `growthlaw serve`."""
    for option in (
        click.option("--runs-dir", type=click.Path(path_type=Path, file_okay=False), help="As of serve."),
        click.option("--database-url", help="As of serve; better in GROWTHLAW_DATABASE_URL."),
        click.option(
            "--data-dir", envvar="GROWTHLAW_DATA_DIR", default="growthlaw-data", show_default=True,
            type=click.Path(path_type=Path, file_okay=False), help="The service's.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def settings_of(data_dir: Path, database_url: str | None, runs_dir: Path | None) -> Any:
    from app.settings import Settings

    given = {"database_url": database_url, "shared_runs_dir": runs_dir}
    return Settings(data_dir=data_dir, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


@click.command()
@click.argument("destination", type=click.Path(path_type=Path))
@where_options
@click.option("--with-runs", is_flag=True, help="Checkpoints and exports too: large.")
@click.option("--with-corpora", is_flag=True, help="Token shards too: large, and they can be prepared again.")
@json_option
def backup(
    destination: Path,
    data_dir: Path,
    database_url: str | None,
    runs_dir: Path | None,
    with_runs: bool,
    with_corpora: bool,
    as_json: bool,
) -> None:
    """Back up a service's data to the folder DESTINATION, which must not exist. The service may run.

    It holds the database (SQLite by its online backup, PostgreSQL by pg_dump), every run's spec, metrics, events, result
    and log, and every corpus's manifest and tokenizer. `growthlaw restore` puts it back.
    """
    from app.backup.databases import BackupError
    from app.backup.making import make_backup

    try:
        with progress_bars() as tell:
            manifest = make_backup(
                settings_of(data_dir, database_url, runs_dir), destination, tell,
                with_runs=with_runs, with_corpora=with_corpora,
            )  # fmt: skip
    except BackupError as error:
        raise click.ClickException(str(error)) from None
    num_bytes = sum(file.size_bytes for file in manifest.files)
    if as_json:
        emit_json(
            {
                "destination": str(destination.absolute()),
                "created_at": manifest.created_at,
                "database": manifest.database,
                "num_files": len(manifest.files),
                "size_bytes": num_bytes,
                "num_left_out": manifest.num_left_out,
            }
        )
        return
    click.echo(f"{destination}: {manifest.database} and {len(manifest.files) - 1} files, {num_bytes / 1e6:.1f} MB")
    if manifest.num_left_out:
        click.echo(
            f"left out: {manifest.num_left_out} checkpoint, export and shard files (--with-runs, --with-corpora take them)"
        )
