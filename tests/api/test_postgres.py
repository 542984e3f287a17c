"""The real service on a real PostgreSQL: its password stays secret, its restarts lose nothing, two services share it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from job_checks import check_one_refit, check_taken_in_once, story_of
from pydantic import SecretStr

from app.client import Growthlaw, Refused
from app.main import StartError, create_app
from app.settings import Settings

Body = Callable[..., dict[str, Any]]


@pytest.fixture
def url(postgres: Any) -> str:
    found: str = postgres.new_database()
    return found


@pytest.fixture
def service(service: Any, url: str) -> Any:
    """The tests' service, on PostgreSQL."""
    service.environment["GROWTHLAW_DATABASE_URL"] = url
    return service


def start_run(client: Growthlaw, body: dict[str, Any]) -> dict[str, Any]:
    job: dict[str, Any] = client.grow(body)["arms"][0]["job"]
    return job


def test_a_run_on_postgresql_and_its_password_nowhere(service: Any, postgres: Any, grow_body: Body, until: Any) -> None:
    client = service.start()
    job = start_run(client, grow_body(controls=[]))
    until(lambda: client.points(job["run_id"]), "the first point")
    for process in [*service.engine_processes()]:
        assert "GROWTHLAW_DATABASE_URL" not in process.environ()
    assert list(client.events(job["id"]))[-1].data["state"] == "succeeded"
    check_one_refit(client, "tiny", 1, until)
    check_taken_in_once(client, job, service.data_dir / "runs" / job["run_id"])
    assert client.run(job["run_id"])["status"] == "finished"
    with pytest.raises(Refused, match="no job"):
        client.job("job_\x00")
    assert not (service.data_dir / "growthlaw.sqlite3").exists()
    service.stop()
    for path in service.data_dir.rglob("*"):
        if path.is_file():
            assert postgres.password.encode() not in path.read_bytes(), path


def test_a_database_that_cannot_be_used_is_said_without_its_password(tmp_path: Path, postgres: Any) -> None:
    for url, password in (
        (postgres.url().replace(f":{postgres.port}/", ":1/"), postgres.password),
        (postgres.url("nowhere"), postgres.password),
    ):
        with pytest.raises(StartError, match=r"\*\*\*.*cannot be used") as caught:
            create_app(Settings(data_dir=tmp_path, database_url=SecretStr(url)))
        assert password not in str(caught.value)
    url = postgres.url().replace(postgres.password, "Wrong-Secret")
    refused = subprocess.run(
        [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--data-dir", str(tmp_path), "--database-url", url],
        capture_output=True, text=True, timeout=60, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert refused.returncode == 1
    assert "authentication failed" in refused.stderr
    assert "see that it runs" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "Wrong-Secret" not in refused.stdout + refused.stderr


def test_a_restart_of_the_database_loses_and_doubles_nothing(
    service: Any, postgres: Any, grow_body: Body, until: Any
) -> None:
    """The server crashes twice under a running job, the second time while the job ends."""
    client = service.start()
    job = start_run(client, grow_body(controls=[], token_budget=100_000))
    run_dir = service.data_dir / "runs" / job["run_id"]
    until(lambda: client.points(job["run_id"]), "the first point")
    postgres.stop("immediate")
    try:
        with pytest.raises(Refused, match="did not answer") as caught, Growthlaw(client.url, retry_seconds=0) as once:
            once.job(job["id"])
        assert caught.value.status == 503
        assert postgres.password not in str(caught.value)
        # It goes on writing while nobody can store what it writes.
        size = (run_dir / "metrics.jsonl").stat().st_size
        until(lambda: (run_dir / "metrics.jsonl").stat().st_size > size, "the run goes on")
    finally:
        postgres.start()
    until(lambda: [p for p in client.points(job["run_id"]) if p["phase"] == "grown"], "the service goes on too")
    threads = ThreadPoolExecutor(1)
    stream = threads.submit(lambda: list(client.events(job["id"])))
    postgres.stop("immediate")
    try:
        until(lambda: (run_dir / "result.json").exists(), "the run ends on its own")
        until(lambda: service.engine_processes() == [], "its process is gone")
    finally:
        postgres.start()
    # A stream that was open breaks, and is taken up where it broke.
    seen = stream.result()
    assert seen[-1].data["state"] == "succeeded"
    assert len({event.id for event in seen}) == len(seen) - 1, "the end bears the id of what stands before it"
    ended = client.job(job["id"])
    assert (ended["num_attempts"], ended["cause"]) == (1, None)
    check_taken_in_once(client, job, run_dir)
    check_one_refit(client, "tiny", 1, until)
    assert postgres.password not in (service.data_dir / "service.log").read_text()


# --- two services on one database ----------------------------------------------------------------------------

LEASE_SECONDS = 2


@pytest.fixture
def pair(tmp_path: Path, new_service: Any, url: str) -> Iterator[tuple[Any, Any]]:
    """Two services with one database and one folder of runs, each with a data directory of its own."""
    services = []
    for name in ("one", "two"):
        service = new_service(tmp_path / name)
        service.runs_dir = tmp_path / "runs"
        service.options = ("--runs-dir", str(service.runs_dir), "--slots", "1")
        service.environment |= {"GROWTHLAW_DATABASE_URL": url, "GROWTHLAW_LEASE_SECONDS": str(LEASE_SECONDS)}
        services.append(service)
    yield services[0], services[1]
    for service in services:
        if service.process is not None:
            if service.process.poll() is None:
                psutil.Process(service.process.pid).resume()
            service.stop()
    for process in services[0].engine_processes():
        process.kill()


def test_a_silent_services_job_is_taken_over(pair: tuple[Any, Any], grow_body: Body, until: Any) -> None:
    one, two = pair
    job = start_run(one.start(), grow_body(controls=[], token_budget=100_000))
    client = two.start()
    until(lambda: client.points(job["run_id"]), "the first point")
    assert len(one.engine_processes()) == 1
    one.kill()
    assert list(client.events(job["id"]))[-1].data["state"] == "succeeded"
    # Both services are of this machine: the living process was taken over, not started again.
    assert client.job(job["id"])["num_attempts"] == 1
    story = story_of(client, job["id"])
    assert story.count("taken_over") == 1
    assert story.count("started") == story.count("succeeded") == 1
    check_taken_in_once(client, job, one.runs_dir / job["run_id"])
    assert one.engine_processes() == []
    check_one_refit(client, "tiny", 1, until)
    # Back again, the first one finds the job done and does nothing to it.
    one.start()
    assert story_of(one.client, job["id"]) == story


@pytest.mark.long
def test_service_and_process_gone_the_other_service_goes_on_from_the_checkpoint(
    pair: tuple[Any, Any], grow_body: Body, until: Any
) -> None:
    one, two = pair
    job = start_run(one.start(), grow_body(controls=[], token_budget=100_000))
    client = two.start()
    until(lambda: client.checkpoints(job["id"]), "a checkpoint stands")
    (engine,) = one.engine_processes()
    one.kill()
    engine.kill()
    assert list(client.events(job["id"]))[-1].data["state"] == "succeeded"
    assert client.job(job["id"])["num_attempts"] == 2
    story = story_of(client, job["id"])
    assert [event for event in story if event in ("taken_over", "started", "resumed")] == [
        "started",
        "taken_over",
        "resumed",
    ]
    check_taken_in_once(client, job, one.runs_dir / job["run_id"])
    assert one.engine_processes() == []


@pytest.mark.long
def test_a_service_that_slept_through_its_lease_leaves_the_job_alone(
    pair: tuple[Any, Any], grow_body: Body, until: Any
) -> None:
    one, two = pair
    job = start_run(one.start(), grow_body(controls=[], token_budget=100_000))
    client = two.start()
    until(lambda: client.points(job["run_id"]), "the first point")
    sleeper = psutil.Process(one.process.pid)
    sleeper.suspend()
    until(
        lambda: any(event.data["event"] == "taken_over" for event in _story_so_far(client, job["id"])),
        "the other has taken it over",
    )
    sleeper.resume()
    assert list(client.events(job["id"]))[-1].data["state"] == "succeeded"
    story = story_of(client, job["id"])
    assert story.count("taken_over") == story.count("started") == story.count("succeeded") == 1
    assert client.job(job["id"])["num_attempts"] == 1
    check_taken_in_once(client, job, one.runs_dir / job["run_id"])
    until(lambda: one.client.health()["status"] == "ok", "the sleeper is well")
    check_one_refit(client, "tiny", 1, until)


def _story_so_far(client: Growthlaw, job_id: str) -> list[Any]:
    """The job's story up to now; the stream itself would wait for the job's end."""
    story = []
    for event in client.events(job_id):
        if event.event == "point":
            break
        story.append(event)
    return story
