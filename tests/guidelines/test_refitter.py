"""The refit process for real: many askings are one, kills are survived and told, it ends with its service."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from arrivals import COHORT, HELPS, Truth, arrive

from app.guidelines import refitter as refitter_module
from app.guidelines.process import RefitProcess
from app.guidelines.refitter import Refitter
from app.store import guidelines as guideline_store
from app.store import refits as refit_store
from app.store.database import Database
from app.store.tables import RefitRow

ROOT = Path(__file__).parents[2]
Until = Callable[..., Any]


class Starter:
    """Starts real refit processes, counts them, and kills the first `num_kills` as they start."""

    def __init__(self, num_kills: int = 0) -> None:
        self.num_kills = num_kills
        self.cohorts: list[list[str]] = []

    def __call__(self, database: Database, cohorts: list[str]) -> RefitProcess:
        process = RefitProcess(database, cohorts)
        self.cohorts.append(cohorts)
        if len(self.cohorts) <= self.num_kills:
            os.kill(process.pid, signal.SIGKILL)
        return process


def refits(database: Database, *states: str) -> list[RefitRow]:
    with database.read() as session:
        rows = refit_store.list_refits(session, limit=100)
    return [row for row in rows if not states or row.state in states]


def pair(database: Database, cohort: str = COHORT) -> None:
    """Two runs that make a provisional guideline, which is fitted in no time."""
    truth = Truth(HELPS)
    rows = [truth.scratch(48, 5), truth.grown(48, 5, 0.1)]
    arrive(database, [row | {"run_id": f"{cohort}-{row['run_id']}"} for row in rows], cohort)


def test_runs_that_end_close_together_make_one_refit(database: Database, until: Until) -> None:
    pair(database)
    starter = Starter()
    refitter = Refitter(database, after_seconds=3, start_process=starter)
    refitter.start()
    try:
        until(lambda: refits(database, "succeeded"), "the look at the start")
        assert [row.reason for row in refits(database)] == [refitter_module.STARTED]
        truth = Truth(HELPS)
        truth.count = 10
        for share in (0.2, 0.3, 0.4):
            arrive(database, [truth.grown(48, 5, share)])
            refitter.ask(COHORT)
        refitter.ask(COHORT, "run_1 was corrected")
        until(lambda: len(refits(database, "succeeded")) == 2, "the refit")
    finally:
        refitter.stop()
    newest = refits(database)[0]
    assert newest.reason == "runs ended or came in; run_1 was corrected"
    assert (newest.num_attempts, newest.detail.startswith("version 2: ")) == (1, True)
    assert starter.cohorts == [[COHORT], [COHORT]]
    with database.read() as session:
        active = guideline_store.active_guideline(session, COHORT)
    assert active is not None
    assert (active.id, active.num_runs) == (newest.guideline_id, 5)


def test_a_stream_without_a_pause_is_refitted_all_the_same(sqlite: Database, until: Until) -> None:
    refitter = Refitter(sqlite, after_seconds=0.3)
    refitter.start()
    try:
        pair(sqlite)

        def one_more() -> list[RefitRow]:
            refitter.ask(COHORT)
            return refits(sqlite, "succeeded")

        until(one_more, "a refit amid the stream")
    finally:
        refitter.stop()


def test_the_wait_is_at_least_what_the_last_refit_took(sqlite: Database, until: Until) -> None:
    """In a stream that asks all the time; what is asked for by hand does not wait."""
    took: list[float] = []
    refitter = Refitter(sqlite, after_seconds=0)
    refitter.on_ended = lambda outcome, seconds: took.extend([seconds] if outcome == "stored" else [])
    refitter.start()
    truth = Truth(HELPS)
    truth.count = 10
    pair(sqlite)
    try:

        def refitted(number: int) -> list[RefitRow]:
            if not refitter.process_id:
                arrive(sqlite, [truth.grown(48, 5, 0.1 + 0.001 * truth.count)])
            refitter.ask(COHORT)
            done = refits(sqlite, "succeeded")
            return done if len(done) >= number else []

        rows = until(lambda: refitted(3), "three refits of a stream")
        by_hand = refitter.ask_now(COHORT, "by hand")
        until(lambda: by_hand.id in {row.id for row in refits(sqlite, "succeeded", "unchanged")}, "the one by hand")
    finally:
        refitter.stop()
    ended = sorted((_instant(row.started_at), _instant(row.finished_at)) for row in rows)
    for (_, finished), (started, _), seconds in zip(ended, ended[1:], took, strict=False):
        # Both clocks count to the millisecond.
        assert started - finished >= seconds - 0.002


def _instant(text: str | None) -> float:
    return datetime.fromisoformat(str(text)).timestamp()


def test_a_killed_process_is_started_again(sqlite: Database, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refitter_module, "SECONDS_AFTER_TROUBLE", 0.01)
    pair(sqlite)
    pair(sqlite, "other")
    starter = Starter(num_kills=1)
    refitter = Refitter(sqlite, start_process=starter)
    refitter.start()
    try:
        until(lambda: len(refits(sqlite, "succeeded")) == 2, "both refits")
    finally:
        refitter.stop()
    # Both were asked of the first process; only the one that it had in hand counts the attempt.
    assert sorted(starter.cohorts[0]) == sorted([COHORT, "other"])
    assert sorted(row.num_attempts for row in refits(sqlite)) == [1, 2]


def test_a_process_that_is_always_killed_is_told_and_later_runs_ask_anew(
    sqlite: Database, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refitter_module, "SECONDS_AFTER_TROUBLE", 0.01)
    starter = Starter(num_kills=3)
    refitter = Refitter(sqlite, after_seconds=0, start_process=starter)
    refitter.start()
    try:
        pair(sqlite)
        asked = refitter.ask_now(COHORT, "by hand")
        assert (asked.state, asked.reason) == ("queued", "by hand")
        (failed,) = until(lambda: refits(sqlite, "failed"), "the refit is given up")
        assert failed.id == asked.id
        assert failed.detail == "its process was killed by SIGKILL; tried 3 times"
        assert failed.finished_at is not None
        refitter.ask(COHORT)
        until(lambda: refits(sqlite, "succeeded"), "the next one")
        assert len(starter.cohorts) == 4
    finally:
        refitter.stop()


def test_a_stop_ends_the_process_and_the_next_start_goes_on(sqlite: Database, until: Until) -> None:
    pair(sqlite)
    refitter = Refitter(sqlite, owner="me")
    asked = refitter.ask_now(COHORT, "by hand")
    refitter.start()
    pid = until(lambda: refitter.process_id, "the process starts")
    refitter.stop()
    assert not psutil.pid_exists(pid)
    (row,) = refits(sqlite)
    assert (row.id, row.state) == (asked.id, "running")
    again = Refitter(sqlite, owner="me")
    again.start()
    try:
        (row,) = until(lambda: refits(sqlite, "succeeded"), "the refit is taken up")
        assert (row.id, row.reason.startswith("by hand")) == (asked.id, True)
    finally:
        again.stop()
    # A second start finds nothing to do, and makes no noise of it.
    third = Refitter(sqlite, owner="me")
    third.start()
    third.stop()
    assert len(refits(sqlite)) == 1


def test_the_process_ends_with_a_service_that_was_killed(sqlite: Database, tmp_path: Path, until: Until) -> None:
    pair(sqlite)
    code = (
        "import sys, time; from app.store.database import Database; from app.guidelines.process import RefitProcess\n"
        f"process = RefitProcess(Database({str(sqlite.engine.url)!r}), ['c'])\n"
        "print(process.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as service:
        assert service.stdout is not None
        pid = int(service.stdout.readline())
        service.kill()
    until(lambda: not psutil.pid_exists(pid), "the refit process has gone")
    with sqlite.read() as session:
        assert guideline_store.active_guideline(session, COHORT) is None


def test_a_cohort_that_cannot_be_fitted_does_not_stop_the_others(
    sqlite: Database, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refitter_module, "SECONDS_AFTER_TROUBLE", 0.01)
    pair(sqlite)
    truth = Truth(HELPS)
    # Two corpora in one cohort: their losses may not be compared, and the table is refused.
    for row in (truth.scratch(48, 5), truth.scratch(48, 10) | {"corpus": "z"}):
        arrive(sqlite, [row], "mixed")
    refitter = Refitter(sqlite, after_seconds=0)
    refitter.start()
    try:
        refused = refitter.ask_now("mixed", "by hand")
        until(lambda: len(refits(sqlite, "succeeded", "impossible")) == 2, "both")
    finally:
        refitter.stop()
    by_id = {row.id: row for row in refits(sqlite)}
    assert by_id[refused.id].state == "impossible"
    assert "corpus" in by_id[refused.id].detail
