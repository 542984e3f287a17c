"""The probe file: a worker that reads the service's own words sees the service's runs directory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from uuid import uuid4

from app.contract import PROBE_FILE


def probe(runs_dir: Path) -> str:
    """What the probe file of a runs directory holds; it is written where there is none.

    Raises:
        OSError: it can be neither read nor written.
    """
    path = runs_dir / PROBE_FILE
    with contextlib.suppress(FileNotFoundError):
        if text := path.read_text(encoding="utf-8").strip():
            return text
    beside = path.with_name(f"{PROBE_FILE}.{os.getpid()}.partial")
    beside.write_text(f"{uuid4().hex}\n", encoding="utf-8")
    os.replace(beside, path)
    return path.read_text(encoding="utf-8").strip()
