"""What a Ray cluster has and what of it is free, read from its dashboard's ``/nodes?view=summary``.

Ray counts resources and does not say which GPU or core a job got, so a node's devices are given names by number: the first
ones to this service's jobs, the next to whatever else Ray runs there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from app.jobs.launchers.base import Device, DeviceKind, Node

MEBIBYTE = 2**20
OTHERS = "other work in Ray"
_RESOURCE: dict[DeviceKind, str] = {"gpu": "GPU", "cpu": "CPU"}


@dataclass(frozen=True, kw_only=True)
class RayGpu:
    """One GPU as the node's agent reports it; memory in bytes, None where it does not."""

    name: str
    memory_bytes: int | None
    memory_free_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class RayNode:
    """A living node.

    Attributes:
        total, used: logical GPUs and CPUs; ``used`` is a few seconds old.
        heartbeat_at: when its agent last reported (ISO 8601, UTC).
    """

    node_id: str
    name: str
    heartbeat_at: str
    memory_bytes: int | None
    memory_free_bytes: int | None
    total: Mapping[DeviceKind, int]
    used: Mapping[DeviceKind, float]
    gpus: Sequence[RayGpu]

    def free(self, kind: DeviceKind) -> int:
        return max(0, int(self.total[kind] - self.used[kind] + 1e-6))

    def as_node(self, versions: Mapping[str, str], jobs: Mapping[DeviceKind, Sequence[str]]) -> Node:
        """The node for ``GET /workers``.

        Args:
            versions: of Ray; the nodes do not tell those of other packages.
            jobs: the job of every device that this service's work holds here.
        """
        unknown = RayGpu(name="GPU", memory_bytes=None, memory_free_bytes=None)
        gpus = [*self.gpus, *[unknown] * self.total["gpu"]]
        devices = [
            Device(
                kind="gpu",
                index=index,
                name=gpu.name,
                memory_bytes=gpu.memory_bytes,
                memory_free_bytes=gpu.memory_free_bytes,
                job_id=job_id,
            )
            for index, (job_id, gpu) in enumerate(zip(self._holders("gpu", jobs), gpus, strict=False))
        ]
        devices += [
            Device(kind="cpu", index=index, name="CPU", job_id=job_id)
            for index, job_id in enumerate(self._holders("cpu", jobs))
        ]
        return Node(
            name=self.name,
            engine="ray",
            heartbeat_at=self.heartbeat_at,
            memory_bytes=self.memory_bytes,
            memory_free_bytes=self.memory_free_bytes,
            versions=versions,
            devices=devices,
        )

    def _holders(self, kind: DeviceKind, jobs: Mapping[DeviceKind, Sequence[str]]) -> list[str | None]:
        mine = jobs.get(kind, ())
        others = [OTHERS] * max(0, math.ceil(self.used[kind]) - len(mine))
        return [*mine, *others, *[None] * self.total[kind]][: self.total[kind]]


def parse_nodes(data: Mapping[str, Any]) -> list[RayNode]:
    """The living nodes, by name.

    Args:
        data: of :meth:`app.jobs.launchers.ray_api.RayApi.nodes`.
    """
    usage = data.get("nodeLogicalResources") or {}
    nodes = [
        _node(summary, str(usage.get(summary["raylet"]["nodeId"], "")))
        for summary in data.get("summary", ())
        if summary.get("raylet", {}).get("state") == "ALIVE" and "resourcesTotal" in summary["raylet"]
    ]
    return sorted(nodes, key=lambda node: node.name)


def _node(summary: Mapping[str, Any], usage: str) -> RayNode:
    raylet = summary["raylet"]
    total, available = [*summary.get("mem", ()), None, None][:2]
    # A node that has just come has not reported yet: then its start is what is known.
    seconds = summary.get("now") or int(raylet.get("startTimeMs") or 0) / 1000
    address = raylet.get("nodeManagerAddress", "?")
    hostname = raylet.get("nodeManagerHostname") or address
    return RayNode(
        node_id=raylet["nodeId"],
        name=hostname if hostname == address else f"{hostname} {address}",
        heartbeat_at=datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds"),
        memory_bytes=total,
        memory_free_bytes=available,
        total={kind: int(raylet["resourcesTotal"].get(name, 0)) for kind, name in _RESOURCE.items()},
        used={kind: _used(usage, name) for kind, name in _RESOURCE.items()},
        gpus=[_gpu(gpu) for gpu in summary.get("gpus") or ()],
    )


def _used(usage: str, resource: str) -> float:
    """How much of a resource is given away. Ray counts what is reserved for a placement group and idle as not used.

    >>> _used("1.0/4.0 CPU (1.0 used of 3.0 reserved in placement groups)\\n0B/21.65GiB memory", "CPU")
    3.0
    >>> _used("", "GPU")
    0.0
    """
    match = re.search(rf"^\s*([0-9.]+)/[0-9.]+ {resource}\b(?: \(([0-9.]+) used of ([0-9.]+) )?", usage, re.MULTILINE)
    if match is None:
        return 0.0
    used, used_in_groups, reserved = (float(number or 0) for number in match.groups())
    return used + reserved - used_in_groups


def _gpu(gpu: Mapping[str, Any]) -> RayGpu:
    total, used = gpu.get("memoryTotal"), gpu.get("memoryUsed")
    return RayGpu(
        name=str(gpu.get("name", "GPU")),
        memory_bytes=int(total) * MEBIBYTE if total is not None else None,
        memory_free_bytes=(int(total) - int(used)) * MEBIBYTE if total is not None and used is not None else None,
    )
