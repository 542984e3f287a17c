"""Opening the database: SQLite in WAL mode by default, PostgreSQL by its URL; migrated on opening.

Both keep the same promises. A write transaction is alone from its first statement on, so what it reads stays true until
it commits: SQLite begins it with the write lock taken, PostgreSQL with an advisory lock of the database that all write
transactions take. They are short, one writer at a time is all that a scheduler of hour-long jobs needs, and no
transaction ever has to be run again. A read transaction sees one state of the database and waits for nobody.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session

from fitting.errors import InputError

MIGRATIONS_DIR = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_MS = 5_000
# A writer that froze in the middle (a suspended machine) is thrown out by PostgreSQL, or nobody could write any more.
IDLE_WRITER_TIMEOUT_MS = 30_000
CONNECT_TIMEOUT_SECONDS = 10
# All are kept once they were needed: SQLAlchemy's own pool keeps 5, and opens and closes up to 10 more for every request
# beyond them, which costs more than most queries.
NUM_CONNECTIONS = 20
# Names the write lock among other programs' advisory locks: "growthla" as a big-endian number.
WRITE_LOCK = int.from_bytes(b"growthla", "big")
SQLITE, POSTGRESQL = "sqlite", "postgresql"
_URL_MEND = "give postgresql://USER@HOST:PORT/DATABASE, or leave it out for SQLite under the data directory"


class MigrationError(Exception):
    """The schema is at a revision that this code does not know; the message names it."""


class Database:
    """Sessions over one database. `write()` commits at its end or rolls back; `read()` never writes.

    Raises:
        InputError: the URL is none of a database that this can use; the message never repeats it.
    """

    def __init__(self, url: str) -> None:
        self.engine = _create_engine(checked_url(url))
        # PostgreSQL queues writers. SQLite lets them ask again and again, the unlucky one in vain until it gives up: here
        # the threads of one process queue instead.
        self._writing = threading.Lock() if self.engine.dialect.name == SQLITE else None

    @property
    def name(self) -> str:
        """The database's URL for people: without its password."""
        return self.engine.url.render_as_string(hide_password=True)

    @contextmanager
    def read(self) -> Iterator[Session]:
        options: dict[str, Any] = {}
        if self.engine.dialect.name == POSTGRESQL:
            options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with (
            self.engine.connect().execution_options(**options) as connection,
            Session(connection, expire_on_commit=False) as session,
        ):
            yield session

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What one reading statement gives, past SQLAlchemy's layers: for what is asked at every request, where they take
        five times as long as the query. It holds no values from outside.

        Raises:
            DBAPIError: as SQLAlchemy itself would.
        """
        driver = self.engine.dialect.loaded_dbapi
        try:
            connection = self.engine.raw_connection()
            try:
                cursor = connection.cursor()
                cursor.execute(sql)
                return list(cursor.fetchall())
            finally:
                connection.close()
        except driver.Error as error:
            raise DBAPIError.instance(sql, None, error, driver.Error) from error

    @contextmanager
    def write(self) -> Iterator[Session]:
        with (
            self._turn(),
            self.engine.connect().execution_options(growthlaw_write=True) as connection,
            Session(connection, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def _turn(self) -> Iterator[None]:
        # Who waited in vain tries all the same, and gets the database's own error.
        held = self._writing is not None and self._writing.acquire(timeout=BUSY_TIMEOUT_MS / 1000)
        try:
            yield
        finally:
            if held and self._writing is not None:
                self._writing.release()

    def migrate(self, revision: str = "head") -> None:
        """Bring the schema to `revision`; an older database keeps its rows. Services that start at once take turns.

        Raises:
            MigrationError: a newer growthlaw wrote it.
            DatabaseError: it is damaged, locked or away.
        """
        with self.engine.connect().execution_options(growthlaw_write=True) as connection, connection.begin():
            if revision != "head" or _revision(connection) != self.newest_revision():
                _upgrade(connection, revision)

    def revision(self) -> str | None:
        """The revision that its schema is at; None before the first migration."""
        with self.engine.connect() as connection:
            return _revision(connection)

    @staticmethod
    @functools.cache
    def newest_revision() -> str:
        """The revision that this code needs: its migrations stand in files named for their revisions, in order."""
        return max(file.name for file in MIGRATIONS_DIR.glob("versions/*.py")).partition("_")[0]

    def close(self) -> None:
        self.engine.dispose()


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT alembic_version.version_num FROM alembic_version")).scalars()
    return ", ".join(sorted(found)) or None  # a sound database names one


def _upgrade(connection: Connection, revision: str) -> None:
    # Loaded where something is to be done: most starts find the newest schema, and are ready sooner without.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_DIR))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        raise MigrationError(str(error)) from error


def add_missing(session: Session, table: type[Any], rows: Sequence[dict[str, Any]], *, key: Sequence[str]) -> None:
    """Insert rows; one whose `key` is in the table already leaves that row as it is."""
    if not rows:
        return
    # PostgreSQL's half of SQLAlchemy loads where it is used: a service over SQLite is ready sooner.
    if session.get_bind().dialect.name == POSTGRESQL:
        from sqlalchemy.dialects import postgresql

        insert: Any = postgresql.insert
    else:
        from sqlalchemy.dialects import sqlite

        insert = sqlite.insert
    session.execute(insert(table).on_conflict_do_nothing(index_elements=list(key)), list(rows))


def sqlite_url(data_dir: Path) -> str:
    return f"sqlite:///{data_dir / 'growthlaw.sqlite3'}"


def checked_url(url: str) -> URL:
    """A database URL with the driver that this project uses.

    Raises:
        InputError: it is no URL, or of another database.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InputError("database_url", "is no database URL", _URL_MEND) from None
    if parsed.drivername in ("postgres", POSTGRESQL):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in (SQLITE, "postgresql+psycopg"):
        raise InputError("database_url", f"begins with {parsed.drivername!r}, which is not supported", _URL_MEND)
    if "password" in parsed.query:
        # Only a password in its own place is hidden wherever a URL is shown.
        raise InputError(
            "database_url",
            "holds the password in its query",
            "write it behind the user (USER:PASSWORD@HOST) or in ~/.pgpass",
        )
    return parsed


def _create_engine(url: URL) -> Engine:
    if url.get_backend_name() == SQLITE:
        engine = create_engine(url, pool_size=NUM_CONNECTIONS, max_overflow=0)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        # A connection is tried before it is used: after a restart of the database the old ones are dead.
        engine = create_engine(
            url,
            pool_size=NUM_CONNECTIONS,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS},
        )
    except ModuleNotFoundError as error:
        raise InputError(
            "database_url",
            f"is PostgreSQL's, but the package {error.name!r} is missing",
            "pip install 'growthlaw[postgres]'",
        ) from None
    event.listen(engine, "begin", _begin_postgresql)
    return engine


def _configure_sqlite(connection: Any, record: Any) -> None:
    # The driver must not open transactions itself: `_begin_sqlite` chooses their kind.
    connection.isolation_level = None
    # FULL: what was acknowledged is on the disk. With WAL's usual NORMAL a power cut takes the last seconds back.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_TIMEOUT_MS}", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _is_write(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get("growthlaw_write", False))


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads and then writes must take the write lock first, or two of them fail each other.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if _is_write(connection) else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    if _is_write(connection):
        # READ COMMITTED, PostgreSQL's default, and not a snapshot: one taken before the lock was granted would be old.
        connection.exec_driver_sql(
            f"SET LOCAL lock_timeout = {BUSY_TIMEOUT_MS}; "
            f"SET LOCAL idle_in_transaction_session_timeout = {IDLE_WRITER_TIMEOUT_MS}; "
            f"SELECT pg_advisory_xact_lock({WRITE_LOCK})"
        )
