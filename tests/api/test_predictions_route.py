"""`GET /jobs/{id}/prediction` against a cohort whose laws are known, and `GET /jobs` as the pages ask it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from stored_cohort import COHORT, SHAPE, store_fitted_cohort

from app.contract import EvaluationSpec, GrowthSpec, MetricLine, ModelSpec, Spec, TrainingSpec
from app.main import create_app
from app.records import to_dict
from app.settings import Settings
from app.store import jobs as job_store
from app.store import runs as run_store
from app.store.database import Database
from app.store.ids import new_id
from app.store.tables import JobRow, RunRow
from fitting.flops import flops_per_token, non_embedding_params

BUDGET_FLOPS = 2e6 * flops_per_token(ModelSpec(**SHAPE))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Database]]:
    """The app without its loops: nothing claims the jobs that these tests put there."""
    app = create_app(Settings(data_dir=tmp_path_factory.mktemp("data"), num_slots=1))
    database = app.state.service.database
    store_fitted_cohort(database)
    yield TestClient(app, base_url="http://127.0.0.1"), database
    database.close()


def spec_of(*, base_layers: int | None = None, timing: int = 1_200_000, schedule: str = "wsd", flops: float) -> Spec:
    """A run of the known cohort's target that takes `flops`."""
    model = ModelSpec(**SHAPE)
    growth = None
    if base_layers is not None:
        growth = GrowthSpec(num_base_layers=base_layers, growth_timing_tokens=timing)
        flops -= timing * flops_per_token(growth.base_model(model))
    tokens = round(flops / flops_per_token(model))
    return Spec(
        run_id=new_id("run"), name="n", cohort=COHORT, corpus="c", corpus_dir="/nowhere", model=model, growth=growth,
        training=TrainingSpec(tokens=tokens, peak_lr=4e-3, schedule=schedule, batch_sequences=8),  # type: ignore[arg-type]
        evaluation=EvaluationSpec(every_tokens=10_000),
    )  # fmt: skip


def add_job(database: Database, spec: Spec, **values: Any) -> str:
    job_id = new_id("job")
    row: dict[str, Any] = {
        "id": job_id, "kind": "growth", "name": spec.name, "role": "grown", "state": "paused", "run_id": spec.run_id,
        "cohort": spec.cohort, "run_dir": "/nowhere", "spec": json.dumps(to_dict(spec)),
    }  # fmt: skip
    with database.write() as session:
        job_store.add_job(session, JobRow(**row | values))
    return job_id


def scratch_loss(tokens: float) -> float:
    """The law that the cohort's runs were made by."""
    return float(2.6 + 30 / non_embedding_params(ModelSpec(**SHAPE)) ** 0.3 + 2e4 / tokens**0.75)


def test_it_says_what_the_laws_say(opened: tuple[TestClient, Database]) -> None:
    client, database = opened
    scratch = spec_of(flops=BUDGET_FLOPS)
    said = client.get(f"/jobs/{add_job(database, scratch, role='scratch')}/prediction").json()
    loss = said["final_loss"]
    assert loss["nats"] == pytest.approx(scratch_loss(scratch.training.tokens), abs=0.01)
    assert loss["low_nats"] < loss["nats"] < loss["high_nats"]
    assert (said["guideline_version"], said["made"], said["reason"]) == (1, "before the run", "")

    grown = client.get(f"/jobs/{add_job(database, spec_of(base_layers=2, flops=BUDGET_FLOPS))}/prediction").json()
    assert grown["final_loss"]["nats"] == pytest.approx(loss["nats"] - 0.05, abs=0.03)
    assert grown["final_loss"]["nats"] < loss["nats"]


def test_it_says_nothing_where_nothing_is_known(opened: tuple[TestClient, Database]) -> None:
    client, database = opened
    for job_id, why in (
        (add_job(database, spec_of(flops=BUDGET_FLOPS), cohort="other"), "cohort 'other' has no guideline yet"),
        (add_job(database, spec_of(flops=1e4 * BUDGET_FLOPS)), "too far from what version 1 knows"),
        (add_job(database, spec_of(flops=BUDGET_FLOPS, schedule="constant")), "never decays"),
        (add_job(database, spec_of(flops=BUDGET_FLOPS), kind="corpus", cohort=None, run_id=None), "trains no run"),
    ):
        said = client.get(f"/jobs/{job_id}/prediction").json()
        assert said["final_loss"] is None
        assert why in said["reason"]
    assert client.get("/jobs/job_none/prediction").status_code == 404


def test_a_version_never_predicts_what_it_was_fitted_to(opened: tuple[TestClient, Database]) -> None:
    client, database = opened
    spec = spec_of(flops=BUDGET_FLOPS)
    # As if the job had been made before the guideline was: then only a version that has not seen its run may speak.
    early = {"created_at": "2020-01-01T00:00:00.000+00:00"}
    unseen = client.get(f"/jobs/{add_job(database, spec, **early)}/prediction").json()
    assert unseen["made"] == "while it runs"
    seen = client.get(f"/jobs/{add_job(database, spec, **early | {'run_id': 'run_single_8_2e+06'})}/prediction").json()
    assert seen["final_loss"] is None
    assert "fitted to this very run" in seen["reason"]


def test_jobs_are_listed_by_cohort_and_kind_with_their_progress(opened: tuple[TestClient, Database]) -> None:
    client, database = opened
    spec = spec_of(flops=BUDGET_FLOPS)
    job_id = add_job(database, spec, cohort="listed")
    export = add_job(database, spec, cohort="listed", kind="export", run_id=None)
    listed = client.get("/jobs", params={"cohort": "listed"}).json()["data"]
    assert [job["id"] for job in listed] == [export, job_id]
    assert [job["progress"] for job in listed] == [None, None]
    metrics = (("train_loss", 3.5, "nats"), ("learning_rate", 1e-3, "1"), ("tokens_per_second", 90.0, "tokens/s"),
               ("mfu", 0.4, "1"), ("peak_memory", 5e8, "bytes"), ("validation_loss", 3.6, "nats"))  # fmt: skip
    with database.write() as session:
        columns = {column.name: getattr(run_store.get_run(session, "run_single_8_2e+06"), column.name)
                   for column in RunRow.__table__.columns}  # fmt: skip
        run_store.add_run(session, RunRow(**columns | {"run_id": spec.run_id, "name": "listed"}))
        lines = [
            MetricLine(
                seq=seq, phase="single", tokens=1000, compute_flops=BUDGET_FLOPS / 4, metric=metric, dataset="",
                value=value, unit=unit, time="2026-01-01T00:00:00+00:00",
            )
            for seq, (metric, value, unit) in enumerate(metrics, start=1)
        ]  # fmt: skip
        run_store.add_points(session, spec.run_id, lines)
    (listed,) = client.get("/jobs", params={"cohort": "listed", "kind": "growth"}).json()["data"]
    progress = listed["progress"]
    assert progress == client.get(f"/jobs/{job_id}").json()["progress"]
    assert progress["fraction"] == pytest.approx(0.25, rel=1e-3)
    assert (progress["train_loss_nats"], progress["validation_loss_nats"]) == (3.5, 3.6)
    assert (progress["tokens_per_second"], progress["mfu"], progress["peak_memory_bytes"]) == (90.0, 0.4, 5e8)
    assert client.get("/jobs", params={"kind": "other"}).status_code == 422
