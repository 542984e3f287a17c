"""Server-sent events: made where they are sent, so that a reader who leaves in mid-stream leaves no trace.

The framework's own streams hand events from task to task; where the reader leaves while events come, the hand-over breaks,
which it logs as a crash of the service. Pages leave all the time.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from pydantic import BaseModel
from starlette.responses import StreamingResponse

# Said where nothing else was for this long, so that proxies and readers know that the stream lives.
SECONDS_OF_SILENCE = 15.0
_ALIVE = b": alive\n\n"


class EventStream(StreamingResponse):
    """An answer of server-sent events, which nobody on the way may keep back or store."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


def event_bytes(event: str, data: BaseModel, event_id: str) -> bytes:
    """One event as it travels; JSON has no line breaks of its own."""
    return f"event: {event}\nid: {event_id}\ndata: {data.model_dump_json()}\n\n".encode()


class Silence:
    """Watches when a stream last said something."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def broken(self) -> None:
        """Something was sent."""
        self._since = time.monotonic()

    def word(self) -> bytes:
        """What to send now so that the silence does not last; empty while it is short."""
        if time.monotonic() - self._since < SECONDS_OF_SILENCE:
            return b""
        self.broken()
        return _ALIVE
