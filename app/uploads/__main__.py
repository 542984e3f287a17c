"""`python -m app.uploads RUN_DIR`: one export as a process of its own, under the file contract of `app.contract`."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path
from types import FrameType

from app.contract import NO_SPACE_ERRNOS, ExitCode, read_upload_spec
from app.process_events import ProcessEvents
from app.uploads.sending import SourceChanged, send
from app.uploads.targets import checked_target
from fitting.errors import InputError


def _stop(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(ExitCode.PAUSED)


def _said(error: BaseException) -> str:
    """What a store's library said, without what it may have put into a URL."""
    text = re.sub(r"://[^/\s@]*@", "://***@", str(error)) or type(error).__name__
    return re.sub(r"(?i)((?:signature|token|secret|password|key)[a-z0-9_-]*\s*[=:]\s*)\S+", r"\1***", text)


def main(run_dir: Path) -> ExitCode:
    signal.signal(signal.SIGTERM, _stop)
    events = ProcessEvents(run_dir)
    try:
        spec = read_upload_spec(run_dir)
        # Once more, here: since it was asked for, a link may have moved or a package may be gone.
        checked_target(spec.url, spec.allowed_urls)
    except ValueError as error:
        events.fail(str(error), ExitCode.BAD_SPEC)
        return ExitCode.BAD_SPEC
    try:
        events.add("started", f"exporting {spec.source} of {spec.source_run_id} to {spec.url}")
        files = send(spec, run_dir, lambda done, total: events.progress("sent", done, total))
    except (InputError, ImportError) as error:
        events.fail(str(error), ExitCode.BAD_SPEC)
        return ExitCode.BAD_SPEC
    except SourceChanged as error:
        events.fail(str(error), ExitCode.BAD_DATA)
        return ExitCode.BAD_DATA
    except (AssertionError, AttributeError, LookupError, TypeError):
        raise
    except Exception as error:  # each store's library has its own
        is_full = isinstance(error, OSError) and error.errno in NO_SPACE_ERRNOS
        code = ExitCode.NO_SPACE if is_full else ExitCode.UNAVAILABLE
        events.fail(f"{spec.url} did not take it: {_said(error)}", code)
        return code
    num_bytes = sum(file.num_bytes for file in files)
    events.add("finished", f"{len(files)} files, {num_bytes / 1e6:.1f} MB at {spec.url}")
    return ExitCode.DONE


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
