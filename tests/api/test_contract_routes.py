"""Questions as planners have them, kept answers, batches and surfaces over HTTP, on both databases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from stored_cohort import COHORT, SHAPE, store_fitted_cohort

from app.main import create_app
from app.settings import Settings
from fitting.flops import Shape
from fitting.recommendation import Request, recommend, surface

TARGET = {"target_shape": SHAPE, "token_budget": 4e6}
LLAMA = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128_256, "max_position_embeddings": 8192,
}  # fmt: skip


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("data")
    checkpoints = folder / "checkpoints"
    (checkpoints / "base").mkdir(parents=True)
    (checkpoints / "base" / "config.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": 8}))
    (folder / "outside").mkdir()
    (folder / "outside" / "config.json").write_text(json.dumps(LLAMA))
    (checkpoints / "link").symlink_to(folder / "outside")
    url = request.getfixturevalue("postgres").new_database() if request.param == "postgresql" else None
    settings = Settings(data_dir=folder / "data", num_slots=1, database_url=url, checkpoints_dir=checkpoints)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as opened:
        store_fitted_cohort(opened.app.state.service.database)
        yield opened


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/recommend", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refused(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/recommend", json=body)
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    found: dict[str, Any] = error
    return found


def test_everything_that_fitting_says_comes_through(client: TestClient) -> None:
    """Field by field, the answer of the guideline itself."""
    over_http = ask(client, cohort=COHORT, **TARGET)
    guideline = client.app.state.service.guideline(over_http["guideline"]["id"])  # type: ignore[attr-defined]
    request = Request(target_shape=Shape(**SHAPE), token_budget=4e6, cohort=COHORT)
    here = json.loads(json.dumps(recommend(request, guideline).to_dict()))
    assert over_http.pop("id").startswith("rec_")
    assert over_http.pop("kept") is False
    assert over_http == here
    for field in ("recipe", "decision_points", "fade", "stakes", "by_accounting", "growth_timing_interval"):
        assert here[field], f"{field} is empty, so nothing was compared"


def test_a_config_stands_for_a_shape(client: TestClient) -> None:
    answer = ask(client, target_config=LLAMA, token_budget=2e12)
    # 32 x (2 x 4096 x 4096 + 2 x 4096 x 1024 + 3 x 4096 x 14336 + 2 x 4096) + 4096
    assert answer["target_model"]["params"] == 6_979_588_096
    assert answer["flops"]["convention"] == "flops_per_token"
    shorter = ask(client, target_config=LLAMA, token_budget=2e12, context_length=2048)
    assert shorter["target_model"]["flops_per_token"] < answer["target_model"]["flops_per_token"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "mamba"}, "'mamba', but only dense decoders"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "mixture-of-experts"),
        ({"model_type": "gemma3", "text_config": {}}, "text_config"),
        (LLAMA | {"num_hidden_layers": "many"}, "num_hidden_layers 'many'"),
        (LLAMA | {"hidden_size": 4097}, "multiple of 32"),
        (LLAMA | {"num_key_value_heads": 7}, "multiple of 7"),
        ({name: value for name, value in LLAMA.items() if name != "vocab_size"}, "vocab_size"),
        ({name: value for name, value in LLAMA.items() if name != "num_key_value_heads"} | {"model_type": "mistral"}, "add it"),
        ({}, "model_type 'None'"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_counted_is_refused_by_name(
    client: TestClient, config: dict[str, Any], words: str
) -> None:
    error = refused(client, target_config=config, token_budget=2e12)
    assert error["pointer"] == "/target_config"
    assert words in error["detail"]


def test_a_base_that_exists_fixes_the_factor_and_is_sunk(client: TestClient) -> None:
    base = LLAMA | {"num_hidden_layers": 8}
    by_config = ask(client, target_config=LLAMA, token_budget=2e12, existing_base={"config": base, "tokens": 5e9})
    by_folder = ask(
        client, num_target_layers=32, token_budget=2e12, existing_base={"checkpoint": "base", "tokens": 5e9}
    )
    for answer in (by_config, by_folder):
        assert answer["growth_factor"] == 4
        assert [row["num_base_layers"] for row in answer["alternatives"]] == [8]
        further = (answer["growth_timing_tokens"] - 5e9) * answer["base_model"]["flops_per_token"]
        assert answer["flops"]["total"] == pytest.approx(answer["flops"]["grown"] + further)
        assert answer["flops"]["total"] == pytest.approx(answer["flops"]["scratch"])
    assert by_config["target_model"] == by_folder["target_model"]


@pytest.mark.parametrize(
    ("base", "pointer", "words"),
    [
        ({"tokens": 5e9}, "/existing_base/config", "exactly one of"),
        ({"tokens": 5e9, "params": 1e9, "config": LLAMA}, "/existing_base/params", "exactly one of"),
        ({"params": 1e9}, "/existing_base/tokens", "required"),
        ({"config": LLAMA, "tokens": 5e9}, "/existing_base", "fewer layers"),
        ({"config": LLAMA | {"hidden_size": 2048}, "tokens": 5e9}, "/existing_base", "width"),
        ({"checkpoint": "nowhere", "tokens": 5e9}, "/existing_base/checkpoint", "no config.json"),
        ({"checkpoint": "../outside", "tokens": 5e9}, "/existing_base/checkpoint", "no config.json"),
        ({"checkpoint": "link", "tokens": 5e9}, "/existing_base/checkpoint", "no config.json"),
        ({"checkpoint": "a\x00b", "tokens": 5e9}, "/existing_base/checkpoint", "no config.json"),
    ],
)
def test_a_base_that_cannot_be_is_refused(client: TestClient, base: dict[str, Any], pointer: str, words: str) -> None:
    error = refused(client, target_config=LLAMA, token_budget=2e12, existing_base=base)
    assert error["pointer"] == pointer
    assert words in error["detail"]


def test_a_loss_to_match(client: TestClient) -> None:
    scratch = client.get("/surface", params=surface_query()).json()["scratch_loss_nats"]
    answer = ask(client, cohort=COHORT, target_shape=SHAPE, loss_to_match_nats=scratch)
    assert answer["to_reach"]["scratch"]["token_budget"] == pytest.approx(4e6, rel=1e-3)
    assert set(answer["to_reach"]["grown"]) == {"charged", "sunk"}
    error = refused(client, target_shape=SHAPE, loss_to_match_nats=scratch)
    assert error["pointer"] == "/loss_to_match_nats"
    error = refused(client, target_shape=SHAPE, loss_to_match_nats=3.0, gpu_hours=5)
    assert "exactly one of" in error["detail"]


def surface_query(**changes: Any) -> dict[str, Any]:
    shape = {("num_target_layers" if name == "num_layers" else name): value for name, value in SHAPE.items()}
    return shape | {"token_budget": 4e6, "cohort": COHORT} | changes


def test_the_surface_is_that_of_fitting(client: TestClient) -> None:
    found = client.get("/surface", params=surface_query(growth_factors=[2, 4], num_timings=7)).json()
    answer = ask(client, cohort=COHORT, **TARGET)
    guideline = client.app.state.service.guideline(answer["guideline"]["id"])  # type: ignore[attr-defined]
    request = Request(target_shape=Shape(**SHAPE), token_budget=4e6, growth_factors=(2.0, 4.0))
    assert found == json.loads(json.dumps(surface(request, guideline, num_timings=7).to_dict()))
    assert [len(row["loss_nats"]) for row in found["rows"]] == [7, 7]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ({"num_timings": 201}, "query:num_timings"),
        ({"num_timings": 2}, "query:num_timings"),
        ({"growth_factors": [2] * 21}, "query:growth_factors"),
        ({"cohort": "nobody"}, "query:cohort"),
        ({"guideline": "published:gstack"}, "query:guideline"),
        ({"vocab_size": None}, "query:vocab_size"),
        ({"hidden_size": 63}, "query:target_shape.hidden_size"),
        ({"nonsense": 1}, "query:nonsense"),
    ],
)
def test_a_surface_that_cannot_be_drawn_says_which_parameter(
    client: TestClient, query: dict[str, Any], pointer: str
) -> None:
    wanted = {name: value for name, value in surface_query(**query).items() if value is not None}
    answer = client.get("/surface", params=wanted)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_a_batch_loses_nothing_to_a_bad_question(client: TestClient) -> None:
    good = {"target_params": 7e9, "token_budget": 2e12}
    questions = [good, {"target_params": -1}, 5, good | {"cohort": "nobody"}, good | {"keep": True}]
    answer = client.post("/recommend/batch", json={"questions": questions})
    assert answer.status_code == 200, answer.text
    batch = answer.json()
    assert (batch["num_answers"], batch["num_problems"]) == (2, 3)
    assert [result["index"] for result in batch["results"]] == [0, 1, 2, 3, 4]
    pointers = [result["problem"] and result["problem"]["errors"][0]["pointer"] for result in batch["results"]]
    assert pointers == [None, "/target_params", "", "/cohort", None]
    alone = ask(client, **good)
    for index in (0, 4):
        same = batch["results"][index]["answer"]
        assert {**same, "id": "", "kept": False} == {**alone, "id": "", "kept": False}
    kept = batch["results"][4]["answer"]
    assert client.get(f"/recommendations/{kept['id']}").status_code == 200
    for wrong in ([], [good] * 101):
        assert client.post("/recommend/batch", json={"questions": wrong}).status_code == 422


def test_kept_answers_stay_as_they_were_given(client: TestClient) -> None:
    kept = ask(client, keep=True, cohort=COHORT, **TARGET)
    stored = client.get(f"/recommendations/{kept['id']}").json()
    assert stored["guideline_id"] == kept["guideline"]["id"]
    assert stored["guideline_version"] == kept["guideline"]["version"]
    assert stored["question"]["target_shape"]["num_layers"] == SHAPE["num_layers"]
    assert stored["answer"] == {name: value for name, value in kept.items() if name not in ("id", "kept")}
    passing = ask(client, **TARGET)
    assert client.get(f"/recommendations/{passing['id']}").status_code == 404
    seen: list[str] = []
    page = client.get("/recommendations", params={"limit": 1}).json()
    while True:
        seen += [row["id"] for row in page["data"]]
        if not page["has_more"]:
            break
        page = client.get("/recommendations", params={"limit": 1, "after": page["next"]}).json()
    assert kept["id"] in seen
    assert passing["id"] not in seen
    assert seen == sorted(seen, reverse=True)
    assert [row["id"] for row in client.get("/recommendations", params={"cohort": COHORT}).json()["data"]] == [
        kept["id"]
    ]


@pytest.mark.parametrize(
    ("method", "path", "content", "kind", "status"),
    [
        ("POST", "/recommend", b"x" * 9_000_000, "application/json", 413),
        ("POST", "/recommend", b"[" * 100_000, "application/json", 400),
        ("POST", "/recommend", b"{}", "text/plain", 415),
        ("POST", "/recommend", b"{", "application/json", 422),
        ("POST", "/recommend", b"", "application/json", 422),
        ("PUT", "/runs", b"", "", 405),
        ("GET", "/nowhere", b"", "", 404),
    ],
)
def test_whatever_is_wrong_with_a_request_is_a_problem_with_a_mend(
    client: TestClient, method: str, path: str, content: bytes, kind: str, status: int
) -> None:
    answer = client.request(method, path, content=content, headers={"content-type": kind} if kind else {})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert len(problem["detail"]) > 20


def test_a_foreign_host_is_told_so_as_a_problem(client: TestClient) -> None:
    answer = client.get("/healthz", headers={"host": "evil.example"})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
