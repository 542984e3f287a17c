"""The launcher loop where the database fails it: real processes that end at once for want of a corpus."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.contract import EvaluationSpec, ModelSpec, Spec, TrainingSpec
from app.corpus.shards import Manifest, read_manifest
from app.jobs.launchers.local import LocalLauncher
from app.jobs.queue import enqueue_arms
from app.jobs.supervisor import Supervisor
from app.store import jobs as job_store
from app.store.database import Database
from app.store.ids import new_id
from app.store.tables import JobRow


class Forgetful(Database):
    """A database whose connection can be lost as it answers a commit: what was committed, nobody was told."""

    lose_answers = False

    @contextmanager
    def write(self) -> Iterator[Session]:
        with super().write() as session:
            yield session
        if self.lose_answers:
            raise OperationalError("COMMIT", {}, Exception("the server closed the connection"))


@pytest.fixture
def database(database_url: str) -> Iterator[Forgetful]:
    opened = Forgetful(database_url)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def manifest(tiny_corpus: Path) -> Manifest:
    return read_manifest(tiny_corpus)


def queue(database: Database, tmp_path: Path, manifest: Manifest) -> str:
    """A run whose corpus is not there: its engine says so before it loads torch, and ends."""
    spec = Spec(
        run_id=new_id("run"), name="r", cohort="c", corpus="tiny", corpus_dir=str(tmp_path / "nowhere"), device="cpu",
        model=ModelSpec(
            num_layers=2, hidden_size=32, num_heads=2, num_kv_heads=2, intermediate_size=64,
            vocab_size=manifest.vocab_size, context_length=64,
        ),
        training=TrainingSpec(tokens=51_200, peak_lr=4e-3), evaluation=EvaluationSpec(every_tokens=5_120, num_windows=8),
    )  # fmt: skip
    rows = enqueue_arms(
        database, tmp_path / "runs", {"run": spec}, manifest, priority=0, request_key=None, request_hash=None
    )
    return rows["run"].id


def job_of(database: Database, job_id: str) -> JobRow:
    with database.read() as session:
        job = job_store.get_job(session, job_id)
    assert job is not None
    return job


def test_commits_whose_answers_are_lost_do_nothing_twice(
    tmp_path: Path, database: Forgetful, manifest: Manifest
) -> None:
    ended: list[str] = []
    job_id = queue(database, tmp_path, manifest)
    launcher = LocalLauncher((tmp_path / "runs").resolve(), num_slots=1, gpus=[])
    supervisor = Supervisor(database, [launcher], owner="one", on_run_ended=ended.append)
    num_lost = 0
    deadline = time.monotonic() + 120
    while job_of(database, job_id).state in ("queued", "running") and time.monotonic() < deadline:
        database.lose_answers = True
        try:
            supervisor.tick()
        except OperationalError:
            num_lost += 1
        finally:
            database.lose_answers = False
    assert num_lost > 0, "the claim's answer was lost"
    job = job_of(database, job_id)
    assert (job.state, job.cause, job.num_attempts) == ("failed", "bad_data", 1)
    supervisor.tick()
    assert ended == ["c"], "the run's end was committed, so its cohort is looked at, once"
    with database.read() as session:
        story = [event.event for event in job_store.list_events(session, job_id) if event.event != "warning"]
    assert story == ["queued", "running", "failed", "failed"], "the process says it failed, then the service"


def test_a_job_taken_over_is_left_alone_by_its_first_service(
    tmp_path: Path, database: Forgetful, manifest: Manifest
) -> None:
    """The first service read the job, was suspended, and wakes up when another has taken the job over."""
    job_id = queue(database, tmp_path, manifest)
    launcher = LocalLauncher((tmp_path / "runs").resolve(), num_slots=1, gpus=[])
    first = Supervisor(database, [launcher], owner="one", on_run_ended=lambda cohort: None)
    with database.write() as session:
        claimed = job_store.claim_job(session, job_id, "one")
    assert claimed is not None
    with database.write() as session:
        assert job_store.take_over_job(session, claimed, "two")
    first._look_after(claimed)
    job = job_of(database, job_id)
    assert (job.state, job.lease_owner, job.handle) == ("running", "two", None)
    second = Supervisor(database, [launcher], owner="two", on_run_ended=lambda cohort: None)
    deadline = time.monotonic() + 120
    while job_of(database, job_id).state == "running" and time.monotonic() < deadline:
        second.tick()
    assert (job_of(database, job_id).cause, job_of(database, job_id).num_attempts) == ("bad_data", 1)
    first._look_after(claimed)
    with database.read() as session:
        story = [event.event for event in job_store.list_events(session, job_id)]
    assert story.count("failed") == 2
    assert "warning" not in story
