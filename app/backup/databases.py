"""Copying a live database out and in: SQLite by its online backup, PostgreSQL by `pg_dump` and `pg_restore`."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import URL

from app.records import fsync_dir
from fitting.errors import InputError

# stage, done and total in bytes
Tell = Callable[[str, int, int | None], None]

# 16 MB of the usual 4 KiB pages between two words about progress.
PAGES_A_STEP = 4096
CHUNK_BYTES = 4_000_000
LONGEST_ECHO = 1000
CLIENT_MEND = (
    "install PostgreSQL's client programs (apt-get install postgresql-client), of the server's version or newer"
)


class BackupError(Exception):
    """A backup or a restore cannot be made; the message says why and what to do."""


def copy_sqlite(source: Path, copy: Path, tell: Tell) -> None:
    """Copy the database as it is at this moment, while others go on writing to it; the copy is checked and synced.

    One read transaction spans the whole copy: without it, SQLite begins again at every write of another process, and a busy
    service would never be copied.

    Raises:
        BackupError: there is no database, it cannot be read, or the copy is damaged.
    """
    if not source.exists():
        raise BackupError(f"there is no database at {source}; name the service's --data-dir")
    try:
        with (
            contextlib.closing(sqlite3.connect(source, isolation_level=None)) as live,
            contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as other,
        ):
            live.execute("PRAGMA query_only = ON")
            (page_bytes,) = live.execute("PRAGMA page_size").fetchone()
            live.execute("BEGIN")
            live.execute("SELECT count(*) FROM sqlite_master").fetchone()  # takes the snapshot

            def progress(status: int, remaining: int, total: int) -> None:
                tell("database", (total - remaining) * page_bytes, total * page_bytes)

            live.backup(other, pages=PAGES_A_STEP, progress=progress)
            live.execute("ROLLBACK")
            # One file that needs no log beside it.
            other.execute("PRAGMA journal_mode = DELETE")
        check_sqlite(copy)
    except sqlite3.Error as error:
        raise BackupError(
            f"the database {source} cannot be copied ({error}); see that it is whole and readable"
        ) from None
    sync_file(copy)


def check_sqlite(path: Path) -> None:
    """Read every page and follow every reference.

    Raises:
        BackupError: it is damaged.
    """
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        (said,) = database.execute("PRAGMA integrity_check").fetchone()
        dangling = database.execute("PRAGMA foreign_key_check").fetchall()
    if said != "ok" or dangling:
        trouble = said if said != "ok" else f"{len(dangling)} rows refer to rows that are not there"
        raise BackupError(f"the copy {path} is damaged ({trouble}); the database may be too: run integrity_check on it")


def dump_postgresql(url: URL, dump: Path, tell: Tell) -> None:
    """`pg_dump` of one snapshot, while others go on writing.

    Raises:
        BackupError: the program is missing or fails; the message never holds the password.
    """
    tell("database", 0, None)
    _run_client("pg_dump", url, "--format=custom", "--no-owner", "--no-privileges", f"--file={dump}")
    sync_file(dump)
    tell("database", dump.stat().st_size, dump.stat().st_size)


def load_postgresql(url: URL, dump: Path, tell: Tell) -> None:
    """`pg_restore` into an empty database, whole or not at all.

    Raises:
        BackupError: as of :func:`dump_postgresql`.
    """
    tell("database", 0, dump.stat().st_size)
    _run_client(
        "pg_restore", url, "--no-owner", "--no-privileges", "--single-transaction", "--exit-on-error", last=str(dump)
    )
    tell("database", dump.stat().st_size, dump.stat().st_size)


def _run_client(program: str, url: URL, *options: str, last: str | None = None) -> None:
    found = shutil.which(program)
    if found is None:
        raise BackupError(f"{program} is not on the PATH; {CLIENT_MEND}")
    # The command line is everybody's to read, the environment is not.
    plain = URL.create(
        "postgresql", username=url.username, host=url.host, port=url.port, database=url.database, query=url.query
    ).render_as_string()
    environment = os.environ | ({"PGPASSWORD": str(url.password)} if url.password else {})
    command = [found, *options, "--no-password", f"--dbname={plain}", *([last] if last else [])]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False
    )  # fmt: skip
    if done.returncode != 0:
        said = done.stderr.strip()[-LONGEST_ECHO:]
        mend = CLIENT_MEND if "version mismatch" in said else "see that it runs and that its user may read everything"
        raise BackupError(f"{program} failed ({said}); {mend}")


def sqlite_path(url: URL) -> Path:
    """The file of an SQLite URL.

    Raises:
        InputError: it lies in memory.
    """
    if not url.database or url.database == ":memory:":
        raise InputError("database_url", "names no file", "back up a database that is one")
    return Path(url.database)


def sync_file(path: Path) -> None:
    """Make a file and its name survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fsync_dir(path.parent)
