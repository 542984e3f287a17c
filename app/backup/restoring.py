"""Putting a backup back: every file is checked first, and nothing that is there already is overwritten.

Jobs that waited or ran when the backup was made come back paused. Their processes may still run elsewhere, or may have
gone on since: whoever restores says with `resume` that they may go on, from the last checkpoint that is there.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import inspect, select
from sqlalchemy.exc import DatabaseError

from app.backup.databases import BackupError, Tell, check_sqlite, load_postgresql, sqlite_path, sync_file
from app.backup.files import copy_file, hash_file
from app.backup.making import DATABASE_FILES, FORMAT, MANIFEST, Manifest
from app.contract import SPEC_FILE
from app.records import from_dict, fsync_dir, read_json, write_json_atomically
from app.settings import Settings
from app.store import jobs as job_store
from app.store.database import Database, MigrationError, checked_url
from app.store.tables import JobRow


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What was put back; ``num_kept`` files were there already, and stayed as they were."""

    manifest: Manifest
    num_files: int
    num_kept: int
    num_paused: int


def read_manifest(source: Path) -> Manifest:
    """What a backup is.

    Raises:
        BackupError: the folder is none that this growthlaw can read.
    """
    try:
        manifest = from_dict(Manifest, read_json(source / MANIFEST))
    except ValueError as error:
        raise BackupError(f"{source} is no backup of growthlaw ({error})") from None
    if manifest.format != FORMAT:
        raise BackupError(
            f"{source} has format {manifest.format}, this growthlaw reads {FORMAT}; use the one that made it"
        )
    return manifest


def check_files(source: Path, manifest: Manifest, tell: Tell) -> None:
    """Hold every file against its SHA-256.

    Raises:
        BackupError: names the first that is missing or damaged.
    """
    total, done = sum(file.size_bytes for file in manifest.files), 0
    for file in manifest.files:
        path = source / file.path
        if ".." in Path(file.path).parts or Path(file.path).is_absolute():
            raise BackupError(f"{MANIFEST} names {file.path!r}, which lies outside of the backup; use another backup")
        if not path.is_file() or hash_file(path) != file.sha256:
            raise BackupError(f"{path} is missing or damaged; use another backup")
        done += file.size_bytes
        tell("check", done, total)


def restore_backup(source: Path, settings: Settings, tell: Tell) -> Restored:
    """Put a backup back where `settings` say: its data directory and an empty database.

    Raises:
        BackupError: the backup is damaged or of the other kind of database, or a database is there already.
    """
    manifest = read_manifest(source)
    url = checked_url(settings.store_url())
    if url.get_backend_name() != manifest.database:
        how = "set" if manifest.database == "postgresql" else "unset"
        raise BackupError(f"{source} is of {manifest.database}; {how} GROWTHLAW_DATABASE_URL to restore it")
    dump = source / DATABASE_FILES[manifest.database]
    _refuse_rows(settings, manifest)
    check_files(source, manifest, tell)
    num_files, num_kept = _restore_files(source, settings, manifest, tell)
    moves = {
        old: str(new.resolve())
        for old, new in ((manifest.runs_dir, settings.runs_dir), (manifest.data_dir, settings.data_dir))
        if old != str(new.resolve())
    }
    if manifest.database == "postgresql":
        load_postgresql(url, dump, tell)
        num_paused = _settle(settings.store_url(), manifest, moves)
    else:
        final = sqlite_path(url)
        beside = final.with_name(f".{final.name}.{os.getpid()}.partial")
        try:
            copy_file(dump, beside)
            check_sqlite(beside)
            num_paused = _settle(f"sqlite:///{beside}", manifest, moves)
            sync_file(beside)
            if final.exists():  # a service was started meanwhile
                raise BackupError(_there_already(str(final)))
            os.replace(beside, final)
        finally:
            for left in beside.parent.glob(f"{beside.name}*"):
                left.unlink()
        fsync_dir(final.parent)
    return Restored(manifest=manifest, num_files=num_files, num_kept=num_kept, num_paused=num_paused)


def _there_already(what: str) -> str:
    return f"{what} is there already, and a restore overwrites nothing; move it away, or restore elsewhere"


def _refuse_rows(settings: Settings, manifest: Manifest) -> None:
    """Where rows could be lost, nothing is touched."""
    url = checked_url(settings.store_url())
    if manifest.database == "sqlite":
        if sqlite_path(url).exists():
            raise BackupError(_there_already(str(sqlite_path(url))))
        return
    database = Database(settings.store_url())
    try:
        if tables := inspect(database.engine).get_table_names():
            raise BackupError(_there_already(f"the table {tables[0]!r} of {database.name}"))
    except DatabaseError as error:
        raise BackupError(f"the database {database.name} does not answer ({error.orig}); see that it runs") from None
    finally:
        database.close()


def _restore_files(source: Path, settings: Settings, manifest: Manifest, tell: Tell) -> tuple[int, int]:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    roots = {"runs": settings.runs_dir, "corpora": settings.corpora_dir}
    chosen = [file for file in manifest.files if file.path.split("/")[0] in roots]
    # A run directory that is there went on after the backup was made: nothing older is mixed into it.
    there = {(kind, folder.name) for kind, root in roots.items() if root.is_dir() for folder in root.iterdir()}
    total, done, num_kept = sum(file.size_bytes for file in chosen), 0, 0
    for file in chosen:
        kind, name, *_ = Path(file.path).parts
        if (kind, name) in there:
            num_kept += 1
        else:
            copy_file(source / file.path, roots[kind] / Path(file.path).relative_to(kind))
        done += file.size_bytes
        tell("files", done, total)
    return len(chosen) - num_kept, num_kept


def _settle(store_url: str, manifest: Manifest, moves: dict[str, str]) -> int:
    """Bring the rows to this code's schema and to where the files lie now; pause what had not ended."""
    database = Database(store_url)
    try:
        database.migrate()
        with database.write() as session:
            unfinished = session.scalars(select(JobRow).where(JobRow.state.not_in(job_store.ENDED_STATES))).all()
            num_paused = 0
            for job in unfinished:
                if job.state != "paused":
                    why = f"put back from the backup of {manifest.created_at}; resume it to go on from its last checkpoint"
                    job_store.set_state(session, job.id, "paused", why)
                    num_paused += 1
            for job in session.scalars(select(JobRow)).all() if moves else ():
                job.run_dir = _moved(job.run_dir, moves)
                job.spec = json.dumps(_moved(json.loads(job.spec), moves))
                _move_spec_file(Path(job.run_dir) / SPEC_FILE, moves)
        return num_paused
    except MigrationError as error:
        raise BackupError(f"a newer growthlaw made this backup ({error}); restore it with that one") from None
    finally:
        database.close()


def _move_spec_file(path: Path, moves: dict[str, str]) -> None:
    if path.is_file():
        write_json_atomically(path, _moved(dict(read_json(path)), moves))


def _moved(value: Any, moves: dict[str, str]) -> Any:
    """`value` with every path below an old folder below its new one."""
    if isinstance(value, dict):
        return {name: _moved(item, moves) for name, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, moves) for item in value]
    if isinstance(value, str):
        for old, new in moves.items():
            if value == old or value.startswith(f"{old}/"):
                return new + value[len(old) :]
    return value
