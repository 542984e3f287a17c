"""The service ends in order when asked, at once when asked twice, and in bounded time whatever hangs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from app.client import Growthlaw, ServiceError
from app.event_stream import one_stream
from app.stopping import stop_loops

RUN = {
    "cohort": "mine", "name": "pushed", "target_params": 4e5, "corpus": "web", "tokenizer": "bpe",
    "decision_dataset": "validation",
}  # fmt: skip


@contextlib.contextmanager
def locked(service: Any) -> Iterator[sqlite3.Connection]:
    """The database held for writing by somebody else, so that a request that writes waits."""
    path = service.data_dir / "growthlaw.sqlite3"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def in_flight(client: Growthlaw) -> float:
    page = httpx.get(client.url + "/metrics").text
    (line,) = [line for line in page.splitlines() if line.startswith("growthlaw_http_requests_in_flight ")]
    return float(line.split()[1]) - 1  # without this scrape


def listens(client: Growthlaw) -> bool:
    parts = urlsplit(client.url)
    with contextlib.suppress(OSError), socket.create_connection((parts.hostname, parts.port), timeout=5):
        return True
    return False


def log_lines(service: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (service.data_dir / "service.log").read_text().splitlines()]


def test_requests_end_streams_close_and_jobs_go_on(service: Any, until: Any) -> None:
    client = service.start()
    job = client.prepare_corpus("bundled")
    until(lambda: client.job(job["id"])["state"] == "running", "the job runs")
    until(service.engine_processes, "its process is there")
    first: list[Any] = []
    stream_ended = threading.Event()

    def read_stream() -> None:
        # One connection, without taking it up again.
        first.extend(one_stream(client._transport, f"/jobs/{job['id']}/events", None, 60.0))
        stream_ended.set()

    with ThreadPoolExecutor() as pool:
        stream = pool.submit(read_stream)
        until(lambda: first or in_flight(client) == 1, "the stream is open")
        with locked(service) as other:
            slow = pool.submit(client.open_run, RUN, idempotency_key="slow")
            until(lambda: in_flight(client) == 2, "the slow request is being answered")
            service.process.send_signal(signal.SIGTERM)
            until(lambda: not listens(client), "it takes no new connection")
            assert service.process.poll() is None
            other.execute("ROLLBACK")
        opened = slow.result()
        stream.result()
    assert service.process.wait(timeout=120) == 0
    assert not (service.data_dir / "service.json").exists()
    assert stream_ended.is_set(), "the stream's connection was closed in order: no error reached its reader"
    assert [event.event for event in first if event.event == "end"] == []
    (preparation,) = service.engine_processes()

    again = service.start()
    assert again.run(opened["run"]["run_id"])["name"] == "pushed"
    assert again.open_run(RUN, idempotency_key="slow")["run"]["run_id"] == opened["run"]["run_id"]
    assert preparation.is_running(), "the same process was taken up"
    again.cancel(job["id"])
    rest = list(again.events(job["id"], last_event_id=first[-1].id))
    assert rest[-1].data["state"] == "cancelled"
    story = [event for event in [*first, *rest] if event.event == "story"]
    assert len({event.id for event in story}) == len(story), "each event once over both streams"
    told = [event.data["event"] for event in story]
    assert told.count("taken_up") == told.count("started") == told.count("cancelled") == 1
    assert again.job(job["id"])["num_attempts"] == 1

    lines = log_lines(service)
    assert {line["job_id"] for line in lines if line["event"] in ("job_started", "job_ended")} == {job["id"]}
    posts = [line for line in lines if line["event"] == "request" and line["method"] == "POST"]
    assert [(line["route"], line["status"]) for line in posts] == [
        ("/corpora", 202), ("/runs", 200), ("/runs", 200), ("/jobs/{job_id}/cancel", 200),
    ]  # fmt: skip
    assert len({line["request_id"] for line in posts}) == len(posts)
    assert not [line for line in lines if line["level"] in ("error", "critical")]


def test_a_second_signal_ends_it_at_once(service: Any, until: Any) -> None:
    client = service.start()
    with ThreadPoolExecutor() as pool, locked(service):
        slow = pool.submit(client.open_run, RUN)
        until(lambda: in_flight(client) == 1, "the slow request is being answered")
        service.process.send_signal(signal.SIGTERM)
        until(lambda: not listens(client), "it takes no new connection")
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(timeout=120) == 0
        with pytest.raises(ServiceError):
            slow.result()
    assert [line["reason"] for line in log_lines(service) if line["event"] == "stop_cut_short"] == ["asked twice"]
    assert not (service.data_dir / "service.json").exists()
    with contextlib.closing(sqlite3.connect(service.data_dir / "growthlaw.sqlite3")) as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (0,), (
            "what was never acknowledged was not done"
        )


HANGING = """
import socket, threading
from fastapi import FastAPI
import uvicorn
from app import stopping
stopping.SECONDS_FOR_LOOPS = stopping.SECONDS_TO_SPARE = 0.1
app = FastAPI()
@app.get("/")
def forever():
    print("asked", flush=True)
    threading.Event().wait()
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=0)
stopping.StoppableServer(config, on_stop=lambda: None, on_cut_short=lambda: print("cleaned", flush=True)).run(
    sockets=[listener])
"""


def test_what_hangs_for_ever_does_not_hold_the_process(until: Any) -> None:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert process.stdout is not None
    port = int(process.stdout.readline())
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(httpx.get, f"http://127.0.0.1:{port}/", timeout=120, trust_env=False)
        assert process.stdout.readline() == "asked\n"
        process.terminate()
        out, err = process.communicate(timeout=120)
        with pytest.raises(httpx.HTTPError):  # uvicorn still answers what it gave up on
            asked.result().raise_for_status()
    assert process.returncode == 0
    assert out == "cleaned\n"
    assert "it took too long" in err


def test_loops_are_stopped_side_by_side_and_not_waited_for_without_end() -> None:
    ended = []
    never = threading.Event()
    stop_loops({"hanging": never.wait, "quick": lambda: ended.append("quick")}, seconds=0.05)
    assert ended == ["quick"]
    never.set()
