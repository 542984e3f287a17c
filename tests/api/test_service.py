"""The real service as a process: real training, real kills, every point once."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from job_checks import stored_curve

from app.client import Growthlaw, NoService, Refused
from fitting.flops import Shape, flops_per_token

GrowBody = Callable[..., dict[str, Any]]


def arms_of(growth: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {arm["role"]: arm["job"] for arm in growth["arms"]}


def test_a_design_from_request_to_guideline(service: Any, grow_body: GrowBody, until: Any) -> None:
    client = service.start()
    with ThreadPoolExecutor(4) as threads:
        growths = list(threads.map(lambda _: client.grow(grow_body(), idempotency_key="once"), range(4)))
    growth, jobs = growths[0], arms_of(growths[0])
    assert len(client.jobs()["data"]) == 3
    for other in growths:
        assert {role: job["id"] for role, job in arms_of(other).items()} == {
            role: job["id"] for role, job in jobs.items()
        }

    events = {role: list(client.events(job["id"])) for role, job in jobs.items()}
    for role, seen in events.items():
        assert seen[-1].event == "end", role
        assert seen[-1].data["state"] == "succeeded", seen[-1].data
    story = [event.data["event"] for event in events["grown"] if event.event == "story"]
    assert story[0] == "queued"
    assert {"running", "started", "growth", "checkpoint", "succeeded"} <= set(story)
    # A stream taken up behind its middle gives exactly the rest (story and points may be woven otherwise).
    middle = len(events["grown"]) // 2
    rest = client.events(jobs["grown"]["id"], last_event_id=events["grown"][middle].id)
    assert sorted(str(event.data) for event in rest) == sorted(str(e.data) for e in events["grown"][middle + 1 :])

    runs = {role: client.run(job["run_id"]) for role, job in jobs.items()}
    target = Shape(
        num_layers=4,
        hidden_size=32,
        num_heads=2,
        num_kv_heads=2,
        intermediate_size=64,
        vocab_size=512,
        context_length=64,
    )
    f_target, f_base = flops_per_token(target), flops_per_token(target.with_layers(2))
    for role, run in runs.items():
        assert run["status"] == "finished"
        assert run["is_final"] is True
        assert 0 < run["final_loss"] < 7
        f_last = f_base if role == "base_only" else f_target
        flops = run["growth_timing_tokens"] * f_base + run["grown_tokens"] * f_last
        assert run["compute_flops"] == pytest.approx(flops)
        assert run["compute_flops"] == pytest.approx(growth["budget_flops"], rel=0.02)
    assert runs["grown"]["growth_factor"] == 2
    assert runs["grown"]["control_id"] == runs["scratch"]["run_id"]
    for run in runs.values():
        points = client.points(run["run_id"])
        assert [point["seq"] for point in points] == list(range(1, len(points) + 1))
        last = [point for point in points if point["metric"] == "validation_loss"][-1]
        assert last["value"] == run["final_loss"]

    guideline = until(lambda: [g for g in client.guidelines(cohort="tiny")["data"] if g["num_runs"] == 3], "the refit")[
        0
    ]
    assert guideline["is_active"]
    body = client.guideline(guideline["id"])["body"]
    assert body["provisional"] is True
    (pair,) = body["pairs"]
    assert pair["delta_nats"] == pytest.approx(runs["grown"]["final_loss"] - runs["scratch"]["final_loss"])
    shape = {
        "num_layers": 4, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "vocab_size": 512, "context_length": 64,
    }  # fmt: skip
    answer = client.recommend(cohort="tiny", target_shape=shape, token_budget=51_200)
    assert answer["guideline"]["id"] == guideline["id"]
    assert answer["expected"]["delta_nats"] == pytest.approx(pair["delta_nats"])
    assert answer["expected"]["chance_growth_helps"] is None

    loaded = {Path(m.path).name for m in psutil.Process(service.process.pid).memory_maps()}
    assert not [name for name in loaded if "torch" in name]
    assert service.engine_processes() == []


def test_kill_9_of_training_leaves_no_gap_and_no_double(service: Any, grow_body: GrowBody, until: Any) -> None:
    client = service.start()
    undisturbed = arms_of(client.grow(grow_body(name="calm", controls=[])))["grown"]
    assert list(client.events(undisturbed["id"]))[-1].data["state"] == "succeeded"

    killed = arms_of(client.grow(grow_body(name="killed", controls=[])))["grown"]
    for phase in ("base", "grown"):
        until(
            lambda phase=phase: any(
                p["phase"] == phase and p["tokens"] >= 10_240 for p in client.points(killed["run_id"])
            ),
            f"the {phase} phase runs",
        )
        (process,) = service.engine_processes()
        process.kill()
        until(lambda pid=process.pid: pid not in [p.pid for p in service.engine_processes()], "it is dead")
    end = list(client.events(killed["id"]))[-1].data
    assert end["state"] == "succeeded"
    assert end["num_attempts"] == 3
    assert stored_curve(client, killed["run_id"]) == stored_curve(client, undisturbed["run_id"])
    assert client.run(killed["run_id"])["final_loss"] == client.run(undisturbed["run_id"])["final_loss"]


def test_kill_9_of_the_service_loses_nothing(service: Any, grow_body: GrowBody, until: Any) -> None:
    client = service.start()
    job = arms_of(client.grow(grow_body(controls=[])))["grown"]
    until(lambda: client.points(job["run_id"]), "the first point")
    (engine,) = service.engine_processes()
    service.kill()
    assert engine.is_running()
    client = service.start()
    assert list(client.events(job["id"]))[-1].data["state"] == "succeeded"
    assert client.job(job["id"])["num_attempts"] == 1
    points = client.points(job["run_id"])
    assert [point["seq"] for point in points] == list(range(1, len(points) + 1))
    lines = (service.data_dir / "runs" / job["run_id"] / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["value"] for line in lines] == [point["value"] for point in points]


def test_pause_resume_cancel(service: Any, grow_body: GrowBody, until: Any) -> None:
    client = service.start()
    job = arms_of(client.grow(grow_body(controls=[])))["grown"]
    until(lambda: client.points(job["run_id"]), "the first point")
    client.pause(job["id"])
    until(lambda: client.job(job["id"])["state"] == "paused", "it is paused")
    assert service.engine_processes() == []
    client.resume(job["id"])
    until(lambda: client.job(job["id"])["state"] == "running", "it runs again")
    client.cancel(job["id"])
    end = list(client.events(job["id"]))[-1].data
    assert end["state"] == "cancelled"
    assert client.run(job["run_id"])["status"] == "stopped"
    assert service.engine_processes() == []
    with pytest.raises(Refused, match="is cancelled, but only") as caught:
        client.cancel(job["id"])
    assert caught.value.status == 409
    assert client.guidelines(cohort="tiny")["data"] == []


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"corpus": "nowhere"}, "/corpus", "not prepared"),
        ({"corpus": "../../etc"}, "/corpus", "pattern"),
        ({"growth_factor": 3}, "/growth_factor", "[2, 4]"),
        ({"growth_timing_tokens": 900_000}, "/growth_timing_tokens", "grow before"),
        ({"token_budget": 100}, "/token_budget", "batch"),
        ({"token_budget": -5}, "/token_budget", "greater than 0"),
        ({"order": "upside-down"}, "/order", "stack"),
        ({"num_base_layers": 2}, "/num_base_layers", "give one"),
        ({"growth_factor": None}, "/growth_factor", "give one"),
        ({"growth_factor": None, "width_factor": 3}, "/width_factor", "must divide"),
        ({"operator": "random"}, "/mask_tokens", "needs it"),
        ({"learn_steps": 10}, "/learn_steps", "alone"),
        ({"operator": "learn", "learn_steps": 10, "noise": 0.2}, "/noise", "'direct'"),
        ({"learning_rate_policy": "keep", "rewarm_tokens": 5_120}, "/rewarm_tokens", "alone"),
        ({"surprise": 1}, "/surprise", "not known"),
        ({"training": {"peak_lr": -1}}, "/training/peak_lr", "greater than 0"),
        ({"name": "Robert'); DROP TABLE"}, "/name", "pattern"),
    ],
)
def test_bad_designs_start_nothing(
    service_client: Growthlaw, grow_body: GrowBody, change: dict[str, Any], pointer: str, words: str
) -> None:
    with pytest.raises(Refused) as caught:
        service_client.grow(grow_body(**change))
    assert caught.value.status == 422
    (error,) = caught.value.problem["errors"]
    assert error["pointer"] == pointer
    assert words in error["detail"]
    assert service_client.jobs()["data"] == []


def test_heads_must_fit(service_client: Growthlaw, grow_body: GrowBody) -> None:
    body = grow_body()
    body["target_model"] = body["target_model"] | {"num_heads": 3}
    with pytest.raises(Refused, match="hidden_size is 32") as caught:
        service_client.grow(body)
    assert caught.value.problem["errors"][0]["pointer"] == "/target_model/hidden_size"


@pytest.fixture(scope="module")
def service_client(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path, new_service: Any) -> Any:
    """A client of a service that trains nothing (every request to it is refused)."""
    service = new_service(tmp_path_factory.mktemp("refusing") / "data")
    yield service.start()
    service.stop()
    assert service.process.returncode == 0
    assert not (service.data_dir / "service.json").exists()


def test_another_recipe_needs_another_cohort(service: Any, grow_body: GrowBody, until: Any) -> None:
    client = service.start()
    first = arms_of(client.grow(grow_body(controls=[])))["grown"]
    changed = grow_body(controls=[], training={"peak_lr": 1e-3, "weight_decay": 0.3})
    with pytest.raises(Refused, match=r"weight_decay 0\.3 against 0\.1"):
        client.grow(changed)
    assert len(client.jobs()["data"]) == 1
    second = arms_of(client.grow(changed | {"cohort": "other"}))["grown"]
    for job in (first, second):
        client.cancel(job["id"])
        until(lambda job=job: client.job(job["id"])["state"] == "cancelled", "it is cancelled")


def run_serve(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", "serve", *options],
        capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


def test_what_stops_a_service_from_starting_is_said(service: Any, tmp_path: Path) -> None:
    service.start()
    taken = run_serve("--port", "0", "--data-dir", str(service.data_dir))
    assert taken.returncode == 1
    assert "in use by another growthlaw service" in taken.stderr
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        refused = run_serve("--port", str(port), "--data-dir", str(tmp_path / "other"))
    assert refused.returncode == 1
    assert f"--port {port}" in refused.stderr
    assert "--port 0 takes a free one" in refused.stderr
    exposed = run_serve("--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path / "other"))
    assert exposed.returncode == 1
    assert "holds no key" in exposed.stderr
    assert "growthlaw keys create" in exposed.stderr
    (tmp_path / "file").write_text("")
    blocked = run_serve("--port", "0", "--data-dir", str(tmp_path / "file"))
    assert blocked.returncode != 0
    assert "--data-dir" in blocked.stderr


def test_a_client_without_a_service_says_so() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(NoService, match="growthlaw serve"), Growthlaw(f"http://127.0.0.1:{port}") as client:
        client.health()


def test_a_damaged_run_directory_fails_its_job_and_no_other(service: Any, grow_body: GrowBody, until: Any) -> None:
    client = service.start()
    lost = arms_of(client.grow(grow_body(name="lost", controls=[], token_budget=2_000_000)))["grown"]
    until(lambda: client.points(lost["run_id"]), "the first point")
    run_dir = service.data_dir / "runs" / lost["run_id"]
    with open(run_dir / "metrics.jsonl", "a") as file:
        line = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[0]) | {"seq": 9_999_999}
        file.write(json.dumps(line | {"value": float("nan")}) + "\n" + "[" * 5_000 + "\n")
    # Renamed in one step: removing it file by file would race with the engine, which goes on writing there.
    run_dir.rename(service.data_dir / "lost")
    assert client.job(lost["id"])["state"] == "running"
    for process in service.engine_processes():
        process.kill()
    until(lambda: client.job(lost["id"])["state"] == "failed", "the lost job has failed")
    run = client.run(lost["run_id"])
    assert run["status"] == "stopped"
    # What a stopped run has seen is counted, not what was planned for it.
    last = client.points(lost["run_id"])[-1]
    assert run["grown_tokens"] == (last["tokens"] if last["phase"] == "grown" else 0)
    assert run["compute_flops"] == last["compute_flops"] < 1e12
    other = arms_of(client.grow(grow_body(name="other", controls=[])))["grown"]
    assert list(client.events(other["id"]))[-1].data["state"] == "succeeded"


def test_a_key_belongs_to_one_body(service: Any, grow_body: GrowBody) -> None:
    client = service.start()
    first = client.grow(grow_body(controls=[]), idempotency_key="Key")
    with pytest.raises(Refused, match="another body") as caught:
        client.grow(grow_body(controls=[], name="else"), idempotency_key="Key")
    assert caught.value.status == 409
    second = client.grow(grow_body(controls=[]), idempotency_key="key")
    assert second["group_id"] != first["group_id"]
    for growth in (first, second):
        client.cancel(growth["arms"][0]["job"]["id"])


def test_designs_that_the_engine_would_refuse_are_refused_at_once(
    service_client: Growthlaw, grow_body: GrowBody
) -> None:
    body = grow_body()
    for change, pointer in (
        ({"num_validation_windows": 100_000}, "/num_validation_windows"),
        ({"target_model": body["target_model"] | {"context_length": 100_000}}, "/token_budget"),
        ({"training": body["training"] | {"warmup_tokens": 50_000}}, "/warmup_tokens"),
        ({"growth_factor": 1.0000001}, "/growth_factor"),
        ({"evaluation_every_tokens": 10**30}, "/evaluation_every_tokens"),
    ):
        with pytest.raises(Refused) as caught:
            service_client.grow(grow_body(**change))
        assert caught.value.status == 422, change
        assert caught.value.problem["errors"][0]["pointer"] == pointer, caught.value.problem
    # No cohort was made by any of them.
    with pytest.raises(Refused, match="no cohort"):
        service_client.recommend(cohort="tiny", target_params=1e6, token_budget=1e7)


def test_cancel_wins_over_pause(service: Any, grow_body: GrowBody, until: Any) -> None:
    client = service.start()
    job = arms_of(client.grow(grow_body(controls=[], token_budget=2_000_000)))["grown"]
    until(lambda: client.points(job["run_id"]), "the first point")
    (engine,) = service.engine_processes()
    engine.suspend()  # so that both wishes arrive before it can act on the first
    client.cancel(job["id"])
    with pytest.raises(Refused, match="being cancelled"):
        client.pause(job["id"])
    engine.resume()
    assert list(client.events(job["id"]))[-1].data["state"] == "cancelled"


def test_a_failed_job_goes_on_once_its_cause_is_mended(
    service: Any, grow_body: GrowBody, until: Any, tiny_corpus: Path
) -> None:
    client = service.start()
    job = arms_of(client.grow(grow_body(controls=[], token_budget=200_000)))["grown"]
    until(lambda: [p for p in client.points(job["run_id"]) if p["phase"] == "grown"], "the grown phase")
    (engine,) = service.engine_processes()
    # The data goes away under the run, and the run is killed: what starts again finds none.
    data = tiny_corpus / "train-00000.bin"
    data.rename(data.with_suffix(".away"))
    try:
        engine.kill()
        until(lambda: client.job(job["id"])["state"] == "failed", "it has failed")
    finally:
        data.with_suffix(".away").rename(data)
    assert "train-00000.bin" in client.job(job["id"])["reason"]
    client.resume(job["id"])
    until(lambda: client.job(job["id"])["state"] in ("succeeded", "failed"), "it has ended")
    assert client.job(job["id"])["state"] == "succeeded"
    assert client.run(job["run_id"])["status"] == "finished"
    points = client.points(job["run_id"])
    assert [point["seq"] for point in points] == list(range(1, len(points) + 1))


def test_a_locked_database_is_said_and_survived(service: Any, grow_body: GrowBody, until: Any) -> None:
    client = service.start()
    job = arms_of(client.grow(grow_body(controls=[])))["grown"]
    with contextlib.closing(sqlite3.connect(service.data_dir / "growthlaw.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Refused, match="try again") as caught:
            client.pause(job["id"])
        assert caught.value.status == 503
        other.execute("ROLLBACK")
    assert list(client.events(job["id"]))[-1].data["state"] == "succeeded"
    points = client.points(job["run_id"])
    assert [point["seq"] for point in points] == list(range(1, len(points) + 1))


def test_a_damaged_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "growthlaw.sqlite3").write_bytes(b"this is no database" * 100)
    refused = run_serve("--port", "0", "--data-dir", str(tmp_path))
    assert refused.returncode == 1
    assert "growthlaw.sqlite3 cannot be used" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_odd_requests_are_refused_in_words(service_client: Growthlaw) -> None:
    for call in (
        lambda: service_client.job("../../healthz"),
        lambda: service_client.runs(limit=10**30),
        lambda: service_client._call("GET", "/runs/run_x/points", query={"after": 10**30}),
        lambda: list(service_client.events("job_x", last_event_id="1-1")),
    ):
        with pytest.raises(Refused) as caught:
            call()
        assert caught.value.status in (404, 422)
    with pytest.raises(ValueError, match="empty"):
        service_client.job("")
    answer = httpx.post(
        service_client.url + "/recommend", content=b'{"target', headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422
    assert "not JSON" in answer.json()["detail"]
    assert "POST" in httpx.delete(service_client.url + "/recommend").headers["allow"]
