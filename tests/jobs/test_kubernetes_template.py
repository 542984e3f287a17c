"""The shipped Kubernetes settings: the manifest against JobSet's schema, its script in a real shell, and kubectl's words.

No cluster is here: nothing below was ever run on one. `schemas/README.md` says where the schema is from; the lines that
kubectl prints are those of kubectl 1.32 for objects of these statuses (`kubectl annotate --local -f ... -o jsonpath=...`).
"""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from app.contract import ExitCode
from app.jobs.launchers.base import Work
from app.jobs.launchers.exec import ExecLauncher
from app.jobs.launchers.exec_settings import read_exec_settings
from app.jobs.launchers.exec_template import write_shipped
from app.store.ids import new_id
from fitting.errors import InputError

SCHEMA = jsonschema.Draft202012Validator(
    json.loads((Path(__file__).parent / "schemas" / "jobset-v1alpha2.schema.json").read_text())
)
NODES = """\
gpu-1||96|1056270560Ki|8|NVIDIA-H100-80GB-HBM3|v1.32.4
gpu-2||96|1056270560Ki|8|NVIDIA-H100-80GB-HBM3|v1.32.4
cpu-1||8|32000000Ki|||v1.32.4
old-1|true|96|1056270560Ki|8|NVIDIA-H100-80GB-HBM3|v1.32.4
"""
KUBECTL = """\
#!/bin/bash
# Plays back what kubectl prints: the words of the file that is named for what is asked.
case "$*" in
    *" create "*) cat "$ANSWERS/create" ;;
    *"get nodes"*) cat "$ANSWERS/nodes" ;;
    *--selector=growthlaw-job=*) cat "$ANSWERS/find" ;;
    *"get jobsets"*) if [ -s "$ANSWERS/poll" ]; then cat "$ANSWERS/poll"; else cat "$ANSWERS/error" >&2; exit 1; fi ;;
esac
"""


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "answers"
    folder.mkdir()
    for name, text in (("nodes", NODES), ("find", ""), ("create", ""), ("poll", ""), ("error", "")):
        (folder / name).write_text(text)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "kubectl").write_text(KUBECTL)
    (programs / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("ANSWERS", str(folder))
    return folder


@pytest.fixture
def new(tmp_path: Path, answers: Path) -> Callable[..., ExecLauncher]:
    def make(**changes: str) -> ExecLauncher:
        path, _ = write_shipped("kubernetes", tmp_path / f"settings-{len(list(tmp_path.iterdir()))}")
        text = path.read_text()
        for name, value in changes.items():
            lines = [
                f"{name} = {json.dumps(value)}" if line.startswith(f"{name} = ") else line for line in text.splitlines()
            ]
            text = "\n".join(lines)
        path.write_text(text)
        return ExecLauncher(tmp_path / "runs", read_exec_settings(path))

    return make


def submitted(launcher: ExecLauncher, answers: Path, until: Any, asked: Work) -> tuple[str, dict[str, Any]]:
    """The handle, and the manifest that was handed over."""
    name = f"growthlaw-{asked.job_id.replace('_', '-')}-{asked.attempt}"
    (answers / "create").write_text(name)
    submission = until(lambda: launcher.submit(asked), "it is submitted")
    assert submission.where == f"Kubernetes job {name}"
    return submission.handle, yaml.safe_load((asked.run_dir / "exec" / f"{asked.attempt}-jobset.yaml").read_text())


def work(runs_dir: Path, **changes: Any) -> Work:
    run_dir = runs_dir / new_id("run")
    run_dir.mkdir(parents=True)
    return Work(**({"job_id": new_id("job"), "kind": "growth", "run_dir": run_dir} | changes))


@pytest.mark.parametrize(
    ("changes", "pods", "limits"),
    [
        ({}, 1, {"cpu": "8", "nvidia.com/gpu": "1"}),
        ({"num_processes": 16, "num_nodes": 2, "attempt": 12}, 2, {"cpu": "64", "nvidia.com/gpu": "8"}),
        ({"num_processes": 4, "device": "cpu"}, 1, {"cpu": "4", "nvidia.com/gpu": "0"}),
    ],
)
def test_the_manifest_is_a_jobset(
    new: Any, answers: Path, tmp_path: Path, until: Any, changes: dict[str, Any], pods: int, limits: dict[str, str]
) -> None:
    asked = work(tmp_path / "runs", **changes)
    handle, manifest = submitted(new(), answers, until, asked)
    assert [error.message for error in SCHEMA.iter_errors(manifest)] == []
    name = manifest["metadata"]["name"]
    assert json.loads(handle)["id"] == name
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (pods, pods, 0)
    container = job["template"]["spec"]["containers"][0]
    assert limits.items() <= container["resources"]["limits"].items()
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environment["RUN_DIR"] == str(asked.run_dir)
    assert environment["HANDLE"] == name
    # JobSet's name for the first pod: <jobset>-<replicated job>-<job>-<pod>.<subdomain>, in DNS labels of 63 at most.
    assert environment["MASTER_ADDR"] == f"{name}-node-0-0.{name}"
    assert len(f"{name}-node-0-0-xxxxx") <= 63


def test_the_schema_refuses_what_is_no_jobset(new: Any, answers: Path, tmp_path: Path, until: Any) -> None:
    SCHEMA.check_schema(SCHEMA.schema)
    _, manifest = submitted(new(), answers, until, work(tmp_path / "runs"))
    job = ("spec", "replicatedJobs", 0, "template", "spec")
    pod = (*job, "template", "spec")
    for path, value in (
        (("kind",), "Job"),
        (("apiVersion",), "batch/v1"),
        (("spec", "failurePolcy"), {}),
        (("spec", "failurePolicy", "restartStrategy"), "Sometimes"),
        (("spec", "replicatedJobs", 0, "replica"), 1),
        ((*job, "completions"), "two"),
        ((*job, "backOffLimit"), 0),
        ((*pod, "containers", 0, "cmd"), ["true"]),
        ((*pod, "containers", 0, "args"), "true"),
        ((*pod, "containers", 0, "env", 0, "valueFrom"), {"fieldRef": {}}),
        ((*pod, "volumes", 0, "persistentVolumeClaim"), {}),
    ):
        broken = copy.deepcopy(manifest)
        place = broken
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        assert not SCHEMA.is_valid(broken), path


def test_values_of_the_settings_stay_values(new: Any, answers: Path, tmp_path: Path, until: Any) -> None:
    hostile = 'x"}, {"name": "more", "image": "evil'
    _, manifest = submitted(new(image=hostile), answers, until, work(tmp_path / "runs"))
    containers = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert [container["image"] for container in containers] == [hostile]
    for changes in (
        {"claim": 'a"}, evil: {"b": "c'},
        {"namespace": "--kubeconfig=x y"},
        {"mount_path": "/data\nevil: true"},
    ):
        with pytest.raises(InputError):
            new(**changes)


def test_what_kubectl_says_is_understood(new: Any, answers: Path, tmp_path: Path, until: Any) -> None:
    launcher = new()
    nodes = launcher.nodes()
    assert [(node.name, sum(device.kind == "gpu" for device in node.devices)) for node in nodes] == [
        ("gpu-1", 8), ("gpu-2", 8), ("cpu-1", 0),
    ]  # fmt: skip
    assert nodes[0].memory_bytes == 1056270560 * 1024
    assert nodes[0].versions == {"kubernetes": "v1.32.4"}
    with pytest.raises(InputError, match="needs 16 GPUs, the largest node has 8"):
        launcher.fit(work(tmp_path / "runs", num_processes=16, device="cuda"))

    for said, state in (
        ("end= ready=\n", "waiting"),
        ("end= ready=0\n", "waiting"),
        ("end= ready=1\n", "running"),
        ("end=Completed ready=0\n", "ended"),
        ("end=Failed ready=0\n", "ended"),
    ):
        (answers / "poll").write_text(said)
        asked = work(tmp_path / "runs")
        handle, _ = submitted(launcher, answers, until, asked)
        (asked.run_dir / "exec" / f"{json.loads(handle)['id']}.exit").write_text("75\n")
        until(lambda handle=handle, state=state: launcher.poll(handle).state == state, f"it is {state}")
        assert launcher.poll(handle).exit_code == (75 if state == "ended" else None)

    # Deleted: the JobSet is gone once its pods are.
    (answers / "poll").write_text("")
    (answers / "error").write_text('Error from server (NotFound): jobsets.jobset.x-k8s.io "x" not found\n')
    handle, _ = submitted(launcher, answers, until, work(tmp_path / "runs"))
    until(lambda: launcher.poll(handle).state == "lost", "it is lost")
    (answers / "error").write_text("The connection to the server localhost:8080 was refused\n")
    handle, _ = submitted(launcher, answers, until, work(tmp_path / "runs"))
    until(lambda: "does not answer" in launcher.poll(handle).message, "it cannot be asked for")

    # The living one is taken up; one that ended or is being deleted is not.
    asked = work(tmp_path / "runs", attempt=4)
    (answers / "find").write_text(
        "growthlaw-job-a-1 end= deleted=2026-11-21T18:00:00Z\ngrowthlaw-job-a-2 end=Failed deleted=\n"
        "growthlaw-job-a-3 end= deleted=\n"
    )
    assert until(lambda: launcher.submit(asked), "it is found").where == "Kubernetes job growthlaw-job-a-3"


SAVES = """\
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), print("saved", flush=True), sys.exit(75)))
print("ready", sys.argv[1:], flush=True)
while True:
    time.sleep(0.05)
"""


@pytest.mark.parametrize("end", ["asked", "by itself", "killed"])
def test_the_script_of_the_pod_passes_sigterm_on_and_keeps_the_exit_code(
    new: Any, answers: Path, tmp_path: Path, until: Any, end: str
) -> None:
    """In a real bash: a stand-in engine that takes a while to save, then the real one, which ends at once."""
    asked = work(tmp_path / "runs")
    handle, manifest = submitted(new(), answers, until, asked)
    container = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    environment = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\n{SAVES}")
    program.chmod(0o755)
    environment["PYTHON"] = sys.executable if end == "by itself" else str(program)
    environment |= {"NODE_NAME": "gpu-1", "GROWTHLAW_NODE_RANK": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    pod = subprocess.Popen([*container["command"], *container["args"]], env=os.environ | environment)
    log = asked.run_dir / "engine.log"
    expected = {"asked": ExitCode.PAUSED, "by itself": ExitCode.BAD_SPEC, "killed": 128 + signal.SIGKILL}[end]
    if end != "by itself":
        until(lambda: log.exists() and "ready" in log.read_text(), "the engine is at work")
        assert "'-m', 'app.engine', " in log.read_text()
    if end == "asked":
        pod.send_signal(signal.SIGTERM)
    elif end == "killed":
        (engine,) = subprocess.check_output(["pgrep", "-P", str(pod.pid)], text=True).split()
        os.kill(int(engine), signal.SIGKILL)
    assert pod.wait(timeout=60) == expected
    name = json.loads(handle)["id"]
    assert (asked.run_dir / "exec" / f"{name}.exit").read_text() == f"{int(expected)}\n"
    assert (asked.run_dir / "exec" / f"{name}.nodes").read_text() == "gpu-1\n"
    assert "saved" in log.read_text() or end != "asked"
