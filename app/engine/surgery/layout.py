"""Which tensor of the target lies where: shards of bounded size, each with its finished header.

    file = [n: uint64][header, padded with spaces so that 8 + n is a multiple of 8][tensors, without gaps]

Tensors of wider types come first in a shard, so that each begins at a multiple of its element's size. A shard is closed when
the next tensor would take it over the limit; a tensor larger than the limit has a shard of its own. Names and the index
are those of transformers. Standard library only: the byte copy imports this.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from app.engine.surgery.folder import DTYPE_BITS, SINGLE_FILE

DEFAULT_SHARD_BYTES = 5 * 10**9  # transformers' default "5GB"


@dataclass(frozen=True, kw_only=True)
class TargetTensor:
    """A tensor to be written.

    Attributes:
        name: in the target.
        dtype: safetensors' name of the type.
        shape: dimensions.
        source: name of the base tensor it is made from.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: str

    @property
    def num_params(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_params * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True, kw_only=True)
class TargetShard:
    """A file to be written: its header with the length before it, then its tensors in order, without gaps."""

    name: str
    header: bytes
    tensors: tuple[TargetTensor, ...]

    @property
    def num_bytes(self) -> int:
        return len(self.header) + sum(tensor.num_bytes for tensor in self.tensors)

    @property
    def header_sha256(self) -> str:
        return hashlib.sha256(self.header).hexdigest()


def lay_out(
    tensors: Iterable[TargetTensor],
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> tuple[TargetShard, ...]:
    """Shards of at most ``max_shard_bytes`` of tensors, in the order given but for what alignment asks."""
    groups: list[list[TargetTensor]] = [[]]
    num_bytes = 0
    for tensor in tensors:
        if groups[-1] and num_bytes + tensor.num_bytes > max_shard_bytes:
            groups.append([])
            num_bytes = 0
        groups[-1].append(tensor)
        num_bytes += tensor.num_bytes
    names = [SINGLE_FILE]
    if len(groups) > 1:
        names = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    shards = []
    for name, group in zip(names, groups, strict=True):
        ordered = tuple(sorted(group, key=lambda tensor: -DTYPE_BITS[tensor.dtype]))
        header = _header(ordered, metadata or {"format": "pt"})
        shards.append(TargetShard(name=name, header=header, tensors=ordered))
    return tuple(shards)


def index_of(shards: Iterable[TargetShard]) -> dict[str, Any]:
    """The contents of model.safetensors.index.json."""
    placed = sorted(
        ((tensor.name, shard.name, tensor) for shard in shards for tensor in shard.tensors), key=lambda entry: entry[0]
    )
    return {
        "metadata": {
            "total_parameters": sum(tensor.num_params for _, _, tensor in placed),
            "total_size": sum(tensor.num_bytes for _, _, tensor in placed),
        },
        "weight_map": {name: file for name, file, _ in placed},
    }


def _header(tensors: Iterable[TargetTensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for tensor in tensors:
        end = position + tensor.num_bytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
