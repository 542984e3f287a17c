"""`python -m app.corpus RUN_DIR`: prepare a corpus as a process of its own, under the file contract of `app.contract`.

The result is the corpus folder itself; progress and failure go to `events.jsonl`.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

from app.contract import NO_SPACE_ERRNOS, ExitCode, read_corpus_spec
from app.corpus.documents import CorpusError
from app.corpus.prepare import prepare_corpus
from app.process_events import ProcessEvents


def _stop(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(ExitCode.PAUSED)


def main(run_dir: Path) -> ExitCode:
    signal.signal(signal.SIGTERM, _stop)
    events = ProcessEvents(run_dir)
    try:
        spec = read_corpus_spec(run_dir)
    except ValueError as error:
        events.fail(str(error), ExitCode.BAD_SPEC)
        return ExitCode.BAD_SPEC
    try:
        events.add("started", f"preparing corpus {spec.name!r}")
        manifest = prepare_corpus(spec, events.progress)
    except CorpusError as error:
        events.fail(str(error), ExitCode.BAD_DATA)
        return ExitCode.BAD_DATA
    except OSError as error:
        if error.errno not in NO_SPACE_ERRNOS:
            raise
        events.fail(f"no space left for the corpus in {spec.corpus_dir}; free some and start again", ExitCode.NO_SPACE)
        return ExitCode.NO_SPACE
    tokens = {name: split.num_tokens for name, split in manifest.splits.items()}
    events.add("finished", f"{tokens['train']:,} train and {tokens['validation']:,} validation tokens")
    return ExitCode.DONE


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
