"""Copying between files: the same bytes whatever the kernel can do, however little it takes at a time."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.engine.surgery import copying
from app.engine.surgery.copying import Sink, SourceFiles, copy_bytes
from app.engine.surgery.folder import StoredTensor
from fitting.errors import InputError

DATA = np.random.default_rng(0).bytes(100_003)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[int, int]]:
    (tmp_path / "source").write_bytes(DATA)
    source = os.open(tmp_path / "source", os.O_RDONLY)
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield source, target
    os.close(source)
    os.close(target)


def assert_copies(source: int, target: int) -> None:
    told: list[int] = []
    copy_bytes(source, 11, target, 5, 99_000, told.append)
    assert os.pread(target, 200_000, 5) == DATA[11:99_011]
    assert sum(told) == 99_000


def test_in_the_kernel(files: tuple[int, int]) -> None:
    assert_copies(*files)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_the_kernel_cannot(files: tuple[int, int], monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def cannot(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "copy_file_range", cannot)
    monkeypatch.setattr(copying, "BUFFER_BYTES", 4096)
    assert_copies(*files)


def test_where_there_is_no_such_call(files: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "copy_file_range")
    assert_copies(*files)


def test_when_the_kernel_stops_in_the_middle(files: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.copy_file_range, []

    def tires(source: int, target: int, count: int, *offsets: int) -> int:
        calls.append(count)
        if len(calls) == 3:
            raise OSError(errno.EXDEV, "")
        return real(source, target, 1000, *offsets)

    monkeypatch.setattr(os, "copy_file_range", tires)
    assert_copies(*files)
    assert len(calls) == 3


def test_short_copies_and_short_writes(files: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    real_copy, real_write = os.copy_file_range, os.pwrite
    monkeypatch.setattr(os, "copy_file_range", lambda s, t, count, *offsets: real_copy(s, t, min(count, 777), *offsets))
    assert_copies(*files)
    monkeypatch.delattr(os, "copy_file_range")
    monkeypatch.setattr(os, "pwrite", lambda target, data, begin: real_write(target, data[:999], begin))
    assert_copies(*files)


def test_between_file_systems(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    (tmp_path / "source").write_bytes(DATA)
    other = memory / f"growthlaw-test-{os.getpid()}"
    source = os.open(tmp_path / "source", os.O_RDONLY)
    target = os.open(other, os.O_RDWR | os.O_CREAT)
    try:
        assert_copies(source, target)
    finally:
        os.close(source)
        os.close(target)
        other.unlink()


def test_a_full_disk_is_no_reason_to_try_another_way(files: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="full"):
        copy_bytes(*files[:1], 0, files[1], 0, 10)


def test_a_source_that_became_shorter(files: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="became shorter"):
        copy_bytes(files[0], 0, files[1], 0, len(DATA) + 1)


@pytest.mark.parametrize("checksums", [False, True])
def test_sink_hashes_what_passes_through(tmp_path: Path, checksums: bool) -> None:
    (tmp_path / "s").write_bytes(DATA)
    tensor = StoredTensor(name="x", dtype="U8", shape=(50_000,), file="s", begin=3, end=50_003)
    descriptor = os.open(tmp_path / "t", os.O_RDWR | os.O_CREAT)
    told: list[int] = []
    with SourceFiles(tmp_path) as files:
        sink = Sink(descriptor, files, told.append, checksums=checksums)
        sink.copy(tensor)
        expected = hashlib.sha256(DATA[3:50_003]).hexdigest()
        assert sink.take_digest() == (expected if checksums else None)
        assert sink.num_written == 0
        sink.write(b"ab")
        sink.write(b"c")
        assert sink.take_digest() == hashlib.sha256(b"abc").hexdigest()
        assert sink.read(tensor) == DATA[3:50_003]
    os.close(descriptor)
    assert (tmp_path / "t").read_bytes() == DATA[3:50_003] + b"abc"
    assert sum(told) == sink.position == 50_003


def test_a_source_that_changes_meanwhile_is_told(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(DATA)

    def change() -> None:
        with SourceFiles(tmp_path) as files:
            files.descriptor("s")
            with open(tmp_path / "s", "ab") as file:
                file.write(b"more")

    with pytest.raises(InputError, match="changed while it was read"):
        change()
