"""What runs inside Ray, and how the launcher reads a cluster: without a cluster."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.contract import PROBE_FILE, EvaluationSpec, ExitCode, ModelSpec, Spec, TrainingSpec
from app.engine.errors import BadSpecError
from app.engine.launch import Launch
from app.jobs.launchers.base import Work
from app.jobs.launchers.ray import RayLauncher, Submitted
from app.jobs.launchers.ray_api import RayApi, RayToken
from app.jobs.launchers.ray_nodes import OTHERS, parse_nodes
from app.jobs.launchers.ray_probe import probe
from app.store.ids import new_id

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs Ray: pip install -c constraints.txt -e '.[ray]'", allow_module_level=True)


from app.ray_worker.gang import usable_size

Until = Callable[..., Any]


def test_an_unfit_worker_says_what_it_lacks_before_any_work(tmp_path: Path) -> None:
    run_dir = tmp_path / "run_x"
    command = [sys.executable, "-P", "-m", "app.ray_worker", str(run_dir), "--probe", "mine", "--kill-file", ".kill"]

    def run() -> tuple[int, str]:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stderr

    assert run()[0] == ExitCode.UNFIT_WORKER
    assert f"does not see the runs directory {tmp_path}" in run()[1]
    run_dir.mkdir()
    (tmp_path / PROBE_FILE).write_text("theirs")
    assert "sees another directory" in run()[1]
    (tmp_path / PROBE_FILE).write_text("mine\n")
    assert "sees no spec.json" in run()[1]
    (run_dir / "spec.json").write_text("{}")
    code, _ = run()
    assert code == ExitCode.BAD_SPEC
    assert "is missing" in (run_dir / "engine.log").read_text()


def test_the_engine_dies_with_the_worker_that_started_it(tmp_path: Path, until: Until) -> None:
    (tmp_path / "run_x").mkdir()
    # The lock is held here, so the engine waits for it until it is ended.
    with open(tmp_path / "run_x" / ".engine.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (tmp_path / PROBE_FILE).write_text(probe(tmp_path))
        (tmp_path / "run_x" / "spec.json").write_text("{}")
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.ray_worker", str(tmp_path / "run_x"), "--probe", probe(tmp_path),
             "--kill-file", ".kill"]
        )  # fmt: skip
        children = until(lambda: psutil.Process(worker.pid).children(), "the engine has started")
        log = tmp_path / "run_x" / "engine.log"
        until(lambda: log.exists() and "waiting for it to end" in log.read_text(), "the engine waits")
        worker.kill()
        worker.wait()
        children[0].wait(timeout=60)


def test_what_ray_gives_to_a_shell_is_quoted(tmp_path: Path) -> None:
    """The run directory's own name is checked; the folder above it is the user's, and may be called anything."""
    runs_dir = tmp_path / "a b;touch pwned;$(touch pwned)"
    runs_dir.mkdir()
    launcher = RayLauncher(runs_dir, RayApi("http://localhost:1", RayToken()), python="/opt/my python/bin/python")
    work = Work(job_id=new_id("job"), kind="growth", run_dir=runs_dir / "run_x", device="cpu")
    submitted = Submitted(submission_id="growthlaw-job_x-1", device="cpu", num_processes=1)
    entrypoint = launcher._body(work, ["python", "-m", "app.engine", str(work.run_dir)], submitted)["entrypoint"]
    words = shlex.split(entrypoint)
    assert words[:6] == ["exec", "/opt/my python/bin/python", "-P", "-m", "app.ray_worker", str(work.run_dir)]
    # A shell hands on these very words and runs nothing else.
    echo = f"exec {shlex.quote(sys.executable)} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "
    shown = subprocess.run(
        ["sh", "-c", entrypoint.replace("exec ", echo, 1)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert json.loads(shown.stdout) == words[1:]
    assert list(tmp_path.rglob("pwned")) == []


def test_a_node_with_gpus_as_ray_tells_it() -> None:
    """Shaped as Ray 2.60 answers `/nodes?view=summary`; GPU memory is in MiB, what a placement group holds is not used."""
    raylet = {
        "nodeId": "n1", "state": "ALIVE", "nodeManagerAddress": "10.0.0.7", "nodeManagerHostname": "gpu7",
        "resourcesTotal": {"CPU": 2.0, "GPU": 2.0}, "startTimeMs": "1700000000000",
    }  # fmt: skip
    h100 = {"index": 0, "name": "NVIDIA H100 80GB HBM3", "memoryTotal": 81559, "memoryUsed": 559}
    data = {
        "summary": [
            {"now": 1_700_000_100.5, "mem": [64, 32, 50.0, 32], "gpus": [h100], "raylet": raylet},
            {"raylet": raylet | {"nodeId": "n2", "state": "DEAD"}},
            {"raylet": raylet | {"nodeId": "n3", "nodeManagerHostname": "fresh"}},
        ],
        "nodeLogicalResources": {
            "n1": "1.0/2.0 CPU\n0.0/2.0 GPU (0.0 used of 2.0 reserved in placement groups)\n0B/1GiB memory"
        },
    }
    fresh, node = parse_nodes(data)
    assert (fresh.name, fresh.heartbeat_at, fresh.memory_bytes) == (
        "fresh 10.0.0.7",
        "2023-11-14T22:13:20.000+00:00",
        None,
    )
    assert (node.free("gpu"), node.free("cpu"), fresh.free("gpu")) == (0, 1, 2)
    shown = node.as_node({"ray": "2.60.0"}, {"gpu": ["job_a"]})
    assert [(device.kind, device.name, device.job_id) for device in shown.devices] == [
        ("gpu", "NVIDIA H100 80GB HBM3", "job_a"), ("gpu", "GPU", OTHERS), ("cpu", "CPU", OTHERS), ("cpu", "CPU", None),
    ]  # fmt: skip
    assert shown.devices[0].memory_free_bytes == 81_000 * 2**20


def test_a_run_shrinks_to_what_divides_its_batch(undivided_spec: Spec) -> None:
    spec = replace(undivided_spec, num_processes=8, min_processes=2)
    assert [usable_size(spec, count) for count in (9, 8, 7, 5, 3, 2)] == [8, 8, 4, 4, 2, 2]
    with pytest.raises(ValueError, match="2 processes or more"):
        usable_size(spec, 1)
    with pytest.raises(ValueError, match="8 processes or more"):
        usable_size(replace(spec, min_processes=None), 4)
    for size in (8, 4, 2):
        Launch(size=size).check(spec)
    for size, words in ((1, "at least 2"), (3, "must divide"), (9, "at least 2")):
        with pytest.raises(BadSpecError, match=words):
            Launch(size=size).check(spec)


@pytest.fixture
def undivided_spec(tmp_path: Path) -> Spec:
    return Spec(
        run_id="run_x", name="x", cohort="x", corpus="x", corpus_dir=str(tmp_path),
        model=ModelSpec(
            num_layers=4, hidden_size=16, num_heads=2, num_kv_heads=2, intermediate_size=32, vocab_size=300,
            context_length=32,
        ),
        training=TrainingSpec(tokens=25_600, peak_lr=1e-2, batch_sequences=8),
        evaluation=EvaluationSpec(every_tokens=1_280, num_windows=8),
    )  # fmt: skip
