"""Each request's id, its line in the log and its place in the metrics: plain ASGI, so that streams pass through unheld.

The id is the caller's `X-Request-ID` where that is sane, so that a line here can be found from the caller's own logs;
else one is made. It is in the answer's header, in the body of every problem and in every log line of the request. Lines
hold the path and never its query string, a header or a body: those may hold secrets.
"""

from __future__ import annotations

import re
import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.observe.metrics import UNMATCHED, Metrics
from app.store.ids import new_id

log = structlog.get_logger()

REQUEST_ID_HEADER = "X-Request-ID"
_ID_HEADER = REQUEST_ID_HEADER.lower().encode()
_STREAM = b"text/event-stream"
SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
# Asked every few seconds by machines: told only where they fail.
PROBES = ("/healthz", "/readyz", "/metrics")
LONGEST_PATH = 200


def current_request_id() -> str | None:
    """The id of the request being answered here; None outside of one."""
    found: str | None = structlog.contextvars.get_contextvars().get("request_id")
    return found


class RequestLog:
    """The outermost middleware of the service."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == _ID_HEADER), "")
        request_id = given if SANE_ID.fullmatch(given) else new_id("req")
        # Bound for good: the server answers each request in a task of its own, and logs a crash behind this point.
        structlog.contextvars.bind_contextvars(request_id=request_id)
        status, is_stream = 500, False

        async def send_with_id(message: Message) -> None:
            nonlocal status, is_stream
            if message["type"] == "http.response.start":
                # On the raw list: this is done for every answer.
                others = [one for one in message["headers"] if one[0] != _ID_HEADER]  # a problem bears it by itself
                headers = message["headers"] = [*others, (_ID_HEADER, request_id.encode())]
                status = message["status"]
                is_stream = any(name == b"content-type" and value.startswith(_STREAM) for name, value in headers)
                if is_stream:
                    self._metrics.stream_opened()
            await send(message)

        begun = time.perf_counter()
        self._metrics.request_begun()
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - begun
            route = getattr(scope.get("route"), "path", UNMATCHED)
            self._metrics.request_ended(scope["method"], route, status, seconds, is_stream=is_stream)
            if route not in PROBES or status >= 400:
                write = log.error if status >= 500 else log.info
                # Where no route was meant nobody knows what the path holds.
                path = {} if route in (UNMATCHED, scope["path"]) else {"path": scope["path"][:LONGEST_PATH]}
                write(
                    "request", method=scope["method"], route=route, **path, status=status, ms=round(seconds * 1e3, 2),
                )  # fmt: skip
