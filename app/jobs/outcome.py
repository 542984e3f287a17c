"""What became of a process that ended: read from its files first, from its exit code where they are silent.

Causes are told apart because each has another mend:

=============  ======================================================  ==============================================
cause          what it is                                              what to do
=============  ======================================================  ==============================================
out_of_memory  host or GPU memory ran out                              a smaller micro batch or model, a larger worker
diverged       the loss left what a language model can have            another rate or seed: the run has its result
lost_worker    killed from outside, again and again                    look at the machine, then retry
bad_data       the corpus is missing, short or damaged                 mend the corpus, then retry
bad_spec       a field asks for what the engine cannot do              another request
no_space       the disk is full                                        free some, then retry
unavailable    the store of an export cannot be reached or refuses  let the service write there, then retry
no_worker      no worker can ever run it                               a smaller request, or attach a larger worker
bug            anything else                                           its log says where; report it
=============  ======================================================  ==============================================
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.contract import EVENTS_FILE, LOG_FILE, EventLine, ExitCode, Result, read_result
from app.corpus.shards import MANIFEST_FILE
from app.jobs.tail import log_tail

End = Literal["succeeded", "failed", "paused", "died", "stopped"]
Cause = Literal[
    "out_of_memory", "diverged", "lost_worker", "bad_data", "bad_spec", "no_space", "unavailable", "no_worker", "bug"
]  # fmt: skip

# How each cause begins a reason, and what to do, which ends it.
WORDS: dict[Cause, tuple[str, str]] = {
    "out_of_memory": (
        "out of memory",
        "start it again with a smaller micro batch, context or model, or on a worker with more memory",
    ),
    "diverged": ("diverged", "start another run with a lower rate or another seed"),
    "lost_worker": ("lost worker", "see that the machine is well and has memory left, then retry the job"),
    "bad_data": ("bad data", "mend the corpus, then retry the job"),
    "bad_spec": ("bad spec", "correct the request and start it again"),
    "no_space": ("no space", "free some disk space, then retry the job"),
    "unavailable": (
        "store unavailable",
        "see that it can be reached and lets the service write there, then retry the job",
    ),
    "no_worker": ("no worker", "ask for less, or attach a worker that can run it, and retry the job"),
    "bug": ("bug", "its log says where: GET /jobs/{id}/logs; report it, and retry once it is mended"),
}
_CAUSES: dict[int, Cause] = {
    ExitCode.BUG: "bug",
    ExitCode.BAD_SPEC: "bad_spec",
    ExitCode.BAD_DATA: "bad_data",
    ExitCode.UNFIT_WORKER: "no_worker",
    ExitCode.DIVERGED: "diverged",
    ExitCode.OUT_OF_MEMORY: "out_of_memory",
    ExitCode.NO_SPACE: "no_space",
    ExitCode.UNAVAILABLE: "unavailable",
}
# Shells and the engine's launch give death by signal N this way.
SIGNALLED = 128
_TAIL_BYTES = 65_536
_LOG_BYTES = 600


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a process ended. ``died`` means killed from outside: it may run on from its checkpoint, which a
    ``stopped`` one does only when somebody says so."""

    end: End
    reason: str = ""
    cause: Cause | None = None
    result: Result | None = None


def failure(cause: Cause, said: str, result: Result | None = None) -> Outcome:
    """A failed job's outcome: the cause, what was said, what to do."""
    name, mend = WORDS[cause]
    said = said.removeprefix(name).lstrip(": ")
    return Outcome(end="failed", reason=f"{name}: {said or 'it did not say more'}; {mend}", cause=cause, result=result)


def outcome_of(
    kind: str, run_dir: Path, corpus_dir: Path, exit_code: int | None, last_event: str, said: str, told: str = ""
) -> Outcome:
    """Decide how the job's process ended.

    Args:
        kind: `growth`, `corpus` or `export`.
        run_dir, corpus_dir: where it wrote.
        exit_code: None where nobody kept it.
        last_event, said: the last event that this attempt wrote and its message; empty where it wrote none.
        told: what its launcher says of its end.
    """
    if kind == "corpus" and (corpus_dir / MANIFEST_FILE).exists() and last_event == "finished":
        return Outcome(end="succeeded")
    if kind == "export" and last_event == "finished":
        return Outcome(end="succeeded")
    if kind == "growth":
        try:
            result = read_result(run_dir)
        except ValueError as error:
            return failure("bug", f"the result cannot be read: {error}")
        if result is not None and result.status == "finished":
            return Outcome(end="succeeded", result=result)
        if result is not None:
            return failure("diverged" if result.status == "diverged" else "bug", result.reason, result)
    if exit_code is None and last_event == "failed":
        exit_code = _written_exit_code(run_dir)
    if exit_code == ExitCode.PAUSED or (exit_code is None and last_event == "paused"):
        return Outcome(end="paused", reason="the process was told from outside to stop, and saved")
    if exit_code is None and last_event != "failed":
        return Outcome(end="died", reason="the process ended while the service was away")
    if exit_code is not None and (exit_code < 0 or exit_code > SIGNALLED):
        number = -exit_code if exit_code < 0 else exit_code - SIGNALLED
        hint = " (so the system ends what takes too much memory)" if number == 9 else ""
        return Outcome(end="died", reason=f"the process ended by signal {number}{hint}")
    if exit_code == ExitCode.LOST_PROCESS:
        return Outcome(end="died", reason=said or "another process of the run is gone")
    if last_event != "failed":
        # Where its own log is silent, it never came to write one.
        log = log_tail(run_dir / LOG_FILE)
        said = f"exit code {exit_code}; {f'its log ends with: {log[-_LOG_BYTES:]}' if log else told[-_LOG_BYTES:]}"
    return failure(_CAUSES.get(exit_code if exit_code is not None else ExitCode.BUG, "bug"), said)


def _written_exit_code(run_dir: Path) -> int | None:
    """The exit code in the newest `failed` event of the run directory, for a process that nobody waited for."""
    for line in reversed(log_tail(run_dir / EVENTS_FILE, _TAIL_BYTES).splitlines()):
        try:
            event = EventLine(**json.loads(line))
        except (ValueError, TypeError):
            continue
        if event.event == "failed":
            return event.exit_code
    return None
