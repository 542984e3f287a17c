"""A service in this process for tests of the pages: the real app on a free port, its store at hand to be filled."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from conftest import wait_until

from app.client import Growthlaw
from app.main import create_app
from app.settings import Settings
from app.store.database import Database


@dataclass(frozen=True, kw_only=True)
class Served:
    client: Growthlaw
    database: Database

    def page(self, path: str) -> str:
        return f"{self.client.url}/ui/{path}"


@contextlib.contextmanager
def serving(data_dir: Path, *, refit_after_seconds: float = 0) -> Iterator[Served]:
    """Serve `data_dir`; `refit_after_seconds` as in the settings."""
    app = create_app(Settings(data_dir=data_dir, num_slots=1, refit_after_seconds=refit_after_seconds))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, "the server starts")
        port = server.servers[0].sockets[0].getsockname()[1]
        with Growthlaw(f"http://127.0.0.1:{port}") as client:
            yield Served(client=client, database=app.state.service.database)
    finally:
        server.should_exit = True
        thread.join()
