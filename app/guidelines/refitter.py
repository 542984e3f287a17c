"""The thread that refits cohorts whose runs changed, so that a long fit holds up neither jobs nor requests.

A cohort asked for while it is being fitted is fitted once more afterwards; several askings before that count once. At
start every cohort is looked at: a service that was killed between a run's end and its refit catches up.
"""

from __future__ import annotations

import queue
import threading

import structlog
from sqlalchemy.exc import OperationalError

from app.guidelines.refit import refit_cohort
from app.store import runs as run_store
from app.store.database import Database
from fitting.errors import InputError

log = structlog.get_logger()

SECONDS_AFTER_TROUBLE = 2.0


class Refitter:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: queue.Queue[str | None] = queue.Queue()
        self._asked: set[str] = set()
        self._lock = threading.Lock()
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="refitter", daemon=True)

    def start(self) -> None:
        self._thread.start()
        with self._database.read() as session:
            for cohort in run_store.list_cohort_names(session):
                self.ask(cohort)

    def ask(self, cohort: str) -> None:
        """Have `cohort` fitted soon."""
        with self._lock:
            if cohort not in self._asked:
                self._asked.add(cohort)
                self._waiting.put(cohort)

    def stop(self) -> None:
        """End after the fit in hand, if any; what still waits is done at the next start."""
        self._halt.set()
        self._waiting.put(None)
        self._thread.join(timeout=30)

    def _loop(self) -> None:
        while (cohort := self._waiting.get()) is not None:
            with self._lock:
                self._asked.discard(cohort)
            try:
                refit_cohort(self._database, cohort)
            except OperationalError as error:  # locked, or being restarted: the fit must not be forgotten
                log.warning("refit_waits_for_the_database", cohort=cohort, error=str(error.orig))
                if not self._halt.wait(SECONDS_AFTER_TROUBLE):
                    self.ask(cohort)
            except InputError as error:  # nothing to fit yet: say, every run diverged
                log.info("refit_not_possible", cohort=cohort, reason=str(error))
            except Exception:  # one cohort that cannot be fitted must not stop the others; the log tells
                log.exception("refit_failed", cohort=cohort)
