"""Logs on stderr: lines for people on a terminal, one JSON object a line elsewhere.

Every line bears what is bound where it is written: `request_id` while a request is answered, `job_id` while the launcher
loop or a launcher works on a job.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TextIO, cast

import structlog


class _Unfailing:
    """A stream whose full disk or closed pipe stops nobody: a service that cannot log must still look after its jobs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def log_to_stderr() -> None:
    """Send this project's lines, and the warnings of libraries (uvicorn's crash in a route, say), to stderr."""
    stream = cast(TextIO, _Unfailing(sys.stderr))
    on_terminal = sys.stderr.isatty()
    renderer: structlog.types.Processor = structlog.processors.JSONRenderer()
    if on_terminal:
        renderer = structlog.dev.ConsoleRenderer()
    common: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # The console renderer shows a traceback by itself, in colours.
    tracebacks: list[structlog.types.Processor] = [] if on_terminal else [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[*common, *tracebacks, renderer],
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*common, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tracebacks, renderer],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
