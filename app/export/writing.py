"""A folder of files that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from app.records import fsync_dir
from fitting.errors import InputError


def write_files(out: Path, contents: Mapping[str, str]) -> None:
    """Write ``contents`` (path below ``out`` -> text) into the new folder ``out``: beside it first, synced, then renamed.

    Raises:
        InputError: ``out`` is there already, or the folder it goes into is not.
    """
    if out.exists():
        raise InputError("--out", f"{out} is there already", "name a new folder, or move the old one away")
    if not out.absolute().parent.is_dir():
        raise InputError(
            "--out", f"goes into {out.absolute().parent}, which is no folder", "make it, or name another place"
        )
    beside = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        for name, text in contents.items():
            path = beside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for folder in [beside, *(path for path in beside.rglob("*") if path.is_dir())]:
            fsync_dir(folder)
        beside.rename(out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    fsync_dir(out.absolute().parent)
