"""Sending a folder to a URL so that a half one is never taken for whole.

========================================  =============================================================
``growthlaw-export.unfinished.json``      written first, removed last: whose files these are
every file of the source                  under its own name, its size asked for once it is there
``growthlaw-export.json``                 written when all are there: run, source, and each file's size and SHA-256
========================================  =============================================================

Object stores have no renaming of folders, so the manifest decides: a folder without ``growthlaw-export.json`` is not
whole. An attempt that was interrupted leaves the first marker, and the next one of the same export goes on behind the
files that it had sent; any other export refuses the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import fsspec

from app.contract import UploadSpec
from app.records import from_dict
from fitting.errors import InputError

MANIFEST_FILE = "growthlaw-export.json"
UNFINISHED_FILE = "growthlaw-export.unfinished.json"
SENT_FILE = "sent.jsonl"
CHUNK_BYTES = 4 * 2**20
# There, folders are parts of names: making one would make a bucket.
OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "hf", "oci", "oss")

# bytes done, bytes in all
Progress = Callable[[int, int], None]


class SourceChanged(Exception):
    """The files to send are gone, or changed as they were sent."""


class NotStored(Exception):
    """The store says that a file has another size than what was sent."""


@dataclass(frozen=True, kw_only=True)
class SentFile:
    """A file that is there: its path below the folder, bytes, SHA-256 in hex."""

    path: str
    num_bytes: int
    sha256: str


def send(spec: UploadSpec, run_dir: Path, progress: Progress) -> list[SentFile]:
    """Send every file of the source; returns what is there, sorted by path.

    Raises:
        InputError: the folder at the URL holds something else.
        SourceChanged: the source is not what it was.
        NotStored: the store lost something.
        Exception: whatever the store's own library raises.
    """
    source = Path(spec.source_dir)
    names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    if not names:
        raise SourceChanged(f"{spec.source_dir} holds no files any more")
    total = sum((source / name).stat().st_size for name in names)
    protocol = spec.url.partition("://")[0]
    store, root = fsspec.url_to_fs(spec.url, use_listings_cache=False)
    root = str(root).rstrip("/")
    if _read(store, f"{root}/{MANIFEST_FILE}", "upload_id") == spec.run_id:
        return _sent_before(run_dir)
    _claim(spec, store, root, protocol)
    sent = {file.path: file for file in _sent_before(run_dir)}
    done = 0
    for name in names:
        known = sent.get(name)
        target = f"{root}/{name}"
        if (
            known is None
            or known.num_bytes != (source / name).stat().st_size
            or _size(store, target) != known.num_bytes
        ):
            if protocol not in OBJECT_STORES:
                store.makedirs(target.rpartition("/")[0], exist_ok=True)
            file = _send_file(store, source / name, target, name, partial(_report, progress, done, total))
            with open(run_dir / SENT_FILE, "a", encoding="utf-8") as log:
                log.write(json.dumps(asdict(file)) + "\n")
            sent[name] = file
        done += sent[name].num_bytes
        progress(done, total)
    files = [sent[name] for name in names]
    _finish(spec, store, root, files)
    return files


def _report(progress: Progress, before: int, total: int, count: int) -> None:
    progress(before + count, total)


def _claim(spec: UploadSpec, store: Any, root: str, protocol: str) -> None:
    """Mark the folder as this export's, unless it is anybody else's."""
    mend = "choose a URL where nothing is"
    if store.exists(f"{root}/{MANIFEST_FILE}"):
        raise InputError("url", f"is {spec.url!r}, where a finished export is", mend)
    owner = _read(store, f"{root}/{UNFINISHED_FILE}", "upload_id")
    if owner == spec.run_id:
        return
    if owner is not None:
        raise InputError(
            "url", f"is {spec.url!r}, where the export {owner} began and did not end", f"retry that job, or {mend}"
        )
    with contextlib.suppress(FileNotFoundError):
        if store.ls(root, detail=False):
            raise InputError("url", f"is {spec.url!r}, where other files are", mend)
    if protocol not in OBJECT_STORES:
        store.makedirs(root, exist_ok=True)
    _write(store, f"{root}/{UNFINISHED_FILE}", {"upload_id": spec.run_id, "run_id": spec.source_run_id})


def _send_file(store: Any, path: Path, target: str, name: str, progress: Callable[[int], None]) -> SentFile:
    digest, count = hashlib.sha256(), 0
    try:
        reader = open(path, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        raise SourceChanged(f"{path} is gone") from None
    with reader, store.open(target, "wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        while chunk := reader.read(CHUNK_BYTES):
            writer.write(chunk)
            digest.update(chunk)
            count += len(chunk)
            progress(count)
    if count != size:
        raise SourceChanged(f"{path} changed as it was sent")
    if (stored := _size(store, target)) != count:
        raise NotStored(f"{name} has {count} bytes, but the store says {stored}")
    return SentFile(path=name, num_bytes=count, sha256=digest.hexdigest())


def _finish(spec: UploadSpec, store: Any, root: str, files: list[SentFile]) -> None:
    manifest = {
        "version": 1,
        "upload_id": spec.run_id,
        "run_id": spec.source_run_id,
        "source": spec.source,
        "created_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "files": [asdict(file) for file in files],
    }
    beside = f"{root}/.{MANIFEST_FILE}.partial"
    _write(store, beside, manifest)
    store.mv(beside, f"{root}/{MANIFEST_FILE}")
    store.rm_file(f"{root}/{UNFINISHED_FILE}")


def _write(store: Any, path: str, values: dict[str, Any]) -> None:
    with store.open(path, "wb") as file:
        file.write((json.dumps(values, indent=1) + "\n").encode())


def _read(store: Any, path: str, name: str) -> str | None:
    """A value of a marker that is there; a torn one is nobody's."""
    try:
        with store.open(path, "rb") as file:
            return str(json.loads(file.read())[name])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return "of an unreadable marker"


def _size(store: Any, path: str) -> int | None:
    try:
        return int(store.info(path)["size"])
    except FileNotFoundError:
        return None


def _sent_before(run_dir: Path) -> list[SentFile]:
    """What earlier attempts sent whole; a torn last line counts for nothing."""
    found: dict[str, SentFile] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (run_dir / SENT_FILE).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                file = from_dict(SentFile, json.loads(line))
                found[file.path] = file
    return sorted(found.values(), key=lambda file: file.path)
