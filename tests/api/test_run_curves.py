"""`GET /runs` by what runs are, and their curves: a leg's with its trunk's, speedups, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from stored_cohort import COHORT, store_cohort

from app.main import create_app
from app.settings import Settings

# Of the bundled grid: a growth, its control, a decay leg of the growth's trunk, and that leg's control.
GROWN, CONTROL = "run_01m7zekakhwhxjz8y5nyqp6hwe", "run_01m7zck12fqabqm38j66t5wp2k"
LEG, LEGS_CONTROL = "run_01m7zkvk9d63bh5vf4d85rmyfw", "run_01m7zd1agr7hdmxc9wph90sa9f"
# And a growth of hidden 64 at the largest budget of its target.
LARGEST_BUDGET = "run_01m80r3aajecc249wrpsh4vp3d"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), num_slots=1, refit_after_seconds=3600)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as opened:
        store_cohort(opened.app.state.service.database)  # type: ignore[attr-defined]
        assert opened.post("/runs/import", json={"bundled": True}).status_code == 200
        yield opened


@pytest.fixture(scope="module")
def everything(client: TestClient) -> list[dict[str, Any]]:
    return list(client.get("/runs", params={"limit": 1000}).json()["data"])


@pytest.mark.parametrize(
    ("query", "fits"),
    [
        ({"search": "L8 b5"}, lambda run: "l8" in run["name"] and "b5" in run["name"]),
        ({"search": GROWN[:12].upper()}, lambda run: run["run_id"].startswith(GROWN[:12])),
        ({"search": "_%"}, lambda run: False),
        ({"source": "import", "cohort": COHORT}, lambda run: run["cohort"] == COHORT),
        ({"source": "job"}, lambda run: run["source"] == "job"),
        ({"is_final": False}, lambda run: not run["is_final"]),
        ({"min_growth_factor": 4, "max_growth_factor": 4}, lambda run: run["growth_factor"] == 4),
        ({"max_growth_factor": 1}, lambda run: run["growth_factor"] == 1),
        (
            {"min_target_params": 111_024, "max_target_params": 222_000},
            lambda run: 111_024 <= run["target_params"] <= 222_000,
        ),
        ({"min_growth_timing_tokens": 66_560}, lambda run: run["growth_timing_tokens"] >= 66_560),
    ],
)
def test_runs_are_found_by_what_they_are(
    client: TestClient, everything: list[dict[str, Any]], query: dict[str, Any], fits: Any
) -> None:
    found = client.get("/runs", params={"limit": 1000} | query).json()["data"]
    assert [run["run_id"] for run in found] == [run["run_id"] for run in everything if fits(run)]


@pytest.mark.parametrize(
    "query", [{"source": "home"}, {"min_growth_factor": "nan"}, {"max_target_params": -1}, {"search": "\n"}]
)
def test_a_bad_filter_is_refused(client: TestClient, query: dict[str, Any]) -> None:
    assert client.get("/runs", params=query).status_code == 422


def test_pages_of_a_filter_join_to_all_of_it(client: TestClient) -> None:
    query, ids, after = {"search": "l2to8", "limit": 3}, [], None
    while True:
        page = client.get("/runs", params=query | ({"after": after} if after else {})).json()
        ids += [run["run_id"] for run in page["data"]]
        if not page["has_more"]:
            break
        after = page["next"]
    assert ids == [
        run["run_id"] for run in client.get("/runs", params={"search": "l2to8", "limit": 1000}).json()["data"]
    ]


def test_metrics_name_every_curve_the_decision_first(client: TestClient) -> None:
    found = client.get(f"/runs/{GROWN}/metrics").json()["metrics"]
    assert (found[0]["metric"], found[0]["dataset"]) == ("validation_loss", "demo/validation")
    points = client.get(f"/runs/{GROWN}/points", params={"limit": 10_000}).json()["data"]
    assert sum(one["num_points"] for one in found) == len(points)


def test_a_curve_holds_the_targets_points_and_its_final_loss(client: TestClient) -> None:
    curve = client.get(f"/runs/{GROWN}/curve").json()
    run = client.get(f"/runs/{GROWN}").json()
    stored = client.get(f"/runs/{GROWN}/points", params={"metric": "validation_loss", "limit": 10_000}).json()["data"]
    of_target = [point for point in stored if point["phase"] != "base"]
    assert [(p["value"], p["compute_flops"]) for p in curve["points"]] == [
        (p["value"], p["compute_flops"]) for p in of_target
    ]
    assert [p["is_final"] for p in curve["points"]] == [False] * (len(of_target) - 1) + [True]
    assert curve["points"][-1]["value"] == run["final_loss"]
    assert curve["points"][-1]["tokens"] == run["growth_timing_tokens"] + run["grown_tokens"]
    assert curve["final"] is None
    assert {p["speedup"] for p in curve["points"]} == {None}


def test_a_decay_leg_begins_with_its_trunk(client: TestClient) -> None:
    leg, trunk = (client.get(f"/runs/{one}/curve").json()["points"] for one in (LEG, GROWN))
    own = [point for point in leg if point["run_id"] == LEG]
    shared = [point for point in leg if point["run_id"] == GROWN]
    assert own
    assert shared
    assert leg == shared + own
    assert shared == trunk[: len(shared)]
    assert shared[-1]["compute_flops"] < own[0]["compute_flops"]


def test_a_speedup_is_a_ratio_of_flops_at_one_loss(client: TestClient) -> None:
    curve = client.get(f"/runs/{GROWN}/curve", params={"against": CONTROL}).json()
    control = client.get(f"/runs/{CONTROL}/curve").json()["points"]
    read = [point for point in curve["points"] if point["speedup"] is not None]
    assert read
    for point in read:
        assert point["speedup"] == pytest.approx(point["against_flops"] / point["compute_flops"] - 1)
        above = [one for one in control if one["compute_flops"] < point["against_flops"]]
        below = [one for one in control if one["compute_flops"] >= point["against_flops"]]
        assert above[-1]["value"] >= point["value"] >= below[0]["value"]
    assert curve["points"][-1]["speedup"] is None  # it ended lower than its control


def test_final_losses_are_held_against_final_losses(client: TestClient, everything: list[dict[str, Any]]) -> None:
    final = client.get(f"/runs/{LEG}/curve", params={"against": LEGS_CONTROL}).json()["final"]
    run = client.get(f"/runs/{LEG}").json()
    scratch = [client.get(f"/runs/{one}").json() for one in final["scratch_run_ids"]]
    assert {one["target_params"] for one in scratch} == {run["target_params"]}
    lower = [one["compute_flops"] for one in scratch if one["final_loss"] > run["final_loss"]]
    higher = [one["compute_flops"] for one in scratch if one["final_loss"] < run["final_loss"]]
    assert max(lower) < final["scratch_flops"] < min(higher)
    assert final["speedup"] == pytest.approx(final["scratch_flops"] / run["compute_flops"] - 1)
    lowest = next(one for one in everything if one["run_id"] == LARGEST_BUDGET)
    against = {"against": lowest["control_id"]}
    beyond = client.get(f"/runs/{LARGEST_BUDGET}/curve", params=against).json()["final"]
    scratch = [one for one in everything if one["run_id"] in beyond["scratch_run_ids"]]
    assert len(scratch) > 5
    assert lowest["final_loss"] < min(one["final_loss"] for one in scratch)
    assert beyond["speedup"] is None
    assert f"ended lower than all {len(scratch)} scratch runs" in beyond["detail"]


def test_a_long_curve_is_thinned_with_its_ends_kept(client: TestClient) -> None:
    whole = client.get(f"/runs/{GROWN}/curve", params={"metric": "train_loss", "dataset": "demo/train"}).json()
    thin = client.get(
        f"/runs/{GROWN}/curve", params={"metric": "train_loss", "dataset": "demo/train", "max_points": 5}
    ).json()
    assert whole["num_points"] == thin["num_points"] == len(whole["points"]) > len(thin["points"]) == 5
    assert (thin["points"][0], thin["points"][-1]) == (whole["points"][0], whole["points"][-1])


def test_losses_of_two_cohorts_are_not_held_against_each_other(client: TestClient) -> None:
    other = client.get("/runs", params={"cohort": COHORT, "limit": 1}).json()["data"][0]["run_id"]
    answer = client.get(f"/runs/{GROWN}/curve", params={"against": other})
    assert answer.status_code == 422
    assert "may not be compared" in answer.json()["detail"]
    assert client.get(f"/runs/{GROWN}/curve", params={"against": "run_none"}).status_code == 422
    assert client.get("/runs/run_none/curve").status_code == 404
