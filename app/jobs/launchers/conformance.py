"""The suite that every launcher passes: real engine processes under the real supervisor, one small run at a time.

A test module makes it its own by subclassing it and giving a fixture::

    class TestLocalLauncher(LauncherConformance):
        @pytest.fixture(scope="class")
        @classmethod
        def new_launcher(cls, runs_dir: Path) -> NewLauncher:
            return lambda: LocalLauncher(runs_dir, num_slots=2)

It needs pytest, which the service does not. ``new_launcher`` is called once for every service that the suite starts: a
second call is a service that came back and knows nothing but the database. Processes of a run are found by the run
directory in their command line, so they must run on this machine.

Each test ends with the same questions (:meth:`Bench.check_end`): is every point stored once and in order, is the curve
that of an undisturbed run bit for bit, is no process left, does the story tell what happened?
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.contract import CHECKPOINTS_DIR, EvaluationSpec, GrowthSpec, Spec, TrainingSpec
from app.jobs.launchers.base import Work
from app.jobs.launchers.bench import Bench, NewLauncher, Points, small_corpus
from app.jobs.supervisor import work_of
from app.store import jobs as job_store
from app.store import runs as run_store
from app.store.database import Database, sqlite_url
from app.store.ids import new_id
from app.store.tables import JobRow
from fitting.errors import InputError


class LauncherConformance:
    """What every launcher must do; see the head of this module for how to use it."""

    @pytest.fixture(scope="class")
    @classmethod
    def conformance_corpus(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return small_corpus(tmp_path_factory.mktemp("conformance"))

    @pytest.fixture(scope="class")
    @classmethod
    def data_dir(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("launcher")

    @pytest.fixture(scope="class")
    @classmethod
    def runs_dir(cls, data_dir: Path) -> Path:
        """Where the suite's run directories lie; what a launcher that checks them must be told."""
        folder = data_dir / "runs"
        folder.mkdir()
        return folder

    @pytest.fixture(scope="class")
    @classmethod
    def new_launcher(cls, runs_dir: Path) -> NewLauncher:
        raise NotImplementedError("a subclass gives a function that makes its launcher anew")

    @pytest.fixture(scope="class")
    @classmethod
    def bench(
        cls, data_dir: Path, runs_dir: Path, conformance_corpus: Path, new_launcher: NewLauncher
    ) -> Iterator[Bench]:
        database = Database(sqlite_url(data_dir))
        database.migrate()
        yield Bench(
            database=database, runs_dir=runs_dir, corpus_dir=conformance_corpus, new_launcher=new_launcher
        )  # fmt: skip
        database.close()

    @pytest.fixture(scope="class")
    @classmethod
    def undisturbed(cls, bench: Bench) -> tuple[str, Points]:
        """The job of a run that nobody disturbed, and its points."""
        job_id = bench.start()
        bench.until_ended(job_id)
        return job_id, bench.points(job_id)

    @pytest.fixture(scope="class")
    @classmethod
    def undisturbed_pair(cls, bench: Bench) -> Points:
        """The points of an undisturbed run of two processes."""
        job_id = bench.start(bench.spec(num_processes=2))
        bench.until_ended(job_id)
        return bench.points(job_id)

    @pytest.fixture(autouse=True)
    def leave_nothing(self, bench: Bench) -> Iterator[None]:
        yield
        bench.clear()

    def test_submitted_it_runs_and_is_done(self, bench: Bench, undisturbed: tuple[str, Points]) -> None:
        job_id, points = undisturbed
        bench.check_end(job_id, points)
        assert {point[1] for point in points} == {"base", "growth", "grown"}
        story = bench.story(job_id)
        assert story[:3] == ["queued", "running", "started"]
        assert {"growth", "checkpoint", "finished"} <= set(story)
        job = bench.job(job_id)
        assert job.num_attempts == 1
        with bench.database.read() as session:
            run = run_store.get_run(session, str(job.run_id))
        assert run is not None
        assert (run.status, run.is_final) == ("finished", True)
        assert bench.ended_cohorts.count("conformance") >= 1

    def test_the_whole_log_is_there_and_its_tail(self, bench: Bench, undisturbed: tuple[str, Points]) -> None:
        job = bench.job(undisturbed[0])
        read = lambda max_bytes: bench.launcher.logs(job.handle, Path(job.run_dir), max_bytes=max_bytes)  # noqa: E731
        whole = read(1_000_000)
        with bench.database.read() as session:
            told = [event for event in job_store.list_events(session, job.id) if event.phase is not None]
        # The engine prints every event that it writes: a log that lost a line would lack one, in order.
        place = 0
        for event in told:
            place = whole.index(f"{event.event}: {event.message}", place)
        assert whole.endswith(read(50))
        assert len(read(50).encode()) <= 50

    @pytest.mark.parametrize("phase", ["queued", "starting", "base", "growth", "grown"])
    def test_cancelled_in_any_phase_it_stops_and_leaves_nothing(self, bench: Bench, phase: str) -> None:
        # Long enough not to be over before it is stopped.
        growth = GrowthSpec(num_base_layers=2, growth_timing_tokens=12_800, operator="learn", learn_steps=2_000)
        if phase == "grown":
            growth = replace(growth, operator="direct", learn_steps=None)
        training = TrainingSpec(tokens=1_280_000, peak_lr=1e-2, batch_sequences=4)
        job_id = bench.start(bench.spec(growth=growth, training=training))
        if phase != "queued":
            bench.until_phase(job_id, phase)
        else:
            # Claimed, but its launcher was not asked yet: what a service that dies in between leaves.
            with bench.database.write() as session:
                job_store.claim_job(session, job_id, "conformance")
        bench.wish(job_id, "cancel")
        job = bench.until_ended(job_id)
        assert job.state == "cancelled", job.reason
        assert bench.processes(job_id) == []
        written = {point[1] for point in bench.points(job_id)}
        assert phase != "growth" or written == {"base"}, "the growth was over before it was cancelled"
        assert bench.story(job_id)[-1] == "cancelled"
        with bench.database.read() as session:
            run = run_store.get_run(session, str(job.run_id))
        assert run is not None
        assert run.status == "stopped"

    def test_paused_and_resumed_it_ends_as_if_undisturbed(self, bench: Bench, undisturbed: tuple[str, Points]) -> None:
        job_id = bench.start()
        bench.until_phase(job_id, "grown")
        bench.wish(job_id, "pause")
        bench.until(lambda: bench.job(job_id).state in ("paused", "succeeded"), "it has stopped")
        assert bench.processes(job_id) == []
        if bench.job(job_id).state == "paused":
            with bench.database.write() as session:
                job_store.set_state(session, job_id, "queued", "resumed")
        bench.check_end(job_id, undisturbed[1])

    def test_killed_it_goes_on_from_its_checkpoint_bit_for_bit(
        self, bench: Bench, undisturbed: tuple[str, Points]
    ) -> None:
        job_id = bench.start()
        bench.until_phase(job_id, "base")
        bench.kill(job_id)
        bench.until(lambda: bench.job(job_id).num_attempts == 2, "it has been started again")
        bench.check_end(job_id, undisturbed[1])
        story = bench.story(job_id)
        assert story.count("running") == story.count("queued") == 2
        assert len([event for event in story if event in ("started", "resumed")]) == 2

    def test_a_service_that_comes_back_takes_it_up(self, bench: Bench, undisturbed: tuple[str, Points]) -> None:
        job_id = bench.start()
        bench.until_phase(job_id, "base")
        bench.start_service()
        bench.check_end(job_id, undisturbed[1])
        assert bench.job(job_id).num_attempts == 1
        assert bench.story(job_id).count("taken_up") == 1

    def test_a_submission_whose_handle_was_lost_is_found_again(
        self, bench: Bench, undisturbed: tuple[str, Points]
    ) -> None:
        job_id = bench.start()
        bench.until_phase(job_id, "starting")
        with bench.database.write() as session:
            job_store.set_values(session, job_id, handle=None)
        bench.start_service()
        bench.until(lambda: bench.job(job_id).handle is not None, "it has a handle again")
        leaders = {os.getsid(process.pid) for process in bench.processes(job_id)}
        assert len(leaders) <= 1, "a second engine was started"
        bench.check_end(job_id, undisturbed[1])
        assert bench.job(job_id).num_attempts == 1

    def test_what_no_worker_can_run_fails_at_once_and_says_why(self, bench: Bench) -> None:
        largest = max(len(node.devices) for node in bench.launcher.nodes())
        too_many = largest + 1
        spec = bench.spec(
            cohort="conformance-large",
            num_processes=too_many,
            training=TrainingSpec(tokens=256 * 32 * too_many, peak_lr=1e-2, batch_sequences=2 * too_many),
            evaluation=EvaluationSpec(every_tokens=10_000, num_windows=too_many),
            growth=None,
        )
        with pytest.raises(InputError, match=f"needs {too_many} "):
            bench.supervisor.check(bench.launcher.engine, _work(bench, spec))
        job_id = bench.start(spec)
        bench.supervisor.tick()
        job = bench.job(job_id)
        assert (job.state, job.cause) == ("failed", "no_worker")
        assert f"needs {too_many} " in job.reason
        assert job.num_attempts == 0

    def test_a_run_directory_outside_the_root_is_refused(self, bench: Bench, data_dir: Path) -> None:
        outside = data_dir / "outside"
        shutil.rmtree(outside, ignore_errors=True)
        outside.mkdir()
        link = bench.runs_dir / "link"
        link.unlink(missing_ok=True)
        link.symlink_to(outside)
        odd = bench.runs_dir / "run_$(touch pwned)"
        odd.mkdir(exist_ok=True)
        for run_dir in (outside, bench.runs_dir / ".." / "outside", link, odd, bench.runs_dir):
            work = Work(job_id=new_id("job"), kind="growth", run_dir=run_dir, device="cpu")
            with pytest.raises(InputError, match="run_dir"):
                bench.launcher.submit(work)
        assert list(outside.iterdir()) == []
        link.unlink()
        odd.rmdir()

    def test_nodes_tell_which_job_has_which_device(self, bench: Bench) -> None:
        job_id = bench.start()
        bench.until_phase(job_id, "starting")
        bench.until(lambda: bench.job(job_id).handle is not None, "it is submitted")
        busy = [device for node in bench.launcher.nodes() for device in node.devices if device.job_id == job_id]
        assert len(busy) == 1
        bench.wish(job_id, "cancel")
        bench.until_ended(job_id)
        assert [d for node in bench.launcher.nodes() for d in node.devices if d.job_id == job_id] == []

    # --- slower faults ---------------------------------------------------------------------------------------

    @pytest.mark.long
    @pytest.mark.parametrize("victim", ["leader", "rank"])
    def test_one_of_two_processes_killed_it_ends_as_if_undisturbed(
        self, bench: Bench, undisturbed_pair: Points, victim: str
    ) -> None:
        job_id = bench.start(bench.spec(num_processes=2))
        bench.until_phase(job_id, "base")
        processes = bench.processes(job_id)
        assert len(processes) == 3
        processes[0 if victim == "leader" else 2].kill()
        # By the service, or by a scheduler that starts lost ranks itself.
        starts = ("started", "resumed")

        def goes_on() -> bool:
            # A scheduler that waits for whatever the leader left behind lets its ranks end the run without it.
            is_done = victim == "leader" and bench.job(job_id).state == "succeeded"
            return is_done or sum(map(bench.story(job_id).count, starts)) == 2

        bench.until(goes_on, "it has been started again, or its ranks went on")
        bench.check_end(job_id, undisturbed_pair)
        assert bench.job(job_id).cause is None

    @pytest.mark.long
    def test_a_torn_checkpoint_is_set_aside(self, bench: Bench, undisturbed: tuple[str, Points]) -> None:
        job_id = bench.start()
        checkpoints = Path(bench.job(job_id).run_dir) / CHECKPOINTS_DIR
        bench.until_phase(job_id, "grown")
        bench.kill(job_id)
        newest = max(checkpoints.glob("tokens-*"), key=lambda path: path.name)
        torn = next(newest.glob("*.safetensors"))
        torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
        bench.check_end(job_id, undisturbed[1])
        assert "checkpoint_damaged" in bench.story(job_id)

    @pytest.mark.long
    def test_killed_in_every_phase_and_the_service_too(self, bench: Bench, undisturbed: tuple[str, Points]) -> None:
        job_id = bench.start()
        for phase in ("starting", "base", "growth", "grown"):
            bench.until_phase(job_id, phase)
            bench.kill(job_id)
            bench.start_service()
            bench.supervisor.tick()
        bench.check_end(job_id, undisturbed[1])

    @pytest.mark.long
    def test_what_dies_again_and_again_is_given_up(self, bench: Bench) -> None:
        job_id = bench.start()
        while bench.job(job_id).state != "failed":
            bench.until(
                lambda: bench.job(job_id).state == "failed" or bench.processes(job_id), "it is started or given up"
            )
            bench.kill(job_id)
        job = bench.until_ended(job_id)
        assert (job.state, job.cause, job.num_attempts) == ("failed", "lost_worker", 4)
        assert bench.processes(job_id) == []


def _work(bench: Bench, spec: Spec) -> Work:
    return replace(
        work_of(JobRow(id="job_x", kind="growth", run_dir="/", device=spec.device, num_attempts=1, num_nodes=1)),
        num_processes=spec.num_processes,
        run_dir=bench.runs_dir / spec.run_id,
    )
