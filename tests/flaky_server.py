"""Servers for tests of clients: one that answers by a script, and a proxy before a real service that drops answers."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)


@dataclass
class Answer:
    """What to answer; `status` 0 closes the connection without a word."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class FlakyServer:
    url: str
    seen: list[Seen]


@contextmanager
def answering(answer: Callable[[Seen], Answer]) -> Iterator[FlakyServer]:
    """A real HTTP server on a free loopback port; `answer` says what each request gets."""
    seen: list[Seen] = []

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            request = Seen(self.command, self.path, dict(self.headers.items()), self.rfile.read(length))
            seen.append(request)
            said = answer(request)
            if said.status:
                self.send_response(said.status)
                for name, value in ({"Content-Length": str(len(said.body))} | said.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(said.body)
            self.close_connection = True

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield FlakyServer(f"http://127.0.0.1:{server.server_address[1]}", seen)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def by_script(script: Sequence[Answer]) -> Iterator[FlakyServer]:
    """Answers in turn; the last one again and again."""
    waiting = list(script)
    with answering(lambda request: waiting.pop(0) if len(waiting) > 1 else waiting[0]) as server:
        yield server


@contextmanager
def dropping_proxy(url: str, drops: Callable[[Seen], bool]) -> Iterator[FlakyServer]:
    """Hands every request on to the service at `url`; where `drops` says so, its answer never arrives."""
    place = urlsplit(url)

    def hand_on(request: Seen) -> Answer:
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "connection")}
        connection.request(request.method, request.path, request.body, headers)
        response = connection.getresponse()
        kind = response.headers.get("content-type", "")
        answer = Answer(response.status, response.read(), {"Content-Type": kind})
        connection.close()
        return Answer(status=0) if drops(request) else answer

    with answering(hand_on) as server:
        yield server
