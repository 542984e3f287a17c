"""An app of one's own over a data directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings


@pytest.fixture
def new_client() -> Iterator[Callable[[Path], TestClient]]:
    """Opens a client of an app over a data directory; all are closed at the end."""
    clients: list[TestClient] = []

    def make(data_dir: Path) -> TestClient:
        client = TestClient(create_app(Settings(data_dir=data_dir)), base_url="http://127.0.0.1")
        client.__enter__()
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)
