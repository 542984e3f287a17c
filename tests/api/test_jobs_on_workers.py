"""Workers, retries, logs and checkpoints of the real service; many jobs of many clients at once."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from job_checks import check_taken_in_once

from app.client import Growthlaw, Refused
from app.contract import CorpusSpec
from app.jobs.launchers.local import LocalLauncher
from app.jobs.queue import enqueue_corpus
from app.jobs.supervisor import Supervisor
from app.store import jobs as job_store
from app.store.database import Database, sqlite_url
from app.store.ids import new_id
from app.store.tables import JobRow

Body = Callable[..., dict[str, Any]]
NUM_CLIENTS = 8
ENDED = ("succeeded", "failed", "cancelled")


@pytest.fixture(scope="module")
def train_body(grow_body: Body) -> Body:
    def make(**changes: Any) -> dict[str, Any]:
        training = {"tokens": 2_048, "peak_lr": 4e-3, "batch_sequences": 8}
        return {
            "name": "short", "cohort": "tiny", "corpus": "tiny", "model": grow_body()["target_model"],
            "training": training, "num_validation_windows": 16, "evaluation_every_tokens": 2_048, "device": "cpu",
        } | changes  # fmt: skip

    return make


def growthlaw(client: Growthlaw, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments, "--url", client.url],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ).stdout  # fmt: skip


def test_a_job_by_its_worker_its_log_and_its_checkpoints(service: Any, grow_body: Body, until: Any) -> None:
    client = service.start()
    # In the base phase for minutes, however fast the machine: tokens are counted in it from first to last here.
    body = grow_body(controls=[], token_budget=40_000_000, growth_timing_tokens=20_000_000)
    job = client.grow(body)["arms"][0]["job"]
    assert (job["engine"], job["num_processes"], job["num_nodes"], job["cause"]) == ("local", 1, 1, None)
    until(lambda: len(client.checkpoints(job["id"])) >= 2, "two checkpoints stand")
    (node,) = client.workers()
    assert node["engine"] == "local"
    assert {"python", "growthlaw", "torch"} <= node["versions"].keys()
    assert 0 < node["memory_free_bytes"] <= node["memory_bytes"]
    assert [device["job_id"] for device in node["devices"] if device["job_id"]] == [job["id"]]
    table = growthlaw(client, "workers")
    assert job["id"] in table
    assert "free" in table

    checkpoints = client.checkpoints(job["id"])
    # The oldest may be on its way out as this looks: a run keeps its last two.
    assert checkpoints[-1]["phase"] == "base"
    assert checkpoints[-1]["run_tokens"] > checkpoints[0]["run_tokens"]
    assert (checkpoints[-1]["problem"], checkpoints[-1]["keep"]) == ("", "recent")
    log = client.logs(job["id"])["text"]
    assert "started: " in log
    assert client.logs(job["id"], max_bytes=10)["text"] in client.logs(job["id"])["text"]
    assert "started: " in growthlaw(client, "jobs", "logs", job["id"])
    with pytest.raises(Refused) as caught:
        client.logs(job["id"], max_bytes=0)
    assert caught.value.status == 422
    for ask in (client.logs, client.checkpoints, client.retry):
        with pytest.raises(Refused, match="no job"):
            ask("job_nowhere")

    # A cancelled job keeps its last checkpoint, and goes on from it when it is tried again.
    with pytest.raises(Refused, match="running, but only failed or cancelled"):
        client.retry(job["id"])
    client.cancel(job["id"])
    until(lambda: client.job(job["id"])["state"] == "cancelled", "it is cancelled")
    stood_at = client.checkpoints(job["id"])[-1]["run_tokens"]
    assert client.run(job["run_id"])["status"] == "stopped"
    growthlaw(client, "jobs", "retry", job["id"])
    assert client.run(job["run_id"])["status"] == "running"
    until(lambda: client.checkpoints(job["id"])[-1]["run_tokens"] > stood_at, "it has gone on")
    story = [event.data["event"] for event in _until_event(client, job["id"], "resumed")]
    assert story.count("started") == 1
    client.cancel(job["id"])
    until(lambda: client.job(job["id"])["state"] == "cancelled", "it is cancelled")


def _until_event(client: Growthlaw, job_id: str, name: str) -> Iterator[Any]:
    for event in client.events(job_id):
        if event.event == "story":
            yield event
            if event.data["event"] == name:
                return


def test_a_diverged_run_has_its_result_and_is_not_retried(service: Any, train_body: Body, until: Any) -> None:
    client = service.start()
    job = client.train(train_body(training={"tokens": 51_200, "peak_lr": 10.0, "batch_sequences": 8}))
    until(lambda: client.job(job["id"])["state"] in ENDED, "it has ended")
    ended = client.job(job["id"])
    assert (ended["state"], ended["cause"]) == ("failed", "diverged"), ended
    assert ended["reason"].startswith("diverged: ")
    assert "lower rate" in ended["reason"]
    for ask in (client.retry, client.resume):
        with pytest.raises(Refused, match="has its result") as caught:
            ask(job["id"])
        assert caught.value.status == 409


def test_what_no_worker_can_run_is_said_at_once(service: Any, train_body: Body, until: Any) -> None:
    service.options = ("--slots", "2")
    client = service.start()
    for changes, pointer, words in (
        ({"num_processes": 4}, "/num_processes", "needs 4 CPU slots, the largest node has 2"),
        ({"num_processes": 3}, "/num_processes", "must divide"),
        ({"num_processes": 0}, "/num_processes", "greater than or equal to 1"),
        ({"num_nodes": 2}, "/num_nodes", "one node"),
        ({"engine": "ray"}, "/engine", "has: local"),
        ({"engine": "rm -rf /"}, "/engine", "'local'"),
        ({"name": "$(reboot)"}, "/name", "pattern"),
        ({"name": "a;b"}, "/name", "pattern"),
        ({"name": "../../etc/x"}, "/name", "pattern"),
    ):
        with pytest.raises(Refused) as caught:
            client.train(train_body(**changes))
        assert caught.value.status == 422
        (error,) = caught.value.problem["errors"]
        assert error["pointer"] == pointer, error
        assert words in error["detail"]
    assert client.jobs()["data"] == []

    # Two slots were there when it was asked for; the service that comes back has one.
    long = client.train(train_body(training={"tokens": 2_000_000, "peak_lr": 4e-3, "batch_sequences": 8}))
    until(lambda: client.job(long["id"])["state"] == "running", "one slot is taken")
    pair = client.train(train_body(num_processes=2))
    assert pair["num_processes"] == 2
    assert client.job(pair["id"])["state"] == "queued"
    service.kill()
    service.options = ("--slots", "1")
    client = service.start()
    until(lambda: client.job(pair["id"])["state"] == "failed", "it has failed")
    ended = client.job(pair["id"])
    assert (ended["cause"], ended["num_attempts"]) == ("no_worker", 0)
    assert "needs 2 CPU slots, the largest node has 1" in ended["reason"]
    assert client.job(long["id"])["state"] == "running"
    with pytest.raises(Refused, match="needs 2 CPU slots"):
        client.retry(pair["id"])
    client.cancel(long["id"])
    until(lambda: client.job(long["id"])["state"] == "cancelled", "it is cancelled")


@pytest.mark.long
def test_two_processes_by_the_service(service: Any, train_body: Body, until: Any) -> None:
    service.options = ("--slots", "2")
    client = service.start()
    job = client.train(train_body(num_processes=2))
    until(lambda: client.job(job["id"])["state"] in ENDED, "it has ended")
    assert client.job(job["id"])["state"] == "succeeded", client.job(job["id"])["reason"]
    assert service.engine_processes() == []


# --- many jobs of many clients -------------------------------------------------------------------------------


def check_order(jobs: list[JobRow]) -> None:
    """Each job ran once, and none while one that stood before it in the queue was waiting.

    A job's place is (-priority, id). One that was queued only after another had been claimed may be behind it.
    """
    assert {(job.state, job.num_attempts) for job in jobs} == {("succeeded", 1)}
    for job in jobs:
        for other in jobs:
            waited = other.created_at < str(job.started_at) < str(other.started_at)
            assert not waited or (-job.priority, job.id) < (-other.priority, other.id), (job.name, other.name)


@pytest.mark.parametrize("num_jobs", [20, pytest.param(200, marks=pytest.mark.long)])
def test_short_jobs_of_eight_clients_run_once_each_in_order(
    tmp_path: Path, database_url: str, until: Any, num_jobs: int
) -> None:
    """Corpus preparations, which need no torch, as real processes under one supervisor; 8 threads queue them at once."""
    database = Database(database_url)
    database.migrate()
    runs_dir = tmp_path / "runs"
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"Document {i} of a small corpus."}) + "\n" for i in range(40)))

    def queue(place: int) -> None:
        name = f"corpus-{place}"
        spec = CorpusSpec(
            run_id=new_id("job"), name=name, corpus_dir=str(tmp_path / name), sources=(str(text),), vocab_size=260,
            validation_fraction=0.3,
        )  # fmt: skip
        enqueue_corpus(database, runs_dir, spec, priority=place % 3)

    supervisor = Supervisor(
        database, [LocalLauncher(runs_dir, num_slots=2, gpus=[])], owner="t", on_run_ended=lambda cohort: None
    )
    supervisor.start()
    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        list(clients.map(queue, range(num_jobs)))

    def all_jobs() -> list[JobRow]:
        with database.read() as session:
            return list(job_store.list_jobs(session, limit=1000))

    until(lambda: all(job.state in ENDED for job in all_jobs()), "all have ended", 3_000)
    supervisor.stop()
    assert len(all_jobs()) == num_jobs
    check_order(all_jobs())
    database.close()


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_two_hundred_short_runs_of_eight_clients_run_once_each_in_order(
    service: Any, database_url: str, train_body: Body
) -> None:
    if database_url.startswith("sqlite"):
        database_url = sqlite_url(service.data_dir)
    else:
        service.environment["GROWTHLAW_DATABASE_URL"] = database_url
    service.options = ("--slots", "2")
    url = service.start().url

    def ask(client_number: int) -> list[str]:
        with Growthlaw(url, timeout_seconds=300) as client:
            return [
                client.train(train_body(name=f"c{client_number}-{place}", priority=(place * 7 + client_number) % 5))[
                    "id"
                ]
                for place in range(200 // NUM_CLIENTS)
            ]

    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        ids = [job_id for made in clients.map(ask, range(NUM_CLIENTS)) for job_id in made]
    assert len(set(ids)) == 200
    for job_id in ids:  # a stream waits without asking again and again, which would take the runs' own processor
        assert list(service.client.events(job_id))[-1].data["state"] == "succeeded"
    database = Database(database_url)
    with database.read() as session:
        check_order(list(job_store.list_jobs(session, limit=1000)))
    database.close()
    runs = service.client.runs(limit=1000)["data"]
    assert len(runs) == 200
    assert {run["status"] for run in runs} == {"finished"}
    assert len({run["final_loss"] for run in runs}) == 1, "equal specs give equal losses"
    for run in runs:
        lines = (service.data_dir / "runs" / run["run_id"] / "metrics.jsonl").read_text().splitlines()
        assert [point["seq"] for point in service.client.points(run["run_id"])] == list(range(1, len(lines) + 1))
    assert service.engine_processes() == []


@pytest.mark.long
def test_a_database_locked_for_ten_seconds_is_survived(service: Any, grow_body: Body, until: Any) -> None:
    client = service.start()
    job = client.grow(grow_body(controls=[], token_budget=200_000))["arms"][0]["job"]
    until(lambda: client.points(job["run_id"]), "the first point")
    with sqlite3.connect(service.data_dir / "growthlaw.sqlite3", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        before = len(client.points(job["run_id"]))
        # The service's own waits are 5 s each: two of them fail while the lock is held.
        for _ in range(2):
            with pytest.raises(Refused, match="try again"):
                client.pause(job["id"])
        assert len(client.points(job["run_id"])) == before
        other.execute("ROLLBACK")
    assert list(client.events(job["id"]))[-1].data["state"] == "succeeded"
    assert client.job(job["id"])["num_attempts"] == 1
    check_taken_in_once(client, job, service.data_dir / "runs" / job["run_id"])
