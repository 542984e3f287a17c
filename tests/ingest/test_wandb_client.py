"""W&B's own client reads the recorded server as it reads W&B's: what the other tests import is shaped like the real thing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from wandb_server import KEY, RecordedRun, wandb_server

pytestmark = pytest.mark.long

# In a process of its own: the client starts one more beside it and keeps settings for good.
READ = """
import json, sys, wandb
api = wandb.Api(overrides={"base_url": sys.argv[1]})
runs = list(api.runs("team/proj"))
run = api.run("team/proj/long")
print(json.dumps({
    "names": [run.name for run in runs], "states": [run.state for run in runs], "config": dict(run.config),
    "summary": run.summary.get("best"), "last_step": run.lastHistoryStep, "history": list(run.scan_history()),
    "sampled": len(run.history(pandas=False)), "crashed": [r.name for r in api.runs("team/proj", {"state": "crashed"})],
}))
"""


def test_the_official_client_reads_what_we_read(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="pip install wandb")
    rows = [{"_step": step, "_timestamp": 1.75e9 + step, "loss": 5 - step / 1e4} for step in range(3_200)]
    recorded = [
        RecordedRun("long", "a run", rows, {"lr": 0.1, "model": {"layers": 8}}, {"best": 2.5}),
        *(RecordedRun(f"x{place}", f"other {place}", rows[:2], state="crashed") for place in range(70)),
    ]
    with wandb_server(proj=recorded) as server:
        environment = {"WANDB_API_KEY": KEY, "HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "WANDB_DIR": str(tmp_path)}
        command = [sys.executable, "-c", READ, server.url]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["names"] == [run.name for run in recorded]
    assert found["states"] == [run.state for run in recorded]
    assert (found["config"], found["summary"]) == ({"lr": 0.1, "model": {"layers": 8}}, 2.5)
    assert (found["last_step"], found["history"]) == (3_199, rows)
    assert found["sampled"] == 500
    assert len(found["crashed"]) == 70
