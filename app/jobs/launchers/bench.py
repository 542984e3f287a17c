"""What the conformance suite stands on: a database, a small corpus, and services that come and go."""

from __future__ import annotations

import contextlib
import json
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from app.contract import CorpusSpec, EvaluationSpec, GrowthSpec, ModelSpec, Spec, TrainingSpec
from app.corpus.prepare import prepare_corpus
from app.corpus.shards import Manifest, read_manifest
from app.jobs.launchers.base import Launcher
from app.jobs.queue import enqueue_arms
from app.jobs.supervisor import Supervisor
from app.store import jobs as job_store
from app.store import runs as run_store
from app.store.database import Database
from app.store.ids import new_id
from app.store.tables import JobRow

# Modules of every CPython; the text itself is the interpreter's own copy.
SOURCES = ("argparse", "datetime", "difflib", "doctest", "inspect", "typing")
# What the clock decides, not the spec.
TIMED_METRICS = ("tokens_per_second", "growth_seconds", "peak_memory", "mfu")
SECONDS_TO_WAIT = 600.0
SECONDS_BETWEEN_LOOKS = 0.05

NewLauncher = Callable[[], Launcher]
Points = list[tuple[Any, ...]]


@dataclass(kw_only=True)
class Bench:
    """A database, run directories, a corpus, and the service of the moment."""

    database: Database
    runs_dir: Path
    corpus_dir: Path
    new_launcher: NewLauncher
    ended_cohorts: list[str] = field(default_factory=list)
    supervisor: Supervisor = field(init=False)
    launcher: Launcher = field(init=False)

    def __post_init__(self) -> None:
        self.start_service()

    def start_service(self) -> None:
        """A service that has just started; the one before it is forgotten as by SIGKILL."""
        self.launcher = self.new_launcher()
        self.supervisor = Supervisor(
            self.database, [self.launcher], owner="conformance", on_run_ended=self.ended_cohorts.append
        )

    # --- jobs ------------------------------------------------------------------------------------------------

    def spec(self, **changes: Any) -> Spec:
        """2 layers of width 16 grown to 4 by trained maps: a base, a growth and a grown phase of a second each."""
        manifest = self.manifest
        spec = Spec(
            run_id=new_id("run"),
            name="conformance",
            cohort="conformance",
            corpus=manifest.name,
            corpus_dir=str(self.corpus_dir),
            model=ModelSpec(
                num_layers=4, hidden_size=16, num_heads=2, num_kv_heads=2, intermediate_size=32,
                vocab_size=manifest.vocab_size, context_length=32,
            ),
            growth=GrowthSpec(num_base_layers=2, growth_timing_tokens=12_800, operator="learn", learn_steps=50),
            training=TrainingSpec(tokens=25_600, peak_lr=1e-2, batch_sequences=4, warmup_tokens=1_280),
            evaluation=EvaluationSpec(every_tokens=1_280, num_windows=8),
            device="cpu",
            checkpoint_every_tokens=2_560,
        )  # fmt: skip
        return replace(spec, **changes)

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.corpus_dir)

    def start(self, spec: Spec | None = None, *, num_nodes: int = 1, priority: int = 0) -> str:
        """Queue a run on the launcher; gives the job's id."""
        spec = spec or self.spec()
        rows = enqueue_arms(
            self.database, self.runs_dir, {"grown": spec}, self.manifest, priority=priority, request_key=None,
            request_hash=None, engine=self.launcher.engine, num_nodes=num_nodes,
        )  # fmt: skip
        return rows["grown"].id

    def job(self, job_id: str) -> JobRow:
        with self.database.read() as session:
            job = job_store.get_job(session, job_id)
        assert job is not None
        return job

    def wish(self, job_id: str, wish: str) -> None:
        with self.database.write() as session:
            job_store.set_values(session, job_id, wish=wish)

    def story(self, job_id: str) -> list[str]:
        with self.database.read() as session:
            return [event.event for event in job_store.list_events(session, job_id)]

    def points(self, job_id: str) -> list[tuple[Any, ...]]:
        """(seq, phase, tokens, FLOPs, metric, value) of every stored point that the clock did not decide."""
        run_id = self.job(job_id).run_id
        assert run_id is not None
        with self.database.read() as session:
            stored = run_store.list_points(session, run_id, limit=100_000)
        assert [point.seq for point in stored] == list(range(1, len(stored) + 1)), "a point is missing or doubled"
        return [
            (point.seq, point.phase, point.tokens, point.compute_flops, point.metric, point.value)
            for point in stored
            if point.metric not in TIMED_METRICS
        ]

    def processes(self, job_id: str) -> list[psutil.Process]:
        """Living processes of the run, the session's leader first."""
        run_dir = self.job(job_id).run_dir
        found = [
            process
            for process in psutil.process_iter(["cmdline", "status", "create_time"])
            if run_dir in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE
        ]
        return sorted(found, key=lambda process: process.info["create_time"])

    def kill(self, job_id: str) -> None:
        """SIGKILL to all processes of the run; one may be gone by its turn, having died with its parent."""
        for process in self.processes(job_id):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def clear(self) -> None:
        """Kill what a failed test left, so that the next one finds free devices."""
        with self.database.write() as session:
            for job in job_store.list_jobs(session, states=("queued", "running", "paused"), limit=1_000):
                if job.state == "running":
                    job_store.set_values(session, job.id, wish="cancel")
                else:
                    job_store.set_state(session, job.id, "cancelled", "left by a test")
                if job.handle is not None:
                    self.launcher.cancel(job.handle, kill=True)
        with self.database.read() as session:
            running = [job.id for job in job_store.running_jobs(session)]
        for job_id in running:
            self.until_ended(job_id)

    # --- time ------------------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Let the service tick until the condition holds; gives what it gave."""
        deadline = time.monotonic() + SECONDS_TO_WAIT
        while time.monotonic() < deadline:
            self.supervisor.tick()
            if found := condition():
                return found
            time.sleep(SECONDS_BETWEEN_LOOKS)
        raise AssertionError(f"waited {SECONDS_TO_WAIT:.0f} s until {what}")

    def until_phase(self, job_id: str, phase: str) -> None:
        """Until the run is in a phase: `starting` once its process is there, else once it has written of it."""
        if phase == "starting":
            self.until(lambda: self.processes(job_id), "a process is there")
        elif phase == "growth":  # its points are written when it is over
            self.until(lambda: "growing" in self.story(job_id), "the base is being grown")
        else:
            self.until(lambda: any(point[1] == phase for point in self.points(job_id)), f"phase {phase} is at work")

    def until_ended(self, job_id: str) -> JobRow:
        self.until(lambda: self.job(job_id).state in ("succeeded", "failed", "cancelled"), f"{job_id} has ended")
        return self.job(job_id)

    def check_end(self, job_id: str, undisturbed: list[tuple[Any, ...]]) -> None:
        """The job succeeded and its curve is the undisturbed one, nothing lost, doubled or left behind."""
        job = self.until_ended(job_id)
        assert job.state == "succeeded", (
            job.reason,
            self.launcher.logs(job.handle, Path(job.run_dir), max_bytes=4_000),
        )
        assert self.points(job_id) == undisturbed
        assert self.processes(job_id) == []
        assert self.story(job_id).count("succeeded") == 1
        assert (job.handle, job.lease_owner, job.heartbeat_at) == (None, None, None)


def small_corpus(folder: Path) -> Path:
    """Some of the standard library's own text, prepared as a corpus below `folder`."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    texts = [(stdlib / f"{name}.py").read_text(encoding="utf-8") for name in SOURCES]
    documents = "".join(json.dumps({"text": part}) + "\n" for text in texts for part in text.split("\ndef "))
    (folder / "documents.jsonl").write_text(documents, encoding="utf-8")
    spec = CorpusSpec(
        run_id="conformance", name="stdlib", corpus_dir=str(folder / "stdlib"), vocab_size=300,
        sources=(str(folder / "documents.jsonl"),),
    )  # fmt: skip
    prepare_corpus(spec)
    return folder / "stdlib"
