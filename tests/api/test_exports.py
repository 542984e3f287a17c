"""Exports by the real service: a job like any other, below the URLs that its owner allows and nowhere else."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from job_checks import story_of

from app.client import Growthlaw, Refused
from app.uploads.sending import MANIFEST_FILE

Body = Callable[..., dict[str, Any]]
ENDED = ("succeeded", "failed", "cancelled")


def growthlaw(client: Growthlaw, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments, "--url", client.url],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


def test_a_runs_weights_to_a_url(service: Any, grow_body: Body, until: Any, tmp_path: Path) -> None:
    allowed = tmp_path / "exports"
    allowed.mkdir()
    url = f"file://{allowed}/models/pilot"
    service.options = ("--slots", "1", "--export-to", f"file://{allowed}")
    client = service.start()
    job = client.grow(grow_body(controls=[], token_budget=400_000))["arms"][0]["job"]
    until(lambda: client.points(job["run_id"]), "the first point")
    for source, words in (("final", "wait for them"), ("tokens-1", "cannot be exported"), ("../spec.json", "pattern")):
        with pytest.raises(Refused, match=words) as caught:
            client.export(job["id"], url, source=source)
        assert caught.value.problem["errors"][0]["pointer"].startswith("/source")

    until(lambda: Path(client.job(job["id"])["run_dir"], "exports", "base").exists(), "it has grown")
    # The only slot is taken, so it waits; cancelled and tried again, it still goes before what else waits.
    waiting = client.export(job["id"], url, source="base")
    assert (waiting["kind"], waiting["state"], waiting["run_id"]) == ("export", "queued", None)
    with pytest.raises(Refused, match=f"job {waiting['id']} exports to already") as caught:
        client.export(job["id"], url, source="base")
    assert caught.value.status == 409
    client.cancel(waiting["id"])
    assert client.job(waiting["id"])["state"] == "cancelled"
    assert list(allowed.iterdir()) == []
    client.retry(waiting["id"])
    assert list(client.events(job["id"]))[-1].data["state"] == "succeeded"
    assert list(client.events(waiting["id"]))[-1].data["state"] == "succeeded"
    assert story_of(client, waiting["id"])[:3] == ["queued", "cancelled", "queued"]

    said = growthlaw(client, "jobs", "export", job["id"], f"file://{allowed}/models/final")
    assert said.returncode == 0, said.stderr
    export_id = said.stdout.partition(":")[0]
    assert growthlaw(client, "jobs", "watch", export_id).returncode == 0
    for source, name in (("base", "pilot"), ("final", "final")):
        target = allowed / "models" / name
        manifest = json.loads((target / MANIFEST_FILE).read_text())
        assert (manifest["run_id"], manifest["source"]) == (job["run_id"], f"exports/{source}")
        assert {"config.json", "model.safetensors"} <= {file["path"] for file in manifest["files"]}
        for file in manifest["files"]:
            stored = (target / file["path"]).read_bytes()
            assert (len(stored), hashlib.sha256(stored).hexdigest()) == (file["num_bytes"], file["sha256"])
    assert [checkpoint["name"] for checkpoint in client.checkpoints(export_id)] == []

    # A place that is taken, then one that refuses until somebody mends it.
    taken = client.export(job["id"], url)
    assert list(client.events(taken["id"]))[-1].data["cause"] == "bad_spec"
    assert "where a finished export is" in client.job(taken["id"])["reason"]
    (allowed / "file").write_text("where a folder should be")
    refused = client.export(job["id"], f"file://{allowed}/file/pilot")
    assert list(client.events(refused["id"]))[-1].data["cause"] == "unavailable"
    assert "then retry the job" in client.job(refused["id"])["reason"]
    (allowed / "file").unlink()
    client.retry(refused["id"])
    assert list(client.events(refused["id"]))[-1].data["state"] == "succeeded"
    assert (allowed / "file" / "pilot" / MANIFEST_FILE).exists()

    for bad, words in (
        (f"file://{tmp_path}/elsewhere", "allows exports below"),
        (f"file://{allowed}/../elsewhere", "'..'"),
        ("s3://bucket/x", "allows exports below"),
        ("s3://key:Secret@bucket/x", "leave credentials"),
        ("/etc/cron.d/x", "PROTOCOL"),
    ):
        with pytest.raises(Refused) as caught:
            client.export(job["id"], bad)
        (error,) = caught.value.problem["errors"]
        assert (caught.value.status, error["pointer"]) == (422, "/url")
        assert words in error["detail"]
        assert "Secret" not in json.dumps(caught.value.problem)
    with pytest.raises(Refused, match="is no run"):
        client.export(waiting["id"], f"file://{allowed}/again")
    assert "Secret" not in (service.data_dir / "service.log").read_text()
    assert service.engine_processes() == []


def test_a_setting_that_cannot_work_stops_the_start(tmp_path: Path) -> None:
    for url, words in (("s3://key:Secret@bucket", "leave credentials"), ("webdav://host/x", "pip install webdav4")):
        refused = subprocess.run(
            [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--data-dir", str(tmp_path), "--export-to", url],
            capture_output=True, text=True, timeout=60, check=False, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert refused.returncode == 1
        assert "--export-to" in refused.stderr
        assert words in refused.stderr
        assert "Secret" not in refused.stderr
