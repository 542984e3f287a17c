"""The Ray launcher on a real two-node cluster: the conformance suite, its faults, and what only it promises."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app.contract import PROBE_FILE
from app.engine.launch import LOCK_FILE
from app.jobs.launchers.base import Launcher, Work
from app.jobs.launchers.bench import Bench, NewLauncher, Points
from app.jobs.launchers.conformance import LauncherConformance
from app.jobs.launchers.ray import RayLauncher, Submitted
from app.jobs.launchers.ray_api import RayApi, RayAwayError, RayRefusedError, RayToken
from app.jobs.launchers.ray_nodes import OTHERS
from app.store import jobs as job_store
from app.store.database import Database, sqlite_url
from fitting.errors import InputError

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs Ray: pip install -c constraints.txt -e '.[ray]'", allow_module_level=True)

from ray_cluster import HEAD_IP, NUM_GPUS, WORKER_IP, RayCluster

# Ray starts six processes before the first rank: a case of five starts takes a busy machine longer than the usual limit.
pytestmark = pytest.mark.timeout(1_800)
Until = Callable[..., Any]


@pytest.fixture(scope="module")
def cluster(until: Until) -> Iterator[RayCluster]:
    cluster = RayCluster(until)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


class TestRayLauncher(LauncherConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def token_file(cls, data_dir: Path, cluster: RayCluster) -> Path:
        path = data_dir / "ray-token"
        path.write_text(f"{cluster.token}\n")
        return path

    @pytest.fixture(scope="class")
    @classmethod
    def new_launcher(cls, runs_dir: Path, token_file: Path, cluster: RayCluster) -> NewLauncher:
        def make() -> Launcher:
            api = RayApi(cluster.address, RayToken(path=token_file))
            return RayLauncher(runs_dir, api, python=sys.executable)

        return make

    # A submission takes Ray some seconds that a process does not: the dearer cases run with `-m long`.

    @pytest.mark.parametrize(
        "phase",
        ["queued", "base", *(pytest.param(phase, marks=pytest.mark.long) for phase in ("starting", "growth", "grown"))],
    )
    def test_cancelled_in_any_phase_it_stops_and_leaves_nothing(self, bench: Bench, phase: str) -> None:
        super().test_cancelled_in_any_phase_it_stops_and_leaves_nothing(bench, phase)

    @pytest.mark.long
    def test_paused_and_resumed_it_ends_as_if_undisturbed(self, bench: Bench, undisturbed: tuple[str, Points]) -> None:
        super().test_paused_and_resumed_it_ends_as_if_undisturbed(bench, undisturbed)

    @pytest.mark.long
    def test_a_submission_whose_handle_was_lost_is_found_again(
        self, bench: Bench, undisturbed: tuple[str, Points]
    ) -> None:
        super().test_a_submission_whose_handle_was_lost_is_found_again(bench, undisturbed)

    # --- what Ray adds ---------------------------------------------------------------------------------------

    def test_its_nodes_and_what_can_never_run_there(self, bench: Bench, cluster: RayCluster) -> None:
        by_ip = {node.name.split()[-1]: node for node in bench.launcher.nodes()}
        assert set(by_ip) == {HEAD_IP, WORKER_IP}
        kinds = [device.kind for device in by_ip[WORKER_IP].devices]
        assert (kinds.count("gpu"), kinds.count("cpu")) == (NUM_GPUS, 2)
        assert by_ip[HEAD_IP].versions == {"ray": cluster.api.version()}
        assert (by_ip[HEAD_IP].memory_bytes or 0) > (by_ip[HEAD_IP].memory_free_bytes or 0) > 0
        for changes, words in (
            ({"num_processes": 8, "device": "cuda"}, f"needs 8 GPUs, the largest node has {NUM_GPUS}"),
            (
                {"num_processes": 4, "num_nodes": 4, "device": "cpu"},
                "needs 4 CPU slots on 4 nodes, but Ray has 2, 2 on its 2",
            ),
            ({"num_processes": 6, "num_nodes": 2, "device": "cpu"}, "needs 6 CPU slots on 2 nodes"),
        ):
            work = Work(**({"job_id": "job_x", "kind": "growth", "run_dir": bench.runs_dir / "run_x"} | changes))  # type: ignore[arg-type]
            with pytest.raises(InputError, match=words):
                bench.launcher.fit(work)
        spread = Work(
            job_id="job_x", kind="growth", run_dir=bench.runs_dir / "run_x", num_processes=4, num_nodes=2, device="cpu"
        )
        bench.until(lambda: bench.launcher.fit(spread) == "now", "both nodes are free")

    def test_a_worker_that_sees_another_directory_is_told(self, bench: Bench) -> None:
        job_id = bench.start()
        bench.until(lambda: bench.job(job_id).handle is not None, "it is submitted")
        (bench.runs_dir / PROBE_FILE).write_text("of another service\n")
        job = bench.until_ended(job_id)
        (bench.runs_dir / PROBE_FILE).unlink()
        assert (job.state, job.cause) == ("failed", "no_worker")
        assert f"sees another directory at {bench.runs_dir} than the service does" in job.reason
        assert "mount the service's runs directory at the same path" in bench.launcher.logs(
            None, Path(job.run_dir), max_bytes=10_000
        ) + cluster_log(bench, job_id)

    @pytest.mark.long
    def test_each_process_sees_the_gpu_that_ray_gave_it(self, bench: Bench) -> None:
        """Ray gives out numbers of GPUs without looking for them; the engine then finds that there are none."""
        job_ids = [bench.start(bench.spec(device="cuda")) for _ in range(2)]
        with contextlib.ExitStack() as locks:
            for job_id in job_ids:  # held here, so that the engine waits
                lock = locks.enter_context(open(Path(bench.job(job_id).run_dir) / LOCK_FILE, "w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            bench.until(lambda: all(len(bench.processes(job_id)) == 2 for job_id in job_ids), "both engines are there")
            seen = {bench.processes(job_id)[-1].environ()["CUDA_VISIBLE_DEVICES"] for job_id in job_ids}
            assert len(seen) == 2
            assert seen <= {str(index) for index in range(NUM_GPUS)}
            held = [device for node in bench.launcher.nodes() for device in node.devices if device.job_id in job_ids]
            assert [device.kind for device in held] == ["gpu", "gpu"]
        for job_id in job_ids:
            assert (bench.until_ended(job_id).state, bench.job(job_id).cause) == ("failed", "bad_spec")

    @pytest.mark.long
    def test_stopped_in_ray_it_pauses_and_goes_on_when_resumed(
        self, bench: Bench, cluster: RayCluster, undisturbed: tuple[str, Points]
    ) -> None:
        job_id = bench.start()
        bench.until_phase(job_id, "base")
        cluster.api.stop(Submitted.parse(bench.job(job_id).handle or "").submission_id)
        bench.until(lambda: bench.job(job_id).state in ("paused", "succeeded"), "it has stopped")
        assert bench.processes(job_id) == []
        assert bench.job(job_id).state == "paused"
        assert "stopped in Ray; resume it" in bench.job(job_id).reason
        with bench.database.write() as session:
            job_store.set_state(session, job_id, "queued", "resumed")
        bench.check_end(job_id, undisturbed[1])

    @pytest.mark.long
    def test_a_refused_token_and_a_silent_ray_lose_nothing(
        self, bench: Bench, cluster: RayCluster, token_file: Path, undisturbed: tuple[str, Points]
    ) -> None:
        job_id = bench.start()
        bench.until_phase(job_id, "starting")
        bench.until(lambda: bench.job(job_id).handle is not None, "it is submitted")
        token_file.write_text("expired")
        bench.until(lambda: "waiting" in bench.story(job_id), "the service tells that it is shut out")
        with pytest.raises(RayRefusedError, match="refuses the token"):
            RayApi(cluster.address, RayToken(path=token_file)).version()
        assert "refuses the token" in bench.launcher.trouble()
        assert "expired" not in bench.launcher.trouble()
        assert bench.job(job_id).state == "running"
        waiting = bench.start()
        bench.supervisor.tick()
        assert bench.job(waiting).state == "queued"
        token_file.write_text(f"{cluster.token}\n")
        wake = cluster.suspend_head()
        try:
            bench.until(lambda: "does not answer" in last_message(bench, job_id), "the service tells that Ray is away")
            assert bench.job(job_id).state == "running"
        finally:
            wake()
        bench.check_end(job_id, undisturbed[1])
        assert bench.job(job_id).num_attempts == 1
        bench.check_end(waiting, undisturbed[1])

    @pytest.mark.long
    def test_ranks_on_two_nodes_pause_and_go_on(self, bench: Bench, undisturbed_pair: Points) -> None:
        job_id = bench.start(bench.spec(num_processes=2), num_nodes=2)
        bench.until_phase(job_id, "base")
        bench.wish(job_id, "pause")
        bench.until(lambda: bench.job(job_id).state != "running", "it has stopped")
        assert bench.job(job_id).state == "paused"
        assert bench.processes(job_id) == []
        # The ranks themselves saved and said so; nobody had to kill them.
        assert bench.story(job_id)[-2:] == ["paused", "paused"]
        with bench.database.write() as session:
            job_store.set_state(session, job_id, "queued", "resumed")
        bench.check_end(job_id, undisturbed_pair)

    # --- slower faults ---------------------------------------------------------------------------------------

    @pytest.mark.long
    def test_a_worker_of_ray_killed_the_ranks_are_placed_again(self, bench: Bench, undisturbed_pair: Points) -> None:
        job_id = bench.start(bench.spec(num_processes=2), num_nodes=2)
        bench.until_phase(job_id, "base")
        rank = bench.processes(job_id)[-1]
        parent = rank.parent()
        assert parent is not None
        assert "RayTrainWorker" in " ".join(parent.cmdline())
        parent.kill()
        rank.wait(timeout=30)
        bench.check_end(job_id, undisturbed_pair)
        assert bench.job(job_id).num_attempts == 1
        assert bench.story(job_id).count("restarted") == 1

    @pytest.mark.long
    def test_a_node_killed_the_run_waits_for_another(
        self, bench: Bench, cluster: RayCluster, undisturbed_pair: Points
    ) -> None:
        job_id = bench.start(bench.spec(num_processes=2), num_nodes=2)
        bench.until_phase(job_id, "base")
        cluster.kill_node(WORKER_IP)
        try:
            bench.until(lambda: len(bench.processes(job_id)) < 3, "its rank is gone")
        finally:
            cluster.start_worker()
        bench.check_end(job_id, undisturbed_pair)
        assert bench.story(job_id).count("restarted") >= 1

    @pytest.mark.long
    def test_a_node_killed_the_run_shrinks(self, bench: Bench, cluster: RayCluster, undisturbed_pair: Points) -> None:
        spec = bench.spec(num_processes=4, min_processes=2)
        job_id = bench.start(spec, num_nodes=2)
        bench.until_phase(job_id, "base")
        cluster.kill_node(WORKER_IP)
        try:
            job = bench.until_ended(job_id)
        finally:
            cluster.start_worker()
        assert (job.state, job.num_attempts) == ("succeeded", 1), job.reason
        assert bench.processes(job_id) == []
        with bench.database.read() as session:
            told = [e.message for e in job_store.list_events(session, job_id) if e.event in ("started", "resumed")]
        assert "4 processes" in told[0]
        assert "2 processes" in told[-1]
        # The same points, every one once; the sums were added up in another order.
        assert [point[:5] for point in bench.points(job_id)] == [point[:5] for point in undisturbed_pair]

    @pytest.mark.long
    def test_the_head_killed_the_run_directory_is_submitted_again(
        self, bench: Bench, cluster: RayCluster, undisturbed: tuple[str, Points]
    ) -> None:
        job_id = bench.start()
        bench.until_phase(job_id, "base")
        cluster.kill_node(HEAD_IP)
        bench.until(lambda: "does not answer" in last_message(bench, job_id), "the service tells that Ray is away")
        cluster.kill_node(WORKER_IP)
        cluster.start()
        bench.check_end(job_id, undisturbed[1])
        assert bench.job(job_id).num_attempts == 2
        with bench.database.read() as session:
            told = [event.message for event in job_store.list_events(session, job_id)]
        assert any("its head was started anew" in message for message in told)

    @pytest.mark.long
    def test_two_services_share_a_cluster(
        self, bench: Bench, cluster: RayCluster, tmp_path: Path, undisturbed: tuple[str, Points]
    ) -> None:
        runs_dir = tmp_path / "runs"
        runs_dir.mkdir()
        database = Database(sqlite_url(tmp_path))
        database.migrate()
        other = Bench(
            database=database, runs_dir=runs_dir, corpus_dir=bench.corpus_dir,
            new_launcher=lambda: RayLauncher(runs_dir, cluster.api, python=sys.executable),
        )  # fmt: skip
        mine, theirs = bench.start(), other.start()

        def sees_the_other() -> bool:
            other.supervisor.tick()
            devices = [device.job_id for node in bench.launcher.nodes() for device in node.devices]
            return mine in devices and OTHERS in devices

        bench.until(sees_the_other, "each shows the other's work as such")
        other.check_end(theirs, undisturbed[1])
        bench.check_end(mine, undisturbed[1])
        database.close()


def last_message(bench: Bench, job_id: str) -> str:
    with bench.database.read() as session:
        waits = [event.message for event in job_store.list_events(session, job_id) if event.event == "waiting"]
    return waits[-1] if waits else ""


def cluster_log(bench: Bench, job_id: str) -> str:
    """What Ray keeps of the entrypoint of a job's first attempt."""
    handle = Submitted(submission_id=f"growthlaw-{job_id}-1", device="cpu", num_processes=1).handle
    return bench.launcher.logs(handle, Path(bench.job(job_id).run_dir) / "nowhere", max_bytes=10_000)


# --- the service ---------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_service_killed_its_job_goes_on_in_ray(
    service: Any, cluster: RayCluster, grow_body: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    token_file = service.data_dir.parent / "token"
    token_file.write_text(cluster.token)
    monkeypatch.setenv("GROWTHLAW_RAY_ADDRESS", cluster.address)
    monkeypatch.setenv("GROWTHLAW_RAY_TOKEN_FILE", str(token_file))
    monkeypatch.setenv("GROWTHLAW_RAY_PYTHON", sys.executable)
    client = service.start()
    assert {worker["engine"] for worker in client.workers()} == {"local", "ray"}
    growth = client.grow(grow_body(engine="ray", device="cpu", controls=[]))
    (job_id,) = [arm["job"]["id"] for arm in growth["arms"]]
    next(event for event in client.events(job_id) if event.event == "point")
    service.kill()
    client = service.start()
    for _ in client.events(job_id):
        pass
    job = client.job(job_id)
    assert (job["state"], job["num_attempts"]) == ("succeeded", 1), job
    assert service.engine_processes() == []
    assert cluster.token not in (service.data_dir / "service.log").read_text()
    kept = [path for path in service.data_dir.rglob("*") if path.is_file()]
    assert any("sqlite" in path.name for path in kept)
    assert [path for path in kept if cluster.token.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"RAY_TOKEN": "wrong-secret"}, "refuses the token"),
        ({}, "asks for a token"),
        ({"RAY_ADDRESS": "ftp://nowhere"}, "not http"),
        ({"RAY_ADDRESS": "http://user:wrong-secret@nowhere:8265"}, "holds a user or password"),
        ({"RAY_TOKEN": "wrong-secret", "RAY_TOKEN_FILE": "/nowhere"}, "keep one of them"),
        ({"RAY_TOKEN_FILE": "/nowhere"}, "cannot be read"),
    ],
)
def test_serve_says_what_is_wrong_with_ray(
    cluster: RayCluster, tmp_path: Path, values: dict[str, str], words: str
) -> None:
    settings = {"RAY_ADDRESS": cluster.address} | values
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--data-dir", str(tmp_path)],
        env=os.environ | {f"GROWTHLAW_{name}": value for name, value in settings.items()}, cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert words in done.stderr
    assert "wrong-secret" not in done.stdout + done.stderr


def test_a_token_is_never_shown() -> None:
    token = RayToken(SecretStr("very-secret"))
    assert "very-secret" not in repr(token) + repr(vars(token)) + repr(RayApi("http://localhost:8265", token))
    with pytest.raises(RayAwayError, match="does not answer"):
        RayApi("http://127.0.0.4:9", token).version()
