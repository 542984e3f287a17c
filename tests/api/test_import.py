"""Importing runs: a bundle exported from one service and taken up by another, and a planted grid that must not be bent."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grid_truth as truth
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient

from app.client import Growthlaw, Refused
from app.commands.runs import runs as runs_command
from app.contract import EvaluationSpec, ModelSpec, Spec, TrainingSpec
from app.corpus.shards import read_manifest
from app.ingest.bundle import read_bundle
from app.jobs.headers import recipe_of
from app.main import create_app
from app.settings import Settings
from fitting.errors import InputError
from fitting.growth_fit import ALL_LAWS
from fitting.table import COLUMNS

ROOT = Path(__file__).parents[2]
POINT_COLUMNS = (
    "run_id", "seq", "phase", "tokens", "compute_flops", "metric", "dataset", "value", "unit", "time",
)  # fmt: skip


def write_bundle(folder: Path, headers: pd.DataFrame, points: pd.DataFrame, recipes: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    headers.to_csv(folder / "headers.csv", index=False)
    points.to_csv(folder / "points.csv.xz", index=False)
    (folder / "cohorts.json").write_text(json.dumps({"cohorts": recipes}))
    return folder


def tiny_recipe(body: dict[str, Any], tiny_corpus: Path) -> dict[str, Any]:
    """The recipe that the service gives to a run of this body."""
    manifest = read_manifest(tiny_corpus)
    target = body["target_model"]
    spec = Spec(
        run_id="r", name="n", cohort=body["cohort"], corpus="tiny", corpus_dir=str(tiny_corpus),
        model=ModelSpec(**target, num_kv_heads=target["num_heads"], vocab_size=manifest.vocab_size),
        training=TrainingSpec(**body["training"], tokens=body["token_budget"]),
        evaluation=EvaluationSpec(every_tokens=1024, num_windows=body["num_validation_windows"]),
        init_seed=0, data_seed=0, checkpoint_every_tokens=8192,
    )  # fmt: skip
    return recipe_of(spec, manifest)


def export(client: Growthlaw) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Headers and points of everything that a service holds."""
    headers = client.runs(limit=100)["data"]
    points = [{"run_id": run["run_id"], **point} for run in headers for point in client.points(run["run_id"])]
    return pd.DataFrame(headers)[list(COLUMNS)], pd.DataFrame(points)[list(POINT_COLUMNS)]


def test_runs_of_one_service_go_on_in_another(
    tmp_path: Path,
    new_service: Callable[[Path], Any],
    grow_body: Callable[..., dict[str, Any]],
    tiny_corpus: Path,
    until: Callable[..., Any],
) -> None:
    """Real training, real files, the real command, two real services; the second one's installation ships the runs."""
    first, second = new_service(tmp_path / "first"), new_service(tmp_path / "second")
    installation = tmp_path / "installation"
    for package in ("app", "fitting"):
        shutil.copytree(ROOT / package, installation / package, ignore=shutil.ignore_patterns("__pycache__", "_data"))
    first.installation = second.installation = installation
    body = grow_body(controls=["scratch"])
    try:
        client = first.start()
        growth = client.grow(body)
        for arm in growth["arms"]:
            assert list(client.events(arm["job"]["id"]))[-1].data["state"] == "succeeded"
        headers, points = export(client)
        assert len(headers) == 2
        mine = until(lambda: [g for g in client.guidelines(cohort="tiny")["data"] if g["num_runs"] == 2], "the refit")[
            0
        ]
        pairs = client.guideline(mine["id"])["body"]["pairs"]
        write_bundle(installation / "data" / "runs", headers, points, {"tiny": tiny_recipe(body, tiny_corpus)})
        # The service that trained the runs knows them already, and keeps them as its own.
        assert client.import_bundled_runs()["cohorts"][0]["num_runs_known"] == 2
        assert {run["source"] for run in client.runs()["data"]} == {"job"}

        other = second.start()

        def imported(*more: str) -> Any:
            done = subprocess.run(
                [sys.executable, "-m", "app.cli", "runs", "import", "--bundled", "--url", other.url, "--json", *more],
                capture_output=True, text=True, check=False, cwd=ROOT,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            (cohort,) = json.loads(done.stdout)["cohorts"]
            return cohort

        assert imported("--dry-run")["num_runs_added"] == 2
        assert other.runs()["data"] == []
        assert imported() == {
            "cohort": "tiny", "num_runs_added": 2, "num_runs_known": 0, "num_runs_removed": 0, "num_points_added": len(points)
        }  # fmt: skip
        again = other.import_bundled_runs()["cohorts"][0]
        assert (again["num_runs_added"], again["num_runs_known"], again["num_points_added"]) == (0, 2, 0)
        for run in headers.to_dict("records"):
            stored, theirs = other.run(run["run_id"]), client.run(run["run_id"])
            assert stored.pop("source") == "import"
            assert stored == {column: value for column, value in theirs.items() if column != "source"}
            assert other.points(run["run_id"]) == client.points(run["run_id"])
        guideline = until(lambda: other.guidelines(cohort="tiny")["data"], "the refit of what was imported")[0]
        assert other.guideline(guideline["id"])["body"]["pairs"] == pairs

        # A later job of the same recipe enters the cohort; one of another recipe is refused.
        with pytest.raises(Refused, match=r"weight_decay 0\.3 against 0\.1"):
            other.grow(grow_body(controls=[], training={**body["training"], "weight_decay": 0.3}))
        job = other.grow(grow_body(controls=[], init_seed=1))["arms"][0]["job"]
        assert len(other.runs(cohort="tiny")["data"]) == 3
        other.cancel(job["id"])
    finally:
        for service in (first, second):
            if service.process is not None:
                service.stop()
            for process in service.engine_processes():
                process.kill()


# --- a planted grid ----------------------------------------------------------------------------------------------


def planted() -> tuple[pd.DataFrame, pd.DataFrame]:
    """One size of a planted grid: nine pairs, their controls and the smaller depths, with a point each."""
    table = truth.GridTable(ALL_LAWS["equivalent_progress_kappa_c"], np.array([0.5, 0.02]), noise_nats=0.002, seed=0)
    for layers in (2, 4, 8):
        table.single(64, layers)
    for share in (0.03, 0.1, 0.3):
        table.grown(64, 4, share)
    headers = table.frame()
    points = pd.DataFrame(
        {
            "run_id": run["run_id"], "seq": 1, "phase": "grown" if run["growth_factor"] > 1 else "single",
            "tokens": int(run["grown_tokens"]), "compute_flops": run["compute_flops"], "metric": "validation_loss",
            "dataset": "demo/validation", "value": run["final_loss"], "unit": "nats", "time": "2026-01-01T00:00:00Z",
        }
        for run in headers.to_dict("records")
    )  # fmt: skip
    return headers, points


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The planted grid as the bundle that this installation ships."""
    folder = write_bundle(tmp_path / "data" / "runs", *planted(), {"grid": truth.RECIPE})
    monkeypatch.setattr("app.bundled.__file__", str(tmp_path / "app" / "bundled.py"))
    return folder


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    settings = Settings(data_dir=tmp_path / "service", num_slots=1)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as opened:
        yield opened


def import_(client: TestClient) -> Any:
    return client.post("/runs/import", json={"bundled": True})


def test_the_guideline_of_the_bundle_is_offered_within_reach_and_never_beyond(
    client: TestClient, bundle: Path, until: Callable[..., Any]
) -> None:
    answer = import_(client)
    assert answer.status_code == 200, answer.text
    (cohort,) = answer.json()["cohorts"]
    assert cohort["num_runs_added"] == len(planted()[0])
    guideline = until(lambda: client.get("/guidelines?cohort=grid").json()["data"], "the refit")[0]
    shape = {
        "num_layers": 8, "hidden_size": 64, "num_heads": 2, "intermediate_size": 176, "vocab_size": 1024, "context_length": 128,
    }  # fmt: skip
    near = {"target_shape": shape, "token_budget": 4e6}
    own = client.post("/recommend", json=near | {"cohort": "grid"}).json()
    assert own["guideline"]["id"] == guideline["id"]
    assert own["decision"] == "grow"
    assert all(row["guideline"] is None for row in own["alternatives"])
    # Without a cohort a published rule answers, and the bundle's guideline stands beside it with its own numbers.
    beside = client.post("/recommend", json=near).json()
    assert beside["guideline"]["id"] == "published:gstack"
    (row,) = [row for row in beside["alternatives"] if row["guideline"]]
    assert row["guideline"] == {
        "id": guideline["id"], "name": own["guideline"]["name"], "cohort": "grid", "num_runs": guideline["num_runs"],
    }  # fmt: skip
    assert (row["growth_factor"], row["growth_timing_tokens"]) == (own["growth_factor"], own["growth_timing_tokens"])
    assert row["delta_nats"] == own["expected"]["delta_nats"] < 0
    # 40 times the size: neither for its own cohort nor beside others.
    far = {"target_params": 40 * 402_496, "token_budget": 4e6 * 40}
    assert all(row["guideline"] is None for row in client.post("/recommend", json=far).json()["alternatives"])
    asked = client.post("/recommend", json=far | {"cohort": "grid"}).json()
    assert asked["guideline"]["id"] == "published:gstack"
    assert asked["warnings"][0].startswith(own["guideline"]["name"])
    assert "does not answer here" in asked["warnings"][0]
    assert asked["expected"]["delta_nats"] is None


def test_a_second_import_adds_nothing_and_a_differing_row_is_refused_whole(client: TestClient, bundle: Path) -> None:
    assert import_(client).status_code == 200
    count = len(client.get("/runs?limit=1000").json()["data"])
    assert import_(client).json()["cohorts"][0]["num_runs_added"] == 0
    headers = pd.read_csv(bundle / "headers.csv")
    fresh = headers.iloc[[0]].assign(run_id="fresh", init_seed=7)
    headers.loc[5, "final_loss"] += 1e-9
    pd.concat([fresh, headers]).to_csv(bundle / "headers.csv", index=False)
    points = pd.read_csv(bundle / "points.csv.xz")
    pd.concat([points, points.iloc[[0]].assign(run_id="fresh")]).to_csv(bundle / "points.csv.xz", index=False)
    refused = import_(client)
    assert refused.status_code == 422
    assert repr(headers.loc[5, "run_id"]) in refused.json()["detail"]
    assert refused.json()["errors"][0]["pointer"] == "/final_loss"
    # Refused whole: the fresh row before it is not there.
    assert client.get("/runs/fresh").status_code == 404
    assert len(client.get("/runs?limit=1000").json()["data"]) == count


def test_a_cohort_of_another_recipe_is_refused(client: TestClient, bundle: Path) -> None:
    assert import_(client).status_code == 200
    (bundle / "cohorts.json").write_text(json.dumps({"cohorts": {"grid": truth.RECIPE | {"weight_decay": 0.3}}}))
    refused = import_(client)
    assert refused.status_code == 409
    assert "weight_decay 0.3 against None" in refused.json()["detail"]


def _edit(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    return lambda folder: change(pd.read_csv(folder / name)).to_csv(folder / name, index=False)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no headers": (lambda folder: (folder / "headers.csv").unlink(), r"headers\.csv is missing"),
    "no recipe": (lambda folder: (folder / "cohorts.json").write_text('{"cohorts": {}}'), "names no recipe for cohort 'grid'"),
    "recipes are no JSON": (lambda folder: (folder / "cohorts.json").write_text("{"), "cannot be read"),
    "recipe contradicts the rows": (
        lambda folder: (folder / "cohorts.json").write_text(
            json.dumps({"cohorts": {"grid": truth.RECIPE | {"vocab_size": 7}}})
        ),
        "vocab_size 7",
    ),
    "a run twice": (_edit("headers.csv", lambda t: pd.concat([t, t.iloc[[0]]])), "run_id"),
    "a running run": (_edit("headers.csv", lambda t: t.assign(status="running")), "is 'running'"),
    "no numerics version": (_edit("headers.csv", lambda t: t.drop(columns="engine_numerics_version")), "engine_num"),
    "points of nobody": (
        _edit("points.csv.xz", lambda t: pd.concat([t, t.iloc[[0]].assign(run_id="nobody")])),
        "has no header",
    ),
    "points are no archive": (lambda folder: (folder / "points.csv.xz").write_bytes(b"run_id,seq"), "cannot be read"),
    "a run without points": (_edit("points.csv.xz", lambda t: t.iloc[1:]), "holds no point"),
    "a point twice": (_edit("points.csv.xz", lambda t: pd.concat([t, t.iloc[[0]]])), "twice"),
    "a point that is no number": (_edit("points.csv.xz", lambda t: t.assign(value=np.nan)), "bad point"),
    "an unknown phase": (_edit("points.csv.xz", lambda t: t.assign(phase="middle")), "bad point"),
    "points cut off": (
        lambda folder: (folder / "points.csv.xz").write_bytes((folder / "points.csv.xz").read_bytes()[:-60]),
        "cannot be read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_bad_bundles_are_refused_by_name(case: str, bundle: Path) -> None:
    break_it, words = BAD[case]
    break_it(bundle)
    with pytest.raises(InputError, match=words):
        read_bundle(bundle)


def test_a_bundle_that_is_not_there_is_said(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.bundled.__file__", str(tmp_path / "nowhere" / "app" / "bundled.py"))
    refused = import_(client)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/bundled"
    assert client.post("/runs/import", json={"bundled": False}).status_code == 422
    assert client.post("/runs/import", json={}).status_code == 422


def test_the_report_command_writes_a_page_with_figures(bundle: Path, tmp_path: Path) -> None:
    table = truth.whole_grid(ALL_LAWS["equivalent_progress_kappa_c"], np.array([0.5, 0.02]), num_seeds=1)
    only = table[table["hidden_size"] == 48]
    only.to_csv(bundle / "headers.csv", index=False)
    out = tmp_path / "report"
    done = CliRunner().invoke(runs_command, ["report", str(bundle), "--out", str(out)])
    assert done.exit_code == 0, done.output
    page = (out / "REPORT.md").read_text()
    assert page.splitlines()[2].startswith("- ")
    for title in (
        "## 2. Valleys",
        "## 6. Which rule is right where",
        "## 12. Copying from the context",
        "## 13. What cannot be told",
    ):
        assert title in page
    assert "Not yet: leaving out the largest size needs 2 sizes" in page
    for figure in ("valleys", "gains", "speedup", "best_timing", "rules", "ablation"):
        assert f"figures/{figure}.png" in page
        assert (out / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    named = pd.read_csv(out / "runs_by_section.csv")
    assert set(named["run_id"]) <= set(only["run_id"])
    before = {path.name: path.read_bytes() for path in (out / "figures").iterdir()} | {"page": page.encode()}
    assert CliRunner().invoke(runs_command, ["report", str(bundle), "--out", str(out)]).exit_code == 0
    after = {path.name: path.read_bytes() for path in (out / "figures").iterdir()}
    assert before == after | {"page": (out / "REPORT.md").read_bytes()}
    # Beside a design the page says first how much of it is there.
    shutil.copy(ROOT / "data" / "runs" / "grid.toml", bundle)
    assert CliRunner().invoke(runs_command, ["report", str(bundle), "--out", str(out)]).exit_code == 0
    assert "Part-way: 0 of the grid's" in (out / "REPORT.md").read_text().splitlines()[2]
    refused = CliRunner().invoke(runs_command, ["report", str(tmp_path), "--out", str(out)])
    assert "headers.csv" in str(refused.exception)
