"""Making a backup: the database, then the files of runs and corpora, then the manifest; then it gets its name."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from app.backup.databases import BackupError, Tell, copy_sqlite, dump_postgresql, sqlite_path
from app.backup.files import CopiedFile, copy_tree, hash_file, is_small_part_of_a_corpus, is_small_part_of_a_run
from app.records import fsync_dir, write_json_atomically
from app.settings import Settings
from app.store.database import SQLITE, checked_url
from app.store.tables import utc_now

FORMAT = 1
MANIFEST = "backup.json"
DATABASE_FILES = {"sqlite": "growthlaw.sqlite3", "postgresql": "growthlaw.pgdump"}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """``backup.json``. ``data_dir`` and ``runs_dir`` are where things lay: rows and specs name them in full.

    Attributes:
        created_at: when the copy of the database began: what was acknowledged before is in it.
        num_left_out: large files of runs and corpora that were not asked for.
    """

    format: int
    created_at: str
    growthlaw_version: str
    database: Literal["sqlite", "postgresql"]
    data_dir: str
    runs_dir: str
    with_runs: bool
    with_corpora: bool
    num_left_out: int
    files: tuple[CopiedFile, ...]


def make_backup(
    settings: Settings, destination: Path, tell: Tell, *, with_runs: bool = False, with_corpora: bool = False
) -> Manifest:
    """Back up the data of a service, running or not.

    Args:
        settings: of the service.
        destination: a folder that is not there yet.
        with_runs: checkpoints and exports too.
        with_corpora: token shards too.

    Raises:
        BackupError: the destination exists, or the database cannot be copied.
        InputError: the database's URL is none that can be used.
    """
    destination = destination.absolute()
    if destination.exists() or destination.is_symlink():
        raise BackupError(f"{destination} exists; name a folder that does not")
    url = checked_url(settings.store_url())
    if not settings.data_dir.is_dir():
        raise BackupError(f"there is no data directory {settings.data_dir}; name the service's --data-dir")
    beside = destination.with_name(f".{destination.name}.{os.getpid()}.partial")
    beside.mkdir(parents=True)
    try:
        created_at = utc_now()
        kind: Literal["sqlite", "postgresql"] = "sqlite" if url.get_backend_name() == SQLITE else "postgresql"
        database = beside / DATABASE_FILES[kind]
        if kind == "sqlite":
            copy_sqlite(sqlite_path(url), database, tell)
        else:
            dump_postgresql(url, database, tell)
        files = [
            CopiedFile(path=database.name, size_bytes=database.stat().st_size, sha256=hash_file(database)),
        ]
        left_out: list[str] = []
        for stage, root, wanted in (
            ("runs", settings.runs_dir, (lambda path: True) if with_runs else is_small_part_of_a_run),
            ("corpora", settings.corpora_dir, (lambda path: True) if with_corpora else is_small_part_of_a_corpus),
        ):
            # A corpus may lie elsewhere; a run directory that does is none that a launcher would run.
            follow = stage == "corpora"
            copied, omitted = copy_tree(root, beside / stage, stage, wanted, tell, follow_links=follow)
            files += [replace(file, path=f"{stage}/{file.path}") for file in copied]
            left_out += omitted
        manifest = Manifest(
            format=FORMAT,
            created_at=created_at,
            growthlaw_version=version("growthlaw"),
            database=kind,
            data_dir=str(settings.data_dir.resolve()),
            runs_dir=str(settings.runs_dir.resolve()),
            with_runs=with_runs,
            with_corpora=with_corpora,
            num_left_out=len(left_out),
            files=tuple(files),
        )
        write_json_atomically(beside / MANIFEST, asdict(manifest))
        for folder, _, _ in os.walk(beside):
            fsync_dir(Path(folder))
        os.rename(beside, destination)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    fsync_dir(destination.parent)
    return manifest
