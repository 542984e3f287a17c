"""Migrations with rows in them: from every revision that ever was to the newest one and back, on both databases.

Each table of a revision is filled through its own schema as it is found in the database, so a new revision is tested as it
is added: nothing here knows a table or a column by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Boolean, Column, Connection, Float, Integer, MetaData, Table, select, text
from sqlalchemy.orm import DeclarativeBase

from app.store.database import MIGRATIONS_DIR, Database
from app.store.tables import Base

ROWS_A_TABLE = 3
REVISIONS = [script.revision for script in reversed(list(ScriptDirectory(str(MIGRATIONS_DIR)).walk_revisions()))]
Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()


def tables_of(connection: Connection) -> list[Table]:
    """The tables as they are in the database, those that others refer to first."""
    found = MetaData()
    found.reflect(connection)
    return [table for table in found.sorted_tables if table.name != "alembic_version"]


def value_of(column: Column[Any], place: int) -> Any:
    """A value that no other row of the column has and that is told from other columns'.

    Text is a JSON object, for many texts are read as one by a migration.
    """
    if isinstance(column.type, Boolean):
        return place % 2 == 0
    if isinstance(column.type, Float):
        return len(column.name) + place + 0.25
    if isinstance(column.type, Integer):
        return 1000 * len(column.name) + place
    return f'{{"{column.name}": {place}}}'


def fill(connection: Connection) -> None:
    """Rows in every table: the first with every column set, the last with only those that must be."""
    for table in tables_of(connection):
        numbered = table.autoincrement_column
        for place in range(ROWS_A_TABLE):
            row = {}
            for column in table.columns:
                if column is numbered and not column.foreign_keys:
                    continue  # the database counts these itself, and goes on counting after a migration
                if column.nullable and place == ROWS_A_TABLE - 1:
                    continue
                value = value_of(column, place)
                for key in column.foreign_keys:
                    parents = connection.execute(select(key.column).order_by(key.column)).scalars().all()
                    value = parents[place]
                row[column.name] = value
            connection.execute(table.insert().values(row))


def rows_of(connection: Connection) -> Rows:
    """Every row of every table, in the order of their keys."""
    return {
        table.name: [
            dict(row._mapping) for row in connection.execute(select(table).order_by(*table.primary_key.columns))
        ]
        for table in tables_of(connection)
    }


def downgrade(database: Database, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_DIR))
    with database.engine.connect().execution_options(growthlaw_write=True) as connection, connection.begin():
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def check_references(connection: Connection) -> None:
    """PostgreSQL holds references always, SQLite only while rows change."""
    if connection.dialect.name == "sqlite":
        assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
        assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"


def mapped_classes() -> list[type[DeclarativeBase]]:
    return [mapper.class_ for mapper in Base.registry.mappers]


def test_the_newest_revision_is_alembics_head() -> None:
    scripts = ScriptDirectory(str(MIGRATIONS_DIR))
    assert Database.newest_revision() == scripts.get_current_head()
    for script in scripts.walk_revisions():
        assert Path(script.path).name.startswith(f"{script.revision}_")


@pytest.mark.parametrize("revision", REVISIONS)
def test_rows_go_from_every_revision_to_the_newest_and_back(database: Database, revision: str) -> None:
    database.migrate(revision)
    with database.engine.begin() as connection:
        fill(connection)
    with database.engine.connect() as connection:
        before = rows_of(connection)
    assert before
    assert all(len(rows) == ROWS_A_TABLE for rows in before.values())

    database.migrate()
    assert database.revision() == database.newest_revision()
    with database.engine.connect() as connection:
        check_references(connection)
        after = rows_of(connection)
    for table, rows in before.items():
        assert len(after[table]) == len(rows), f"rows of {table} were lost or doubled"
        kept = after[table][0].keys() & rows[0].keys()
        for old, new in zip(rows, after[table], strict=True):
            assert {name: new[name] for name in kept} == {name: old[name] for name in kept}, table
    with database.read() as session:
        for cls in mapped_classes():
            session.scalars(select(cls)).all()  # the code of today reads every row

    downgrade(database, revision)
    assert database.revision() == revision
    with database.engine.connect() as connection:
        check_references(connection)
        assert rows_of(connection) == before, "what was there at the beginning is there again, column by column"

    # And once more: whatever going back left behind is in nobody's way.
    database.migrate()
    with database.engine.connect() as connection:
        assert rows_of(connection) == after


@pytest.mark.parametrize("revision", REVISIONS)
def test_the_newest_rows_go_back_to_every_revision_and_forth(database: Database, revision: str) -> None:
    """A newer service wrote, an older one is put back in its place: what the older schema can hold stays."""
    database.migrate()
    with database.engine.begin() as connection:
        fill(connection)
    with database.engine.connect() as connection:
        newest = rows_of(connection)
    downgrade(database, revision)
    with database.engine.connect() as connection:
        check_references(connection)
        older = rows_of(connection)
    for table, rows in older.items():
        assert len(rows) == len(newest[table]), f"rows of {table} were lost or doubled"
        kept = rows[0].keys() & newest[table][0].keys()
        for old, new in zip(rows, newest[table], strict=True):
            assert {name: old[name] for name in kept} == {name: new[name] for name in kept}, table
    database.migrate()
    with database.engine.connect() as connection:
        check_references(connection)
        again = rows_of(connection)
    assert {table: len(rows) for table, rows in again.items() if table in older} == {
        table: len(rows) for table, rows in older.items()
    }


def test_every_column_of_every_table_is_filled_somewhere(database: Database) -> None:
    """What the tests above hold up is not empty: each column has a value in some row."""
    database.migrate()
    with database.engine.begin() as connection:
        fill(connection)
        for table, rows in rows_of(connection).items():
            for name in rows[0]:
                assert any(row[name] is not None for row in rows), f"{table}.{name}"
