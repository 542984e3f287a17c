"""What this machine has, found without torch: its NVIDIA GPUs, its memory, and the versions that runs depend on.

`nvidia-smi` tells most; where it is missing, the driver's own files under /proc/driver/nvidia tell which GPUs there are.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DRIVER_DIR = Path("/proc/driver/nvidia")
DEVICE_DIR = Path("/dev")
SMI_FIELDS = "index,uuid,name,memory.total,memory.free,driver_version"
SMI_SECONDS = 20
MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU; ``uuid`` is what CUDA_VISIBLE_DEVICES takes whatever order CUDA counts in. Memory in bytes."""

    index: int
    uuid: str
    name: str
    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    driver: str | None = None


def find_gpus() -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES of this process leaves visible, in the driver's order."""
    try:
        asked = subprocess.run(
            ["nvidia-smi", f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=SMI_SECONDS, check=True,
        )  # fmt: skip
        gpus = gpus_of_smi(asked.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        gpus = gpus_of_driver(DRIVER_DIR, DEVICE_DIR)
    return visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))


def gpus_of_smi(text: str) -> list[Gpu]:
    """The lines of `nvidia-smi --query-gpu`; memory that a driver does not tell is None.

    Raises:
        ValueError: they are no such lines.
    """
    gpus = []
    for line in filter(None, map(str.strip, text.splitlines())):
        index, uuid, name, total, free, driver = (part.strip() for part in line.split(","))
        gpus.append(
            Gpu(
                index=int(index),
                uuid=uuid,
                name=name,
                memory_bytes=_mebibytes(total),
                memory_free_bytes=_mebibytes(free),
                driver=driver,
            )
        )
    return gpus


def gpus_of_driver(driver_dir: Path, device_dir: Path) -> list[Gpu]:
    """The GPUs whose device node is here too: a container sees the files of all, but is given only some."""
    found = []
    for path in sorted(driver_dir.glob("gpus/*/information")):
        values = {
            key.strip(): value.strip()
            for key, _, value in (line.partition(":") for line in path.read_text(encoding="utf-8").splitlines())
        }
        minor = values.get("Device Minor", "")
        if minor.isdecimal() and (device_dir / f"nvidia{minor}").exists():
            found.append((values.get("GPU UUID", minor), values.get("Model", "NVIDIA GPU")))
    return [Gpu(index=index, uuid=uuid, name=name) for index, (uuid, name) in enumerate(found)]


def visible(gpus: Iterable[Gpu], wanted: str | None) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES names, by index or by the beginning of a UUID; all where it is not set.

    As CUDA reads it: the list ends at the first entry that names none.
    """
    gpus = list(gpus)
    if wanted is None:
        return gpus
    chosen: list[Gpu] = []
    for entry in map(str.strip, wanted.split(",")):
        named = [gpu for gpu in gpus if entry and (entry == str(gpu.index) or gpu.uuid.startswith(entry))]
        if len(named) != 1:
            break
        chosen += [gpu for gpu in named if gpu not in chosen]
    return chosen


def versions() -> dict[str, str]:
    """Python, and the packages that a run's numbers depend on, as they are installed."""
    found = {"python": platform.python_version()}
    for package in ("growthlaw", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _mebibytes(text: str) -> int | None:
    return int(text) * MEBIBYTE if text.isdecimal() else None
