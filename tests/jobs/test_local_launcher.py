"""The local launcher: the conformance suite, and what only it promises about GPUs and processes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.contract import EventLine, ExitCode
from app.engine.launch import LOCK_FILE
from app.jobs.launchers.base import Launcher, Work
from app.jobs.launchers.bench import NewLauncher
from app.jobs.launchers.conformance import LauncherConformance
from app.jobs.launchers.hardware import Gpu, find_gpus, gpus_of_driver, gpus_of_smi, visible
from app.jobs.launchers.local import LocalLauncher, Process
from app.jobs.outcome import WORDS, outcome_of
from app.records import to_dict
from app.store.ids import new_id
from fitting.errors import InputError

GPUS = [
    Gpu(index=0, uuid="GPU-aaaa1111", name="NVIDIA H100 80GB HBM3"),
    Gpu(index=1, uuid="GPU-bbbb2222", name="NVIDIA H100 80GB HBM3"),
    Gpu(index=2, uuid="GPU-bbcc3333", name="NVIDIA H100 80GB HBM3"),
    Gpu(index=3, uuid="GPU-dddd4444", name="NVIDIA H100 80GB HBM3"),
]


class TestLocalLauncher(LauncherConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def new_launcher(cls, runs_dir: Path) -> NewLauncher:
        def make() -> Launcher:
            return LocalLauncher(runs_dir, num_slots=2, gpus=[])

        return make


# --- devices -------------------------------------------------------------------------------------------------


def work(runs_dir: Path, **changes: object) -> Work:
    run_dir = runs_dir / new_id("run")
    run_dir.mkdir()
    return Work(**({"job_id": new_id("job"), "kind": "growth", "run_dir": run_dir} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_processes": 8, "device": "cuda"}, "needs 8 GPUs, the largest node has 4"),
        ({"num_processes": 8}, "needs 8 GPUs, the largest node has 4"),
        ({"num_processes": 3, "device": "cpu"}, "needs 3 CPU slots, the largest node has 2"),
        ({"num_nodes": 2}, "one node"),
    ],
)
def test_what_can_never_run_says_what_it_needs(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    launcher = LocalLauncher(tmp_path, num_slots=2, gpus=GPUS)
    with pytest.raises(InputError, match=words):
        launcher.fit(work(tmp_path, **changes))


def test_cuda_without_a_gpu_names_the_device(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs 1 GPU, the largest node has 0") as caught:
        LocalLauncher(tmp_path, num_slots=2, gpus=[]).fit(work(tmp_path, device="cuda"))
    assert caught.value.field == "device"


def test_jobs_get_whole_gpus_of_their_own_until_none_is_free(tmp_path: Path, until: Any) -> None:
    """Real processes: each waits for its directory's lock, which the test holds, and then fails for want of a spec."""

    def environment(handle: str) -> dict[str, str]:
        # Just after its start a process has none yet: the system fills it in behind exec.
        found: dict[str, str] = until(psutil.Process(Process.parse(handle).pid).environ, "its environment is there")
        return found

    launcher = LocalLauncher(tmp_path, num_slots=1, gpus=GPUS)
    seen, handles = [], []
    with contextlib.ExitStack() as locks:

        def locked(**changes: object) -> Work:
            asked = work(tmp_path, **changes)
            fcntl.flock(locks.enter_context(open(asked.run_dir / LOCK_FILE, "w")), fcntl.LOCK_EX)
            return asked

        for count in (2, 1, 1):
            asked = locked(num_processes=count, device="cuda")
            assert launcher.fit(asked) == "now"
            submission = launcher.submit(asked)
            assert submission is not None
            handles.append(submission.handle)
            seen.append(environment(submission.handle)["CUDA_VISIBLE_DEVICES"])
        assert seen == ["GPU-aaaa1111,GPU-bbbb2222", "GPU-bbcc3333", "GPU-dddd4444"]
        waiting = work(tmp_path, device="cuda")
        assert launcher.fit(waiting) == "later"
        assert launcher.submit(waiting) is None
        # A CPU job has a slot of its own and sees no GPU.
        on_cpu = launcher.submit(locked(device="cpu"))
        assert on_cpu is not None
        assert environment(on_cpu.handle)["CUDA_VISIBLE_DEVICES"] == ""
        devices = [device for node in launcher.nodes() for device in node.devices if device.job_id]
        assert {device.index for device in devices if device.kind == "gpu"} == {0, 1, 2, 3}
        # A launcher that comes back gives none of them out twice.
        again = LocalLauncher(tmp_path, num_slots=1, gpus=GPUS)
        again.recover({f"job_{place}": handle for place, handle in enumerate(handles)})
        assert again.fit(waiting) == "later"
    for handle in [*handles, on_cpu.handle]:
        os.waitid(os.P_PID, Process.parse(handle).pid, os.WEXITED | os.WNOWAIT)
        assert launcher.poll(handle).exit_code == ExitCode.BAD_SPEC
        assert launcher.poll(handle) == launcher.poll(handle)
    assert launcher.fit(waiting) == "now"


def test_a_stranger_under_a_reused_pid_is_left_alone(tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path, num_slots=1, gpus=[])
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    try:
        started_at = psutil.Process(stranger.pid).create_time() - 100
        node = launcher.nodes()[0].name
        handle = Process(node=node, pid=stranger.pid, started_at=started_at, device="cpu", indices=(0,)).handle
        launcher.recover({"job_x": handle})
        launcher.cancel(handle)
        launcher.cancel(handle, kill=True)
        poll = launcher.poll(handle)
        assert (poll.state, poll.exit_code) == ("ended", None)
        assert stranger.poll() is None
        elsewhere = Process(node="another-host", pid=stranger.pid, started_at=0.0, device="cpu", indices=(0,)).handle
        assert launcher.poll(elsewhere).state == "lost"
    finally:
        stranger.communicate(b"\n")


def test_gpus_as_nvidia_smi_tells_them() -> None:
    """Lines as `nvidia-smi --query-gpu=... --format=csv,noheader,nounits` prints them; memory is in MiB."""
    gpus = gpus_of_smi(
        "0, GPU-5a1c, NVIDIA H200, 143771, 143158, 570.86.15\n1, GPU-77d0, NVIDIA GB10, [N/A], [N/A], 580.95.05\n"
    )
    assert [(gpu.index, gpu.uuid, gpu.name, gpu.driver) for gpu in gpus] == [
        (0, "GPU-5a1c", "NVIDIA H200", "570.86.15"), (1, "GPU-77d0", "NVIDIA GB10", "580.95.05"),
    ]  # fmt: skip
    assert (gpus[0].memory_bytes, gpus[0].memory_free_bytes) == (143771 * 2**20, 143158 * 2**20)
    assert gpus[1].memory_bytes is None
    with pytest.raises(ValueError, match="unpack"):
        gpus_of_smi("No devices were found")


def test_gpus_as_the_driver_tells_them(tmp_path: Path) -> None:
    """A machine of two, of which this container was given the second."""
    for minor, bus in ((0, "0000:01:00.0"), (1, "0000:02:00.0")):
        folder = tmp_path / "driver" / "gpus" / bus
        folder.mkdir(parents=True)
        (folder / "information").write_text(
            f"Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ:   \t\t 321\nGPU UUID: \t GPU-{minor}{minor}\nBus Location: \t {bus}\n"
            f"Device Minor: \t {minor}\n"
        )
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia1").touch()
    (gpu,) = gpus_of_driver(tmp_path / "driver", tmp_path / "dev")
    assert (gpu.index, gpu.uuid, gpu.name) == (0, "GPU-11", "NVIDIA A100-SXM4-40GB")
    assert gpus_of_driver(tmp_path / "none", tmp_path / "dev") == []


@pytest.mark.parametrize(
    ("wanted", "indices"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("2,0", [2, 0]),
        ("GPU-a,3", [0, 3]),
        ("GPU-bb", []),  # of two
        ("1,9,2", [1]),  # CUDA stops at the first that is not there
        ("1,1", [1]),
        ("-1", []),
    ],
)
def test_only_what_cuda_visible_devices_leaves_is_given_out(wanted: str | None, indices: list[int]) -> None:
    assert [gpu.index for gpu in visible(GPUS, wanted)] == indices


@pytest.mark.gpu
@pytest.mark.skipif(not find_gpus(), reason="needs a CUDA device")
def test_the_gpus_of_this_machine_are_torchs() -> None:
    import torch

    assert len(find_gpus()) == torch.cuda.device_count()
    assert find_gpus()[0].name == torch.cuda.get_device_name(0)


# --- what became of it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (ExitCode.BUG, "bug"),
        (ExitCode.BAD_SPEC, "bad_spec"),
        (ExitCode.BAD_DATA, "bad_data"),
        (ExitCode.OUT_OF_MEMORY, "out_of_memory"),
        (ExitCode.NO_SPACE, "no_space"),
    ],
)
def test_causes_are_told_apart_with_or_without_an_exit_code(tmp_path: Path, code: ExitCode, cause: str) -> None:
    line = EventLine(seq=1, time="t", event="failed", message="so it was", exit_code=code)
    (tmp_path / "events.jsonl").write_text(json.dumps(to_dict(line)) + '\n{"seq": 2, "ti')
    for exit_code in (code, None):
        outcome = outcome_of("growth", tmp_path, tmp_path, exit_code, "failed", "so it was")
        assert (outcome.end, outcome.cause) == ("failed", cause)
        name, mend = WORDS[outcome.cause]
        assert outcome.reason == f"{name}: so it was; {mend}"


@pytest.mark.parametrize("code", [-9, 137, ExitCode.LOST_PROCESS])
def test_a_lost_process_may_go_on(tmp_path: Path, code: int) -> None:
    outcome = outcome_of("growth", tmp_path, tmp_path, code, "failed", "another process of this run is gone")
    assert outcome.end == "died"
    assert outcome.reason
