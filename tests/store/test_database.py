"""Migrations, claims and idempotent points on the real SQLite and a real PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import InternalError, OperationalError

from app.contract import MAX_SEED, MetricLine
from app.jobs.launchers.local import Process
from app.store import guidelines as guideline_store
from app.store import jobs as job_store
from app.store import runs as run_store
from app.store.database import MIGRATIONS_DIR, Database, sqlite_url
from app.store.ids import new_id
from app.store.tables import Base, CohortRow, GuidelineRow, JobRow, RunRow
from fitting.errors import InputError
from fitting.table import COLUMNS


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    opened.migrate()
    yield opened
    opened.close()


def add_cohort_and_run(database: Database, run_id: str = "run_1") -> None:
    with database.write() as session:
        if run_store.get_cohort(session, "c") is None:
            run_store.add_cohort(
                session,
                CohortRow(
                    name="c",
                    recipe="{}",
                    recipe_hash="h",
                    decision_metric="validation_loss",
                    decision_dataset="c/validation",
                ),
            )
        run_store.add_run(
            session,
            RunRow(
                run_id=run_id, cohort="c", source="job", name="n", status="finished", target_params=1e6, growth_factor=1.0,
                growth_timing_tokens=0.0, grown_tokens=1e6, is_final=True, final_loss=3.0,
            ),
        )  # fmt: skip


def job_row(priority: int = 0) -> JobRow:
    return JobRow(
        id=new_id("job"),
        kind="growth",
        name="n",
        role="grown",
        state="queued",
        priority=priority,
        run_dir="/r",
        spec="{}",
    )


def test_migrations_make_exactly_the_tables(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"render_as_batch": True})
        assert compare_metadata(context, Base.metadata) == []


def test_migrations_go_back_and_forth(database: Database) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_DIR))
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert set(inspect(connection).get_table_names()) <= {"alembic_version", "sqlite_sequence"}
    database.migrate()
    add_cohort_and_run(database)


def test_a_second_opening_keeps_the_rows(database_url: str, database: Database) -> None:
    add_cohort_and_run(database)
    again = Database(database_url)
    again.migrate()
    with again.read() as session:
        assert run_store.get_run(session, "run_1") is not None
    again.close()


def test_the_run_table_has_the_canonical_columns_in_order(database: Database) -> None:
    stored = [column.name for column in RunRow.__table__.columns]
    assert [name for name in stored if name in COLUMNS] == list(COLUMNS)
    assert set(stored) - set(COLUMNS) == {
        "reason", "wasted_flops", "provenance", "content_hash", "request_key", "request_hash", "corrections",
    }  # fmt: skip
    add_cohort_and_run(database)
    with database.read() as session:
        frame = run_store.cohort_frame(session, "c")
    assert list(frame.columns) == list(COLUMNS)
    assert len(frame) == 1


def test_a_point_arrives_once(database: Database) -> None:
    add_cohort_and_run(database)
    lines = [
        MetricLine(
            seq=seq, phase="single", tokens=seq * 10, compute_flops=1.0, metric="train_loss", dataset="c/train",
            value=float(seq), unit="nats", time="t",
        )
        for seq in range(5)
    ]  # fmt: skip
    for part in (lines[:3], lines[1:], lines):
        with database.write() as session:
            run_store.add_points(session, "run_1", part)
    with database.read() as session:
        points = run_store.list_points(session, "run_1", limit=100)
        assert [(point.seq, point.value) for point in points] == [(seq, float(seq)) for seq in range(5)]


def test_500_jobs_are_claimed_once_each_by_four_launchers(database: Database) -> None:
    with database.write() as session:
        for place in range(500):
            job_store.add_job(session, job_row(priority=place % 3))
    claimed: list[list[tuple[str, int]]] = [[] for _ in range(4)]

    def claim(owner: str, mine: list[tuple[str, int]]) -> None:
        while True:
            with database.write() as session:
                first = job_store.next_queued_job(session, lock=True)
                job = job_store.claim_job(session, first.id, owner) if first is not None else None
            if job is None:
                return
            assert (job.state, job.lease_owner, job.num_attempts) == ("running", owner, 1)
            mine.append((job.id, job.priority))

    threads = [threading.Thread(target=claim, args=(f"l{i}", mine)) for i, mine in enumerate(claimed)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = [job for mine in claimed for job in mine]
    assert len(everything) == len({job_id for job_id, _ in everything}) == 500
    for mine in claimed:
        # Each launcher sees falling priorities, and within one the order in which jobs were made.
        assert mine == sorted(mine, key=lambda job: (-job[1], job[0]))


def test_a_queued_job_is_claimed_once_whoever_saw_it(database: Database) -> None:
    with database.write() as session:
        job_store.add_job(session, job_row())
    with database.read() as session:
        seen = job_store.next_queued_job(session)
    assert seen is not None
    with database.write() as session:
        assert job_store.claim_job(session, seen.id, "one") is not None
    with database.write() as session:
        assert job_store.claim_job(session, seen.id, "two") is None


def test_jobs_that_want_busy_devices_are_passed_over(database: Database) -> None:
    with database.write() as session:
        for priority, device in ((2, "cuda"), (1, "cpu"), (0, "auto")):
            row = job_row(priority)
            row.device = device
            job_store.add_job(session, row)
    with database.read() as session:
        order = [
            job_store.next_queued_job(session, skip=skip)
            for skip in ((), {("local", "cuda")}, {("local", "cuda"), ("local", "cpu")}, {("ray", "cuda")})
        ]
    assert [job.device for job in order if job is not None] == ["cuda", "cpu", "auto", "cuda"]


def test_a_lease_moves_only_while_its_owner_is_silent(database: Database) -> None:
    row = job_row()
    with database.write() as session:
        job_store.add_job(session, row)
        job_store.claim_job(session, row.id, "one")
    with database.read() as session:
        (as_read,) = job_store.running_jobs(session, "one")
        assert job_store.running_jobs(session, "two") == []
    with database.write() as session:
        job_store.set_values(session, row.id, heartbeat_at="2026-01-01T00:00:00.000+00:00")
    with database.write() as session:
        assert not job_store.take_over_job(session, as_read, "two")  # it was heard of since
        (fresh,) = job_store.running_jobs(session)
        assert job_store.take_over_job(session, fresh, "two")
        job_store.beat(session, "one", [row.id])  # too late: the lease is another's
    with database.read() as session:
        (taken,) = job_store.running_jobs(session, "two")
        assert taken.heartbeat_at is not None
        assert taken.heartbeat_at > "2026-01-01T00:00:00.000+00:00"


def test_jobs_and_their_stories_go_through_0002_and_back(database_url: str) -> None:
    old = Database(database_url)
    old.migrate("0001")
    rows = [
        ("job_a", "running", 4711, 1.5, '{"device": "cuda"}'),
        ("job_b", "running", 4712, 2.5, '{"device": "cpu"}'),
        ("job_c", "succeeded", None, None, '{"corpus_dir": "/c"}'),
    ]
    insert = text(
        "INSERT INTO jobs (id, kind, name, role, state, reason, priority, run_dir, spec, num_attempts, num_deaths, pid, "
        "process_started_at, metrics_offset, events_offset, created_at) VALUES (:id, 'growth', 'n', 'grown', :state, '', 0, "
        "'/r', :spec, 1, 0, :pid, :started, 7, 8, 't')"
    )
    tell = text("INSERT INTO job_events (job_id, time, event, message) VALUES (:id, 't', 'queued', 'm')")
    with old.engine.begin() as connection:
        for job_id, state, pid, started, spec in rows:
            connection.execute(insert, {"id": job_id, "state": state, "pid": pid, "started": started, "spec": spec})
            connection.execute(tell, {"id": job_id})
    old.migrate()
    with old.read() as session:
        jobs = {job.id: job for job in job_store.list_jobs(session, limit=10)}
        assert [len(job_store.list_events(session, job_id)) for job_id in sorted(jobs)] == [1, 1, 1]
    handles = {job_id: Process.parse(job.handle) for job_id, job in jobs.items() if job.handle}
    assert {job_id: (one.pid, one.started_at, one.indices) for job_id, one in handles.items()} == {
        "job_a": (4711, 1.5, (0,)), "job_b": (4712, 2.5, (1,)),
    }  # fmt: skip
    assert {(job.engine, job.num_processes, job.metrics_offset) for job in jobs.values()} == {("local", 1, 7)}
    assert [jobs[job_id].device for job_id in sorted(jobs)] == ["cuda", "cpu", "cpu"]

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_DIR))
    with old.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
    with old.engine.begin() as connection:
        found = connection.execute(text("SELECT id, state, pid, process_started_at, spec FROM jobs ORDER BY id")).all()
        assert [tuple(row) for row in found] == rows
        assert connection.execute(text("SELECT count(*) FROM job_events")).scalar() == 3
    old.close()


def test_a_failed_write_leaves_nothing(database: Database) -> None:
    def write_and_fail() -> None:
        with database.write() as session:
            job_store.add_job(session, job_row())
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        write_and_fail()
    with database.read() as session:
        assert job_store.list_jobs(session, limit=10) == []


def test_a_service_sees_only_jobs_of_its_own_folder(database: Database) -> None:
    rows = {}
    for run_dir in ("/a/runs/1", "/a/runs-old/2", "/a_runs/3", "/b/runs/4"):
        rows[run_dir] = job_row()
        rows[run_dir].run_dir = run_dir
    with database.write() as session:
        for row in rows.values():
            job_store.add_job(session, row)
    with database.read() as session:
        for folder, run_dir in (
            ("/a/runs", "/a/runs/1"),
            ("/b/runs/", "/b/runs/4"),
            ("/a%", None),
            ("/a_runs", "/a_runs/3"),
        ):
            found = job_store.next_queued_job(session, runs_dir=folder)
            assert (found.run_dir if found else None) == run_dir


def test_files_are_taken_in_by_one_service_only(database: Database) -> None:
    row = job_row()
    with database.write() as session:
        job_store.add_job(session, row)
        job_store.claim_job(session, row.id, "one")
    with database.read() as session:
        (as_read,) = job_store.running_jobs(session, "one")
    move = {"metrics_offset": 10, "events_offset": 20}
    with database.write() as session:
        assert not job_store.move_offsets(session, as_read, "two", **move)
        assert job_store.move_offsets(session, as_read, "one", **move)
        assert not job_store.move_offsets(session, as_read, "one", **move)  # it has moved since it was read


def test_a_write_reads_what_stays_true_until_it_commits(database: Database) -> None:
    """Four threads read a number and write the next one: none is lost, in either database."""
    row = job_row()
    with database.write() as session:
        job_store.add_job(session, row)

    def count() -> None:
        for _ in range(10):
            with database.write() as session:
                job = job_store.get_job(session, row.id)
                assert job is not None
                job_store.set_values(session, row.id, num_deaths=job.num_deaths + 1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        job = job_store.get_job(session, row.id)
        assert job is not None
        assert job.num_deaths == 40


def test_a_locked_database_is_told_and_a_read_goes_on(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.store.database.BUSY_TIMEOUT_MS", 50)
    with database.write() as session:
        job_store.add_job(session, job_row())
        with database.read() as reader:
            assert job_store.list_jobs(reader, limit=10) == []
        impatient = Database(database.engine.url.render_as_string(hide_password=False))
        with pytest.raises(OperationalError), impatient.write() as other:
            job_store.add_job(other, job_row())
        impatient.close()


def test_sqlite_acknowledges_what_the_disk_has(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path))
    for transaction in (database.read, database.write):
        with transaction() as session:
            # 2 is FULL: the log is synced at every commit, so a power cut takes nothing back.
            assert session.execute(text("PRAGMA synchronous")).scalar() == 2
            assert session.execute(text("PRAGMA journal_mode")).scalar() == "wal"
    database.close()


def test_reading_never_writes(database: Database) -> None:
    if database.engine.dialect.name == "sqlite":
        return  # where a read that wrote would only be rolled back
    with pytest.raises(InternalError, match="read-only"), database.read() as session:
        job_store.add_job(session, job_row())


def test_numbers_and_texts_that_only_one_database_would_take(database: Database) -> None:
    """Seeds of 64 bits, and the end of a log that a crash left full of zeros."""
    add_cohort_and_run(database)
    odd = "torn \x00\x00 log \ud800 end"
    row = job_row()
    line = MetricLine(
        seq=2**40, phase="single", tokens=2**62, compute_flops=1e30, metric="train_loss", dataset="c/train", value=1e-300,
        unit="nats", time="t",
    )  # fmt: skip
    with database.write() as session:
        run_store.finish_run(session, "run_1", init_seed=MAX_SEED, data_seed=MAX_SEED, reason=odd)
        job_store.add_job(session, row)
        job_store.set_state(session, row.id, "failed", odd)
        run_store.add_points(session, "run_1", [line])
        assert job_store.get_job(session, "job_\x00") is None
    with database.read() as session:
        run, job = run_store.get_run(session, "run_1"), job_store.get_job(session, row.id)
        assert run is not None
        assert job is not None
        assert (run.init_seed, run.data_seed) == (MAX_SEED, MAX_SEED)
        assert run.reason == job.reason == "torn \ufffd\ufffd log ? end"
        (point,) = run_store.list_points(session, "run_1", limit=10)
        assert (point.seq, point.tokens, point.value) == (2**40, 2**62, 1e-300)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("no url with a Secret", "no database URL"),
        ("mysql://user:Secret@host/db", "'mysql', which is not supported"),
        ("postgresql+asyncpg://user:Secret@host/db", "not supported"),
        ("postgresql://user@host/db?password=Secret", "USER:PASSWORD@HOST"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        Database(url)
    assert "Secret" not in str(caught.value)
    assert caught.value.field == "database_url"


def test_short_names_of_postgresql_are_understood() -> None:
    for url in ("postgres://u:Secret@h/d", "postgresql://u:Secret@h/d", "postgresql+psycopg://u:Secret@h/d"):
        database = Database(url)
        assert database.name == "postgresql+psycopg://u:***@h/d"
        database.close()


def test_one_guideline_a_cohort_is_active(database: Database) -> None:
    add_cohort_and_run(database)
    for _ in range(3):
        with database.write() as session:
            version = guideline_store.next_version(session, "c")
            guideline_store.add_guideline(
                session,
                GuidelineRow(
                    id=new_id("gl"),
                    cohort="c",
                    version=version,
                    is_active=True,
                    num_runs=1,
                    data_hash="h",
                    reason="",
                    body="{}",
                ),
            )
    with database.read() as session:
        rows = guideline_store.list_guidelines(session, cohort="c", limit=10)
        assert [(row.version, row.is_active) for row in rows] == [(3, True), (2, False), (1, False)]
        active = guideline_store.active_guideline(session, "c")
        assert active is not None
        assert active.version == 3


def test_active_versions_of_cohorts_with_runs_of_a_source(database: Database) -> None:
    for cohort, source, is_active in (
        ("b", "import", True),
        ("a", "import", True),
        ("c", "import", False),
        ("d", "job", True),
    ):
        with database.write() as session:
            run_store.add_cohort(
                session,
                CohortRow(name=cohort, recipe="{}", recipe_hash="h", decision_metric="m", decision_dataset="d"),
            )
            for place in range(2):
                run_store.add_run(
                    session,
                    RunRow(
                        run_id=f"run_{cohort}{place}", cohort=cohort, source=source, name="n", status="finished",
                        target_params=1.0, growth_factor=1.0, growth_timing_tokens=0.0, grown_tokens=0.0, is_final=True,
                    ),
                )  # fmt: skip
            guideline_store.add_guideline(
                session,
                GuidelineRow(
                    id=f"gl_{cohort}", cohort=cohort, version=1, is_active=is_active, num_runs=1, data_hash="h", reason="",
                    body="{}",
                ),
            )  # fmt: skip
    assert guideline_store.active_of_imported(database) == [("a", "gl_a"), ("b", "gl_b")]


def test_ids_sort_in_the_order_they_were_made() -> None:
    ids = [new_id("run") for _ in range(10_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert all(len(one) == len("run_") + 26 for one in ids)
