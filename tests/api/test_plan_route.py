"""`POST /plan` over the app itself, on this project's own runs: ready runs, what a pilot is worth, and refusals."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import uvicorn
from click.testing import CliRunner
from fastapi.testclient import TestClient

from app.api.run_bodies import model_spec
from app.api.train import TrainBody
from app.cli import cli
from app.contract import EvaluationSpec, ModelSpec, Spec, TrainingSpec
from app.corpus.shards import Manifest
from app.guidelines.refine import refine
from app.main import create_app
from app.records import to_dict
from app.settings import Settings
from app.store import jobs as job_store
from app.store import runs as run_store
from app.store.database import Database
from app.store.tables import CohortRow, JobRow, RunRow
from app.sweep.bodies import request_key
from fitting.flops import flops_per_token

HIDDEN64 = Path(__file__).parents[1] / "data" / "hidden64" / "runs.csv"
MODEL = ModelSpec(
    num_layers=8, hidden_size=64, num_heads=2, num_kv_heads=2, intermediate_size=176, vocab_size=1024,
    context_length=128,
)  # fmt: skip
QUESTION = {
    "target_shape": {
        "num_layers": 8, "hidden_size": 64, "num_heads": 2, "intermediate_size": 176, "vocab_size": 1024,
        "context_length": 128,
    },
    "token_budget": 2e6,
}  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service that trained one of the runs of cohort `hidden64` itself, and was told the others; no launcher claims jobs."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), num_slots=1)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as opened:
        database: Database = opened.app.state.service.database  # type: ignore[attr-defined]
        store_runs(database)
        refine(database, "hidden64")
        yield opened


def store_runs(database: Database) -> None:
    table = pd.read_csv(HIDDEN64).astype(object)
    rows = [{k: v for k, v in row.items() if not pd.isna(v)} for row in table.to_dict("records")]
    with database.write() as session:
        run_store.add_cohort(
            session,
            CohortRow(
                name="hidden64", recipe="{}", recipe_hash="-", decision_metric="validation_loss", decision_dataset="-"
            ),
        )
        for row in rows:
            own = {"source": "import", "name": row["run_id"], "status": "finished", "is_final": True}
            run_store.add_run(session, RunRow(**row | own))
        spec = Spec(
            run_id="run_here", name="here", cohort="hidden64", corpus="demo", corpus_dir="-", model=MODEL,
            training=TrainingSpec(tokens=2_000_000, peak_lr=4e-3, warmup_tokens=50_000, weight_decay=0.2),
            evaluation=EvaluationSpec(every_tokens=100_000, num_windows=77),
        )  # fmt: skip
        like = next(row for row in rows if row["growth_factor"] == 1 and row["num_target_layers"] == 8)
        run_store.add_run(
            session,
            RunRow(
                **like | {"run_id": "run_here", "source": "job", "name": "here", "status": "finished", "is_final": True}
            ),
        )
        job_store.add_job(
            session,
            JobRow(
                id="job_here", kind="growth", name="here", role="single", run_id="run_here", cohort="hidden64",
                state="succeeded", run_dir="-", spec=json.dumps(to_dict(spec)),
            ),
        )  # fmt: skip


def asked(client: TestClient, **change: Any) -> Any:
    response = client.post("/plan", json={"cohort": "hidden64", "flops_budget": 1e13} | change)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_next_runs_are_ready_to_be_started(client: TestClient) -> None:
    answer = asked(client, max_steps=3)
    assert [decision["token_budget"] for decision in answer["decisions"]] == [4e6, 16e6]
    assert 1 <= len(answer["steps"]) <= 3
    assert answer["cost_flops"] == pytest.approx(sum(step["cost_flops"] for step in answer["steps"]))
    assert answer["cost_flops"] <= 1e13
    assert answer["regret_after_nats"] < answer["regret_now_nats"]
    for run in (run for step in answer["steps"] for run in step["runs"]):
        body = TrainBody.model_validate(run["job"])
        # As the cohort's own run was trained, whose recipe it would otherwise be refused for.
        assert (body.cohort, body.corpus, body.num_validation_windows) == ("hidden64", "demo", 77)
        assert (body.training.weight_decay, body.training.peak_lr) == (0.2, 4e-3)
        assert body.init_seed == body.data_seed
        # The key under which a sweep asks for it, from the file that the command writes.
        assert run["key"] == request_key(json.loads(json.dumps(run["job"])), 0)
        model = model_spec(body.model, MANIFEST, "/model")
        spent = body.training.tokens * flops_per_token(model)
        if body.growth is not None:
            assert run["growth_factor"] == 8 / (body.growth.num_base_layers or 0)
            base = replace(model, num_layers=body.growth.num_base_layers or 0)
            spent += body.growth.growth_timing_tokens * flops_per_token(base)
        assert spent == pytest.approx(run["compute_flops"], rel=1e-3)
    assert answer == asked(client, max_steps=3)


def test_no_planned_run_repeats_a_standing_one_bit_for_bit(client: TestClient) -> None:
    """Of a table of one seed; a design that the plan makes twice has two fresh seeds."""
    used = {
        run["init_seed"] for run in client.get("/runs", params={"cohort": "hidden64", "limit": 1000}).json()["data"]
    }
    jobs = [run["job"] for step in asked(client, max_steps=6)["steps"] for run in step["runs"]]
    assert used & {job["init_seed"] for job in jobs} == set()
    assert len({json.dumps(job, sort_keys=True) for job in jobs}) == len(jobs)


MANIFEST = Manifest(
    name="demo", content_hash="0" * 64, vocab_size=1024, dtype="uint16", splits={}, origin="-", licence="-"
)


def test_the_command_tells_the_steps_and_writes_the_bodies(
    client: TestClient, tmp_path: Path, until: Callable[..., Any]
) -> None:
    server = uvicorn.Server(uvicorn.Config(client.app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started, "the server starts")
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

        def said(*arguments: str) -> str:
            plan = ("plan", "next", "--cohort", "hidden64", "--flops-budget", "1e13", "--max-steps", "1", "--url", url)
            done = CliRunner().invoke(cli, [*plan, *arguments], catch_exceptions=False)
            assert done.exit_code == 0, done.output
            return done.output

        answer = asked(client, max_steps=1)
        text = said("--out", str(tmp_path / "bodies"))
        assert answer["sentence"] in text
        assert answer["steps"][0]["why"] in text
        written = [json.loads(path.read_text()) for path in sorted((tmp_path / "bodies").iterdir())]
        assert written == [run["job"] for run in answer["steps"][0]["runs"]]
        (tmp_path / "question.json").write_text(json.dumps(QUESTION))
        assert "No pilot pays" in said("--decision", str(tmp_path / "question.json"))
    finally:
        server.should_exit = True
        thread.join()


def test_a_pilot_must_pay_for_a_decision(client: TestClient) -> None:
    hardware = {"peak_flops_per_second": 989e12, "utilisation": 0.4}
    answer = asked(client, decision=QUESTION | hardware)
    (decision,) = answer["decisions"]
    assert decision["decision"] in ("grow", "smaller", "scratch")
    assert (answer["steps"], answer["net_flops"], answer["cost_flops"]) == ([], 0.0, 0.0)
    assert answer["sentence"].startswith("No pilot pays")


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"cohort": "none"}, "/cohort", "there is no cohort of this name"),
        ({"flops_budget": 10.0}, "/flops_budget", "pays for no run inside the guideline's reach; give at least"),
        ({"flops_budget": 0}, "/flops_budget", "greater than 0"),
        ({"guideline": "published:gstack"}, "/guideline", "is no guideline of cohort 'hidden64'"),
        ({"decision": QUESTION | {"cohort": "other"}}, "/decision/cohort", "but the runs are for 'hidden64'"),
        ({"decision": {"target_params": 7e9, "token_budget": 2e12}}, "/decision", "lies too far out"),
        ({"decision": {"token_budget": 1e6}}, "/target_params", "is missing"),
        ({"max_steps": 0}, "/max_steps", "greater than or equal to 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_refused(client: TestClient, change: Any, pointer: str, words: str) -> None:
    response = client.post("/plan", json={"cohort": "hidden64", "flops_budget": 1e13} | change)
    assert response.status_code == 422, response.text
    (error,) = response.json()["errors"]
    assert error["pointer"] == pointer
    assert words in error["detail"]
