"""The commands on the contract's routes, over a real service: answers that jobs follow, runs corrected and removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.client import Refused

ROOT = Path(__file__).parents[2]


def growthlaw(*arguments: str, url: str = "http://127.0.0.1:9") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments], capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "GROWTHLAW_URL": url},
    )  # fmt: skip


def test_a_job_follows_a_kept_answer(service: Any, grow_body: Any) -> None:
    client = service.start()
    asked = growthlaw(
        "recommend", "--target-params", "7e9", "--token-budget", "2e12", "--keep", "--json", url=client.url
    )
    assert asked.returncode == 0, asked.stderr
    kept = json.loads(asked.stdout)
    assert client.recommendation(kept["id"])["answer"]["decision"] == "grow"
    passing = client.recommend(target_params=7e9, token_budget=2e12)
    with pytest.raises(Refused, match="no answer is kept"):
        client.recommendation(passing["id"])
    for answer, key in ((kept, "a"), (passing, "b")):
        body = grow_body(controls=[], recommendation_id=answer["id"])
        job = client.grow(body, idempotency_key=key)["arms"][0]["job"]
        assert job["recommendation_id"] == answer["id"]
        again = client.grow(body, idempotency_key=key)["arms"][0]["job"]
        assert again["id"] == job["id"]
        client.cancel(job["id"])
    # A job made it worth keeping, and it survives the service.
    service.kill()
    client = service.start()
    assert client.recommendation(passing["id"])["answer"]["growth_factor"] == passing["growth_factor"]
    with pytest.raises(Refused, match="ask again") as caught:
        client.grow(grow_body(controls=[], recommendation_id="rec_" + "0" * 26))
    assert caught.value.problem["errors"][0]["pointer"] == "/recommendation_id"

    header = {"cohort": "mine", "name": "m", "target_params": 4e5, "decision_dataset": "validation"}
    run_id = client.open_run(header)["run"]["run_id"]
    client.push_points(run_id, [], status="stopped")
    corrected = growthlaw("runs", "correct", run_id, "--status", "diverged", "--why", "zeros", url=client.url)
    assert corrected.returncode == 0, corrected.stderr
    assert "status: diverged, was stopped" in corrected.stdout
    removed = growthlaw("runs", "remove", run_id, "--why", "a trial", url=client.url)
    assert removed.returncode == 0, removed.stderr
    with pytest.raises(Refused, match="a trial") as gone:
        client.run(run_id)
    assert gone.value.status == 410


def test_questions_with_what_is_at_hand_are_answered_here(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128_256, "max_position_embeddings": 8192,
    }  # fmt: skip
    target, base = tmp_path / "config.json", tmp_path / "base" / "config.json"
    base.parent.mkdir()
    target.write_text(json.dumps(config))
    base.write_text(json.dumps(config | {"num_hidden_layers": 8}))
    shared = ("--guideline", "published:gstack", "--json")
    hours = ("--gpu-hours", "1e6", "--peak-flops-per-second", "989e12", "--utilisation", "0.4")
    asked = growthlaw("recommend", "--config", str(target), *hours, *shared)
    assert asked.returncode == 0, asked.stderr
    flops = json.loads(asked.stdout)["flops"]["scratch"]
    assert flops == pytest.approx(1e6 * 3600 * 989e12 * 0.4)
    for given in (("--base-config", str(base)), ("--base-checkpoint", str(base.parent))):
        asked = growthlaw(
            "recommend", "--num-target-layers", "32", "--token-budget", "2e12", *given, "--base-tokens", "5e9", *shared
        )
        assert asked.returncode == 0, asked.stderr
        assert json.loads(asked.stdout)["growth_factor"] == 4
    for wrong, words in (
        (("--config", str(target), "--token-budget", "2e12", "--keep"), "--keep needs the service"),
        (("--config", "nowhere.json", "--token-budget", "2e12"), "does not exist"),
        (("--config", str(target), "--token-budget", "2e12", "--base-params", "1e9"), "--base-tokens is missing"),
        (("--config", str(target), "--loss-to-match", "2.1"), "predicts none"),
        (("--config", str(target), "--loss-to-match", "2.1", "--token-budget", "2e12"), "exactly one of"),
    ):
        failed = growthlaw("recommend", *wrong, *shared)
        assert failed.returncode in (1, 2), wrong
        assert words in failed.stderr
