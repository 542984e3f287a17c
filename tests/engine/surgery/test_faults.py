"""Faults, real ones: killed, interrupted, told to end, out of disk; what is left is the source and nothing else."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from raw_checkpoints import contents, write_llama

from app.engine.surgery.grow import grow, prepare
from app.engine.surgery.plan import Request
from app.engine.surgery.verify import verify

ROOT = Path(__file__).parents[3]
# The command itself, and at a byte of its progress something happens to it. HOW is a line of code.
PROGRAM = """
import contextlib, os, resource, signal, sys
import app.cli, app.commands.checkpoint as command
target, at, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
done = 0

@contextlib.contextmanager
def watched(what, num_bytes):
    def progress(count):
        global done
        before, done = done, done + count
        if before < at <= done:
            exec(how)
    yield progress

command._progress_bar = watched
sys.argv = ["growthlaw", "checkpoint", "grow", *sys.argv[4:]]
app.cli.main()
"""


def run(base: Path, target: Path, at: int, how: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(target), str(at), how, str(base), str(target), "--factor", "2", *options],
        capture_output=True, text=True, timeout=120, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "base", 3)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("at", [1, 20_000, 45_000])
def test_kill_9_leaves_no_target_and_the_next_run_cleans_up(tmp_path: Path, base: Path, at: int) -> None:
    before = contents(base)
    target = tmp_path / "grown"
    killed = run(base, target, at, "os.kill(os.getpid(), signal.SIGKILL)", "--max-shard-bytes", "9000")
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    assert [name.startswith(".grown.") for name in names(tmp_path)] == [True, False]
    assert contents(base) == before
    grow(prepare(Request(source=base, target=target, factor=2)))
    assert names(tmp_path) == ["base", "grown"]
    assert verify(target, base).is_good


def test_a_living_run_keeps_its_folder_and_a_dead_one_of_our_number_does_not(tmp_path: Path, base: Path) -> None:
    living = tmp_path / f".grown.{os.getppid()}.partial"
    living.mkdir()
    (tmp_path / f".grown.{os.getpid()}.partial").mkdir()
    grow(prepare(Request(source=base, target=tmp_path / "grown", factor=2)))
    assert names(tmp_path) == [living.name, "base", "grown"]


@pytest.mark.parametrize("signum", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_interrupted_cleans_up_and_exits_130(tmp_path: Path, base: Path, signum: str) -> None:
    before = contents(base)
    ended = run(base, tmp_path / "grown", 20_000, f"os.kill(os.getpid(), signal.{signum})")
    assert ended.returncode == 130, ended.stderr
    assert names(tmp_path) == ["base"]
    assert contents(base) == before
    assert "interrupted" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_file_size_limit_cleans_up(tmp_path: Path, base: Path) -> None:
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    failed = run(base, tmp_path / "grown", 1, limit)
    assert failed.returncode == 1
    assert "File too large" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert names(tmp_path) == ["base"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=80m", "none", str(disk)]
    if mount is None or subprocess.run([mount, *options], capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_meanwhile_is_told_and_cleaned_up(small_disk: Path, base: Path) -> None:
    fill = (
        "\nwith open(os.path.join(os.path.dirname(target), 'other'), 'wb', 0) as file:"
        "\n  with contextlib.suppress(OSError):"
        "\n    while file.write(bytes(4096)): pass"
    )
    failed = run(base, small_disk / "grown", 1, fill)
    assert failed.returncode == 1
    assert "No space left on device" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert names(small_disk) == ["other"]


def test_a_disk_that_is_full_is_told_before(small_disk: Path, base: Path) -> None:
    (small_disk / "other").write_bytes(bytes(20 * 2**20))
    refused = run(base, small_disk / "grown", 1, "raise AssertionError('a byte was written')")
    assert refused.returncode == 1
    assert "bytes with a margin" in refused.stderr
    assert names(small_disk) == ["other"]


def test_a_source_that_changes_meanwhile_gives_no_target(tmp_path: Path, base: Path) -> None:
    shard = sorted(base.glob("*.safetensors"))[0]
    before = contents(base)
    failed = run(base, tmp_path / "grown", 45_000, f"open({str(shard)!r}, 'ab').write(b'x')")
    assert failed.returncode == 1
    assert "changed while it was read" in failed.stderr
    assert names(tmp_path) == ["base"]
    assert contents(base).keys() == before.keys()


def test_a_shard_cut_while_it_is_copied_gives_no_target(tmp_path: Path, base: Path) -> None:
    shards = [str(path) for path in base.glob("*.safetensors")]
    cut = f"[os.truncate(path, 100) for path in {shards!r}]"
    failed = run(base, tmp_path / "grown", 20_000, cut)
    assert failed.returncode == 1
    assert "became shorter" in failed.stderr
    assert names(tmp_path) == ["base"]


def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path: Path, base: Path) -> None:
    failed = run(base, tmp_path / "grown", 20_000, "os.mkdir(target)")
    assert failed.returncode == 1
    assert "appeared meanwhile" in failed.stderr
    assert names(tmp_path) == ["base", "grown"]
    assert names(tmp_path / "grown") == []
