"""`growthlaw backup` under write load, and `growthlaw restore`: every row that was acknowledged before is there."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from writers import Writers

from app.backup import databases
from app.backup.databases import BackupError, copy_sqlite
from app.backup.making import make_backup
from app.backup.restoring import restore_backup
from app.contract import METRICS_FILE, SPEC_FILE
from app.settings import Settings
from app.store import jobs as job_store
from app.store.database import Database, sqlite_url
from app.store.tables import CohortRow, JobRow, PointRow, RunRow

ROOT = Path(__file__).parents[2]


def quiet(stage: str, done: int, total: int | None) -> None:
    pass


def growthlaw(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


def job(name: str, state: str, data_dir: Path) -> JobRow:
    return JobRow(
        id=f"job_{name}", kind="growth", name=name, role="grown", state=state, run_id=None, metrics_offset=5,
        run_dir=str(data_dir.resolve() / "runs" / f"run_{name}"),
        spec=json.dumps({"corpus_dir": str(data_dir.resolve() / "corpora" / "c"), "name": "/elsewhere/x"}),
    )  # fmt: skip


def fill(data_dir: Path) -> Database:
    """A data directory with three jobs, their run directories, and a corpus."""
    data_dir.mkdir()
    database = Database(sqlite_url(data_dir))
    database.migrate()
    with database.write() as session:
        for name, state in (("a", "running"), ("b", "succeeded"), ("c", "queued")):
            row = job(name, state, data_dir)
            job_store.add_job(session, row)
            run_dir = Path(row.run_dir)
            (run_dir / "checkpoints" / "tokens-1").mkdir(parents=True)
            (run_dir / "checkpoints" / "tokens-1" / "model.safetensors").write_bytes(b"weights")
            (run_dir / SPEC_FILE).write_text(row.spec)
            (run_dir / METRICS_FILE).write_text("{}\n{}\n")
            (run_dir / ".spec.json.1.partial").write_text("torn")
    corpus = data_dir / "corpora" / "c"
    corpus.mkdir(parents=True)
    (corpus / "corpus.json").write_text("{}")
    (corpus / "train-00000.bin").write_bytes(b"\0" * 100)
    return database


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_backup_under_write_load_holds_every_row_acknowledged_before(
    request: pytest.FixtureRequest, service: Any, tmp_path: Path, kind: str
) -> None:
    urls = {}
    if kind == "postgresql":
        server = request.getfixturevalue("postgres")
        urls = {"from": server.new_database(), "to": server.new_database()}
        service.environment["GROWTHLAW_DATABASE_URL"] = urls["from"]
    service.start()
    with Writers(lambda: service.client.url, seed=1) as writers:
        writers.wait_for(40)
        runs = dict(writers.runs)
        points = {run_id: dict(values) for run_id, values in writers.points.items()}
        settings = Settings(data_dir=service.data_dir, database_url=urls.get("from"))
        manifest = make_backup(settings, tmp_path / "copy", quiet)
        writers.wait_for(writers.num_acknowledged + 10)  # nobody was held up
    assert manifest.database == kind
    assert len(runs) >= 8
    restored = Settings(data_dir=tmp_path / "back", database_url=urls.get("to"))
    restore_backup(tmp_path / "copy", restored, quiet)
    database = Database(restored.store_url())
    with database.read() as session:
        stored = dict(session.execute(select(RunRow.name, RunRow.run_id)).all())
        assert runs.items() <= stored.items()
        assert set(stored) <= writers.sent_runs
        for run_id, values in points.items():
            rows = session.execute(select(PointRow.seq, PointRow.value).where(PointRow.run_id == run_id)).all()
            assert values.items() <= dict(rows).items()
        num_points = session.scalar(select(func.count()).select_from(PointRow))
    database.close()
    assert sum(map(len, points.values())) <= num_points <= sum(map(len, writers.sent_points.values()))


def test_the_command_round_trips_files_jobs_and_paths(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    fill(data_dir).close()
    copy = tmp_path / "copies" / "first"
    made = growthlaw("backup", str(copy), "--data-dir", str(data_dir), "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["num_left_out"] == 4  # three checkpoints and a shard
    assert sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()) == [
        "backup.json", "corpora/c/corpus.json", "growthlaw.sqlite3",
        *(f"runs/run_{name}/{file}" for name in "abc" for file in (METRICS_FILE, SPEC_FILE)),
    ]  # fmt: skip
    back = tmp_path / "back"
    restored = growthlaw("restore", str(copy), "--data-dir", str(back))
    assert restored.returncode == 0, restored.stderr
    assert "7 files; 0 were there already, 2 jobs are paused" in restored.stdout
    assert "a job starts over" in restored.stdout
    database = Database(sqlite_url(back))
    with database.read() as session:
        jobs = {row.name: row for row in job_store.list_jobs(session, limit=10)}
        assert {name: row.state for name, row in jobs.items()} == {"a": "paused", "b": "succeeded", "c": "paused"}
        for row in jobs.values():
            assert Path(row.run_dir).parent == back.resolve() / "runs"
            assert (Path(row.run_dir) / METRICS_FILE).stat().st_size >= row.metrics_offset
            for spec in (json.loads(row.spec), json.loads((Path(row.run_dir) / SPEC_FILE).read_text())):
                assert spec == {"corpus_dir": str(back.resolve() / "corpora" / "c"), "name": "/elsewhere/x"}
        assert [event.event for event in job_store.list_events(session, "job_a")] == ["queued", "paused"]
    database.close()
    assert not list(back.glob(".*"))


def test_a_link_leads_the_backup_nowhere_but_to_a_corpus(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    fill(data_dir).close()
    for elsewhere in ("run", "corpus"):
        (tmp_path / elsewhere).mkdir()
        (tmp_path / elsewhere / "corpus.json").write_text("{}")
    (data_dir / "runs" / "run_link").symlink_to(tmp_path / "run")
    (data_dir / "runs" / "run_a" / "passwords").symlink_to("/etc/passwd")
    (data_dir / "corpora" / "linked").symlink_to(tmp_path / "corpus")
    manifest = make_backup(Settings(data_dir=data_dir), tmp_path / "copy", quiet)
    names = {file.path for file in manifest.files}
    assert "corpora/linked/corpus.json" in names
    assert not [name for name in names if "run_link" in name or "passwords" in name]


def test_large_parts_come_when_asked_for(tmp_path: Path) -> None:
    fill(tmp_path / "data").close()
    manifest = make_backup(
        Settings(data_dir=tmp_path / "data"), tmp_path / "copy", quiet, with_runs=True, with_corpora=True
    )
    assert manifest.num_left_out == 0
    assert (tmp_path / "copy" / "runs" / "run_a" / "checkpoints" / "tokens-1" / "model.safetensors").exists()
    assert (tmp_path / "copy" / "corpora" / "c" / "train-00000.bin").exists()


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    fill(settings.data_dir).close()
    copy = tmp_path / "copy"
    make_backup(settings, copy, quiet)
    with pytest.raises(BackupError, match="exists; name a folder that does not"):
        make_backup(settings, copy, quiet)
    with pytest.raises(BackupError, match="overwrites nothing"):
        restore_backup(copy, settings, quiet)
    # Where the database alone was lost, run directories went on meanwhile and stay as they are.
    (settings.data_dir / "growthlaw.sqlite3").unlink()
    newer = settings.data_dir / "runs" / "run_a" / METRICS_FILE
    newer.write_text("{}\n{}\n{}\n")
    restored = restore_backup(copy, settings, quiet)
    assert (restored.num_files, restored.num_kept) == (0, 7)
    assert newer.read_text() == "{}\n{}\n{}\n"


@pytest.mark.parametrize("damage", ["database", "file", "missing", "manifest", "outside"])
def test_a_damaged_backup_is_refused_before_anything_is_written(tmp_path: Path, damage: str) -> None:
    settings, copy = Settings(data_dir=tmp_path / "data"), tmp_path / "copy"
    fill(settings.data_dir).close()
    make_backup(settings, copy, quiet)
    manifest = json.loads((copy / "backup.json").read_text())
    if damage == "database":
        with open(copy / "growthlaw.sqlite3", "r+b") as file:
            file.seek(5000)
            file.write(b"\xff" * 10)
    elif damage == "file":
        (copy / "runs" / "run_a" / SPEC_FILE).write_text("{}")
    elif damage == "missing":
        (copy / "corpora" / "c" / "corpus.json").unlink()
    elif damage == "manifest":
        (copy / "backup.json").write_text('{"format": 1}')
    else:
        manifest["files"][1]["path"] = "runs/../../outside"
        (copy / "backup.json").write_text(json.dumps(manifest))
    back = tmp_path / "back"
    with pytest.raises(BackupError, match=r"damaged|no backup|outside"):
        restore_backup(copy, Settings(data_dir=back), quiet)
    assert not back.exists()


def test_a_backup_of_the_other_database_or_of_no_service_says_so(tmp_path: Path) -> None:
    fill(tmp_path / "data").close()
    make_backup(Settings(data_dir=tmp_path / "data"), tmp_path / "copy", quiet)
    other = Settings(data_dir=tmp_path / "back", database_url="postgresql://u@127.0.0.1:1/d")
    with pytest.raises(BackupError, match="unset GROWTHLAW_DATABASE_URL"):
        restore_backup(tmp_path / "copy", other, quiet)
    with pytest.raises(BackupError, match="--data-dir"):
        make_backup(Settings(data_dir=tmp_path / "nowhere"), tmp_path / "else", quiet)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackupError, match="no database"):
        make_backup(Settings(data_dir=tmp_path / "empty"), tmp_path / "else", quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "data", "empty"], "nothing is left behind"


def test_a_copy_is_of_one_moment_whoever_writes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is committed between any two steps of the copy: it ends, and holds what was there when it began."""
    database = fill(tmp_path / "data")
    with database.write() as session:
        session.add(
            CohortRow(name="before", recipe="x" * 200_000, recipe_hash="h", decision_metric="m", decision_dataset="d")
        )
    monkeypatch.setattr(databases, "PAGES_A_STEP", 5)
    steps = []

    def write(stage: str, done: int, total: int | None) -> None:
        steps.append((done, total))
        with database.write() as session:
            session.add(
                CohortRow(name=f"n{len(steps)}", recipe="", recipe_hash="h", decision_metric="m", decision_dataset="d")
            )

    copy_sqlite(tmp_path / "data" / "growthlaw.sqlite3", tmp_path / "copy.sqlite3", write)
    database.close()
    assert len(steps) > 10
    assert len({total for _, total in steps}) == 1
    assert [done for done, _ in steps] == sorted(done for done, _ in steps), "it never began again"
    copied = sqlite3.connect(tmp_path / "copy.sqlite3")
    assert copied.execute("SELECT name FROM cohorts").fetchall() == [("before",)]
    copied.close()
    assert not (tmp_path / "copy.sqlite3-wal").exists()


def test_postgresql_without_its_programs_or_with_a_wrong_password(
    tmp_path: Path, postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    url = postgres.new_database()
    wrong = Settings(data_dir=tmp_path / "data", database_url=url.replace(postgres.password, "Wrong-Secret"))
    with pytest.raises(BackupError, match=r"pg_dump failed.*authentication failed") as caught:
        make_backup(wrong, tmp_path / "copy", quiet)
    assert "Wrong-Secret" not in str(caught.value)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackupError, match="postgresql-client"):
        make_backup(Settings(data_dir=tmp_path / "data", database_url=url), tmp_path / "copy", quiet)
    assert not (tmp_path / "copy").exists()


def test_the_password_is_on_no_command_line(tmp_path: Path, postgres: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of pg_dump's name keeps what it was started with, then runs the real one."""
    real = shutil.which("pg_dump")
    fake = tmp_path / "bin" / "pg_dump"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\ntr "\\0" "\\n" < /proc/$$/cmdline > {tmp_path}/arguments\nexec {real} "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    (tmp_path / "data").mkdir()
    url = postgres.new_database()
    database = Database(url)
    database.migrate()
    database.close()
    make_backup(Settings(data_dir=tmp_path / "data", database_url=url), tmp_path / "copy", quiet)
    said = (tmp_path / "arguments").read_text()
    assert "--format=custom" in said
    assert postgres.password not in said
    assert postgres.password not in (tmp_path / "copy" / "backup.json").read_text()
