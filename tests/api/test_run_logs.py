"""Logs and live points over HTTP: stored whole, once, under their cohort, or refused by field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from logged_model import CONFIG, F_BASE, F

from app.main import create_app
from app.settings import Settings

CSV = "step,loss,val\n" + "".join(f"{step},{5 - step / 50},{5.1 - step / 50}\n" for step in range(10, 101, 10))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("service"), num_slots=1)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as opened:
        yield opened


def options(**changes: Any) -> dict[str, Any]:
    columns = [
        {"column": "loss", "metric": "train_loss"},
        {"column": "val", "metric": "validation_loss", "dataset": "web"},
    ]
    return {
        "cohort": "mine", "name": "one", "config": CONFIG, "corpus": "web", "tokenizer": "bpe", "tokens": "step * 10000",
        "columns": columns,
    } | changes  # fmt: skip


def send(client: TestClient, given: dict[str, Any], *, dry_run: bool = False, **parts: str | bytes) -> Any:
    files = [(part, (f"{part}.csv", content)) for part, content in (parts or {"files": CSV}).items()]
    return client.post(f"/runs/import?dry_run={dry_run}", data={"options": json.dumps(given)}, files=files)


def num_runs(client: TestClient, cohort: str) -> int:
    return len(client.get(f"/runs?cohort={cohort}&limit=1000").json()["data"])


def test_a_log_is_stored_once_and_a_dry_run_stores_nothing(client: TestClient) -> None:
    given = options(cohort="once")
    dry = send(client, given, dry_run=True)
    assert dry.status_code == 200, dry.text
    assert (dry.json()["runs"][0]["outcome"], dry.json()["runs"][0]["run_id"]) == ("added", None)
    assert num_runs(client, "once") == 0
    first = send(client, given).json()
    (run,) = first["runs"]
    assert first["cohorts"] == [
        {"cohort": "once", "num_runs_added": 1, "num_runs_known": 0, "num_runs_removed": 0, "num_points_added": 20}
    ]
    assert (run["status"], run["final_loss"], run["grown_tokens"]) == ("finished", pytest.approx(3.1), 1e6)
    again = send(client, given | {"name": "another name"}).json()
    assert (again["runs"][0]["outcome"], again["runs"][0]["run_id"]) == ("known", run["run_id"])
    assert num_runs(client, "once") == 1
    stored = client.get(f"/runs/{run['run_id']}").json()
    assert (stored["source"], stored["compute_flops"]) == ("import", pytest.approx(1e6 * F))
    points = client.get(f"/runs/{run['run_id']}/points?metric=validation_loss").json()["data"]
    assert [point["tokens"] for point in points] == [step * 10_000 for step in range(10, 101, 10)]


def test_a_log_that_has_grown_takes_the_place_of_its_run_when_told(client: TestClient) -> None:
    given = options(cohort="longer", name="one")
    short = CSV.rsplit("\n", 3)[0] + "\n"
    run_id = send(client, given, files=short).json()["runs"][0]["run_id"]
    refused = send(client, given)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/name"
    replaced = send(client, given | {"replace": True}).json()["runs"][0]
    assert (replaced["outcome"], replaced["run_id"]) == ("replaced", run_id)
    assert client.get(f"/runs/{run_id}").json()["grown_tokens"] == 1e6
    assert len(client.get(f"/runs/{run_id}/points").json()["data"]) == 20


def test_base_and_grown_come_in_as_one_growth(client: TestClient) -> None:
    done = send(client, options(cohort="growth", base_layers=2), base=CSV, grown=CSV.replace("10,", "5,", 1))
    assert done.status_code == 200, done.text
    run = client.get(f"/runs/{done.json()['runs'][0]['run_id']}").json()
    assert (run["growth_factor"], run["growth_timing_tokens"], run["grown_tokens"]) == (4.0, 1e6, 1e6)
    assert run["compute_flops"] == pytest.approx(1e6 * (F + F_BASE))


def test_another_recipe_or_another_yardstick_is_refused_whole(client: TestClient) -> None:
    assert send(client, options(cohort="strict")).status_code == 200
    other = send(client, options(cohort="strict", name="two", tokenizer="other"), files=CSV.replace("3.1", "3.2"))
    assert other.status_code == 409
    assert "tokenizer 'other' against 'bpe'" in other.json()["detail"]
    judged = options(cohort="strict", name="two", decision_metric="train_loss", decision_dataset="")
    refused = send(client, judged, files=CSV.replace("3.1", "3.2"))
    assert refused.status_code == 422
    assert "is judged by validation_loss of 'web'" in refused.json()["detail"]
    # A row that no fit takes would stop every later fit of the cohort.
    mixed = send(client, options(cohort="strict", name="two"), files="step,loss,val\n100,1.0,20.5\n")
    assert mixed.status_code == 422
    assert "worse than guessing" in mixed.json()["detail"]
    assert num_runs(client, "strict") == 1


@pytest.mark.parametrize(
    ("given", "content", "pointer", "words"),
    [
        (options(tokens=None), CSV, "/tokens", "never guessed"),
        (options(tokens="__import__('os')"), CSV, "/tokens", "more than arithmetic"),
        (options(), b"PK\x03\x04 archive", "/files.csv", "zip archive"),
        (options(), b"\x80\x04\x95 pickle", "/files.csv", "pickle"),
        (options(colour="red"), CSV, "/options/colour", "not known"),
        (options(cohort="../x"), CSV, "/options/cohort", "cohort"),
        (options(name="a\x00b"), CSV, "/options/name", "pattern"),
        (options(stated={"init_seed": 0.5}), CSV, "/init_seed", "finite number"),
        (options(config=None), CSV, "/config", "target_params"),
    ],
)
def test_refusals_name_the_field_and_store_nothing(
    client: TestClient, given: dict[str, Any], content: Any, pointer: str, words: str
) -> None:
    refused = send(client, given | {"cohort": given["cohort"] if "/" in given["cohort"] else "refused"}, files=content)
    assert refused.status_code == 422, refused.text
    assert refused.headers["content-type"] == "application/problem+json"
    assert words in refused.json()["detail"]
    assert refused.json()["errors"][0]["pointer"].replace("files/csv", "files.csv") == pointer
    assert num_runs(client, "refused") == 0


def test_forms_that_are_none_are_refused(client: TestClient) -> None:
    url = "/runs/import"
    assert client.post(url, data={"options": "{"}, files=[("files", ("a", b"x"))]).status_code == 422
    assert client.post(url, files=[("files", ("a", b"x"))]).status_code == 422
    assert client.post(url, data={"options": json.dumps(options())}, files=[("other", ("a", b"x"))]).status_code == 422
    assert client.post(url, content=b"nonsense", headers={"content-type": "multipart/form-data"}).status_code == 422
    assert client.post(url, content=b"\xff", headers={"content-type": "application/json"}).status_code == 422
    large = client.post(
        url, content=b"x", headers={"content-type": "multipart/form-data; boundary=x", "content-length": str(10**10)}
    )
    assert large.status_code == 413
    assert large.headers["content-type"] == "application/problem+json"


# --- live --------------------------------------------------------------------------------------------------------


def opened(client: TestClient, name: str, key: str | None = None, **changes: Any) -> Any:
    body = {
        "cohort": "live",
        "name": name,
        "config": CONFIG,
        "corpus": "web",
        "tokenizer": "bpe",
        "decision_dataset": "web",
    } | changes
    return client.post("/runs", json=body, headers={"Idempotency-Key": key} if key else {})


def point(seq: int, tokens: int, value: float, **more: Any) -> dict[str, Any]:
    return {"seq": seq, "tokens": tokens, "metric": "validation_loss", "dataset": "web", "value": value} | more


def test_points_arrive_once_and_never_change(client: TestClient) -> None:
    first = opened(client, "pushed", key="k1")
    assert first.status_code == 200, first.text
    run_id = first.json()["run"]["run_id"]
    assert opened(client, "pushed", key="k1").json()["run"]["run_id"] == run_id
    assert opened(client, "other", key="k1").status_code == 409
    assert opened(client, "pushed").status_code == 409
    url = f"/runs/{run_id}/points"
    batch = {"points": [point(0, 100_000, 4.0), point(1, 200_000, 3.8)]}
    assert client.post(url, json=batch).json()["num_added"] == 2
    assert client.post(url, json=batch).json()["num_added"] == 0
    changed = client.post(url, json={"points": [point(2, 300_000, 3.7), point(1, 200_000, 3.9)]})
    assert changed.status_code == 409
    assert changed.headers["content-type"] == "application/problem+json"
    assert "seq 1 holds value 3.8, not 3.9" in changed.json()["detail"]
    # All or nothing: the new point before the differing one is not there.
    assert opened(client, "pushed", key="k1").json()["next_seq"] == 2
    end = client.post(url, json={"points": [point(2, 300_000, 3.7)], "status": "finished"}).json()["run"]
    assert (end["status"], end["final_loss"], end["is_final"]) == ("finished", 3.7, True)
    assert end["compute_flops"] == pytest.approx(300_000 * F)
    assert client.post(url, json={"points": [point(2, 300_000, 3.7)], "status": "finished"}).status_code == 200
    assert client.post(url, json={"points": [point(3, 400_000, 3.6)]}).status_code == 409
    assert client.post("/runs/run_none/points", json=batch).status_code == 404


def test_a_restarted_run_pushes_on_and_its_later_branch_counts(client: TestClient) -> None:
    run_id = opened(client, "restarted").json()["run"]["run_id"]
    pushed = [(0, 100, 4.0), (1, 200, 3.9), (2, 300, 3.8), (3, 200, 3.85), (4, 300, 3.75), (5, 400, 3.7)]
    points = [point(seq, tokens * 1000, value) for seq, tokens, value in pushed]
    run = client.post(f"/runs/{run_id}/points", json={"points": points, "status": "finished"}).json()["run"]
    # Back at 200 means it went on from 100: 200,000 tokens for nothing.
    assert run["wasted_flops"] == pytest.approx(200_000 * F)
    assert (run["compute_flops"], run["final_loss"]) == (pytest.approx(400_000 * F), 3.7)
    stored = client.get(f"/runs/{run_id}/points").json()["data"]
    assert [(p["seq"], p["value"]) for p in stored] == [(0, 4.0), (3, 3.85), (4, 3.75), (5, 3.7)]
    # A batch whose answer was lost comes again: nothing comes back to life.
    again = client.post(f"/runs/{run_id}/points", json={"points": points, "status": "finished"})
    assert (again.status_code, again.json()["num_added"]) == (200, 0)
    assert len(client.get(f"/runs/{run_id}/points").json()["data"]) == 4


def test_a_live_growth_counts_its_base(client: TestClient) -> None:
    wanted = {"base_layers": 2, "growth_timing_tokens": 100_000}
    run_id = opened(client, "grown", **wanted).json()["run"]["run_id"]
    points = [point(0, 100_000, 4.0, phase="base"), point(1, 50_000, 3.5, phase="grown")]
    run = client.post(f"/runs/{run_id}/points", json={"points": points, "status": "finished"}).json()["run"]
    assert run["compute_flops"] == pytest.approx(100_000 * F_BASE + 50_000 * F)
    assert client.get(f"/runs/{run_id}/points").json()["data"][1]["compute_flops"] == run["compute_flops"]
    wrong = opened(client, "grown-2", **wanted).json()["run"]["run_id"]
    assert client.post(f"/runs/{wrong}/points", json={"points": [point(0, 1, 4.0)]}).status_code == 422
    assert (
        client.post(f"/runs/{wrong}/points", json={"points": [{**point(0, 1, 4.0), "value": None}]}).status_code == 422
    )
    early = {"points": [point(0, 40_000, 4.0, phase="base")], "status": "stopped", "reason": "the node was lost"}
    stopped = client.post(f"/runs/{wrong}/points", json=early).json()["run"]
    assert (stopped["growth_timing_tokens"], stopped["grown_tokens"]) == (40_000, 0)
    assert stopped["compute_flops"] == pytest.approx(40_000 * F_BASE)
    assert opened(client, "grown-3", base_layers=2).status_code == 422


def test_an_imported_log_takes_no_pushed_points(client: TestClient) -> None:
    run_id = send(client, options(cohort="closed")).json()["runs"][0]["run_id"]
    refused = client.post(f"/runs/{run_id}/points", json={"points": [point(0, 1, 4.0)]})
    assert refused.status_code == 409
    assert "was not opened by POST /runs" in refused.json()["detail"]
