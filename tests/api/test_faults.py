"""Faults of a whole service, with real processes: after each the job ends right, nothing is lost, doubled or left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from job_checks import check_one_refit, check_taken_in_once, stored_curve, story_of

from app.client import Growthlaw, Refused

Body = Callable[..., dict[str, Any]]


def start_run(client: Growthlaw, body: dict[str, Any]) -> dict[str, Any]:
    job: dict[str, Any] = client.grow(body)["arms"][0]["job"]
    return job


def reaches(client: Growthlaw, job: dict[str, Any], phase: str) -> bool:
    return any(point["phase"] == phase for point in client.points(job["run_id"]))


def test_a_run_that_ends_while_no_service_is_there_is_stored_once(service: Any, grow_body: Body, until: Any) -> None:
    client = service.start()
    job = start_run(client, grow_body(controls=[]))
    until(lambda: client.points(job["run_id"]), "the first point")
    service.kill()
    until(lambda: service.engine_processes() == [], "the run ends without a service")
    for _ in range(2):  # the second time there is nothing left to do
        client = service.start()
        assert list(client.events(job["id"]))[-1].data["state"] == "succeeded"
        check_one_refit(client, "tiny", 1, until)
        service.kill()
    client = service.start()
    check_taken_in_once(client, job, service.data_dir / "runs" / job["run_id"])
    story = story_of(client, job["id"])
    assert story.count("succeeded") == story.count("started") == story.count("taken_up") == 1
    assert client.job(job["id"])["num_attempts"] == 1


@pytest.mark.long
def test_service_and_run_killed_and_the_checkpoint_torn(service: Any, grow_body: Body, until: Any) -> None:
    client = service.start()
    body = grow_body(controls=[], token_budget=200_000)
    undisturbed = start_run(client, body)
    assert list(client.events(undisturbed["id"]))[-1].data["state"] == "succeeded"
    job = start_run(client, body)
    for phase in ("base", "grown"):
        until(lambda phase=phase: reaches(service.client, job, phase), f"the {phase} phase runs")
        until(lambda: len(_whole_checkpoints(service.client, job["id"])) >= 2, "one stands behind the newest")
        service.kill()
        for process in service.engine_processes():
            process.kill()
        until(lambda: service.engine_processes() == [], "all are dead")
        newest = max((service.data_dir / "runs" / job["run_id"] / "checkpoints").glob("tokens-*"))
        torn = max(newest.iterdir(), key=lambda file: file.stat().st_size)
        os.truncate(torn, torn.stat().st_size // 2)
        client = service.start()
        assert any(found["problem"] for found in client.checkpoints(job["id"]))
        until(lambda name=newest.name: any(name in said for said in _damages(service.client, job["id"])), "it is told")
    assert list(client.events(job["id"]))[-1].data["state"] == "succeeded"
    assert client.job(job["id"])["num_attempts"] == 3
    assert stored_curve(client, job["run_id"]) == stored_curve(client, undisturbed["run_id"])
    assert client.run(job["run_id"])["final_loss"] == client.run(undisturbed["run_id"])["final_loss"]
    check_taken_in_once(client, job, service.data_dir / "runs" / job["run_id"])
    story = story_of(client, job["id"])
    assert story.count("checkpoint_damaged") == story.count("resumed") == story.count("taken_up") == 2
    assert service.engine_processes() == []


def _whole_checkpoints(client: Growthlaw, job_id: str) -> list[dict[str, Any]]:
    """The last two, and once there is one the base's; what was set aside as damaged stays listed beside them."""
    return [found for found in client.checkpoints(job_id) if not found["problem"]]


def _damages(client: Growthlaw, job_id: str) -> Iterator[str]:
    """What a running job's story says of damaged checkpoints up to now; the stream itself would wait for its end."""
    for event in client.events(job_id):
        if event.event != "story":
            return
        if event.data["event"] == "checkpoint_damaged":
            yield event.data["message"]


@pytest.mark.long
@pytest.mark.parametrize("phase", ["queued", "starting", "base", "growth", "grown"])
def test_cancelled_in_any_phase_by_a_request(service: Any, grow_body: Body, until: Any, phase: str) -> None:
    service.options = ("--slots", "1")
    client = service.start()
    growth = {"operator": "learn", "learn_steps": 2_000} if phase == "growth" else {}
    body = grow_body(controls=[], token_budget=4_000_000, evaluation_every_tokens=5_120, **growth)
    if phase == "queued":
        before = start_run(client, body)
        until(lambda: client.job(before["id"])["state"] == "running", "the only slot is taken")
    job = start_run(client, body)
    if phase == "starting":
        until(service.engine_processes, "its process is there")
    elif phase == "growth":
        # Its points are written when it is over, its event when it begins.
        next(event for event in client.events(job["id"]) if event.data.get("event") == "growing")
    elif phase != "queued":
        until(lambda: reaches(client, job, phase), f"the {phase} phase runs")
    client.cancel(job["id"])
    end = list(client.events(job["id"]))[-1].data
    assert (end["state"], end["cause"]) == ("cancelled", None)
    assert client.run(job["run_id"])["status"] == "stopped"
    if phase == "queued":
        assert (end["num_attempts"], client.points(job["run_id"])) == (0, [])
        client.cancel(before["id"])
        until(lambda: client.job(before["id"])["state"] == "cancelled", "the other is cancelled too")
    elif phase != "starting":
        check_taken_in_once(client, job, service.data_dir / "runs" / job["run_id"])
        assert [event for event in story_of(client, job["id"]) if event in ("cancel_asked", "paused", "cancelled")] == [
            "cancel_asked", "paused", "cancelled",
        ]  # fmt: skip
    assert phase != "growth" or not reaches(client, job, "growth"), "the growth was over before it was cancelled"
    assert service.engine_processes() == []
    assert client.guidelines(cohort="tiny")["data"] == []


# --- a full disk ---------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_run_that_may_write_no_more_fails_and_goes_on_once_it_may(service: Any, grow_body: Body, until: Any) -> None:
    """To the engine what a full disk is, on machines where none can be mounted: the system takes part of a line and
    refuses the rest (a file-size limit, EFBIG)."""
    client = service.start()
    body = grow_body(controls=[], token_budget=200_000)
    undisturbed = start_run(client, body)
    assert list(client.events(undisturbed["id"]))[-1].data["state"] == "succeeded"
    job = start_run(client, body)
    run_dir = service.data_dir / "runs" / job["run_id"]
    until(lambda: reaches(client, job, "grown"), "the grown phase runs")
    (engine,) = service.engine_processes()
    largest = (run_dir / "metrics.jsonl").stat().st_size + 100
    engine.rlimit(psutil.RLIMIT_FSIZE, (largest, largest))
    assert list(client.events(job["id"]))[-1].data["state"] == "failed"
    failed = client.job(job["id"])
    assert (failed["cause"], failed["num_attempts"]) == ("no_space", 1)
    assert "free some disk space, then retry" in failed["reason"]
    client.retry(job["id"])
    assert list(client.events(job["id"]))[-1].data["state"] == "succeeded"
    assert stored_curve(client, job["run_id"]) == stored_curve(client, undisturbed["run_id"])
    check_taken_in_once(client, job, run_dir)
    assert story_of(client, job["id"]).count("resumed") == 1
    assert service.engine_processes() == []


DISK_MEGABYTES = 200


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which can be filled without harm to anybody."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "growthlaw-tests", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"needs the right to mount a tmpfs (run as root, in a container with CAP_SYS_ADMIN): {done.stderr}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take what room is left; gives the file to remove."""
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), open(ballast, "ab", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    assert shutil.disk_usage(folder).free == 0
    return ballast


@pytest.mark.long
@pytest.mark.parametrize("database", ["on the full disk", "elsewhere"])
def test_a_full_disk_fails_the_job_and_it_goes_on_once_there_is_room(
    request: pytest.FixtureRequest, small_disk: Path, new_service: Any, grow_body: Body, until: Any, database: str
) -> None:
    service = new_service(small_disk / "data")
    if database == "elsewhere":
        service.environment["GROWTHLAW_DATABASE_URL"] = request.getfixturevalue("postgres").new_database()
    client = service.start()
    try:
        body = grow_body(controls=[], token_budget=200_000)
        undisturbed = start_run(client, body)
        assert list(client.events(undisturbed["id"]))[-1].data["state"] == "succeeded"
        check_one_refit(client, "tiny", 1, until)

        job = start_run(client, body)
        until(lambda: reaches(client, job, "grown"), "the grown phase runs")
        ballast = fill(small_disk)
        until(lambda: service.engine_processes() == [], "the run has given up")
        with pytest.raises(Refused, match="free") as caught:
            client.grow(body)
        assert caught.value.status == 507
        if database == "on the full disk":
            # Nothing can be stored, yet the service answers and says what is wrong.
            assert client.job(job["id"])["state"] == "running"
            with pytest.raises(Refused, match="disk is full") as caught:
                client.pause(job["id"])
            assert caught.value.status == 503
            ballast.unlink()
        until(lambda: client.job(job["id"])["state"] == "failed", "it has failed")
        failed = client.job(job["id"])
        assert failed["cause"] == "no_space"
        assert failed["reason"].startswith("no space: ")
        assert "free some disk space, then retry" in failed["reason"]
        assert client.run(job["run_id"])["status"] == "stopped"
        ballast.unlink(missing_ok=True)
        client.retry(job["id"])
        assert list(client.events(job["id"]))[-1].data["state"] == "succeeded"
        assert stored_curve(client, job["run_id"]) == stored_curve(client, undisturbed["run_id"])
        check_taken_in_once(client, job, service.data_dir / "runs" / job["run_id"])
        story = story_of(client, job["id"])
        assert story.count("resumed") == story.count("succeeded") == 1
        assert "failed" in story
        assert service.engine_processes() == []
    finally:
        service.stop()
        for process in service.engine_processes():
            process.kill()
