"""Copying files that others are writing: each with its SHA-256, synced; what vanishes meanwhile was temporary."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from app.backup.databases import CHUNK_BYTES, Tell
from app.contract import CHECKPOINTS_DIR, EXPORTS_DIR

# Token shards: nearly all of a corpus.
SHARD_SUFFIX = ".bin"
LARGE_PARTS_OF_RUNS = (CHECKPOINTS_DIR, EXPORTS_DIR)


@dataclass(frozen=True, kw_only=True)
class CopiedFile:
    """One file of a backup; ``path`` is relative to its root."""

    path: str
    size_bytes: int
    sha256: str


def copy_file(source: Path, copy: Path) -> tuple[int, str]:
    """Copy what the file holds now; gives size and SHA-256 of the copy.

    Raises:
        FileNotFoundError: it is gone.
    """
    digest, size = hashlib.sha256(), 0
    with open(source, "rb") as reader:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with open(copy, "wb") as writer:
            while chunk := reader.read(CHUNK_BYTES):
                writer.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            writer.flush()
            os.fsync(writer.fileno())
    return size, digest.hexdigest()


def hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_tree(
    root: Path, copy: Path, stage: str, wanted: Callable[[Path], bool], tell: Tell, *, follow_links: bool = False
) -> tuple[list[CopiedFile], list[str]]:
    """Copy the plain files below `root` that are `wanted` (by their path below it).

    Args:
        follow_links: a folder right below `root` may be a link to where it lies; no other link is ever followed.

    Returns:
        What was copied, with paths below `copy`; and what was left out.
    """
    found = sorted(_files(root, follow_links)) if root.exists() else []
    chosen = [path for path in found if wanted(path)]
    left_out = [str(path) for path in found if not wanted(path)]
    total, done, copied = sum(_size(root / path) for path in chosen), 0, []
    for path in chosen:
        try:
            size, sha256 = copy_file(root / path, copy / path)
        except FileNotFoundError:
            continue
        copied.append(CopiedFile(path=str(path), size_bytes=size, sha256=sha256))
        done += size
        tell(stage, done, max(total, done))
    return copied, left_out


def _files(root: Path, follow_links: bool) -> Iterator[Path]:
    """Plain files, relative to `root`."""
    for top in root.iterdir():
        if top.name.startswith(".") or not top.is_dir() or (top.is_symlink() and not follow_links):
            continue
        for folder, _, names in os.walk(top):
            for name in names:
                path = Path(folder, name)
                if not name.endswith(".partial") and path.is_file() and not path.is_symlink():
                    yield path.relative_to(root)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def is_small_part_of_a_run(path: Path) -> bool:
    return path.parts[1] not in LARGE_PARTS_OF_RUNS


def is_small_part_of_a_corpus(path: Path) -> bool:
    return path.suffix != SHARD_SUFFIX
