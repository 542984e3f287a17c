"""A corpus folder appears whole or not at all: it is filled beside its place and renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from app.corpus.documents import CorpusError
from app.records import fsync_dir


def refuse_existing(name: str, target: Path) -> None:
    """Raises CorpusError where the corpus is there already."""
    if target.exists():
        raise CorpusError(f"name: corpus {name!r} exists already; choose another name or delete {target}")


@contextlib.contextmanager
def new_corpus_folder(name: str, target: Path) -> Iterator[Path]:
    """A folder to fill; it becomes ``target`` when the block ends and is deleted when the block raises.

    Raises:
        CorpusError: the corpus exists, or another process prepared it meanwhile.
    """
    refuse_existing(name, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    beside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        beside.mkdir()
        yield beside
        try:
            os.rename(beside, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise CorpusError(f"name: corpus {name!r} was prepared by another process meanwhile; use it") from None
        fsync_dir(target.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _remove_leftovers(target: Path) -> None:
    """Delete what a preparation that was killed left beside ``target``; a living one keeps its folder."""
    for leftover in target.parent.glob(f".{target.name}.*.partial"):
        pid = int(leftover.name.split(".")[-2])
        if not psutil.pid_exists(pid):
            shutil.rmtree(leftover, ignore_errors=True)
