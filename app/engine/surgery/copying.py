"""Bytes from one file to another without passing through this process, and a sink that a target file grows by.

Linux copies between files inside the kernel (``copy_file_range``; on file systems that can share blocks it need not copy at
all). Where the kernel or the file systems cannot, a bounded buffer does it. Either way memory does not grow with the
tensor. Standard library only.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from app.engine.surgery.folder import StoredTensor
from fitting.errors import InputError

BUFFER_BYTES = 8 * 2**20
# A single call; small enough for progress and Ctrl-C to be prompt.
CALL_BYTES = 64 * 2**20
# What kernels and file systems answer where they cannot copy this pair of files: then the buffer does.
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)

Progress = Callable[[int], None]


def no_progress(num_bytes: int) -> None:
    """Tell nobody."""


class SourceFiles:
    """The shards of a source folder, opened once each; leaving the block closes them.

    Raises:
        InputError: on leaving, a file is not what it was when it was opened.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: dict[str, tuple[int, tuple[int, int]]] = {}

    def __enter__(self) -> SourceFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.require_unchanged()
        finally:
            for descriptor, _ in self._opened.values():
                os.close(descriptor)
            self._opened.clear()

    def descriptor(self, file: str) -> int:
        if file not in self._opened:
            descriptor = os.open(self._folder / file, os.O_RDONLY)
            self._opened[file] = (descriptor, _state(descriptor))
        return self._opened[file][0]

    def require_unchanged(self) -> None:
        for file, (descriptor, before) in self._opened.items():
            if _state(descriptor) != before:
                raise InputError(str(self._folder / file), "changed while it was read", "grow a checkpoint at rest")


def _state(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


class Sink:
    """A target file that grows from its start to its end.

    Attributes:
        position: bytes written so far.
        num_written: bytes that came through this process; the others were copied from the source.
    """

    def __init__(self, descriptor: int, source: SourceFiles, progress: Progress, *, checksums: bool = False) -> None:
        self._descriptor = descriptor
        self._source = source
        self._progress = progress
        self._checksums = checksums
        self._digest: Any = None
        self.position = 0
        self.num_written = 0

    def copy(self, tensor: StoredTensor) -> None:
        """Append a source tensor's bytes, byte for byte; hashed on the way where checksums are wanted."""
        descriptor = self._source.descriptor(tensor.file)
        if not self._checksums:
            copy_bytes(descriptor, tensor.begin, self._descriptor, self.position, tensor.num_bytes, self._progress)
            self.position += tensor.num_bytes
            return
        self._digest = hashlib.sha256()
        for piece in read_pieces(descriptor, tensor.begin, tensor.num_bytes):
            self._digest.update(piece)
            self._append(piece)

    def read(self, tensor: StoredTensor) -> bytearray:
        """A source tensor's bytes, for a producer that computes with them."""
        data, position = bytearray(tensor.num_bytes), 0
        for piece in read_pieces(self._source.descriptor(tensor.file), tensor.begin, tensor.num_bytes):
            data[position : position + len(piece)] = piece
            position += len(piece)
        return data

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append new bytes; a tensor may come in pieces. They are hashed: they pass through this process anyway."""
        view = memoryview(data).cast("B")
        if self._digest is None:
            self._digest = hashlib.sha256()
        for begin in range(0, len(view), CALL_BYTES):
            piece = view[begin : begin + CALL_BYTES]
            self._digest.update(piece)
            self._append(piece)
        self.num_written += len(view)

    def take_digest(self) -> str | None:
        """SHA-256 of what was appended since the last call, None where the kernel copied it."""
        digest, self._digest = self._digest, None
        return None if digest is None else str(digest.hexdigest())

    def _append(self, piece: memoryview) -> None:
        write_at(self._descriptor, piece, self.position)
        self.position += len(piece)
        self._progress(len(piece))


def copy_bytes(
    source: int, source_begin: int, target: int, target_begin: int, num_bytes: int, progress: Progress = no_progress
) -> None:
    """Copy a range between two open files, in the kernel where it can.

    Raises:
        InputError: the source ends before the range does.
        OSError: the target is full or either file fails.
    """
    done = 0
    while done < num_bytes and hasattr(os, "copy_file_range"):
        count = min(num_bytes - done, CALL_BYTES)
        try:
            copied = os.copy_file_range(source, target, count, source_begin + done, target_begin + done)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            break
        if copied == 0:  # the end of the file, or a file system that only pretends: the buffer finds out
            break
        done += copied
        progress(copied)
    for piece in read_pieces(source, source_begin + done, num_bytes - done):
        write_at(target, piece, target_begin + done)
        done += len(piece)
        progress(len(piece))


def read_pieces(source: int, begin: int, num_bytes: int) -> Iterator[memoryview]:
    """A range of a file in pieces of one reused buffer.

    Raises:
        InputError: the file ends before the range does.
    """
    if not num_bytes:
        return
    buffer = memoryview(bytearray(min(num_bytes, BUFFER_BYTES)))
    done = 0
    while done < num_bytes:
        count = os.preadv(source, [buffer[: min(num_bytes - done, BUFFER_BYTES)]], begin + done)
        if count == 0:
            raise InputError("source", "became shorter while it was read", "grow a checkpoint at rest")
        yield buffer[:count]
        done += count


def write_at(target: int, data: memoryview, begin: int) -> None:
    """All of ``data`` at an offset, however little the system takes at a time."""
    while len(data):
        count = os.pwrite(target, data, begin)
        data = data[count:]
        begin += count
