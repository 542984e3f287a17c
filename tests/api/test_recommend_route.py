"""`POST /recommend` over the app itself: the paper's table, both accountings, and errors that say what to mend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), num_slots=1)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as opened:
        yield opened


@pytest.mark.parametrize(
    ("target_params", "token_budget", "timing_billion"),
    [(8e9, 15e12, 6.58), (7e9, 2e12, 11.11), (13e9, 2e12, 15.84), (70e9, 2e12, 42.48)],
)
def test_published_table(client: TestClient, target_params: float, token_budget: float, timing_billion: float) -> None:
    """The worked values of arXiv 2405.15319."""
    body = {"target_params": target_params, "token_budget": token_budget, "guideline": "published:gstack"}
    answer = client.post("/recommend", json=body).json()
    assert answer["decision"] == "grow"
    assert answer["growth_factor"] == 4
    assert round(answer["growth_timing_tokens"] / 1e9, 2) == timing_billion
    flops = answer["flops"]
    assert flops["total"] == pytest.approx(flops["scratch"]) == pytest.approx(6 * target_params * token_budget)
    assert flops["base"] + flops["grown"] == pytest.approx(flops["total"])
    assert set(answer["by_accounting"]) == {"charged", "sunk"}
    assert answer["expected"]["chance_growth_helps"] is None


def test_infeasible_says_why(client: TestClient) -> None:
    body = {"target_params": 3e9, "token_budget": 5.5556e9, "guideline": "published:gstack"}
    answer = client.post("/recommend", json=body).json()
    assert answer["decision"] == "infeasible"
    assert answer["growth_timing_tokens"] is None
    assert "57.99B" in answer["by_accounting"]["charged"]["reason"]
    assert "1e+20 FLOPs" in answer["by_accounting"]["charged"]["reason"]


def test_every_published_rule_answers(client: TestClient) -> None:
    for name in ("gstack", "null", "never", "constant_fraction", "staged", "eighty_percent"):
        body = {"target_params": 1e9, "token_budget": 1e11, "guideline": f"published:{name}"}
        answer = client.post("/recommend", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["guideline"]["id"] == f"published:{name}"


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"target_params": -1}, "/target_params", "greater than 0"),
        ({"target_params": 7}, "/target_params", "not millions or billions"),
        ({"token_budget": 0}, "/token_budget", "greater than 0"),
        ({"token_budget": "lots"}, "/token_budget", "number"),
        ({"tokens": 5}, "/tokens", "not known"),
        ({"guideline": "published:astrology"}, "/guideline", "published:gstack"),
        ({"guideline": "gl_nowhere"}, "/guideline", "GET /guidelines"),
        ({"cohort": "nobody"}, "/cohort", "no cohort"),
        ({"growth_factors": [0.5]}, "/growth_factors", "above 1"),
        ({"num_target_layers": 0}, "/num_target_layers", "greater than or equal to 1"),
        ({"base_compute": "free"}, "/base_compute", "'charged' or 'sunk'"),
    ],
)
def test_errors_point_at_the_field(client: TestClient, change: dict[str, object], pointer: str, words: str) -> None:
    answer = client.post("/recommend", json={"target_params": 7e9, "token_budget": 2e12} | change)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == 422
    (error,) = problem["errors"]
    assert error["pointer"] == pointer
    assert words in error["detail"]


def test_numbers_that_are_none_are_refused(client: TestClient) -> None:
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        content = f'{{"target_params": {number}, "token_budget": 2e12}}'
        answer = client.post("/recommend", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 422, number
        assert "target_params" in answer.text


def test_other_errors_are_problems_too(client: TestClient) -> None:
    for method, path, status in (("GET", "/nowhere", 404), ("DELETE", "/recommend", 405), ("GET", "/runs/run_x", 404),
                                 ("GET", "/jobs/job_x", 404), ("GET", "/guidelines/gl_x", 404), ("GET", "/jobs/x/events", 404),
                                 ("GET", "/jobs?limit=0", 422), ("GET", "/runs?status=odd", 422)):  # fmt: skip
        answer = client.request(method, path)
        assert answer.status_code == status, (path, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == status


def test_a_foreign_host_name_is_refused(client: TestClient) -> None:
    assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 400


def test_the_contract_is_published(client: TestClient, tmp_path: Path) -> None:
    document = client.get("/openapi.json").json()
    routes = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert {
        ("POST", "/recommend"), ("POST", "/grow"), ("GET", "/jobs"), ("GET", "/jobs/{job_id}"),
        ("GET", "/jobs/{job_id}/events"), ("POST", "/jobs/{job_id}/cancel"), ("GET", "/runs"), ("GET", "/runs/{run_id}"),
        ("GET", "/runs/{run_id}/points"), ("GET", "/guidelines"), ("GET", "/guidelines/{guideline_id}"),
        ("GET", "/healthz"),
    } <= routes  # fmt: skip
    answer = document["components"]["schemas"]["Recommendation"]["properties"]
    assert list(answer)[:6] == [
        "guideline", "decision", "growth_factor", "growth_timing_tokens", "growth_timing_range", "order",
    ]  # fmt: skip


def test_budgets_come_as_tokens_flops_or_gpu_hours(client: TestClient) -> None:
    """2e12 tokens of 7e9 parameters are 8.4e22 FLOPs, or 8.4e22 / (3600 x 1e15 x 0.4) = 58,333 GPU-hours."""
    target = {"target_params": 7e9, "guideline": "published:gstack"}
    gpu = {"peak_flops_per_second": 1e15, "utilisation": 0.4}
    answers = [
        client.post("/recommend", json=target | budget).json()
        for budget in ({"token_budget": 2e12}, {"compute_flops": 8.4e22}, {"gpu_hours": 8.4e22 / (3600 * 0.4e15)} | gpu)
    ]
    for answer in answers:
        assert answer["growth_timing_tokens"] == pytest.approx(answers[0]["growth_timing_tokens"], rel=1e-6)
    for wrong, pointer in (
        ({}, "/token_budget"),
        ({"token_budget": 2e12, "compute_flops": 8e22}, "/token_budget"),
        ({"gpu_hours": 5.0}, "/peak_flops_per_second"),
        ({"token_budget": 2e12, "utilisation": 0.4}, "/peak_flops_per_second"),
        ({"token_budget": 2e12, "active_params": 1e9}, "/active_params"),
    ):
        refused = client.post("/recommend", json=target | wrong)
        assert refused.status_code == 422, wrong
        assert refused.json()["errors"][0]["pointer"] == pointer
    assert "mixture-of-experts" in refused.json()["detail"]
