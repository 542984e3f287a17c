"""A job's events over HTTP (server-sent events), taken up where a connection broke.

A stream is tried again until it was broken for :data:`PATIENCE_SECONDS`; one that held for :data:`HELD_SECONDS` was well,
though its job may have had nothing to say. Every event carries the id that the next connection resumes behind.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from app.transport import FIRST_CONTACT_SECONDS, RETRIED_STATUSES, Json, NoService, Refused, Transport, read

# A service may be upgraded meanwhile.
PATIENCE_SECONDS = 120.0
LONGEST_PAUSE_SECONDS = 5.0
# A quiet stream says every 15 s that it lives.
SILENCE_SECONDS = 60.0
HELD_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event of a job's stream: `story`, `point` or `end`; `id` resumes behind it."""

    event: str
    id: str
    data: Json


def events_of(
    transport: Transport,
    path: str,
    job_id: str,
    last_event_id: str | None = None,
    *,
    timeout_seconds: float | None = None,
) -> Iterator[Event]:
    """The events at a path until the job has ended; a broken stream is taken up where it broke.

    Raises:
        TimeoutError: it has not ended within `timeout_seconds`, if any are given.
        NoService: the stream broke again and again.
        Refused: the service knows no such job, or the key may not see it.
    """
    deadline = float("inf") if timeout_seconds is None else time.monotonic() + timeout_seconds
    well, breaks = time.monotonic(), 0
    while True:
        trouble, opened = "it ended early", time.monotonic()
        silence_seconds = max(0.1, min(SILENCE_SECONDS, deadline - opened))
        try:
            for event in one_stream(transport, path, last_event_id, silence_seconds):
                well, breaks, last_event_id = time.monotonic(), 0, event.id
                yield event
                if event.event == "end":
                    return
                if time.monotonic() >= deadline:
                    break
        except httpx.TransportError as error:
            trouble = str(error)
        except Refused as error:
            if error.status not in RETRIED_STATUSES:
                raise
            trouble = str(error)
        now = time.monotonic()
        if now >= deadline:
            raise TimeoutError(f"job {job_id} has not ended within {timeout_seconds:g} s")
        if now - opened >= HELD_SECONDS:
            well, breaks = now, 0
        patience = PATIENCE_SECONDS if transport.answered else FIRST_CONTACT_SECONDS
        if now - well > patience:
            raise NoService(f"the event stream of {job_id} at {transport.url} stays broken: {trouble}")
        time.sleep(min(LONGEST_PAUSE_SECONDS, 0.1 * 2**breaks))
        breaks += 1


def one_stream(transport: Transport, path: str, last_event_id: str | None, silence_seconds: float) -> Iterator[Event]:
    """The events of one connection, which breaks where nothing came for so many seconds."""
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    timeout = httpx.Timeout(SILENCE_SECONDS, read=silence_seconds)
    with transport.http.stream("GET", path, headers=headers, timeout=timeout) as response:
        transport.answered = True
        if response.is_error:
            response.read()
            read(response)
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
            elif not line and "data" in fields:
                yield Event(event=fields["event"], id=fields["id"], data=json.loads(fields["data"]))
                fields = {}
