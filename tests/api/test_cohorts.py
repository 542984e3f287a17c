"""`GET /cohorts` over the app itself: what runs share, how many there are, which guideline answers; page by page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from stored_cohort import COHORT, store_fitted_cohort

from app.main import create_app
from app.settings import Settings
from app.store.database import Database
from app.store.tables import CohortRow


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), num_slots=1)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as opened:
        database: Database = opened.app.state.service.database  # type: ignore[attr-defined]
        store_fitted_cohort(database)
        with database.write() as session:
            session.add(
                CohortRow(
                    name="zz-empty", recipe='{"vocab_size": 512}', recipe_hash="-", decision_metric="validation_loss",
                    decision_dataset="web/validation",
                )
            )  # fmt: skip
        yield opened


def test_a_cohort_says_what_its_runs_share_and_who_answers_for_them(client: TestClient) -> None:
    fitted, empty = client.get("/cohorts").json()["data"]
    assert (fitted["name"], empty["name"]) == (COHORT, "zz-empty")
    runs = client.get("/runs", params={"cohort": COHORT, "limit": 1000}).json()["data"]
    assert fitted["num_runs"] == len(runs) > 0
    (active,) = [row for row in client.get("/guidelines").json()["data"] if row["is_active"]]
    assert fitted["guideline_id"] == active["id"]
    assert (empty["num_runs"], empty["guideline_id"]) == (0, None)
    assert (empty["recipe"], empty["decision_dataset"]) == ({"vocab_size": 512}, "web/validation")


def test_cohorts_come_as_pages(client: TestClient) -> None:
    first = client.get("/cohorts", params={"limit": 1}).json()
    assert (first["has_more"], first["next"]) == (True, COHORT)
    second = client.get("/cohorts", params={"limit": 1, "after": first["next"]}).json()
    assert [cohort["name"] for cohort in second["data"]] == ["zz-empty"]
    assert (second["has_more"], second["next"]) == (False, None)
