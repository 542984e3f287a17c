"""What lies in a run's `checkpoints/`, for people: read from each folder's own `checkpoint.json`, without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from app.contract import CHECKPOINTS_DIR

# What the engine writes last into a checkpoint's folder.
HEADER_FILE = "checkpoint.json"


@dataclass(frozen=True, kw_only=True)
class StoredCheckpoint:
    """One checkpoint folder.

    Attributes:
        name, path: its folder.
        phase, run_tokens: where the run stood, over all phases; None where the header cannot be read.
        keep: ``recent`` (the last two), ``run`` (until the run has its result) or ``always`` (for decay legs).
        num_bytes: of its files.
        created_at: ISO 8601, UTC.
        problem: why no run goes on from it; empty where one can.
    """

    name: str
    path: str
    phase: str | None
    run_tokens: int | None
    keep: str | None
    num_bytes: int
    created_at: str
    problem: str = ""


def list_checkpoints(run_dir: Path) -> list[StoredCheckpoint]:
    """The checkpoints of a run, oldest first; those that the engine set aside as damaged among them."""
    folder = run_dir / CHECKPOINTS_DIR
    if not folder.is_dir():
        return []
    paths = [*folder.glob("tokens-*"), *folder.glob("damaged-tokens-*")]
    found = []
    for path in sorted(paths, key=lambda path: path.name.removeprefix("damaged-")):
        try:
            found.append(_describe(path))
        except FileNotFoundError:  # the engine dropped it as this looked
            continue
    return found


def _describe(path: Path) -> StoredCheckpoint:
    num_bytes = sum(file.stat().st_size for file in path.iterdir())
    created_at = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="milliseconds")
    problem = "set aside as damaged" if path.name.startswith("damaged-") else ""
    phase, run_tokens, keep = None, None, None
    try:
        header = json.loads((path / HEADER_FILE).read_text(encoding="utf-8"))
        phase, run_tokens = str(header["progress"]["phase"]), int(header["progress"]["run_tokens"])
        keep, expected = str(header["keep"]), sum(int(file["num_bytes"]) for file in header["files"])
        header_bytes = (path / HEADER_FILE).stat().st_size
        if not problem and num_bytes - header_bytes != expected:
            problem = f"its files have {num_bytes - header_bytes} bytes instead of {expected}"
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        problem = problem or f"{HEADER_FILE} cannot be read: {error}"
    return StoredCheckpoint(
        name=path.name,
        path=str(path),
        phase=phase,
        run_tokens=run_tokens,
        keep=keep,
        num_bytes=num_bytes,
        created_at=created_at,
        problem=problem,
    )
