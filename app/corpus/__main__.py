"""`python -m app.corpus RUN_DIR`: prepare a corpus as a process of its own, under the file contract of `app.contract`.

The result is the corpus folder itself; progress and failure go to `events.jsonl`.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from app.contract import EVENTS_FILE, EventLine, ExitCode, read_corpus_spec
from app.corpus.documents import CorpusError
from app.corpus.prepare import prepare_corpus

SECONDS_BETWEEN_EVENTS = 0.5


class _Events:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._seq = len(path.read_bytes().splitlines()) if path.exists() else 0
        self._last = 0.0

    def add(self, event: str, message: str, *, exit_code: int | None = None) -> None:
        line = EventLine(
            seq=self._seq, time=datetime.now(UTC).isoformat(), event=event, message=message, exit_code=exit_code
        )
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(line)) + "\n")
        self._seq += 1

    def progress(self, stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_EVENTS:
            self._last = now
            of = f" of {total / 1e6:.1f}" if total else ""
            self.add("progress", f"{stage}: {done / 1e6:.1f}{of} MB")


def _stop(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(ExitCode.PAUSED)


def main(run_dir: Path) -> ExitCode:
    signal.signal(signal.SIGTERM, _stop)
    events = _Events(run_dir / EVENTS_FILE)
    try:
        spec = read_corpus_spec(run_dir)
    except ValueError as error:
        events.add("failed", str(error), exit_code=ExitCode.BAD_SPEC)
        return ExitCode.BAD_SPEC
    try:
        events.add("started", f"preparing corpus {spec.name!r}")
        manifest = prepare_corpus(spec, events.progress)
    except CorpusError as error:
        events.add("failed", str(error), exit_code=ExitCode.BAD_DATA)
        return ExitCode.BAD_DATA
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        events.add(
            "failed",
            f"no space left for the corpus in {spec.corpus_dir}; free some and start again",
            exit_code=ExitCode.NO_SPACE,
        )
        return ExitCode.NO_SPACE
    tokens = {name: split.num_tokens for name, split in manifest.splits.items()}
    events.add("finished", f"{tokens['train']:,} train and {tokens['validation']:,} validation tokens")
    return ExitCode.DONE


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
