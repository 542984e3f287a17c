"""The machines of a team's scheduler: read from its own list, with the jobs of this service put on them.

A scheduler tells on which machines a job runs, not on which of their devices: those are counted from the first on. What
other users' jobs hold is not seen, so a free device is one that no job of this service has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from app.jobs.launchers.base import Device, DeviceKind, Node
from app.jobs.launchers.exec_settings import ExecSettings

# Names in a list, beyond which it is none: a job writes it.
LARGEST_HOST_LIST = 100_000


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine of the list; memory in bytes. It takes work unless ``is_usable`` is false."""

    name: str
    num_cpus: int = 0
    num_gpus: int = 0
    gpu_name: str = ""
    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    version: str = ""
    is_usable: bool = True


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A job of this service: on each of ``nodes`` it has ``count`` devices."""

    job_id: str
    nodes: tuple[str, ...]
    device: DeviceKind
    count: int


def machines_of(text: str, settings: ExecSettings) -> list[Machine]:
    """The machines that ``nodes.pattern`` finds, each once (a list by partitions repeats them).

    Raises:
        ValueError: a count is none.
    """
    found: dict[str, Machine] = {}
    for match in re.finditer(settings.nodes.pattern, text, re.MULTILINE):
        groups = {name: value for name, value in match.groupdict().items() if value}
        unusable = settings.nodes.unusable
        found.setdefault(
            groups.get("name", ""),
            Machine(
                name=groups.get("name", ""),
                num_cpus=int(groups.get("cpus", 0)),
                num_gpus=int(groups.get("gpus", 0)),
                gpu_name=groups.get("gpu_name", ""),
                memory_bytes=_memory(groups.get("memory"), settings),
                memory_free_bytes=_memory(groups.get("free_memory"), settings),
                version=groups.get("version", ""),
                is_usable=unusable is None or re.search(unusable, groups.get("state", "")) is None,
            ),
        )
    found.pop("", None)
    return list(found.values())


def _memory(text: str | None, settings: ExecSettings) -> int | None:
    return int(text) * settings.nodes.memory_unit_bytes if text is not None else None


def num_devices(machine: Machine, kind: DeviceKind, settings: ExecSettings) -> int:
    """Whole GPUs, or slots of as many CPUs as a process gets."""
    return machine.num_gpus if kind == "gpu" else machine.num_cpus // settings.cpu.cpus_per_process


def nodes_of(
    machines: Iterable[Machine], placed: Iterable[Placed], settings: ExecSettings, heartbeat_at: str
) -> list[Node]:
    """The machines that take work, as `GET /workers` tells them."""
    jobs = list(placed)
    return [
        Node(
            name=machine.name,
            engine="exec",
            heartbeat_at=heartbeat_at,
            memory_bytes=machine.memory_bytes,
            memory_free_bytes=machine.memory_free_bytes,
            versions={settings.name.lower(): machine.version} if machine.version else {},
            devices=[
                *_devices("gpu", machine.gpu_name or "GPU", machine, jobs, settings),
                *_devices("cpu", "CPU slot", machine, jobs, settings),
            ],
        )
        for machine in machines
        if machine.is_usable
    ]


def _devices(
    kind: DeviceKind, name: str, machine: Machine, placed: list[Placed], settings: ExecSettings
) -> list[Device]:
    taken = [job.job_id for job in placed if job.device == kind and machine.name in job.nodes for _ in range(job.count)]
    job_of: Mapping[int, str] = dict(enumerate(taken))
    return [
        Device(kind=kind, index=index, name=name, job_id=job_of.get(index))
        for index in range(num_devices(machine, kind, settings))
    ]


def host_names(text: str) -> tuple[str, ...]:
    """The names in a list as Slurm writes it.

    >>> host_names("gpu[01-03,7],login")
    ('gpu01', 'gpu02', 'gpu03', 'gpu7', 'login')
    """
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[\]]+|\[[^\]]*\])+", text):
        grown = [""]
        for piece in re.findall(r"\[[^\]]*\]|[^\[\]]+", part):
            ends = _numbers(piece[1:-1]) if piece.startswith("[") else [piece]
            if len(names) + len(grown) * len(ends) > LARGEST_HOST_LIST:
                return ()
            grown = [begun + end for begun in grown for end in ends]
        names += grown
    return tuple(names)


def _numbers(text: str) -> list[str]:
    numbers: list[str] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if last.isdecimal() and first.isdecimal() and int(last) - int(first) < LARGEST_HOST_LIST:
            numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        else:
            numbers.append(part)
    return numbers
