"""What several rooms' tests share: a small real corpus and a real service process."""

from __future__ import annotations

import json
import lzma
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from postgres import INSTALL as POSTGRES_INSTALL
from postgres import PostgresServer, postgres_programs

from app.bundled import bundled_dir
from app.client import Growthlaw
from app.contract import CorpusSpec
from app.corpus.prepare import prepare_corpus
from app.store.database import sqlite_url

VOCAB_SIZE = 512
# Read when torch is first imported, by tests and by the processes they start. Two test processes whose kernels each spin
# on all cores take twice as long; models this small gain nothing from a second thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts background jobs with SIGINT ignored, and every process below inherits that: tests of Ctrl-C would wait
# for nothing. A handler of our own is not inherited, so processes start with the system's default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Where GROWTHLAW_REQUIRE_SERVICES is set, a test that skips itself fails: a skip hides what was not tested.

    Only a GPU may be missing.
    """
    report = yield
    if report.skipped and os.environ.get("GROWTHLAW_REQUIRE_SERVICES") and "gpu" not in item.keywords:
        report.outcome = "failed"
        report.longrepr = f"skipped, but GROWTHLAW_REQUIRE_SERVICES is set: {report.longrepr}"
    return report


# Small enough for seconds, large enough that loss falls.
TINY_MODEL = {"num_layers": 4, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "context_length": 64}


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """The held-out documents of the bundled corpus: about 2 MB of real text."""
    with lzma.open(bundled_dir("corpus") / "validation.jsonl.xz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


@pytest.fixture(scope="session")
def documents_file(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documents") / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_corpus(documents_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus named `tiny`."""
    folder = tmp_path_factory.mktemp("corpora") / "tiny"
    prepare_corpus(
        CorpusSpec(
            run_id="tests", name="tiny", corpus_dir=str(folder), sources=(str(documents_file),), vocab_size=VOCAB_SIZE
        )
    )
    return folder


def tiny_grow_body(**changes: Any) -> dict[str, Any]:
    """A growth design that trains in a few seconds."""
    return {
        "name": "tiny",
        "cohort": "tiny",
        "corpus": "tiny",
        "target_model": TINY_MODEL,
        "growth_factor": 2,
        "growth_timing_tokens": 20_480,
        "token_budget": 51_200,
        "controls": ["scratch", "base_only"],
        "training": {"peak_lr": 4e-3, "batch_sequences": 8, "warmup_tokens": 5_120},
        "num_validation_windows": 16,
        "checkpoint_every_tokens": 8_192,
    } | changes


@pytest.fixture(scope="session")
def grow_body() -> Callable[..., dict[str, Any]]:
    return tiny_grow_body


@dataclass
class RunningService:
    """`growthlaw serve` as a process; it can be killed and started again over the same data directory.

    ``installation`` is the folder whose `app` runs: this checkout, or a copy that ships other data. ``runs_dir`` holds its
    run directories where it shares them with other services. ``api_key`` is the client's.
    """

    data_dir: Path
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    runs_dir: Path | None = None
    installation: Path = Path(__file__).parents[1]
    api_key: str = ""
    process: subprocess.Popen[bytes] | None = None
    client: Growthlaw | None = None

    def start(self) -> Growthlaw:
        service_file = self.data_dir / "service.json"
        service_file.unlink(missing_ok=True)
        with open(self.data_dir / "service.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--data-dir", str(self.data_dir), *self.options],
                stdout=log, stderr=log, cwd=self.installation,
                env=os.environ | {"PYTHONPATH": str(self.installation)} | self.environment,
            )  # fmt: skip
        wait_until(lambda: service_file.exists() or self.process.poll() is not None, "the service starts")  # type: ignore[union-attr]
        assert self.process.poll() is None, (self.data_dir / "service.log").read_text()
        self.client = Growthlaw(json.loads(service_file.read_text())["url"], api_key=self.api_key)
        wait_until(self._answers, "the service answers")
        return self.client

    def _answers(self) -> bool:
        assert self.client is not None
        try:
            return bool(self.client.health())
        except Exception:
            return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=60)

    def engine_processes(self) -> list[psutil.Process]:
        """Living training and preparation processes over this data directory."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            command = process.info["cmdline"] or []
            if process.info["status"] != psutil.STATUS_ZOMBIE and any(
                f"{(self.runs_dir or self.data_dir / 'runs').resolve()}{os.sep}" in part for part in command
            ):
                found.append(process)
        return found


def wait_until(condition: Callable[[], Any], what: str, timeout_seconds: float = 120) -> Any:
    """Poll until `condition` gives something true, and return that."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout_seconds:.0f} s until {what}")


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    return wait_until


@pytest.fixture(scope="session")
def new_service(tiny_corpus: Path) -> Callable[[Path], RunningService]:
    """Makes a service (not started) over a new data directory that holds the corpus `tiny`."""

    def make(data_dir: Path) -> RunningService:
        (data_dir / "corpora").mkdir(parents=True)
        (data_dir / "corpora" / "tiny").symlink_to(tiny_corpus)
        return RunningService(data_dir)

    return make


@pytest.fixture
def service(tmp_path: Path, new_service: Callable[[Path], RunningService]) -> Iterator[RunningService]:
    running = new_service(tmp_path / "data")
    yield running
    if running.process is not None:
        running.stop()
    for process in running.engine_processes():
        process.kill()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL of this test process's own; a test that stops it starts it again."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip(f"needs PostgreSQL: {POSTGRES_INSTALL}")
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'growthlaw[postgres]'")
    server = PostgresServer(programs)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, once of each kind."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgres").new_database()
        return url
    return sqlite_url(tmp_path)
