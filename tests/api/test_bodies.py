"""Bodies hold the JSON types of their schemas: what is accepted, an independent reader of JSON Schema accepts too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from fastapi.testclient import TestClient
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from app.api.bodies import RequestBody
from app.main import create_app
from app.settings import Settings


class Part(RequestBody):
    number: float = 0.0


class Whole(RequestBody):
    """A field of every kind that bodies have."""

    a_bool: bool = False
    a_count: Annotated[int, Field(ge=0)] = 0
    a_number: float | None = None
    a_text: str = ""
    text_or_number: str | float = ""
    a_choice: Literal["one", "two"] = "one"
    a_constant: Literal[False] = False
    numbers: list[float] = Field(default=[])
    pairs: list[tuple[int, int]] = Field(default=[])
    by_name: dict[str, float | bool] = Field(default={})
    part: Part = Part()
    parts: list[Part] = Field(default=[])


SCHEMA = Whole.model_json_schema()
PLAIN = st.sampled_from([True, False, None, 0, 1, 1.0, -1, 3.5, "", "0", "1", "3.5", "true", "one", "False"])
NAMES = st.sampled_from(["number", "x"])
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2), max_leaves=4
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(Whole.model_fields)), VALUES, min_size=1, max_size=2))
@example({"a_number": False})
@example({"a_count": True})
@example({"a_bool": 0})
@example({"a_constant": 0})
@example({"numbers": [True]})
@example({"pairs": [[1, "2"]]})
@example({"parts": [{"number": "1"}]})
def test_what_is_accepted_fits_the_schema(body: dict[str, Any]) -> None:
    try:
        Whole.model_validate(body)
    except ValidationError:
        return
    jsonschema.validate(body, SCHEMA)


@pytest.mark.parametrize(
    "body", [{"a_count": 3.0}, {"a_number": 2}, {"a_number": None}, {"by_name": {"x": True}}, {"pairs": [[1, 2]]}]
)
def test_what_fits_the_schema_is_accepted(body: dict[str, Any]) -> None:
    jsonschema.validate(body, SCHEMA)
    assert isinstance(Whole.model_validate(body), BaseModel)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("bodies"), num_slots=1)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as opened:
        yield opened


def test_a_loss_of_false_is_no_loss_of_zero(client: TestClient) -> None:
    facts = {
        "cohort": "mine", "name": "pushed", "target_params": 4e5, "corpus": "web", "tokenizer": "bpe",
        "decision_dataset": "v",
    }  # fmt: skip
    run_id = client.post("/runs", json=facts).json()["run"]["run_id"]
    point = {"seq": 0, "tokens": 1, "metric": "validation_loss", "dataset": "v", "value": False}
    answer = client.post(f"/runs/{run_id}/points", json={"points": [point]})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/points/0/value"
    assert "value is False" in error["detail"]


def test_a_parameter_stands_once_but_for_lists(client: TestClient) -> None:
    answer = client.get("/runs?limit=1&limit=2")
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"pointer": "query:limit", "detail": "limit is given 2 times; give it once"}]
    # The published rule has no surface, so what is told is that, and nothing about the list.
    answer = client.get("/surface?target_params=1e9&token_budget=1e10&growth_factors=2&growth_factors=4")
    assert "times" not in answer.text
    # A page reads its query by itself, and what is nowhere is not found.
    assert client.get("/ui/runs.html?cohort=a&cohort=b").status_code == 200
    assert client.get("/nowhere?x=1&x=2").status_code == 404
