"""The real service as a process: real training, real kills, every point once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.client import Growthlaw, NoService, Refused
from fitting.flops import Shape, flops_per_token

GrowBody = Callable[..., dict[str, Any]]


def arms_of(growth: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {arm["role"]: arm["job"] for arm in growth["arms"]}


def stored_curve(client: Growthlaw, run_id: str) -> list[tuple[Any, ...]]:
    """The run's points without what the clock decides."""
    return [
        (p["seq"], p["phase"], p["tokens"], p["compute_flops"], p["metric"], p["value"])
        for p in client.points(run_id)
        if p["metric"] not in ("tokens_per_second", "growth_seconds")
    ]


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
    assert "loopback only" in exposed.stderr
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
