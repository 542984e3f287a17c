"""`GET /readyz` names the part that fails, and only that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from fastapi.testclient import TestClient

from app.api import health
from app.store.database import MIGRATIONS_DIR

NewClient = Callable[[Path], TestClient]


@pytest.fixture
def client(new_client: NewClient, tmp_path: Path) -> TestClient:
    return new_client(tmp_path / "data")


def failed(client: TestClient) -> dict[str, str]:
    """The parts that `/readyz` names, with what is wrong."""
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    return {error["pointer"]: error["detail"] for error in answer.json()["errors"]}


def test_a_service_that_is_well_is_ready(client: TestClient) -> None:
    answer = client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ready",
        "checks": dict.fromkeys(("database", "launcher", "data_dir", "serving"), "ok"),
    }
    assert list((client.app.state.service.settings.data_dir).glob("tmp*")) == []


def test_a_schema_of_another_version_is_named(client: TestClient) -> None:
    database = client.app.state.service.database
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_DIR))
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "-1")
    (trouble,) = failed(client).values()
    assert database.newest_revision() in trouble
    assert "restart the service" in trouble
    database.migrate()
    assert client.get("/readyz").status_code == 200


def test_a_directory_that_takes_no_file_is_named(client: TestClient) -> None:
    runs_dir = client.app.state.service.settings.runs_dir
    runs_dir.rename(runs_dir.with_name("away"))
    assert str(runs_dir) in failed(client)["check:data_dir"]
    runs_dir.with_name("away").rename(runs_dir)
    assert client.get("/readyz").status_code == 200


def test_a_launcher_loop_that_hangs_or_has_ended_is_named(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(health, "LONGEST_TICK_SECONDS", -1.0)  # any time since the last turn is too long
        assert "not gone round" in failed(client)["check:launcher"]
    client.app.state.service.supervisor.stop()
    assert "has ended" in failed(client)["check:launcher"]
    assert client.get("/healthz").status_code == 503


def test_a_service_that_is_being_stopped_is_not_ready(client: TestClient) -> None:
    client.app.state.service.stop_begins()
    assert "check:serving" in failed(client)
