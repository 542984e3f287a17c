"""A target folder that appears whole or not at all, whoever makes its tensors.

It is written as a hidden sibling ``.NAME.PID.partial``, each file is synced to disk on a second thread while the next bytes
are copied, then the folder is synced and renamed. What a killed run left is removed by the next one, known by its process
no longer living.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from app.engine.surgery.copying import Progress, Sink, SourceFiles, copy_bytes, no_progress, write_at
from app.engine.surgery.folder import CONFIG_FILE, INDEX_FILE
from app.engine.surgery.layout import TargetShard, TargetTensor, index_of
from app.records import fsync_dir
from fitting.errors import InputError

# Tokenizer and generation files that belong to the grown model as well. No code, no weights, no model card of the base.
COMPANION_PATTERNS = (
    "tokenizer*", "vocab*", "merges*", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
    "chat_template*", "additional_chat_templates/*", "*.jinja", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*",
)  # fmt: skip
COMPANION_SUFFIXES = (".json", ".jsonl", ".txt", ".md", ".jinja", ".model", ".tiktoken", ".bpe", "")
# Bytes after which what was written is handed to the disk while copying goes on.
SYNC_BYTES = 256 * 2**20

Produce = Callable[[TargetTensor, Sink], None]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written, for the manifest.

    Attributes:
        files: per file name its ``num_bytes`` and, of a shard, ``header_sha256``, of others ``sha256``.
        tensor_sha256: of the tensors that passed through this process.
        new_tensors: names of the tensors that are no byte copy of their source.
    """

    files: dict[str, dict[str, Any]]
    tensor_sha256: dict[str, str]
    new_tensors: tuple[str, ...]


def companions(folder: Path) -> tuple[str, ...]:
    """Names of the tokenizer and generation files of a source folder, relative to it."""
    found = {path.relative_to(folder).as_posix() for name in COMPANION_PATTERNS for path in folder.glob(name)}
    return tuple(
        sorted(name for name in found if (folder / name).is_file() and Path(name).suffix in COMPANION_SUFFIXES)
    )


def write_folder(
    target: Path,
    *,
    source: Path,
    config: Mapping[str, Any],
    shards: Sequence[TargetShard],
    produce: Produce,
    manifest: Callable[[Written], Mapping[str, Any]],
    manifest_name: str,
    checksums: bool = False,
    progress: Progress = no_progress,
) -> None:
    """Write a checkpoint folder.

    Args:
        target: the folder to appear; must not exist.
        source: the folder that ``produce`` copies from, and whose tokenizer and generation files come along.
        config: contents of config.json.
        shards: what to write, from :func:`app.engine.surgery.layout.lay_out`.
        produce: appends the bytes of one tensor to the sink: ``sink.copy(stored)`` or ``sink.write(data)``.
        manifest: contents of ``manifest_name`` from what was written.
        checksums: hash copied tensors as well; they then pass through this process.
        progress: told the bytes of each step.

    Raises:
        InputError: the source changed meanwhile, or the target appeared.
        OSError: the disk is full or fails. Nothing is left behind.
    """
    remove_leftovers(target)
    beside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        beside.mkdir()
        with SourceFiles(source) as files, _Syncer() as syncer:
            written = _write_shards(beside, shards, files, produce, syncer, progress, checksums=checksums)
            texts = {CONFIG_FILE: config}
            if len(shards) > 1:
                texts[INDEX_FILE] = index_of(shards)
            for name, value in texts.items():
                _write_text(beside / name, value, written.files, syncer)
            for name in companions(source):
                _copy_companion(source / name, beside / name, name, written.files, syncer)
            _write_text(beside / manifest_name, manifest(written), {}, syncer)
        for folder in (beside, *(path for path in beside.iterdir() if path.is_dir())):
            fsync_dir(folder)
        if target.exists():
            raise InputError(str(target), "appeared meanwhile", "give another name")
        os.rename(beside, target)
        fsync_dir(target.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def remove_leftovers(target: Path) -> None:
    """Delete what runs that were killed left beside ``target``; a living one keeps its folder."""
    for leftover in target.parent.glob(f".{_literal(target.name)}.*.partial"):
        pid = leftover.name.split(".")[-2]
        # In containers numbers repeat: a folder of this very process's number is an earlier one's.
        if pid.isdecimal() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid))):
            shutil.rmtree(leftover, ignore_errors=True)


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


class _Syncer:
    """Target files, synced on a second thread; leaving the block waits for all of them and raises the first failure."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._pending: list[Future[None]] = []
        self._open: set[int] = set()

    def __enter__(self) -> _Syncer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        for descriptor in self._open:
            os.close(descriptor)
        if kind is None:
            self._raise_failures()

    def create(self, path: Path) -> int:
        """A new file; the syncer closes it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._open.add(descriptor)
        return descriptor

    def start(self, descriptor: int) -> None:
        """Hand to the disk what the file holds by now, unless the thread is still at it."""
        if all(future.done() for future in self._pending):
            self._raise_failures()
            self._pending.append(self._pool.submit(os.fdatasync, descriptor))

    def finish(self, descriptor: int) -> None:
        """Sync the whole file and close it."""
        self._pending.append(self._pool.submit(self._sync_and_close, descriptor))

    def _sync_and_close(self, descriptor: int) -> None:
        os.fsync(descriptor)
        self._open.remove(descriptor)
        os.close(descriptor)

    def _raise_failures(self) -> None:
        for future in self._pending:
            future.result()
        self._pending.clear()


def _write_shards(
    folder: Path,
    shards: Sequence[TargetShard],
    source: SourceFiles,
    produce: Produce,
    syncer: _Syncer,
    progress: Progress,
    *,
    checksums: bool,
) -> Written:
    written = Written(files={}, tensor_sha256={}, new_tensors=())
    new_tensors: list[str] = []
    for shard in shards:
        descriptor = syncer.create(folder / shard.name)
        sink = Sink(descriptor, source, progress, checksums=checksums)
        sink.write(shard.header)
        sink.take_digest()
        num_synced = 0
        for tensor in shard.tensors:
            begin, num_written = sink.position, sink.num_written
            produce(tensor, sink)
            if sink.position - begin != tensor.num_bytes:
                raise AssertionError(f"{tensor.name} has {tensor.num_bytes} bytes, got {sink.position - begin}")
            digest = sink.take_digest()
            if digest is not None:
                written.tensor_sha256[tensor.name] = digest
            if sink.num_written > num_written:
                new_tensors.append(tensor.name)
            if sink.position - num_synced >= SYNC_BYTES:
                syncer.start(descriptor)
                num_synced = sink.position
        syncer.finish(descriptor)
        written.files[shard.name] = {"num_bytes": shard.num_bytes, "header_sha256": shard.header_sha256}
    return Written(files=written.files, tensor_sha256=written.tensor_sha256, new_tensors=tuple(new_tensors))


def _write_text(path: Path, value: Mapping[str, Any], files: dict[str, dict[str, Any]], syncer: _Syncer) -> None:
    text = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    descriptor = syncer.create(path)
    write_at(descriptor, memoryview(text), 0)
    syncer.finish(descriptor)
    files[path.name] = {"num_bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}


def _copy_companion(source: Path, target: Path, name: str, files: dict[str, dict[str, Any]], syncer: _Syncer) -> None:
    target.parent.mkdir(exist_ok=True)
    with open(source, "rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        descriptor = syncer.create(target)
        copy_bytes(file.fileno(), 0, descriptor, 0, num_bytes)
        syncer.finish(descriptor)
        files[name] = {"num_bytes": num_bytes, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
