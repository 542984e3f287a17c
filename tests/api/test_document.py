"""The OpenAPI document: every route is summed up, has real examples that fit its own schema, and tells its problems."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from fastapi.testclient import TestClient

from app.api.document import read_examples
from app.main import create_app
from app.settings import Settings

# Answers that are no JSON, and routes without a body of JSON that says something by itself.
NO_RESPONSE = {"GET /jobs/{job_id}/events", "GET /metrics"}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    app = create_app(Settings(data_dir=tmp_path_factory.mktemp("data"), num_slots=1))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }


def fits(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    jsonschema.validate(value, {**schema, "components": document["components"]})


def test_every_route_is_summed_up_and_described(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        assert operation.get("summary"), name
        assert operation.get("description"), name
        # FastAPI makes a summary of the function's name where there is none.
        assert operation["summary"] != operation["operationId"].split("__")[0].replace("_", " ").title(), name


def test_every_route_has_examples_that_fit_its_schema(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        for status, response in operation["responses"].items():
            content = response.get("content", {})
            if status.startswith("2") and "application/json" in content:
                media = content["application/json"]
                assert "example" in media, (name, status)
                fits(document, media["schema"], media["example"])
            if "application/problem+json" in content and "example" in content["application/problem+json"]:
                fits(
                    document,
                    {"$ref": "#/components/schemas/ProblemBody"},
                    content["application/problem+json"]["example"],
                )
        media = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if media is not None:
            assert "example" in media, name
            fits(document, media["schema"], media["example"])


def test_every_route_tells_its_problems(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        told = operation["responses"]
        expected = {"503"}
        if "requestBody" in operation:
            expected |= {"400", "413", "415", "422"}
        if "{" in name and "name" not in name:
            expected.add("404")
        assert expected <= told.keys(), name
        for status, response in told.items():
            if int(status) >= 400:
                assert list(response["content"]) == ["application/problem+json"], (name, status)


def test_examples_belong_to_routes_and_name_no_machine(document: dict[str, Any]) -> None:
    examples = read_examples()
    assert examples.keys() == operations(document).keys() - NO_RESPONSE
    assert "/tmp" not in json.dumps(examples)
