"""Starting the refit process, reading what it says of each cohort, and ending it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app.store.database import Database

DATABASE_VARIABLE = "GROWTHLAW_REFIT_DATABASE_URL"
PIPE_VARIABLE = "GROWTHLAW_REFIT_PIPE"
# No fit takes this long; a process that hangs (a stopped machine, a lost disk) must not keep the others waiting for ever.
LIMIT_SECONDS = 3600.0
_SECONDS_TO_END = 5.0


class RefitProcess:
    """One run of ``python -m app.guidelines``; `stop` may be called from another thread."""

    def __init__(self, database: Database, cohorts: Sequence[str]) -> None:
        ours, theirs = None, None
        environment = os.environ | {
            DATABASE_VARIABLE: database.engine.url.render_as_string(hide_password=False),
            # A fit is one of many things this machine does.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        package_root = str(Path(__file__).parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, environment.get("PYTHONPATH")]))
        theirs, ours = os.pipe()
        try:
            environment[PIPE_VARIABLE] = str(theirs)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app.guidelines", *cohorts],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env=environment,
                pass_fds=[theirs],
                start_new_session=True,  # Ctrl-C reaches the service alone, which then ends things in order
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._pipe = ours

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, on_done: Callable[[dict[str, Any]], None]) -> str | None:
        """Wait for the end and tell of each cohort as it is done. Returns how it ended, None where that was well."""
        overdue = threading.Timer(LIMIT_SECONDS, self._process.kill)
        overdue.daemon = True
        overdue.start()
        try:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                try:
                    answer = json.loads(line)
                except ValueError:  # torn by a kill
                    continue
                on_done(answer)
            code = self._process.wait()
        finally:
            overdue.cancel()
            assert self._process.stdout is not None
            self._process.stdout.close()
            os.close(self._pipe)
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
        return None if code == 0 else f"its process ended with exit code {code}; the service's log says why"

    def stop(self) -> None:
        """End it now; what it had not stored yet is done by the next one."""
        self._process.terminate()
        try:
            self._process.wait(timeout=_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
