"""`growthlaw restore`: put a backup back where no service has its data yet."""

from __future__ import annotations

from pathlib import Path

import click

from app.commands.backup import settings_of, where_options
from app.commands.output import emit_json, json_option, progress_bars


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True, file_okay=False))
@where_options
@json_option
def restore(source: Path, data_dir: Path, database_url: str | None, runs_dir: Path | None, as_json: bool) -> None:
    """Put the backup SOURCE back, into a data directory without a database or an empty PostgreSQL.

    Nothing that is there is overwritten: a run directory that exists stays as it is. Jobs that had not ended come back
    paused; `growthlaw jobs resume` lets them go on. The backup may be of an older growthlaw, and of another directory.
    """
    from app.backup.databases import BackupError
    from app.backup.restoring import restore_backup

    try:
        with progress_bars() as tell:
            restored = restore_backup(source, settings_of(data_dir, database_url, runs_dir), tell)
    except BackupError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        emit_json(
            {
                "data_dir": str(data_dir.absolute()),
                "created_at": restored.manifest.created_at,
                "database": restored.manifest.database,
                "num_files": restored.num_files,
                "num_kept": restored.num_kept,
                "num_paused": restored.num_paused,
            }
        )
        return
    click.echo(
        f"{data_dir}: {restored.manifest.database} of {restored.manifest.created_at} and {restored.num_files} files; "
        f"{restored.num_kept} were there already, {restored.num_paused} jobs are paused"
    )
    if restored.manifest.num_left_out:
        click.echo(
            "checkpoints, exports or token shards are not in this backup: a job starts over where its checkpoint is not there, "
            "and corpora are prepared again or copied"
        )
