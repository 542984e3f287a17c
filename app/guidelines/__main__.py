"""The process that refits cohorts: ``python -m app.guidelines COHORT...``, started by :mod:`app.guidelines.refitter`.

It reads the database's URL from the environment, prints one JSON line a cohort when that is done, and ends when the pipe that
its service holds is closed: a service that was killed takes it along.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback

from sqlalchemy.exc import OperationalError

from app.guidelines.process import DATABASE_VARIABLE, PIPE_VARIABLE
from app.guidelines.refine import refine
from app.store.database import Database

# Jobs and requests of the same machine go first.
NICENESS = 5


def main(cohorts: list[str]) -> None:
    _end_with_the_service(int(os.environ[PIPE_VARIABLE]))
    os.nice(NICENESS)
    database = Database(os.environ[DATABASE_VARIABLE])
    for cohort in cohorts:
        started = time.monotonic()
        try:
            done = refine(database, cohort)
            answer = {"outcome": done.outcome, "detail": done.detail, "guideline_id": done.guideline_id}
        except OperationalError as error:  # locked, or being restarted: the refit must not be forgotten
            answer = {"outcome": "database", "detail": str(error.orig), "guideline_id": None}
        except Exception as error:  # one cohort that cannot be fitted must not stop the others
            traceback.print_exc()
            answer = {"outcome": "failed", "detail": f"{type(error).__name__}: {error}", "guideline_id": None}
        print(json.dumps({"cohort": cohort, "seconds": time.monotonic() - started, **answer}), flush=True)
    database.close()


def _end_with_the_service(pipe: int) -> None:
    def watch() -> None:
        os.read(pipe, 1)  # nothing is ever written: it returns when the other end is gone
        os._exit(1)

    threading.Thread(target=watch, name="watch", daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1:])
