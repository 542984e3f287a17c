"""The runs of a folder that `growthlaw plan next --out` wrote, through the service: in order, resumed, checked before any."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sweeping import growthlaw

from app.cli import cli
from app.client import Growthlaw
from app.commands.plan_next import write_bodies
from app.service_process import running_service
from app.sweep.planned import planned_tasks, read_planned
from fitting.errors import InputError
from fitting.flops import Shape, flops_per_token

MODEL = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "context_length": 64}
SHAPE = Shape(
    num_layers=2, hidden_size=32, num_heads=2, num_kv_heads=2, intermediate_size=64, vocab_size=512, context_length=64
)
CORPORA = [{"name": "tiny", "vocab_size": 512}]


def body(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "cohort": "planned", "corpus": "tiny", "model": MODEL,
        "training": {"tokens": 20_480, "peak_lr": 4e-3, "batch_sequences": 8, "warmup_tokens": 1_024},
        "num_validation_windows": 16,
    } | changes  # fmt: skip


GROWN = body("grown", growth={"num_base_layers": 1, "growth_timing_tokens": 10_240})


def folder_of(path: Path, *bodies: dict[str, Any]) -> Path:
    """As the command writes it."""
    write_bodies({"steps": [{"runs": [{"job": one} for one in bodies]}]}, path)
    return path


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> Iterator[tuple[Path, Path, Growthlaw]]:
    """Two planned runs: time was over at once, then they ran to their end; a service over what came of it."""
    home = tmp_path_factory.mktemp("planned")
    data_dir, folder = home / "data", folder_of(home / "plan", body("scratch"), GROWN)
    (data_dir / "corpora").mkdir(parents=True)
    (data_dir / "corpora" / "tiny").symlink_to(tiny_corpus)
    at_once = growthlaw("run", folder, "--data-dir", data_dir, "--max-minutes", "0.001")
    assert at_once.returncode == 0, at_once.stderr
    assert "2 planned runs" in at_once.stdout
    assert "0.001 minutes are over: 2 run(s) paused" in at_once.stdout
    rest = growthlaw("run", folder, "--data-dir", data_dir, "--json")
    assert rest.returncode == 0, rest.stderr
    told = json.loads(rest.stdout)
    assert (told["ended"], told["failures"], told["flops_left"]) == (True, [], 0)
    assert sorted(told["results"]) == ["01-scratch", "02-grown"]
    assert all(2 < loss < 7 for loss in told["results"].values())
    with running_service(data_dir) as client:
        yield data_dir, folder, client


def test_they_ran_once_each_in_the_order_of_their_files(planned: tuple[Path, Path, Growthlaw]) -> None:
    client = planned[2]
    jobs = sorted(client.jobs(limit=100)["data"], key=lambda job: job["id"])
    assert [(job["name"], job["state"]) for job in jobs] == [("scratch", "succeeded"), ("grown", "succeeded")]


def test_their_guideline_was_refitted_once_at_the_end(planned: tuple[Path, Path, Growthlaw]) -> None:
    client = planned[2]
    (refit,) = [one for one in client.refits(limit=100)["data"] if one["state"] == "succeeded"]
    assert refit["detail"].startswith("version 1: ")
    (guideline,) = client.guidelines(cohort="planned")["data"]
    assert guideline["num_runs"] == 2


def test_what_stands_is_not_trained_again_and_a_new_file_goes_on(
    planned: tuple[Path, Path, Growthlaw], tmp_path: Path
) -> None:
    _, _, client = planned
    folder = folder_of(tmp_path / "more", body("scratch"), GROWN, body("scratch", init_seed=1, data_seed=1))
    done = growthlaw("run", folder, "--url", client.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(stood)") == 2
    assert "03-scratch  " in done.stdout
    assert "3 of 3 runs stand in the service" in done.stdout
    assert len(client.jobs(limit=100)["data"]) == 3
    seeds = {run["init_seed"]: run["final_loss"] for run in client.runs(cohort="planned", limit=100)["data"]}
    assert seeds[0] != seeds[1]


def test_the_work_is_the_flops_of_each_run(tmp_path: Path) -> None:
    leg = body("leg", trunk={"run_id": f"run_{'0' * 26}", "branch_tokens": 16_384})
    scratch, grown, decay = planned_tasks(
        read_planned(folder_of(tmp_path / "plan", body("scratch"), GROWN, leg)), CORPORA
    )
    price = flops_per_token(SHAPE)
    assert scratch.work == scratch.compute_flops == 20_480 * price
    assert grown.work == 20_480 * price + 10_240 * flops_per_token(SHAPE.with_layers(1))
    assert (decay.work, decay.compute_flops) == (4_096 * price, 20_480 * price)
    assert grown.body(None) == GROWN


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "01-a.json is not JSON"),
        ("[]", "01-a.json is wrong"),
        (json.dumps(body("a") | {"tokens": 5}), "01-a.json, /tokens is wrong: Extra inputs"),
        (json.dumps({"name": "a"}), "01-a.json, /corpus is wrong: Field required"),
        (json.dumps(body("a", training={"tokens": 0, "peak_lr": 1e-3})), "01-a.json, /training/tokens is wrong"),
        (json.dumps(body("b")), "02-b.json asks for the same run as 01-a.json; remove it, or give it an init_seed"),
    ],
)
def test_a_folder_with_a_wrong_file_starts_nothing(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "01-a.json").write_text(text)
    (tmp_path / "02-b.json").write_text(json.dumps(body("b")))
    with pytest.raises(InputError, match=words):
        read_planned(tmp_path)


def test_what_this_service_cannot_train_is_refused_by_its_file(tmp_path: Path) -> None:
    uneven = body("uneven", growth={"growth_factor": 1.7, "growth_timing_tokens": 10_240})
    runs = read_planned(folder_of(tmp_path / "plan", uneven))
    with pytest.raises(InputError, match=r"01-uneven\.json, /corpus is 'tiny', which this service does not have"):
        planned_tasks(runs, [{"name": "demo", "vocab_size": 1024}])
    with pytest.raises(InputError, match=r"01-uneven\.json .*growth_factor is 1\.7"):
        planned_tasks(runs, CORPORA)


def test_a_folder_that_is_neither_a_plan_nor_a_grid_is_refused(tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        done = CliRunner().invoke(cli, ["sweep", "run", *map(str, arguments)])
        assert done.exit_code != 0
        return f"{done.output} {done.exception}"

    (tmp_path / "grid.toml").write_text("cohort = 1")
    assert "holds no planned run" in said(tmp_path)
    (tmp_path / "index.json").write_text("{}")
    assert "growthlaw sweep work" in said(tmp_path)
    assert "does not exist" in said(tmp_path / "nowhere")
    plan = folder_of(tmp_path / "plan", body("a"))
    assert "--steps chooses among a grid's runs" in said(plan, "--steps", "1")
    assert "--runs-dir chooses among a grid's runs" in said(plan, "--runs-dir", tmp_path)
