"""Event streams resume from `Last-Event-ID`, also where the service was killed and started again between."""

from __future__ import annotations

import socket
from typing import Any

import httpx


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
