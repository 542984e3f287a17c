"""`/guidelines` over HTTP and the command: refits, why a version answers, what changed, putting one back."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from arrivals import COHORT, HELPS, Truth, arrive
from click.testing import CliRunner, Result

from app.cli import cli
from app.client import Growthlaw, Refused
from app.main import create_app
from app.settings import Settings
from fitting.guideline import Guideline

ENDED = ("succeeded", "unchanged", "impossible", "failed")
QUESTION = {"cohort": COHORT, "token_budget": 2e6}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, until: Callable[..., Any]) -> Iterator[tuple[Any, Growthlaw]]:
    """The app on a free port, with its real refit process."""
    app = create_app(Settings(data_dir=tmp_path_factory.mktemp("data"), num_slots=1, refit_after_seconds=0))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started, "the server starts")
    port = server.servers[0].sockets[0].getsockname()[1]
    with Growthlaw(f"http://127.0.0.1:{port}") as client:
        yield app.state.service, client
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def versions(served: tuple[Any, Growthlaw], until: Callable[..., Any]) -> list[dict[str, Any]]:
    """Two provisional versions, the older first: another growth came between them."""
    service, client = served
    truth = Truth(HELPS)
    made = []
    for rows in ([truth.scratch(48, 5), truth.grown(48, 5, 0.1)], [truth.grown(48, 5, 0.3), truth.grown(96, 5, 0.1)]):
        arrive(service.database, rows)
        refit = client.refit(COHORT)
        assert (refit["cohort"], refit["state"]) == (COHORT, "queued")
        ended = until(lambda asked=refit: _ended(client, asked["id"]), "the refit")
        assert ended["state"] == "succeeded", ended
        made.append(client.guideline(ended["guideline_id"]))
    return made


def _ended(client: Growthlaw, refit_id: str) -> dict[str, Any] | None:
    found = client.refit_state(refit_id)
    return found if found["state"] in ENDED else None


def run(client: Growthlaw, *arguments: str) -> Result:
    done = CliRunner().invoke(cli, [*arguments, "--url", client.url], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def test_a_version_says_why_it_answers_and_what_waits(
    served: tuple[Any, Growthlaw], versions: list[dict[str, Any]]
) -> None:
    _, client = served
    first, second = (client.guideline(version["id"]) for version in versions)
    assert (first["outcome"], second["outcome"]) == ("first", "newest")
    assert (first["is_active"], second["is_active"], second["is_pinned"]) == (False, True, False)
    assert second["reason"].endswith("version 1 was provisional, so the newest answers")
    report = second["report"]
    assert report["compared_with"] == {"id": first["id"], "version": 1}
    assert report["waiting_run_ids"] == ["run_0004"]  # no scratch run at its FLOPs
    assert report["standings"]["never"]["num_cases"] == report["standings"]["active"]["num_cases"] == 1
    assert first["scores"] == {
        "num_deltas": 0, "delta_score_nats": None, "delta_coverage": None, "num_losses": 0, "loss_score_nats": None,
    }  # fmt: skip
    assert Guideline.from_json(json.dumps(second["body"])).run_ids == ("run_0001", "run_0002", "run_0003", "run_0004")
    assert [row["id"] for row in client.guidelines(cohort=COHORT)["data"]] == [second["id"], first["id"]]


def test_a_refit_without_news_changes_nothing(
    served: tuple[Any, Growthlaw], versions: list[dict[str, Any]], until: Callable[..., Any]
) -> None:
    _, client = served
    refit = client.refit(COHORT)
    ended = until(lambda: _ended(client, refit["id"]), "the refit")
    assert (ended["state"], ended["guideline_id"]) == ("unchanged", versions[-1]["id"])
    assert "1 grown run(s) wait for a control" in ended["detail"]
    assert client.refits(cohort=COHORT)["data"][0] == ended
    said = run(client, "guidelines", "refit", COHORT).output.splitlines()[-1]  # behind the log of this very process
    assert said.startswith("unchanged  nothing changed since version 2")


def test_what_changed_between_two_versions(served: tuple[Any, Growthlaw], versions: list[dict[str, Any]]) -> None:
    _, client = served
    first, second = versions
    found = client.guideline_diff(first["id"], second["id"])
    assert (found["before"]["version"], found["after"]["version"]) == (1, 2)
    changes = found["changes"]
    assert changes["runs_added"] == ["run_0003", "run_0004"]
    assert changes["runs_removed"] == []
    ((design, moved),) = changes["deltas_nats"].items()
    assert moved["before"] is None
    assert moved["after"] == pytest.approx(
        max(second["body"]["pairs"], key=lambda p: p["growth_timing_tokens"])["delta_nats"]
    )
    assert "g=4" in design
    asked = changes["questions"][0]
    assert asked["before"]["answered_by"] == first["id"]
    assert asked["after"]["delta_nats"] == pytest.approx(min(pair["delta_nats"] for pair in second["body"]["pairs"]))
    back = client.guideline_diff(second["id"], first["id"])["changes"]
    assert back["runs_removed"] == ["run_0003", "run_0004"]
    assert "version 1 -> 2" in run(client, "guidelines", "diff", first["id"], second["id"]).output


def test_an_older_version_is_put_back_and_the_answer_says_what_the_newer_one_would(
    served: tuple[Any, Growthlaw], versions: list[dict[str, Any]]
) -> None:
    _, client = served
    first, second = versions
    pair = first["body"]["pairs"][0]
    question = QUESTION | {
        "target_params": pair["target_params"], "token_budget": pair["compute_flops"] / 6 / pair["target_params"]
    }  # fmt: skip
    old = client.recommend(**question, guideline=first["id"])
    now = client.recommend(**question)
    assert now["newer"] is None
    assert old["newer"]["guideline_id"] == old["newer"]["answered_by"] == second["id"] == now["guideline"]["id"]
    for name in ("decision", "growth_factor", "growth_timing_tokens"):
        assert old["newer"][name] == now[name]
    assert old["newer"]["delta_nats"] == now["expected"]["delta_nats"]
    said = run(client, "recommend", "--guideline", first["id"], "--target-params", str(question["target_params"]),
               "--token-budget", str(question["token_budget"])).output  # fmt: skip
    assert "version 2 answers now and says" in said

    back = client.activate_guideline(first["id"])
    assert (back["is_active"], back["is_pinned"]) == (True, True)
    assert client.recommend(**question)["guideline"]["id"] == first["id"]
    assert client.recommend(**question, guideline=second["id"])["newer"] is None  # what answers now is no newer one
    assert "activated by hand" in run(client, "guidelines", "show", first["id"]).output
    assert "yes" in run(client, "guidelines", "list", "--cohort", COHORT).output
    said = run(client, "guidelines", "activate", second["id"], "--until-promoted", "--json").output
    # The service of this test logs into the same stream.
    (released,) = (line for line in said.splitlines() if line.startswith("{"))
    assert (json.loads(released)["is_active"], json.loads(released)["is_pinned"]) == (True, False)
    assert sum(row["is_active"] for row in client.guidelines(cohort=COHORT)["data"]) == 1


def test_what_cannot_be_is_a_problem(served: tuple[Any, Growthlaw], versions: list[dict[str, Any]], until: Any) -> None:
    service, client = served
    here = versions[0]["id"]
    for call, status in (
        (lambda: client.refit("nowhere"), 404),
        (lambda: client.refit_state("refit_x"), 404),
        (lambda: client.activate_guideline("gl_x"), 404),
        (lambda: client.guideline_diff(here, "gl_x"), 404),
        (lambda: client._call("POST", "/guidelines/refit", body={}), 422),
        (lambda: client._call("POST", f"/guidelines/{here}/activate", body={"pin": True}), 422),
    ):
        with pytest.raises(Refused) as refused:
            call()
        assert refused.value.status == status
        assert refused.value.problem["detail"]
    truth = Truth(HELPS)
    arrive(service.database, [row | {"run_id": "elsewhere"} for row in [truth.scratch(48, 5)]], "other")
    refit = client.refit("other")
    other = until(lambda: _ended(client, refit["id"]), "the refit")["guideline_id"]
    with pytest.raises(Refused, match="may not be compared") as refused:
        client.guideline_diff(here, other)
    assert refused.value.problem["errors"][0]["pointer"] == "path:other_id"
