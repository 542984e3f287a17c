"""What became of a process that ended: read from its files first, from its exit code where they are silent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.contract import LOG_FILE, ExitCode, Result, read_result
from app.corpus.shards import MANIFEST_FILE
from app.jobs.tail import log_tail

End = Literal["succeeded", "failed", "paused", "died"]

_ADVICE = {
    ExitCode.BAD_SPEC: "the spec is wrong; correct the request",
    ExitCode.BAD_DATA: "the data cannot be used; mend the corpus",
    ExitCode.OUT_OF_MEMORY: "out of memory; use a smaller batch or model, or a larger machine",
    ExitCode.NO_SPACE: "no space left on the disk; free some and resume the job",
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a process ended. ``died`` means killed from outside: it may run on from its checkpoint."""

    end: End
    reason: str = ""
    result: Result | None = None


def outcome_of(
    kind: str, run_dir: Path, corpus_dir: Path, exit_code: int | None, last_event: str, said: str
) -> Outcome:
    """Decide how the job's process ended.

    Args:
        kind: `growth` or `corpus`.
        run_dir, corpus_dir: where it wrote.
        exit_code: None where this service did not start the process.
        last_event, said: the last event it wrote and its message.
    """
    if kind == "corpus" and (corpus_dir / MANIFEST_FILE).exists() and last_event == "finished":
        return Outcome(end="succeeded")
    if kind == "growth":
        try:
            result = read_result(run_dir)
        except ValueError as error:
            return Outcome(end="failed", reason=f"the result cannot be read: {error}")
        if result is not None and result.status == "finished":
            return Outcome(end="succeeded", result=result)
        if result is not None:
            return Outcome(end="failed", reason=f"{result.status}: {result.reason}", result=result)
    if exit_code == ExitCode.PAUSED or (exit_code is None and last_event == "paused"):
        return Outcome(end="paused")
    if last_event == "failed":
        return Outcome(end="failed", reason=said)
    if exit_code in _ADVICE:
        return Outcome(end="failed", reason=_ADVICE[ExitCode(exit_code)])
    if exit_code is None or exit_code < 0:
        how = f"by signal {-exit_code}" if exit_code else "while the service was away"
        return Outcome(end="died", reason=f"the process ended {how}")
    return Outcome(
        end="failed", reason=f"exit code {exit_code}; its log ends with: {log_tail(run_dir / LOG_FILE)[-600:]}"
    )
