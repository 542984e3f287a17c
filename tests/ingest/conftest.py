"""A real service on a real port, in this process, for the command and the callback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from app.client import Growthlaw
from app.main import create_app
from app.settings import Settings


@pytest.fixture(scope="module")
def live_client(tmp_path_factory: pytest.TempPathFactory, until: Callable[..., Any]) -> Iterator[Growthlaw]:
    app = create_app(Settings(data_dir=tmp_path_factory.mktemp("service"), num_slots=1))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started, "the service listens")
        with Growthlaw(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            yield client
        server.should_exit = True
        thread.join(timeout=60)


@pytest.fixture
def logs() -> Path:
    return Path(__file__).parent / "logs"
