"""Opening a database: the newest schema is left as it is, an older one migrated, anything else refused in words."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from app.opening import StartError, open_database
from app.settings import Settings
from app.store.database import Database, sqlite_url

ROOT = Path(__file__).parents[2]


def at_newest(data_dir: Path) -> Path:
    """A data directory whose database is at the newest revision."""
    database = Database(sqlite_url(data_dir))
    database.migrate()
    database.close()
    return data_dir


def say_revision(data_dir: Path, *revisions: str) -> None:
    database = Database(sqlite_url(at_newest(data_dir)))
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM alembic_version"))
        for revision in revisions:
            connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": revision})
    database.close()


def damage(data_dir: Path) -> None:
    (data_dir / "growthlaw.sqlite3").write_bytes(b"no database at all " * 1000)


def drop_the_version(data_dir: Path) -> None:
    database = Database(sqlite_url(at_newest(data_dir)))
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE alembic_version RENAME COLUMN version_num TO other"))
    database.close()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda data_dir: say_revision(data_dir, "9999"), "Can't locate revision identified by '9999'"),
        (
            lambda data_dir: say_revision(data_dir, Database.newest_revision(), "9999"),
            "Can't locate revision identified by '9999'",
        ),
        (damage, "file is not a database"),
        (drop_the_version, "no such column: alembic_version.version_num"),
    ],
    ids=["newer", "newer-beside-ours", "damaged", "no-version"],
)
def test_a_database_that_cannot_be_used_is_refused_in_words(
    tmp_path: Path, spoil: Callable[[Path], None], why: str
) -> None:
    spoil(tmp_path)
    with pytest.raises(StartError) as caught:
        open_database(Settings(data_dir=tmp_path))
    assert str(caught.value) == (
        f"the database sqlite:///{tmp_path}/growthlaw.sqlite3 cannot be used ({why}); it is damaged or was written by a "
        "newer growthlaw: put a copy back, use that growthlaw, or serve another --data-dir"
    )


def test_an_unmigrated_database_is_migrated(tmp_path: Path) -> None:
    database = open_database(Settings(data_dir=tmp_path))
    assert database.revision() == Database.newest_revision()
    assert inspect(database.engine).has_table("runs")
    database.close()


def test_the_newest_schema_is_opened_without_alembic(tmp_path: Path) -> None:
    """It takes a while to load, and there is nothing to migrate; where there is, it is loaded."""
    code = (
        "import sys; from pathlib import Path; from app.opening import open_database; from app.settings import Settings;"
        "open_database(Settings(data_dir=Path(sys.argv[1]))).close(); print('alembic' in sys.modules)"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code, tmp_path],
            capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        ).stdout.strip()
        for _ in range(2)
    ]  # fmt: skip
    assert said == ["True", "False"]
