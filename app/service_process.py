"""The real service as a process of its own, on a free loopback port, for a command that attends it; and what such
commands ask of it alike: the bundled corpus, a refit, and that running jobs save and pause."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.answers import Refit
from app.client import Growthlaw, NoService, Refused

START_SECONDS = 60.0
PAUSE_SECONDS = 60.0
LOG_FILE = "service.log"
ELSEWHERE = (
    "GROWTHLAW_DATABASE_URL", "GROWTHLAW_SHARED_RUNS_DIR", "GROWTHLAW_HOST", "GROWTHLAW_REQUIRE_KEY",
    "GROWTHLAW_ALLOWED_HOSTS", "GROWTHLAW_SSL_CERTFILE", "GROWTHLAW_SSL_KEYFILE",
)  # fmt: skip


class ServiceDidNotStart(Exception):
    """The message holds what the service said."""


@contextlib.contextmanager
def running_service(data_dir: Path, *, refit_after_seconds: float | None = None) -> Iterator[Growthlaw]:
    """`growthlaw serve` over `data_dir` while the block runs, and a client of it.

    Args:
        refit_after_seconds: how long its refits wait for further runs; as its settings say where None.

    Raises:
        ServiceDidNotStart: with the service's own words.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    log_path = data_dir / LOG_FILE
    # All of it lies in this directory, whatever the environment says of the services that a team runs.
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    if refit_after_seconds is not None:
        environment["GROWTHLAW_REFIT_AFTER_SECONDS"] = str(refit_after_seconds)
    with open(log_path, "wb") as log:
        # A session of its own: Ctrl-C reaches the command alone, which then ends things in order.
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--data-dir", str(data_dir)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        with _connect(process, data_dir, log_path) as client:
            yield client
    finally:
        process.terminate()
        process.wait(timeout=60)


def _connect(process: subprocess.Popen[bytes], data_dir: Path, log_path: Path) -> Growthlaw:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            said = log_path.read_text(encoding="utf-8", errors="replace").strip()
            raise ServiceDidNotStart(
                said.removeprefix("Error: ") or f"the service ended with exit code {process.returncode}"
            )
        with contextlib.suppress(OSError, ValueError, NoService):
            service = json.loads((data_dir / "service.json").read_text(encoding="utf-8"))
            if service["pid"] == process.pid:
                client = Growthlaw(service["url"], api_key="")  # one of the environment is another service's
                client.health()
                return client
        time.sleep(0.05)
    raise ServiceDidNotStart(f"the service did not answer within {START_SECONDS:.0f} s; see {log_path}")


def bundled_corpus_job(client: Growthlaw, name: str, vocab_size: int) -> dict[str, Any] | None:
    """The job that prepares the bundled corpus, begun or taken up; None where the corpus stands."""
    if any(corpus["name"] == name for corpus in client.corpora()):
        return None
    unfinished = client.jobs(state=["queued", "running", "paused"], limit=1000)["data"]
    waiting = [job for job in unfinished if job["kind"] == "corpus" and job["name"] == name]
    job = waiting[0] if waiting else client.prepare_corpus(name, vocab_size=vocab_size)
    return client.resume(job["id"]) if job["state"] == "paused" else job


def refitted(client: Growthlaw, cohort: str) -> Refit:
    """Have a cohort fitted now; returns the refit when it has ended."""
    refit = client.refit(cohort)
    while refit["state"] in ("queued", "running"):
        time.sleep(0.2)
        refit = client.refit_state(refit["id"])
    return refit


def pause_jobs(client: Growthlaw, job_ids: set[str] | None = None) -> int:
    """Ask jobs that wait or run to save and stop (all where None); returns how many there were, when all have."""

    def active() -> list[dict[str, Any]]:
        found = client.jobs(state=["queued", "running"], limit=1000)["data"]
        return [job for job in found if job_ids is None or job["id"] in job_ids]

    asked = active()
    for job in asked:
        with contextlib.suppress(Refused):  # it ended meanwhile
            client.pause(job["id"])
    deadline = time.monotonic() + PAUSE_SECONDS
    while time.monotonic() < deadline and active():
        time.sleep(0.2)
    return len(asked)
