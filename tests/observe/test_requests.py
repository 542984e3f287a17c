"""A request's id goes through its answer, its problem and its log line; lines hold no secret."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi.testclient import TestClient
from structlog.testing import LogCapture

NewClient = Callable[[Path], TestClient]
HEADER = "x-request-id"


@pytest.fixture
def client(new_client: NewClient, tmp_path: Path) -> TestClient:
    return new_client(tmp_path / "data")


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    """What is logged while a test runs."""
    capture = LogCapture()
    before = structlog.get_config()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture])
    yield capture.entries
    structlog.configure(**before)


def request_lines(lines: list[Any]) -> list[Any]:
    return [line for line in lines if line["event"] == "request"]


def test_a_sane_id_is_taken_and_any_other_made(client: TestClient, lines: list[Any]) -> None:
    assert client.get("/runs", headers={HEADER: "trace-1.a:b_c"}).headers[HEADER] == "trace-1.a:b_c"
    odd = ["", "a" * 65, "a b", '"};DROP', "-x", "ä".encode("latin-1")]
    made = [client.get("/runs", headers={HEADER: given}).headers[HEADER] for given in odd]
    assert all(one.startswith("req_") for one in made)
    assert len(set(made)) == len(odd)
    assert [line["request_id"] for line in request_lines(lines)] == ["trace-1.a:b_c", *made]


def test_problems_bear_the_id_of_their_request(client: TestClient) -> None:
    for answer in (
        client.get("/jobs/job_x"),
        client.get("/nowhere"),
        client.delete("/recommend"),
        client.post("/recommend", json={"target_params": -1}),
        client.post("/recommend", content=b"{"),
    ):
        assert answer.json()["request_id"] == answer.headers[HEADER]
    schema = client.get("/openapi.json").json()
    (problem,) = schema["paths"]["/jobs/{job_id}"]["get"]["responses"]["404"]["content"].values()
    assert problem["schema"] == {"$ref": "#/components/schemas/ProblemBody"}
    assert "request_id" in schema["components"]["schemas"]["ProblemBody"]["properties"]


def test_a_bug_is_answered_and_logged_with_the_id(tmp_path: Path, client: TestClient, lines: list[Any]) -> None:
    @client.app.get("/bug")
    def bug() -> None:
        raise RuntimeError("a bug")

    quiet = TestClient(client.app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    answer = quiet.get("/bug", headers={HEADER: "mine"})
    assert answer.status_code == 500
    assert answer.headers[HEADER] == answer.json()["request_id"] == "mine"
    (line,) = request_lines(lines)
    assert (line["status"], line["log_level"], line["request_id"]) == (500, "error", "mine")


def test_a_line_says_what_was_asked_and_no_secret(client: TestClient, lines: list[Any]) -> None:
    client.get("/jobs/job_x?token=Secret", headers={"cookie": "Secret"})
    client.post("/recommend", json={"target_params": 7e9, "token_budget": 2e12, "cohort": "Secret"})
    client.get("/Secret")
    client.get("/runs", headers={"authorization": "Bearer Secret"})
    first, second, third, refused = request_lines(lines)
    assert (first["method"], first["route"], first["path"], first["status"]) == (
        "GET", "/jobs/{job_id}", "/jobs/job_x", 404,
    )  # fmt: skip
    assert first["ms"] > 0
    assert (second["method"], second["route"], second["status"]) == ("POST", "/recommend", 422)
    assert third["route"] == "unmatched"
    assert refused["status"] == 401
    assert "Secret" not in str(lines)


def test_probes_are_told_only_where_they_fail(client: TestClient, lines: list[Any]) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert client.get(path).status_code == 200
    assert request_lines(lines) == []
    client.app.state.service.stop_begins()
    client.get("/readyz")
    (line,) = request_lines(lines)
    assert (line["route"], line["status"]) == ("/readyz", 503)
