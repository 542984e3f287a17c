"""The exec launcher on a real Slurm that the tests start: the conformance suite with the shipped template as it is but for
the partition's name, and what goes wrong on a cluster. Its machines are this one under several names."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from slurm_cluster import INSTALL, SlurmCluster, missing

from app.client import Refused
from app.contract import ExitCode
from app.jobs.launchers import exec as exec_launcher
from app.jobs.launchers.base import Launcher, Node, SchedulerAway, Submission, Work
from app.jobs.launchers.bench import Bench, NewLauncher, Points
from app.jobs.launchers.conformance import LauncherConformance
from app.jobs.launchers.exec import ExecLauncher
from app.jobs.launchers.exec_settings import ExecSettings, read_exec_settings
from app.jobs.launchers.exec_template import write_shipped
from app.store.ids import new_id
from fitting.errors import InputError

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"needs {', '.join(missing())}: {INSTALL}")

GPUS_A_NODE = 4


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    running = SlurmCluster(
        folder=tmp_path_factory.mktemp("slurm"), nodes=("n1", "n2"), num_cpus=2, gres=f"gpu:h100:{GPUS_A_NODE}"
    )
    patch = pytest.MonkeyPatch()
    patch.setenv("SLURM_CONF", str(running.conf))  # the launcher's commands are children of this process
    try:
        running.start()
        yield running
    finally:
        running.stop()
        patch.undo()


@pytest.fixture(scope="module")
def settings_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, _ = write_shipped("slurm", tmp_path_factory.mktemp("settings"))
    text = path.read_text()
    assert 'partition = "gpu" ' in text
    path.write_text(text.replace('partition = "gpu" ', 'partition = "debug" '))
    return path


class TestExecLauncherOnSlurm(LauncherConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def new_launcher(cls, runs_dir: Path, cluster: SlurmCluster, settings_file: Path) -> NewLauncher:
        return lambda: ExecLauncher(runs_dir, read_exec_settings(settings_file))

    # By default what Slurm has a part in; the rest of the suite takes the engine as long as it takes it anywhere.
    @pytest.mark.parametrize(
        "phase",
        ["queued", "starting", "base", *(pytest.param(phase, marks=pytest.mark.long) for phase in ("growth", "grown"))],
    )
    def test_cancelled_in_any_phase_it_stops_and_leaves_nothing(self, bench: Bench, phase: str) -> None:
        super().test_cancelled_in_any_phase_it_stops_and_leaves_nothing(bench, phase)

    @pytest.mark.long
    def test_paused_and_resumed_it_ends_as_if_undisturbed(self, bench: Bench, undisturbed: tuple[str, Points]) -> None:
        super().test_paused_and_resumed_it_ends_as_if_undisturbed(bench, undisturbed)

    @pytest.mark.long
    def test_a_service_that_comes_back_takes_it_up(self, bench: Bench, undisturbed: tuple[str, Points]) -> None:
        super().test_a_service_that_comes_back_takes_it_up(bench, undisturbed)

    @pytest.mark.long
    def test_over_two_nodes_it_learns_what_two_processes_of_one_learn(
        self, bench: Bench, undisturbed_pair: Points
    ) -> None:
        """Two engines, each with a rank of its own, that meet by host and port; killed on one node it goes on on both."""
        job_id = bench.start(bench.spec(num_processes=2), num_nodes=2)
        bench.until_phase(job_id, "base")
        nodes = [node.name for node in bench.launcher.nodes() for device in node.devices if device.job_id == job_id]
        assert nodes == ["n1", "n2"]
        processes = bench.processes(job_id)
        assert len(processes) == 4
        processes[-1].kill()
        bench.until(lambda: bench.job(job_id).num_attempts == 2, "it has been started again")
        bench.check_end(job_id, undisturbed_pair)

    @pytest.mark.long
    def test_a_job_that_an_administrator_cancels_goes_on(
        self, bench: Bench, undisturbed: tuple[str, Points], cluster: SlurmCluster
    ) -> None:
        job_id = bench.start()
        bench.until_phase(job_id, "base")
        cluster.ask("scancel", "--name", f"growthlaw-{job_id.replace('_', '-')}")
        bench.until(lambda: bench.job(job_id).num_attempts == 2, "it has been started again")
        bench.check_end(job_id, undisturbed[1])

    @pytest.mark.long
    def test_the_controller_killed_and_started_again_while_a_job_runs(
        self, bench: Bench, undisturbed: tuple[str, Points], cluster: SlurmCluster
    ) -> None:
        job_id = bench.start()
        bench.until_phase(job_id, "base")
        cluster.end("slurmctld", signal.SIGKILL)
        bench.until(lambda: any(point[1] == "grown" for point in bench.points(job_id)), "it has gone on")
        cluster.start_controller()
        bench.check_end(job_id, undisturbed[1])
        assert bench.job(job_id).num_attempts == 1


# --- through the service -------------------------------------------------------------------------------------


def test_a_service_that_is_given_the_file_trains_on_slurm(
    cluster: SlurmCluster, settings_file: Path, service: Any, grow_body: Callable[..., dict[str, Any]], until: Any
) -> None:
    service.options = ("--exec-file", str(settings_file))
    client = service.start()
    nodes = {node["name"]: node for node in client.workers() if node["engine"] == "exec"}
    assert nodes.keys() == {"n1", "n2"}
    assert [device["kind"] for device in nodes["n1"]["devices"]] == ["gpu"] * GPUS_A_NODE + ["cpu"] * 2
    body = {
        "name": "short", "cohort": "tiny", "corpus": "tiny", "model": grow_body()["target_model"], "engine": "exec",
        "training": {"tokens": 51_200, "peak_lr": 4e-3, "batch_sequences": 8}, "num_validation_windows": 16,
        "device": "cpu",
    }  # fmt: skip
    with pytest.raises(Refused, match="needs 8 CPU slots, the largest node has 2"):
        client.train(body | {"num_processes": 8})
    job = client.train(body)
    assert job["engine"] == "exec"
    until(lambda: client.points(job["run_id"]), "the first point")
    assert [device["job_id"] for device in client.workers()[1]["devices"] if device["job_id"]] == [job["id"]]
    until(lambda: client.job(job["id"])["state"] in ("succeeded", "failed"), "it has ended")
    assert client.job(job["id"])["state"] == "succeeded", client.job(job["id"])["reason"]
    told = [event.data["message"] for event in client.events(job["id"]) if event.event == "story"]
    assert any(message.startswith("attempt 1, Slurm job ") for message in told)


# --- what goes wrong on a cluster ----------------------------------------------------------------------------

# In the engine's place: says that it is at work, ends with the code that it is told, and takes a while to save.
STAND_IN = """\
import os, pathlib, signal, sys, time
run_dir = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit(75)))
print("at work", flush=True)
ends = [run_dir / "end", run_dir / f"end-{os.environ['GROWTHLAW_NODE_RANK']}"]
while not any(end.exists() for end in ends):
    time.sleep(0.05)
sys.exit(int(next(end for end in ends if end.exists()).read_text()))
"""


@pytest.fixture
def settings(settings_file: Path, tmp_path: Path) -> ExecSettings:
    """The shipped settings and template, but for what stands in for the engine and how often is looked."""
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN)
    folder = tmp_path / "settings"
    folder.mkdir()
    shipped = read_exec_settings(settings_file)
    text = shipped.template_text.replace('"$PYTHON" -m "$MODULE" "$RUN_DIR"', f'"$PYTHON" {stand_in} "$RUN_DIR"')
    assert text != shipped.template_text
    (folder / "slurm.sh").write_text(text)
    (folder / "slurm.toml").write_text(settings_file.read_text().replace("every_seconds = 15", "every_seconds = 1"))
    return read_exec_settings(folder / "slurm.toml")


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def new(
    cluster: SlurmCluster, settings: ExecSettings, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], ExecLauncher]]:
    monkeypatch.setattr(exec_launcher, "SECONDS_TO_TRY_AGAIN", 1.0)
    yield lambda: ExecLauncher(runs_dir, settings)
    cluster.ask("scancel", "--partition=debug")
    cluster.until(lambda: not cluster.ask("squeue", "-h").strip(), "no job is left")


def work(runs_dir: Path, **changes: Any) -> Work:
    run_dir = runs_dir / new_id("run")
    run_dir.mkdir()
    return Work(**({"job_id": new_id("job"), "kind": "growth", "run_dir": run_dir, "device": "cpu"} | changes))


def submitted(launcher: Launcher, asked: Work, until: Any) -> str:
    found = until(lambda: launcher.submit(asked), "it is submitted")
    assert isinstance(found, Submission)
    return found.handle


def at_work(launcher: Launcher, asked: Work, until: Any) -> str:
    handle = submitted(launcher, asked, until)
    until(lambda: "at work" in launcher.logs(handle, asked.run_dir, max_bytes=1_000), "it is at work")
    until(lambda: launcher.poll(handle).state == "running", "it is known to run")
    return handle


def ended(launcher: Launcher, handle: str, until: Any) -> tuple[str, int | None]:
    until(lambda: launcher.poll(handle).state in ("ended", "lost"), "it has ended")
    poll = launcher.poll(handle)
    return poll.state, poll.exit_code


def taken(nodes: list[Node], kind: str) -> list[tuple[str, int]]:
    return [
        (node.name, device.index) for node in nodes for device in node.devices if device.job_id and device.kind == kind
    ]


def test_asked_to_stop_it_saves(new: Any, runs_dir: Path, until: Any) -> None:
    launcher, asked = new(), work(runs_dir)
    handle = at_work(launcher, asked, until)
    launcher.cancel(handle)
    assert ended(launcher, handle, until) == ("ended", ExitCode.PAUSED)
    launcher.cancel(handle, kill=True)  # of no effect any more


def test_cancelled_from_outside_it_has_ended_and_may_have_saved(
    new: Any, cluster: SlurmCluster, runs_dir: Path, until: Any
) -> None:
    launcher = new()
    handle = at_work(launcher, work(runs_dir), until)
    cluster.ask("scancel", "--user", "root")
    assert ended(launcher, handle, until) == ("ended", ExitCode.PAUSED)
    assert "CANCELLED" in launcher.poll(handle).message


def test_a_process_and_a_node_that_die_end_the_job(new: Any, cluster: SlurmCluster, runs_dir: Path, until: Any) -> None:
    launcher = new()
    asked = work(runs_dir)
    handle = at_work(launcher, asked, until)
    for process in psutil.process_iter(["cmdline"]):
        if str(asked.run_dir) in (process.info["cmdline"] or []):
            process.kill()
    assert ended(launcher, handle, until) == ("ended", 128 + signal.SIGKILL)
    asked = work(runs_dir)
    handle = at_work(launcher, asked, until)
    (node,) = {name for name, _ in taken(launcher.nodes(), "cpu")}
    cluster.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    try:
        # The machine is down for Slurm alone: the job may come to its last words.
        assert ended(launcher, handle, until) in (("ended", None), ("ended", ExitCode.PAUSED))
        assert "NODE_FAIL" in launcher.poll(handle).message
    finally:
        cluster.ask(
            "scontrol", "update", f"NodeName={node}", "State=RESUME", is_checked=False
        )  # it may be back already


@pytest.mark.long
def test_before_its_time_limit_it_saves(
    cluster: SlurmCluster, settings: ExecSettings, runs_dir: Path, until: Any
) -> None:
    """Of three minutes it is asked to stop in the second; the service then submits it again."""
    launcher = ExecLauncher(
        runs_dir, settings.model_copy(update={"values": settings.values | {"time_limit": "00:03:00"}})
    )
    handle = at_work(launcher, work(runs_dir), until)
    until(lambda: launcher.poll(handle).state == "ended", "it has ended", 180)
    assert launcher.poll(handle).exit_code == ExitCode.PAUSED


@pytest.mark.parametrize(
    ("codes", "told"), [((71, 74), 71), ((1, 74), 1), ((74, 74), 74), ((0, 0), 0), ((75, 75), 75), ((1, 73), 73)]
)
def test_of_two_nodes_the_cause_wins(new: Any, runs_dir: Path, until: Any, codes: tuple[int, int], told: int) -> None:
    launcher, asked = new(), work(runs_dir, num_processes=2, num_nodes=2)
    for rank, code in enumerate(codes):
        (asked.run_dir / f"end-{rank}").write_text(str(code))
    assert ended(launcher, submitted(launcher, asked, until), until) == ("ended", told)


def test_what_waits_says_why_and_goes_when_it_is_cancelled(
    new: Any, cluster: SlurmCluster, runs_dir: Path, until: Any
) -> None:
    launcher = new()
    cluster.ask("scontrol", "update", "PartitionName=debug", "State=DOWN")
    try:
        first, second = (submitted(launcher, work(runs_dir), until) for _ in range(2))
        until(lambda: "PENDING, PartitionDown" in launcher.poll(first).message, "it says why it waits")
        assert launcher.poll(first).state == "waiting"
        launcher.cancel(first)
        assert ended(launcher, first, until) == ("ended", None)
        cluster.ask("scancel", "--user", "root")
        assert ended(launcher, second, until) == ("ended", None)
    finally:
        cluster.ask("scontrol", "update", "PartitionName=debug", "State=UP")


def test_a_drained_node_takes_nothing_and_refuses_nothing(
    new: Any, cluster: SlurmCluster, runs_dir: Path, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = new()
    names = lambda: [node.name for node in new().nodes()]  # noqa: E731 - a launcher anew looks at once
    assert names() == ["n1", "n2"]
    on_both = work(runs_dir, num_processes=2, num_nodes=2)
    handle = at_work(launcher, on_both, until)
    assert taken(launcher.nodes(), "cpu") == [("n1", 0), ("n2", 0)]
    cluster.ask("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=test")
    try:
        assert names() == ["n1"]
        # What runs there goes on; what needs it waits for it.
        assert launcher.poll(handle).state == "running"
        other = work(runs_dir, num_processes=2, num_nodes=2)
        assert launcher.fit(other) == "now"
        waiting = submitted(launcher, other, until)
        (on_both.run_dir / "end").write_text("0")
        assert ended(launcher, handle, until) == ("ended", 0)
        until(lambda: "PENDING, " in launcher.poll(waiting).message, "it says why it waits")
    finally:
        cluster.ask("scontrol", "update", "NodeName=n2", "State=RESUME")
    (other.run_dir / "end").write_text("0")
    assert ended(launcher, waiting, until) == ("ended", 0)


def test_a_controller_that_is_killed_and_comes_back_loses_no_job(
    new: Any, cluster: SlurmCluster, runs_dir: Path, until: Any
) -> None:
    launcher = new()
    asked = work(runs_dir)
    handle = at_work(launcher, asked, until)
    # A controller that had not saved this yet would give the ids of jobs that its nodes still know once more.
    saved, name = cluster.folder / "state" / "job_state", asked.job_id.replace("_", "-").encode()
    until(lambda: saved.exists() and name in saved.read_bytes(), "the controller has saved its state")
    cluster.end("slurmctld", signal.SIGKILL)
    late = work(runs_dir)
    with pytest.raises(SchedulerAway, match=r"Slurm does not take it: .*Unable to contact"):
        until(lambda: launcher.poll(handle) and launcher.submit(late), "it is submitted")
    until(lambda: "Unable to contact" in launcher.poll(handle).message, "it cannot be asked for")
    assert launcher.poll(handle).state == "running"
    # It ends while nobody hears of it, and Slurm comes back with what it knew.
    (asked.run_dir / "end").write_text("70")
    until(lambda: list((asked.run_dir / "exec").glob("*.exit")), "it has ended")
    assert launcher.poll(handle).state == "running"
    cluster.start_controller()
    assert ended(launcher, handle, until) == ("ended", 70)
    (late.run_dir / "end").write_text("0")
    handle = until(lambda: _try(launcher, late), "it is submitted").handle
    assert ended(launcher, handle, until) == ("ended", 0)


def _try(launcher: Launcher, asked: Work) -> Submission | None:
    try:
        return launcher.submit(asked)
    except SchedulerAway:
        return None


def test_what_slurm_has_forgotten_is_known_from_its_files(
    new: Any, cluster: SlurmCluster, runs_dir: Path, until: Any
) -> None:
    """A controller that starts without its state knows no job, as after MinJobAge."""
    launcher = new()
    asked, gone = work(runs_dir), work(runs_dir)
    handles = [submitted(launcher, job, until) for job in (asked, gone)]
    (asked.run_dir / "end").write_text("65")
    until(lambda: list((asked.run_dir / "exec").glob("*.exit")), "it has ended")
    for handle in handles:
        cluster.ask("scancel", handle.split('"')[3])
    cluster.until(lambda: not cluster.ask("squeue", "-h").strip(), "no job is left")
    for path in (gone.run_dir / "exec").glob("*.exit"):
        path.unlink()
    cluster.end("slurmctld")
    cluster.start_controller(is_forgetful=True)
    cluster.until(lambda: "idle" in cluster.ask("sinfo", "-h", "-N", "-o", "%t"), "nodes are idle")
    again = new()
    assert [ended(again, handle, until) for handle in handles] == [("ended", 65), ("lost", None)]


def test_gpus_are_those_of_gres(new: Any, cluster: SlurmCluster, runs_dir: Path, until: Any) -> None:
    """Slurm counts them; nothing is there to compute on, and nothing does."""
    launcher = new()
    assert [[device.name for device in node.devices if device.kind == "gpu"] for node in launcher.nodes()] == [
        ["h100"] * GPUS_A_NODE
    ] * 2
    assert launcher.nodes()[0].versions["slurm"]
    with pytest.raises(InputError, match=f"needs 8 GPUs, the largest node has {GPUS_A_NODE}"):
        launcher.fit(work(runs_dir, num_processes=8, device="auto"))
    assert launcher.fit(work(runs_dir, num_processes=8, num_nodes=2, device="auto")) == "now"
    with pytest.raises(InputError, match="num_nodes is 3: the job needs 1 GPU on each, 2 nodes have as many"):
        launcher.fit(work(runs_dir, num_processes=3, num_nodes=3, device="auto"))


def test_the_engine_is_given_what_the_scheduler_lists(
    new: Any, cluster: SlurmCluster, settings_file: Path, runs_dir: Path, until: Any, tmp_path: Path
) -> None:
    """GPUs are asked for and given: two of a node, and its CPUs beside them."""
    text = settings_file.read_text().replace("cpus_per_process = 8", "cpus_per_process = 1")
    folder = tmp_path / "gpu"
    folder.mkdir()
    (folder / "slurm.toml").write_text(text)
    (folder / "slurm.sh").write_text((settings_file.parent / "slurm.sh").read_text())
    launcher = ExecLauncher(runs_dir, read_exec_settings(folder / "slurm.toml"))
    cluster.ask("scontrol", "update", "PartitionName=debug", "State=DOWN")
    try:
        handle = submitted(launcher, work(runs_dir, num_processes=2, device="cuda"), until)
        told = cluster.ask("scontrol", "show", "job", "-o", handle.split('"')[3])
        assert "gres:gpu:2" in told
        assert "CPUs/Task=2" in told
    finally:
        cluster.ask("scontrol", "update", "PartitionName=debug", "State=UP")
    cluster.ask("scancel", "--user", "root")
    assert ended(launcher, handle, until)[0] == "ended"


def test_a_partition_that_is_none_is_refused(cluster: SlurmCluster, settings_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wrong"
    folder.mkdir()
    (folder / "slurm.toml").write_text(settings_file.read_text().replace('"debug"', '"nowhere"'))
    (folder / "slurm.sh").write_text((settings_file.parent / "slurm.sh").read_text())
    assert os.environ["SLURM_CONF"] == str(cluster.conf)
    with pytest.raises(InputError, match="finds no machine"):
        ExecLauncher(tmp_path, read_exec_settings(folder / "slurm.toml"))
