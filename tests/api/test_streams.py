"""Event streams resume from `Last-Event-ID`, also where the service was killed and started again between."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import httpx

from app.main import open_database
from app.settings import Settings
from app.store import keys as key_store
from app.store.tables import LOCAL


def test_one_stream_goes_on_across_a_kill_of_the_service(service: Any, grow_body: Any, until: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    service.options = ("--port", str(port))
    client = service.start()
    job = client.grow(grow_body(controls=[]))["arms"][0]["job"]
    seen: list[Any] = []
    killed = False
    for event in client.events(job["id"]):
        seen.append(event)
        if event.event == "point" and not killed:
            killed = True
            service.kill()
            service.start()
    assert killed
    assert seen[-1].data["state"] == "succeeded"
    whole = list(client.events(job["id"]))
    for kind in ("story", "point", "end"):
        # Each once and in order; how story and points are woven is the timing's.
        assert [e.data for e in seen if e.event == kind] == [e.data for e in whole if e.event == kind], kind
    # Taken up behind its last event but one, an ended stream gives the end alone.
    assert [e.event for e in client.events(job["id"], last_event_id=whole[-2].id)] == ["end"]


def test_an_id_of_no_stream_is_refused_before_the_stream_begins(service: Any, grow_body: Any) -> None:
    client = service.start()
    job = client.grow(grow_body(controls=[]))["arms"][0]["job"]
    client.cancel(job["id"])
    for last in ("x", "1", "1-x", "-5-0", "1-99999999999999999999"):
        answer = httpx.get(f"{client.url}/jobs/{job['id']}/events", headers={"Last-Event-ID": last})
        assert answer.status_code == 422, last
        assert "Last-Event-ID" in answer.json()["detail"]


def test_readers_who_leave_in_mid_stream_leave_no_trace(service: Any, grow_body: Any, until: Any) -> None:
    """Pages do so all the time; what the log then holds of it is a request that was answered."""
    client = service.start()
    job = client.grow(grow_body(controls=[], token_budget=2_048_000, evaluation_every_tokens=4_096)).arms[0].job
    left = 12
    for _ in range(left):
        with httpx.stream("GET", f"{client.url}/jobs/{job.id}/events", timeout=120) as stream:
            next(line for line in stream.iter_lines() if line == "event: point")
    log = service.data_dir / "service.log"

    def streams() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("route") == "/jobs/{job_id}/events"]

    until(lambda: len(streams()) == left, "every stream that was left has ended")
    assert {line["status"] for line in streams()} == {200}
    assert "Traceback" not in log.read_text()
    assert not [line for line in log.read_text().splitlines() if line and not line.startswith("{")]
    assert '"level": "error"' not in log.read_text()
    client.cancel(job.id)


def test_a_stream_ends_with_its_key(service: Any, grow_body: Any, until: Any) -> None:
    database = open_database(Settings(data_dir=service.data_dir))
    with database.write() as session:
        service.api_key = key_store.create_key(session, name="owner", scope="admin", actor=LOCAL).token
    database.close()
    service.options = ("--require-key", "--slots", "1")
    client = service.start()
    growth = client.grow(grow_body(controls=["scratch"]))
    waiting = growth.arms[1].job
    client.pause(waiting.id)
    reader = client.create_key("reader", "read")
    events: list[str] = []

    def follow() -> None:
        headers = {"Authorization": f"Bearer {reader.token}"}
        with httpx.stream("GET", f"{client.url}/jobs/{waiting.id}/events", headers=headers, timeout=120) as stream:
            events.extend(line for line in stream.iter_lines() if line.startswith("event:"))
        events.append("closed")

    follower = threading.Thread(target=follow)
    follower.start()
    until(lambda: len(events) >= 2 and follower.is_alive(), "the stream is open and has told its story")
    client.revoke_key(reader.id)
    follower.join(timeout=60)
    assert events[-1] == "closed"
    assert set(events[:-1]) == {"event: story"}
    client.cancel(growth.arms[0].job.id)
