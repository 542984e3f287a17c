"""Correcting and removing runs: what may change and what not, what it leaves, and that a removed run stays away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from stored_cohort import COHORT, store_cohort

from app.guidelines.refine import refine
from app.main import create_app
from app.settings import Settings
from app.store import jobs as job_store
from app.store import runs as run_store
from app.store.ids import new_id
from app.store.tables import JobRow

CONTROL, GROWN, SINGLE = "run_single_8_1e+06", "run_grown_1e+06", "run_single_4_1e+06"
LOG = "step,tokens,val\n1,1000000,4.0\n2,2000000,3.5\n"


@pytest.fixture(params=["sqlite", "postgresql"])
def client(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[TestClient]:
    url = request.getfixturevalue("postgres").new_database() if request.param == "postgresql" else None
    settings = Settings(data_dir=tmp_path / "data", num_slots=1, database_url=url)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as opened:
        yield opened


def database(client: TestClient) -> Any:
    return client.app.state.service.database  # type: ignore[attr-defined]


def correct(client: TestClient, run: str, http_status: int = 200, **changes: Any) -> dict[str, Any]:
    answer = client.patch(f"/runs/{run}", json=changes)
    assert answer.status_code == http_status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def import_log(client: TestClient, http_status: int = 200, log: str = LOG, **options: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "cohort": "mine", "name": "one", "target_params": 1e6, "corpus": "c", "tokenizer": "t",
        "decision_dataset": "validation", "tokens": "tokens",
        "columns": [{"column": "val", "metric": "validation_loss", "dataset": "validation"}],
    }  # fmt: skip
    answer = client.post(
        "/runs/import", data={"options": json.dumps(values | options)}, files=[("files", ("log.csv", log.encode()))]
    )
    assert answer.status_code == http_status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_correction_refits_and_keeps_what_was(client: TestClient, until: Any) -> None:
    store_cohort(database(client))
    refine(database(client), COHORT)
    first = active(client)["id"]
    corrected = correct(client, SINGLE, status="diverged", why="a node fed it zeros")
    assert corrected["status"] == "diverged"
    assert corrected["corrections"]["status"]["was"] == "finished"
    assert corrected["corrections"]["status"]["why"] == "a node fed it zeros"
    fitted = until(
        lambda: [row for row in client.get("/guidelines").json()["data"] if row["is_active"] and row["id"] != first],
        "the cohort is refitted",
    )
    body = client.get(f"/guidelines/{fitted[0]['id']}").json()["body"]
    assert SINGLE not in [run for single in body["controls"] for run in single["run_ids"]]
    # Twice corrected keeps what it was first; put back, it was not corrected.
    assert correct(client, SINGLE, status="stopped")["corrections"]["status"]["was"] == "finished"
    assert correct(client, SINGLE, status="finished")["corrections"] == {}


def test_what_was_measured_cannot_be_corrected(client: TestClient) -> None:
    store_cohort(database(client))
    before = client.get(f"/runs/{SINGLE}").json()
    for field in ("final_loss", "target_params", "grown_tokens", "compute_flops", "init_seed", "cohort", "run_id"):
        problem = correct(client, SINGLE, 422, **{field: before[field]})
        assert problem["errors"][0]["pointer"] == f"/{field}"
        assert "cannot be corrected" in problem["detail"]
    for changes, status, words in (
        ({}, 422, "nothing to correct"),
        ({"nonsense": 1}, 422, "not known"),
        ({"status": "running"}, 422, "'finished', 'diverged' or 'stopped'"),
        ({"status": None}, 422, "cannot be null"),
        ({"lr_selection": "guessed"}, 422, "grid tuned"),
        ({"control_id": new_id("run")}, 422, "no such run"),
        ({"name": GROWN}, 409, "give another name"),
        ({"name": ""}, 422, "at least 1"),
    ):
        assert words in correct(client, SINGLE, status, **changes)["detail"], changes
    assert client.get(f"/runs/{SINGLE}").json() == before
    assert correct(client, "run_x", 404, status="stopped")


def test_a_run_that_still_runs_is_neither_corrected_nor_removed(client: TestClient) -> None:
    opened = client.post(
        "/runs", json={"cohort": "live", "name": "l", "target_params": 4e5, "decision_dataset": "validation"}
    ).json()["run"]
    assert "ends it" in correct(client, opened["run_id"], 409, status="stopped")["detail"]
    assert client.delete(f"/runs/{opened['run_id']}").status_code == 409
    assert correct(client, opened["run_id"], name="renamed")["name"] == "renamed"
    store_cohort(database(client))
    with database(client).write() as session:
        row = JobRow(
            id=new_id("job"),
            kind="growth",
            name="n",
            role="single",
            state="paused",
            run_dir="/r",
            spec="{}",
            run_id=SINGLE,
        )
        job_store.add_job(session, row)
    for answer in (client.patch(f"/runs/{SINGLE}", json={"status": "stopped"}), client.delete(f"/runs/{SINGLE}")):
        assert answer.status_code == 409
        assert "cancel the job first" in answer.json()["detail"]
    with database(client).write() as session:
        job_store.set_state(session, row.id, "failed")
    assert client.delete(f"/runs/{SINGLE}").status_code == 200
    retried = client.post(f"/jobs/{row.id}/retry")
    assert (retried.status_code, "was removed" in retried.text) == (409, True)


def imported_run(client: TestClient, **options: Any) -> dict[str, Any]:
    (run,) = import_log(client, **options)["runs"]
    return dict(run)


def test_a_final_loss_is_not_made_up(client: TestClient) -> None:
    run = imported_run(client, status="diverged")
    assert "no final loss" in correct(client, run["run_id"], 422, status="finished")["detail"]
    assert client.get(f"/runs/{run['run_id']}").json()["status"] == "diverged"


def test_a_removed_run_leaves_no_loose_ends(client: TestClient, until: Any) -> None:
    store_cohort(database(client))
    refine(database(client), COHORT)
    assert client.get(f"/runs/{GROWN}").json()["control_id"] == CONTROL
    removed = client.delete(f"/runs/{CONTROL}", params={"why": "wrong data"}).json()
    assert removed["control_of"] == [GROWN]
    gone = client.get(f"/runs/{CONTROL}")
    assert gone.status_code == 410
    assert "wrong data" in gone.json()["detail"]
    for again in (
        client.delete(f"/runs/{CONTROL}"),
        client.get(f"/runs/{CONTROL}/points"),
        client.patch(f"/runs/{CONTROL}", json={"name": "x"}),
    ):
        assert again.status_code == 410
    grown = client.get(f"/runs/{GROWN}").json()
    assert grown["control_id"] is None
    assert grown["corrections"]["control_id"] == {
        "was": CONTROL, "at": grown["corrections"]["control_id"]["at"], "why": "that run was removed: wrong data",
    }  # fmt: skip
    with database(client).read() as session:
        assert run_store.all_points(session, CONTROL) == []
    until(
        lambda: CONTROL not in json.dumps(active(client)["body"]),
        "no active guideline holds it",
    )


def active(client: TestClient) -> dict[str, Any]:
    (row,) = [row for row in client.get("/guidelines").json()["data"] if row["is_active"]]
    found: dict[str, Any] = client.get(f"/guidelines/{row['id']}").json()
    return found


def test_a_cohort_that_lost_all_its_runs_answers_no_more(client: TestClient) -> None:
    store_cohort(database(client))
    refine(database(client), COHORT)
    runs = client.get("/runs", params={"cohort": COHORT, "limit": 1000}).json()["data"]
    for run in runs:
        assert client.delete(f"/runs/{run['run_id']}").status_code == 200
    assert not [row for row in client.get("/guidelines").json()["data"] if row["is_active"]]
    answer = client.post("/recommend", json={"cohort": COHORT, "target_params": 7e9, "token_budget": 2e12}).json()
    assert answer["guideline"]["id"] == "published:gstack"


def test_a_removed_log_comes_back_only_when_asked(client: TestClient) -> None:
    run_id = import_log(client)["runs"][0]["run_id"]
    assert client.delete(f"/runs/{run_id}", params={"why": "wrong tokens"}).status_code == 200
    again = import_log(client)
    assert [(run["outcome"], run["run_id"]) for run in again["runs"]] == [("removed", run_id)]
    assert again["cohorts"][0]["num_runs_removed"] == 1
    assert client.get("/runs").json()["data"] == []
    longer = LOG + "3,3000000,3.3\n"
    assert "wrong tokens" in import_log(client, 422, log=longer)["detail"]
    assert [run["outcome"] for run in import_log(client, log=longer, restore=True)["runs"]] == ["added"]
    assert client.get(f"/runs/{run_id}").json()["grown_tokens"] == 3e6


def test_a_removed_push_is_not_opened_again_under_its_key(client: TestClient) -> None:
    body = {"cohort": "live", "name": "l", "target_params": 4e5, "decision_dataset": "validation"}
    opened = client.post("/runs", json=body, headers={"Idempotency-Key": "k"}).json()["run"]
    again = client.post("/runs", json=body, headers={"Idempotency-Key": "k"})
    assert again.json()["run"]["run_id"] == opened["run_id"]
    other = client.post("/runs", json=body | {"name": "m"}, headers={"Idempotency-Key": "k"})
    assert other.status_code == 409
    ended = client.post(f"/runs/{opened['run_id']}/points", json={"status": "stopped"})
    assert ended.status_code == 200, ended.text
    assert client.delete(f"/runs/{opened['run_id']}").status_code == 200
    assert "was removed" in client.post("/runs", json=body, headers={"Idempotency-Key": "k"}).json()["detail"]
