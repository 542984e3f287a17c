"""`POST /jobs` on the real service: a trunk, its legs and what is refused, each run a real process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from app.client import Growthlaw, Refused
from fitting.flops import Shape, flops_per_token

Body = Callable[..., dict[str, Any]]
GROWTH = {"growth_factor": 2, "growth_timing_tokens": 2_048, "optimizer_state_policy": "copy"}


@pytest.fixture(scope="module")
def train_body(grow_body: Body) -> Body:
    def make(*, training: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        base = {"tokens": 5_120, "peak_lr": 4e-3, "batch_sequences": 8, "warmup_tokens": 512}
        return {
            "name": "one", "cohort": "tiny", "corpus": "tiny", "model": grow_body()["target_model"],
            "training": base | (training or {}), "num_validation_windows": 16, "evaluation_every_tokens": 1_024,
        } | changes  # fmt: skip

    return make


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, new_service: Any) -> Iterator[Any]:
    service = new_service(tmp_path_factory.mktemp("training") / "data")
    service.start()
    yield service
    service.stop()
    for process in service.engine_processes():
        process.kill()


@pytest.fixture(scope="module")
def client(running: Any) -> Growthlaw:
    assert isinstance(running.client, Growthlaw)
    return running.client


def ended(client: Growthlaw, job: dict[str, Any]) -> dict[str, Any]:
    """The run of a job that must succeed."""
    end = list(client.events(job["id"]))[-1].data
    assert end["state"] == "succeeded", end
    return client.run(job["run_id"])


@pytest.fixture(scope="module")
def trunk(client: Growthlaw, train_body: Body) -> dict[str, Any]:
    """The run of a grown trunk that kept two checkpoints."""
    training = {"schedule": "constant", "tokens": 6_500}
    job = client.train(
        train_body(name="trunk", growth=GROWTH, training=training, keep_checkpoints_at_tokens=[6_144, 4_096, 4_100])
    )
    assert (job["role"], job["kind"], job["warnings"]) == ("trunk", "growth", [])
    return ended(client, job)


def test_a_trunk_is_no_final_run(client: Growthlaw, running: Any, trunk: dict[str, Any]) -> None:
    assert trunk["status"] == "finished"
    assert trunk["is_final"] is False
    assert (trunk["schedule"], trunk["decay_tokens"]) == ("constant", 0)
    # 6,500 asked: 12 whole batches of 512.
    assert trunk["planned_tokens"] == trunk["grown_tokens"] == 6_144
    assert trunk["trunk_id"] == trunk["run_id"]
    assert trunk["parent_run_id"] is None
    kept = sorted(path.name for path in (running.data_dir / "runs" / trunk["run_id"] / "checkpoints").iterdir())
    assert kept == [f"tokens-{2_048 + tokens:015d}-grown" for tokens in (4_096, 6_144)]


def test_legs_are_the_undivided_runs(
    client: Growthlaw, running: Any, trunk: dict[str, Any], train_body: Body, grow_body: Body, until: Any
) -> None:
    asked = {"whole": 5_120, "leg-a": 5_120, "leg-b": 2_560}

    def start(name: str, trunk: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        training = {"tokens": asked[name]}
        return client.train(train_body(name=name, growth=GROWTH, training=training, trunk=trunk, **changes))

    # The trunk's checkpoints go away under the first leg; once they are back, it goes on.
    kept = running.data_dir / "runs" / trunk["run_id"] / "checkpoints"
    kept.rename(kept.with_name("lost"))
    leaves = {"run_id": trunk["run_id"], "branch_tokens": 4_096}
    jobs = {
        "leg-a": start("leg-a", leaves, control_run_id=trunk["run_id"]),
        "whole": start("whole", keep_checkpoints_at_tokens=[2_048]),
    }
    end = list(client.events(jobs["leg-a"]["id"]))[-1].data
    assert end["state"] == "failed"
    assert "there is no checkpoint at 6144 tokens" in end["reason"]
    kept.with_name("lost").rename(kept)
    client.resume(jobs["leg-a"]["id"])
    runs = {"whole": ended(client, jobs["whole"])}
    # A run that decays is a trunk too, up to where it does.
    jobs["leg-b"] = start("leg-b", {"run_id": runs["whole"]["run_id"], "branch_tokens": 2_048})
    assert {name: job["role"] for name, job in jobs.items()} == {"leg-a": "leg", "leg-b": "leg", "whole": "trunk"}
    (warning,) = jobs["leg-a"]["warnings"]
    assert "is a grown run itself, never decays" in warning
    runs |= {name: ended(client, jobs[name]) for name in ("leg-a", "leg-b")}
    shape = {key: value for key, value in grow_body()["target_model"].items() if key != "num_kv_heads"}
    target = Shape(**shape, num_kv_heads=shape["num_heads"], vocab_size=512)
    f_target, f_base = flops_per_token(target), flops_per_token(target.with_layers(2))
    for name, tokens in asked.items():
        run = runs[name]
        assert run["is_final"] is True
        assert run["decay_tokens"] == pytest.approx(0.2 * tokens)
        # A leg counts as the undivided run: its trunk's base and branch included.
        assert run["compute_flops"] == pytest.approx(2_048 * f_base + tokens * f_target)
        assert run["compute_flops"] == jobs[name]["compute_flops"]
        assert (run["growth_timing_tokens"], run["grown_tokens"]) == (2_048, tokens)
    leg, whole = runs["leg-a"], runs["whole"]
    assert leg["final_loss"] == whole["final_loss"]
    own = ("run_id", "name", "trunk_id", "parent_run_id", "control_id", "created_at")
    assert {key: leg[key] for key in leg if key not in own} == {key: whole[key] for key in whole if key not in own}
    assert leg["trunk_id"] == leg["parent_run_id"] == trunk["run_id"]
    assert runs["leg-b"]["trunk_id"] == runs["leg-b"]["parent_run_id"] == whole["run_id"]
    assert (leg["control_id"], whole["control_id"]) == (trunk["run_id"], None)
    assert (whole["trunk_id"], whole["parent_run_id"]) == (whole["run_id"], None)

    # Every guideline of the cohort leaves the trunk's loss out.
    ids = {run["run_id"] for run in runs.values()}

    def bodies() -> list[dict[str, Any]]:
        return [client.guideline(g["id"])["body"] for g in client.guidelines(cohort="tiny")["data"]]

    until(lambda: any(ids <= set(body["run_ids"]) for body in bodies()), "the refit")
    for body in bodies():
        assert body["basis"] == "final"
        assert trunk["run_id"] not in body["run_ids"]
        assert body["num_excluded"]["mid_schedule"] == 1

    with pytest.raises(Refused, match="is itself a leg"):
        start("leg-b", {"run_id": leg["run_id"], "branch_tokens": 2_048})


@pytest.mark.parametrize(
    ("change", "status", "pointer", "words"),
    [
        ({"trunk": {"run_id": "run_" + "0" * 26}}, 422, "/trunk/run_id", "there is no run"),
        ({"trunk": {"run_id": "../../etc/passwd"}}, 422, "/trunk/run_id", "pattern"),
        ({"trunk": {"run_id": "run_" + "0" * 26 + "/../.."}}, 422, "/trunk/run_id", "pattern"),
        ({"trunk": {"trunk_run_dir": "/etc"}}, 422, "/trunk/trunk_run_dir", "not known"),
        ({"trunk": {"branch_tokens": 3_072}}, 422, "/trunk/branch_tokens", "kept checkpoints at 4,096, 6,144 tokens"),
        ({"trunk": {"branch_tokens": 100}}, 422, "/trunk/branch_tokens", "one batch is 512"),
        ({"trunk": {"branch_tokens": 6_144}}, 422, "/trunk/branch_tokens", "decays from token 4,096"),
        ({"cohort": "other"}, 422, "/trunk/run_id", "belongs to cohort 'tiny'"),
        ({"training": {"schedule": "constant"}}, 422, "/training/schedule", "use 'wsd' or 'power'"),
        ({"training": {"peak_lr": 1e-3}}, 422, "/training/peak_lr", "the trunk was trained with 0.004"),
        ({"growth": GROWTH | {"order": "interpose"}}, 422, "/growth/order", "the trunk was trained with 'stack'"),
        ({"growth": None}, 422, "/growth", "the trunk was trained with"),
        ({"init_seed": 1}, 422, "/init_seed", "use the trunk's value"),
        ({"keep_checkpoints_at_tokens": [5_120]}, 422, "/keep_checkpoints_at_tokens", "no leg can leave a leg"),
        ({"control_run_id": "run_" + "1" * 26}, 422, "/control_run_id", "there is no run"),
        ({"growth": GROWTH | {"growth_factor": 3}}, 422, "/growth/growth_factor", "use one of [2, 4]"),
        ({"trunk": None, "training": {"tokens": 100}}, 422, "/training/tokens", "one batch"),
        ({"trunk": None, "num_validation_windows": 100_000}, 422, "/num_validation_windows", "holds"),
        ({"trunk": None, "keep_checkpoints_at_tokens": [6_000]}, 422, "/keep_checkpoints_at_tokens", "last phase"),
        ({"trunk": None, "training": {"schedule": "cosine"}}, 409, "/cohort", "schedule 'cosine' against 'wsd'"),
        ({"trunk": None, "training": {"warmup_tokens": 4_500}}, 422, "/training/warmup_tokens", "shorten"),
        ({"token_budget": 5_120}, 422, "/token_budget", "not known"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    client: Growthlaw,
    trunk: dict[str, Any],
    train_body: Body,
    change: dict[str, Any],
    status: int,
    pointer: str,
    words: str,
) -> None:
    num_jobs = len(client.jobs()["data"])
    leaves: dict[str, Any] | None = {"run_id": trunk["run_id"], "branch_tokens": 4_096}
    if "trunk" in change:
        leaves = None if change["trunk"] is None else leaves | change["trunk"]
    with pytest.raises(Refused) as caught:
        client.train(train_body(**{"growth": GROWTH} | change | {"trunk": leaves}))
    assert caught.value.status == status, caught.value.problem
    (error,) = caught.value.problem["errors"]
    assert error["pointer"] == pointer
    assert words in error["detail"]
    assert len(client.jobs()["data"]) == num_jobs


def test_a_trunk_must_have_finished(client: Growthlaw, train_body: Body, until: Any) -> None:
    """Also: no run of another cohort is a control."""
    training = {"tokens": 2_000_000, "schedule": "constant"}
    long = client.train(train_body(name="long", cohort="other", training=training, keep_checkpoints_at_tokens=[1_024]))
    leaves = {"run_id": long["run_id"], "branch_tokens": 1_024}
    with pytest.raises(Refused, match="has not finished") as caught:
        client.train(train_body(cohort="other", trunk=leaves))
    assert caught.value.status == 409
    assert caught.value.problem["errors"][0]["pointer"] == "/trunk/run_id"
    with pytest.raises(Refused, match="belongs to cohort 'other'") as caught:
        client.train(train_body(control_run_id=long["run_id"]))
    assert caught.value.problem["errors"][0]["pointer"] == "/control_run_id"
    client.cancel(long["id"])
    until(lambda: client.job(long["id"])["state"] == "cancelled", "it is cancelled")
    with pytest.raises(Refused, match=r"has stopped .*train another trunk") as caught:
        client.train(train_body(cohort="other", trunk=leaves))
    assert caught.value.status == 409


def test_a_key_starts_one_run(client: Growthlaw, train_body: Body, grow_body: Body) -> None:
    body = train_body(name="keyed", cohort="keyed", training={"tokens": 2_000_000})
    with ThreadPoolExecutor(4) as threads:
        jobs = list(threads.map(lambda _: client.train(body, idempotency_key="once"), range(4)))
    assert len({job["id"] for job in jobs}) == 1
    assert all(job["compute_flops"] == jobs[0]["compute_flops"] for job in jobs)
    for other in (
        lambda: client.train(body | {"init_seed": 1}, idempotency_key="once"),
        lambda: client.grow(grow_body(), idempotency_key="once"),
    ):
        with pytest.raises(Refused, match="another body") as caught:
            other()
        assert caught.value.status == 409
    client.cancel(jobs[0]["id"])


def test_the_command_starts_a_run(client: Growthlaw, train_body: Body, tmp_path: Path) -> None:
    path = tmp_path / "body.json"
    path.write_text(json.dumps(train_body(cohort="command", training={"schedule": "constant", "tokens": 2_000_000})))

    def growthlaw(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "app.cli", "train", str(path), "--idempotency-key", "command", *options],
            capture_output=True, text=True, timeout=60, check=False,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "GROWTHLAW_URL": client.url},
        )  # fmt: skip

    started = growthlaw("--json")
    assert started.returncode == 0, started.stderr
    job = json.loads(started.stdout)
    told = growthlaw().stdout
    assert job["id"] in told
    assert "no leg can leave" in told
    client.cancel(job["id"])
    path.write_text("{")
    assert "body.json is not JSON" in growthlaw().stderr
