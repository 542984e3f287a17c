"""Migrations, claims and idempotent points on the real SQLite."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import text

from app.contract import MetricLine
from app.jobs.launchers.local import Process
from app.store import guidelines as guideline_store
from app.store import jobs as job_store
from app.store import runs as run_store
from app.store.database import MIGRATIONS_DIR, Database, sqlite_url
from app.store.ids import new_id
from app.store.tables import Base, CohortRow, GuidelineRow, JobRow, RunRow
from fitting.table import COLUMNS


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(sqlite_url(tmp_path))
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


def test_migrations_go_back_and_forth(tmp_path: Path, database: Database) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_DIR))
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        names = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'table'")).scalars().all()
        assert set(names) <= {"alembic_version", "sqlite_sequence"}
    database.migrate()
    add_cohort_and_run(database)


def test_a_second_opening_keeps_the_rows(tmp_path: Path, database: Database) -> None:
    add_cohort_and_run(database)
    again = Database(sqlite_url(tmp_path))
    again.migrate()
    with again.read() as session:
        assert run_store.get_run(session, "run_1") is not None
    again.close()


def test_the_run_table_has_the_canonical_columns_in_order(database: Database) -> None:
    stored = [column.name for column in RunRow.__table__.columns]
    assert [name for name in stored if name in COLUMNS] == list(COLUMNS)
    assert set(stored) - set(COLUMNS) == {"reason"}
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
                first = job_store.next_queued_job(session)
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


def test_jobs_and_their_stories_go_through_0002_and_back(tmp_path: Path) -> None:
    old = Database(sqlite_url(tmp_path))
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


def test_ids_sort_in_the_order_they_were_made() -> None:
    ids = [new_id("run") for _ in range(10_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert all(len(one) == len("run_") + 26 for one in ids)
