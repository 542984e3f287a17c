"""What a service does about refits: collects the asking, starts the process that fits, tells how it went.

    due = min(last asking + w, first asking + 10 w),   w = refit_after_seconds
    and not before the end of the last refit + the seconds it took, unless it was asked for by hand

Runs that end shortly after one another make one refit, and a stream that never pauses is still refitted, but no more than half
of the time goes into fitting: the wait grows with what a refit takes. A process that was
killed is started again, three times in all, and then the refit is told as failed; the next run that ends asks anew. At start
every cohort is looked at, and refits that a killed service left are taken up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.guidelines.process import RefitProcess
from app.store import refits as refit_store
from app.store import runs as run_store
from app.store.database import Database
from app.store.ids import new_id
from app.store.tables import RefitRow, utc_now

log = structlog.get_logger()

LONGEST_WAIT = 10.0
MAX_ATTEMPTS = 3
SECONDS_AFTER_TROUBLE = 2.0
LONGEST_PAUSE_SECONDS = 60.0
STARTED = "the service started"
_SECONDS_TO_STOP = 30.0


@dataclass(eq=False)
class _Asked:
    """One refit that is waited for, or in hand."""

    cohort: str
    refit_id: str
    due: float
    latest: float
    reasons: list[str] = field(default_factory=list)
    num_attempts: int = 0
    num_waits: int = 0
    hurried: bool = False
    asked_at: str = field(default_factory=utc_now)

    @property
    def is_quiet(self) -> bool:
        """Only looked at because the service started: not worth a line where nothing had changed."""
        return self.reasons == [STARTED]

    @property
    def reason(self) -> str:
        return "; ".join(dict.fromkeys(self.reasons))


class Refitter:
    """Refits cohorts that are asked for.

    Args:
        owner: name of this service among those that share the database; the same after a restart.
        after_seconds: how long to wait for further runs before a refit starts.
        start_process: starts the process for some cohorts.

    Attributes:
        on_ended: told of every refit that ended: its outcome (`stored`, `unchanged`, `impossible`, `failed`) and seconds.
    """

    def __init__(
        self,
        database: Database,
        *,
        owner: str = "",
        after_seconds: float = 2.0,
        start_process: Callable[[Database, list[str]], RefitProcess] = RefitProcess,
    ) -> None:
        self._database, self._owner, self._after = database, owner, after_seconds
        self._start_process = start_process
        self.on_ended: Callable[[str, float], None] = lambda outcome, seconds: None
        self._waiting: list[_Asked] = []
        self._changed = threading.Condition()
        self._halt = False
        self._process: RefitProcess | None = None
        self._rested_at = 0.0
        self._thread = threading.Thread(target=self._loop, name="refitter", daemon=True)

    def start(self) -> None:
        with self._database.read() as session:
            left = refit_store.unfinished_refits(session, self._owner)
            cohorts = run_store.list_cohort_names(session)
        for refit in left:
            self._ask(refit.cohort, refit.reason, refit_id=refit.id, at_once=True)
        for cohort in cohorts:
            self._ask(cohort, STARTED, at_once=True)
        self._thread.start()

    def ask(self, cohort: str, reason: str = "runs ended or came in") -> None:
        """Have `cohort` fitted soon; `reason` is told with the refit."""
        self._ask(cohort, reason)

    def ask_now(self, cohort: str, reason: str) -> RefitRow:
        """Have `cohort` fitted without waiting for further runs; the refit is stored before this returns."""
        refit_id = new_id("refit")
        with self._database.write() as session:
            row = RefitRow(id=refit_id, cohort=cohort, state="queued", reason=reason, owner=self._owner)
            refit_store.add_refit(session, row)
            session.expunge(row)
        self._ask(cohort, reason, refit_id=refit_id, at_once=True)
        return row

    def stop(self) -> None:
        """End the fit in hand; what still waits is done at the next start."""
        with self._changed:
            self._halt = True
            process = self._process
            self._changed.notify()
        if process is not None:
            process.stop()
        if self._thread.is_alive():
            self._thread.join(timeout=_SECONDS_TO_STOP)

    @property
    def process_id(self) -> int | None:
        """The process at work, if any."""
        process = self._process
        return None if process is None else process.pid

    def _ask(self, cohort: str, reason: str, *, refit_id: str | None = None, at_once: bool = False) -> None:
        now = time.monotonic()
        with self._changed:
            # One that was promised by its id is kept apart: it must come to an end of its own.
            known = [] if refit_id is not None else [asked for asked in self._waiting if asked.cohort == cohort]
            if known:
                asked = known[0]
            else:
                asked = _Asked(
                    cohort=cohort,
                    refit_id=refit_id or new_id("refit"),
                    due=now,
                    latest=now + LONGEST_WAIT * self._after,
                )
                self._waiting.append(asked)
            asked.reasons.append(reason)
            asked.latest = now if at_once else asked.latest
            asked.hurried |= at_once
            asked.due = min(now + self._after, asked.latest)
            self._changed.notify()

    def _loop(self) -> None:
        while (batch := self._next_batch()) is not None:
            try:
                self._refit(batch)
            except Exception:  # a trouble of this machine (no memory for a process, say) must not end all refits
                log.exception("refit_not_started")
                self._again(batch, "it could not be started", counts=True)

    def _next_batch(self) -> list[_Asked] | None:
        """What is due, one a cohort; None at the end."""
        with self._changed:
            while not self._halt:
                now = time.monotonic()
                due: dict[str, _Asked] = {}
                for asked in sorted(self._waiting, key=self._due):
                    if self._due(asked) <= now:
                        due.setdefault(asked.cohort, asked)
                if due:
                    batch = list(due.values())
                    self._waiting = [asked for asked in self._waiting if asked not in batch]
                    return batch
                soonest = min(map(self._due, self._waiting), default=None)
                self._changed.wait(timeout=None if soonest is None else max(0.0, soonest - now))
            return None

    def _due(self, asked: _Asked) -> float:
        return asked.due if asked.hurried else max(asked.due, self._rested_at)

    def _refit(self, batch: list[_Asked]) -> None:
        left = {asked.cohort: asked for asked in batch}
        for asked in batch:
            asked.num_attempts += 1
            if not asked.is_quiet:
                self._record(asked, state="running", started_at=utc_now(), num_attempts=asked.num_attempts)

        took = 0.0

        def on_done(answer: dict[str, Any]) -> None:
            nonlocal took
            took += answer["seconds"]
            asked = left.pop(answer["cohort"], None)
            if asked is not None:
                self._told(asked, answer)

        with self._changed:
            if self._halt:
                return
            self._process = self._start_process(self._database, list(left))
        trouble = self._process.run(on_done)
        self._process = None
        self._rested_at = time.monotonic() + took
        if self._halt or not left:
            return
        first, *others = left.values()
        # They stand in the order in which they are worked off: the first without an answer was the one in hand.
        self._again([first], trouble or "its process ended without an answer", counts=True)
        for asked in others:
            asked.num_attempts -= 1
        self._again(others, "", counts=False)

    def _told(self, asked: _Asked, answer: dict[str, Any]) -> None:
        outcome, detail, guideline_id = answer["outcome"], answer["detail"], answer["guideline_id"]
        if outcome == "database":
            log.warning("refit_waits_for_the_database", cohort=asked.cohort, error=detail)
            asked.num_attempts -= 1
            asked.num_waits += 1
            self._again([asked], detail, counts=False)
            return
        self.on_ended(outcome, answer["seconds"])
        state = "succeeded" if outcome == "stored" else outcome
        log.info(
            "refit_ended", cohort=asked.cohort, state=state, detail=detail, guideline_id=guideline_id, reason=asked.reason
        )  # fmt: skip
        if not (asked.is_quiet and state in ("unchanged", "impossible")):
            self._record(
                asked,
                state=state,
                detail=detail,
                guideline_id=guideline_id,
                num_attempts=asked.num_attempts,
                finished_at=utc_now(),
            )

    def _again(self, batch: list[_Asked], trouble: str, *, counts: bool) -> None:
        """Put refits back; those that failed too often are told as failed."""
        for asked in batch:
            if counts and asked.num_attempts >= MAX_ATTEMPTS:
                detail = f"{trouble}; tried {asked.num_attempts} times"
                log.error("refit_failed", cohort=asked.cohort, detail=detail)
                self._record(asked, state="failed", detail=detail, finished_at=utc_now())
                continue
            if counts:
                log.warning("refit_again", cohort=asked.cohort, trouble=trouble, attempt=asked.num_attempts)
            pause = min(
                LONGEST_PAUSE_SECONDS, SECONDS_AFTER_TROUBLE * 2 ** max(0, asked.num_attempts - 1, asked.num_waits)
            )
            with self._changed:
                asked.due = asked.latest = time.monotonic() + pause
                self._waiting.append(asked)

    def _record(self, asked: _Asked, **values: Any) -> None:
        """Store how a refit stands. The store is where people read it; a refit does not depend on it."""
        try:
            with self._database.write() as session:
                if refit_store.get_refit(session, asked.refit_id) is None:
                    row = RefitRow(
                        id=asked.refit_id, cohort=asked.cohort, state="queued", reason=asked.reason, owner=self._owner,
                        asked_at=asked.asked_at,
                    )  # fmt: skip
                    refit_store.add_refit(session, row)
                refit_store.set_values(session, asked.refit_id, reason=asked.reason, **values)
        except SQLAlchemyError as error:
            log.warning("refit_not_recorded", cohort=asked.cohort, error=str(error))
