"""A checkpoint folder as transformers writes it, read without loading a tensor: config.json and the headers of its shards.

A safetensors file is ``[n: uint64, little endian][header: n bytes of JSON][tensors]``; the header gives each tensor's type,
shape and ``data_offsets`` [begin, end) after the header. Everything is checked before it is believed: what is read here
decides which byte ranges are copied. Files may be links (the hub's cache keeps its files as such); names may not lead out
of the folder. Standard library only: the byte copy imports this.

======================  ===============================================================================================
refused                 because
======================  ===============================================================================================
pickled weights         loading them runs code; only safetensors is data
adapters                their weights are differences to another checkpoint
a damaged header        truncated file, offsets that overlap, leave holes or lie outside, sizes that do not fit the shape
a wrong index           names a file or tensor that is missing, or misses one that is there
======================  ===============================================================================================
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from fitting.errors import InputError

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
MAX_JSON_BYTES = 100_000_000

# Bits an element, by the names of the format's specification (safetensors 0.8).
DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in a shard.

    Attributes:
        name: as in the checkpoint.
        dtype: safetensors' name of the type.
        shape: dimensions; () for a scalar.
        file: name of the shard.
        begin, end: its bytes in the file, counted from the file's start.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A safetensors file: its size in bytes, the SHA-256 of its header with the length before it, and its metadata."""

    name: str
    num_bytes: int
    header_sha256: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A checkpoint folder that passed every check.

    Attributes:
        path: the folder.
        config: config.json.
        config_sha256: of the file's bytes.
        shards: by name.
        tensors: by name, in the order of the files and of the bytes in them.
    """

    path: Path
    config: dict[str, Any]
    config_sha256: str
    shards: dict[str, Shard]
    tensors: dict[str, StoredTensor]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())


def read_folder(path: Path) -> Folder:
    """Read config.json, the index and every shard's header.

    Raises:
        InputError: the folder is no whole safetensors checkpoint; the message names the file and the mend.
    """
    if not path.is_dir():
        raise InputError(str(path), "is no folder", "give a local transformers folder")
    if (path / "adapter_config.json").exists():
        raise InputError(str(path), "holds an adapter", "merge it into its base model and give the merged checkpoint")
    config, config_bytes = read_object(path / CONFIG_FILE)
    names, index = _shard_names(path)
    shards: dict[str, Shard] = {}
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        shard, found = read_shard(path / name)
        shards[name] = shard
        for tensor in found:
            if tensor.name in tensors:
                raise InputError(
                    f"{name}: {tensor.name}", f"is in {tensors[tensor.name].file} too", "keep each tensor in one file"
                )
            tensors[tensor.name] = tensor
    if index is not None:
        _require_same(path, index, tensors)
    return Folder(
        path=path,
        config=config,
        config_sha256=hashlib.sha256(config_bytes).hexdigest(),
        shards=shards,
        tensors=tensors,
    )


def read_object(path: Path) -> tuple[dict[str, Any], bytes]:
    """A JSON object and the bytes it was read from.

    Raises:
        InputError: the file is missing, too long, or no JSON object.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise InputError(str(path), "is missing", "give a whole transformers folder") from None
    if len(text) > MAX_JSON_BYTES:
        raise InputError(str(path), f"is longer than {MAX_JSON_BYTES:,} bytes", "give the file transformers wrote")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"is not JSON ({error})", "download or save it again") from None
    if not isinstance(value, dict):
        raise InputError(str(path), "holds no JSON object", "download or save it again")
    return value, text


def _shard_names(path: Path) -> tuple[list[str], dict[str, str] | None]:
    """Names of the shards, and the index's map from tensor to shard where there is an index."""
    if not (path / INDEX_FILE).exists():
        if (path / SINGLE_FILE).exists():
            return [SINGLE_FILE], None
        pickles = [entry.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for entry in path.glob(pattern)]
        if pickles:
            raise InputError(
                str(path / sorted(pickles)[0]),
                "holds pickled weights, and loading a pickle runs code",
                "convert it where you trust it: load it with weights_only and save_pretrained, which writes safetensors",
            )
        mend = f"give a folder with {SINGLE_FILE}, or with {INDEX_FILE} and its shards"
        raise InputError(str(path), "holds no safetensors weights", mend)
    where = str(path / INDEX_FILE)
    index = read_object(path / INDEX_FILE)[0].get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
        raise InputError(f"{where}: weight_map", "names no files", "save the checkpoint again")
    for name in set(index.values()):
        if "/" in name or "\\" in name or name in ("", ".", "..") or "\0" in name:
            raise InputError(
                f"{where}: weight_map", f"names {name!r}, which leads out of the folder", "use bare file names"
            )
        if not name.endswith(".safetensors"):
            raise InputError(f"{where}: weight_map", f"names {name!r}, which is no safetensors file", "convert it")
        if not (path / name).is_file():
            raise InputError(f"{where}: weight_map", f"names {name}, which is missing", "download the missing file")
    return sorted(set(index.values())), index


def _require_same(path: Path, index: Mapping[str, str], tensors: Mapping[str, StoredTensor]) -> None:
    where = f"{path / INDEX_FILE}: weight_map"
    for name, file in index.items():
        if name not in tensors:
            raise InputError(where, f"puts {name} into {file}, but it is not there", "download the files again")
        if tensors[name].file != file:
            raise InputError(where, f"puts {name} into {file}, but it is in {tensors[name].file}", "mend the index")
    for name, tensor in tensors.items():
        if name not in index:
            raise InputError(where, f"misses {name} of {tensor.file}", "save the checkpoint again")


def read_shard(path: Path) -> tuple[Shard, list[StoredTensor]]:
    """The checked header of one safetensors file: the file, and its tensors in the order of their bytes.

    Raises:
        InputError: the file is not a whole safetensors file.
    """
    where = str(path)
    again = "download or save it again"
    with open(path, "rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if len(start) < 8:
            raise InputError(where, f"is truncated: {num_bytes} bytes hold no header", again)
        num_header_bytes = int.from_bytes(start, "little")
        if num_header_bytes > MAX_HEADER_BYTES:
            raise InputError(
                where, f"claims a header of {num_header_bytes:,} bytes, above the limit of {MAX_HEADER_BYTES:,}", again
            )
        if 8 + num_header_bytes > num_bytes:
            raise InputError(
                where, f"is truncated: a header of {num_header_bytes:,} bytes, a file of {num_bytes:,}", again
            )
        text = file.read(num_header_bytes)
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise InputError(where, f"has a header that is not JSON ({error})", again) from None
    if not isinstance(header, dict):
        raise InputError(where, "has a header that is no JSON object", again)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{where}: __metadata__", "is no map of texts", again)
    data_begin = 8 + num_header_bytes
    tensors = [_tensor(path, name, entry, data_begin) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    position = data_begin
    for tensor in tensors:
        if tensor.begin != position:
            what = "overlaps the tensor before it" if tensor.begin < position else "leaves unclaimed bytes before it"
            raise InputError(f"{where}: {tensor.name}", what, again)
        position = tensor.end
    if position != num_bytes:
        what = "is truncated" if position > num_bytes else "is too long"
        raise InputError(where, f"{what}: its header needs {position:,} bytes, the file has {num_bytes:,}", again)
    digest = hashlib.sha256(start + text).hexdigest()
    return Shard(name=path.name, num_bytes=num_bytes, header_sha256=digest, metadata=metadata), tensors


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name occurs twice")
    return values


def _tensor(path: Path, name: str, entry: Any, data_begin: int) -> StoredTensor:
    where, again = f"{path}: {name}", "download or save it again"
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if dtype not in DTYPE_BITS:
        raise InputError(where, f"has dtype {dtype!r}, but known are {', '.join(DTYPE_BITS)}", again)
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise InputError(
            where, f"has shape {shape!r} and data_offsets {offsets!r}, which are not lists of counts", again
        )
    begin, end = offsets
    num_bits = math.prod(shape) * DTYPE_BITS[dtype]
    if end - begin != num_bits / 8:
        raise InputError(
            where, f"of {dtype} {shape} needs {num_bits / 8:,g} bytes, but its offsets give {end - begin:,}", again
        )
    return StoredTensor(
        name=name,
        dtype=dtype,
        shape=tuple(shape),
        file=path.name,
        begin=data_begin + begin,
        end=data_begin + end,
    )


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)
