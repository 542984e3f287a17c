"""Ready-made token files, told apart by their first bytes: what lies in them, before any of it is copied.

===========  ===========================================================================================================
kind         layout, little-endian
===========  ===========================================================================================================
raw          token ids and nothing else (nanoGPT's train.bin and val.bin: uint16)
llm.c        256 int32 (magic, version, number of tokens, zeros), then the ids: magic 20240520, version 1: uint16;
             magic 20240801, version 7: uint32 (llm.c's dev/data/data_common.py; modded-nanogpt writes the first)
Megatron     NAME.bin: ids; NAME.idx: 9 bytes ``MMIDIDX\\0\\0``, uint64 version 1, uint8 dtype code, uint64 sequences n,
             uint64 d; int32 lengths (n), int64 byte offsets (n), int64 first sequence of each document and n at the
             end (d) (Megatron-LM's megatron/core/datasets/indexed_dataset.py)
===========  ===========================================================================================================
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.corpus.documents import CorpusError

RAW_DTYPES = {"uint16": "<u2", "uint32": "<u4"}
LLM_C_HEADER_BYTES = 1024
LLM_C_DTYPES = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
MEGATRON_HEADER = struct.Struct("<9sQBQQ")
MEGATRON_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
# First bytes of what is no token file, though a raw one may begin with anything.
FOREIGN = {b"\x93NUMPY": "a NumPy file", b"PAR1": "Parquet", b"\x1f\x8b\x08": "gzip", b"\xfd7zXZ\x00": "xz",
           b"\x28\xb5\x2f\xfd": "Zstandard", b"PK\x03\x04": "a zip archive", b"\x80\x04\x95": "a pickle"}  # fmt: skip
SNIFFED_BYTES = 1 << 21
BLOCK_SEQUENCES = 1 << 20
# High halves of 32-bit ids of a vocabulary below 2**20.
MAX_HIGH_HALF = 16
MIN_SNIFFED_IDS = 32


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Where the documents of a Megatron file lie; all arrays are memory-mapped.

    ``pointers`` (n,): byte each sequence starts at; ``lengths`` (n,): its tokens; document k is the sequences from
    ``bounds[k]`` to ``bounds[k + 1]``. ``tile_the_file``: the sequences in order are the file from start to end.
    """

    pointers: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    bounds: npt.NDArray[np.int64]
    tile_the_file: bool

    def __len__(self) -> int:
        return len(self.bounds) - 1


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """One file of token ids: ``num_tokens`` of ``dtype`` from ``start_byte``; ``documents`` where it tells them."""

    path: Path
    dtype: str
    start_byte: int
    num_tokens: int
    documents: Documents | None = None

    def read(self) -> npt.NDArray[Any]:
        """All ids, memory-mapped, (num_tokens,)."""
        return np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.start_byte, shape=(self.num_tokens,))

    def iter_documents(self) -> Iterator[npt.NDArray[Any]]:
        """Ids of each document, (its tokens,)."""
        assert self.documents is not None
        ids, documents = self.read(), self.documents
        for first, last in zip(documents.bounds[:-1], documents.bounds[1:], strict=True):
            starts = documents.pointers[first:last] // ids.itemsize
            pieces = [
                ids[start : start + length] for start, length in zip(starts, documents.lengths[first:last], strict=True)
            ]
            yield np.concatenate(pieces) if pieces else ids[:0]

    @property
    def is_whole_file(self) -> bool:
        """Whether the file holds these tokens and nothing else."""
        return self.start_byte == 0 and self.path.stat().st_size == self.num_tokens * np.dtype(self.dtype).itemsize


def open_token_file(path: Path, raw_dtype: str | None) -> TokenFile:
    """What lies in ``path``, a .bin file, or an .idx or .bin of a Megatron pair.

    Args:
        raw_dtype: ``uint16`` or ``uint32`` for raw files; None: found from the ids. Files with a header tell it.

    Raises:
        CorpusError: the file is missing, empty, cut off, of another kind, or contradicts ``raw_dtype``.
    """
    index = path.with_suffix(".idx")
    data = path.with_suffix(".bin") if path.suffix == ".idx" else path
    for needed in {data, index} if path.suffix == ".idx" else {data}:
        if not needed.is_file():
            raise CorpusError(f"tokens: {needed} does not exist; give token files that do")
    num_bytes = data.stat().st_size
    if not num_bytes:
        raise CorpusError(f"tokens: {data} is empty; write it again or leave it out")
    if index.exists():
        return _open_megatron(data, index)
    with open(data, "rb") as file:
        start = file.read(LLM_C_HEADER_BYTES)
    for magic, kind in FOREIGN.items():
        if start.startswith(magic):
            raise CorpusError(f"tokens: {data} is {kind}, no token file; write its ids as uint16 or uint32 (.tofile)")
    magic_and_version = struct.unpack("<2i", start[:8]) if num_bytes >= 8 else (0, 0)
    if magic_and_version[0] in {magic for magic, _ in LLM_C_DTYPES} and not any(start[12:]):
        return _open_llm_c(data, num_bytes, magic_and_version, start)
    return _open_raw(data, num_bytes, raw_dtype)


def _open_llm_c(path: Path, num_bytes: int, magic_and_version: tuple[int, ...], header: bytes) -> TokenFile:
    dtype = LLM_C_DTYPES.get((magic_and_version[0], magic_and_version[1]))
    if dtype is None:
        raise CorpusError(f"tokens: {path} has an llm.c header of version {magic_and_version[1]}; write it again")
    (num_tokens,) = struct.unpack("<i", header[8:12])
    expected = LLM_C_HEADER_BYTES + num_tokens * np.dtype(dtype).itemsize
    if num_tokens <= 0 or num_bytes != expected:
        raise CorpusError(
            f"tokens: {path} has {num_bytes:,} bytes, but its header promises {num_tokens:,} tokens in {expected:,}; "
            "it is cut off or damaged: fetch it again"
        )
    return TokenFile(path=path, dtype=dtype, start_byte=LLM_C_HEADER_BYTES, num_tokens=num_tokens)


def _open_raw(path: Path, num_bytes: int, raw_dtype: str | None) -> TokenFile:
    found = _sniff_raw_dtype(path, num_bytes)
    if raw_dtype is not None and raw_dtype not in RAW_DTYPES:
        raise CorpusError(f"token_dtype: is {raw_dtype!r}, but raw token files are uint16 or uint32; name one of them")
    if raw_dtype == "uint16" and found == "uint32":
        raise CorpusError(
            f"token_dtype: is 'uint16', but every second 16-bit number of {path} is below {MAX_HIGH_HALF}, as the high "
            "halves of uint32 ids are; leave token_dtype out or set it to uint32"
        )
    dtype = RAW_DTYPES[raw_dtype or found]
    size = np.dtype(dtype).itemsize
    if num_bytes % size:
        raise CorpusError(
            f"tokens: {path} has {num_bytes:,} bytes, no multiple of the {size} of a token; "
            "it is cut off or no token file: write it again"
        )
    return TokenFile(path=path, dtype=dtype, start_byte=0, num_tokens=num_bytes // size)


def _sniff_raw_dtype(path: Path, num_bytes: int) -> str:
    """``uint32`` where every second 16-bit number could be the high half of an id and the others are larger."""
    if num_bytes % 4:
        return "uint16"
    with open(path, "rb") as file:
        halves = np.frombuffer(file.read(SNIFFED_BYTES), dtype="<u2")
    low, high = halves[::2], halves[1::2]
    if len(low) < MIN_SNIFFED_IDS:
        return "uint16"
    return "uint32" if high.max() < MAX_HIGH_HALF and low.max() > high.max() else "uint16"


def _open_megatron(data: Path, index: Path) -> TokenFile:
    index_bytes, data_bytes = index.stat().st_size, data.stat().st_size
    with open(index, "rb") as file:
        header = file.read(MEGATRON_HEADER.size)
    if not header.startswith(MEGATRON_MAGIC) or len(header) < MEGATRON_HEADER.size:
        raise CorpusError(f"tokens: {index} is no Megatron index (it does not begin with MMIDIDX); move it away")
    _, version, code, n, d = MEGATRON_HEADER.unpack(header)
    if version != 1:
        raise CorpusError(f"tokens: {index} has version {version}, but this program reads 1; write it again")
    if code not in MEGATRON_DTYPES:
        codes = ", ".join(f"{code} ({np.dtype(dtype).name})" for code, dtype in MEGATRON_DTYPES.items())
        raise CorpusError(f"tokens: {index} has dtype code {code}, but token ids have one of {codes}; write it again")
    expected = MEGATRON_HEADER.size + 12 * n + 8 * d
    if not n or d < 2 or index_bytes not in (expected, expected + n):  # n more: a mode per sequence (multimodal)
        raise CorpusError(
            f"tokens: {index} has {index_bytes:,} bytes, but its header promises {expected:,} for {n:,} sequences and "
            f"{d:,} document bounds; it is cut off or damaged: write it again"
        )
    dtype = MEGATRON_DTYPES[code]
    size = np.dtype(dtype).itemsize
    place = MEGATRON_HEADER.size
    lengths = np.memmap(index, dtype="<i4", mode="r", offset=place, shape=(n,))
    pointers = np.memmap(index, dtype="<i8", mode="r", offset=place + 4 * n, shape=(n,))
    bounds = np.memmap(index, dtype="<i8", mode="r", offset=place + 12 * n, shape=(d,))
    tile_the_file, place = True, 0
    for block in _blocks(n):
        starts, sizes = np.asarray(pointers[block]), lengths[block].astype(np.int64) * size
        ends = starts + sizes
        if (sizes < 0).any() or (starts < 0).any() or (starts % size).any() or (ends > data_bytes).any():
            raise CorpusError(
                f"tokens: {index} points outside the {data_bytes:,} bytes of {data}; "
                "they are no pair, or one is cut off: fetch both again"
            )
        tile_the_file &= bool((starts == np.concatenate([[place], ends[:-1]])).all())
        place = int(ends[-1])
    descends = any((np.diff(bounds[block.start : block.stop + 1]) < 0).any() for block in _blocks(d - 1))
    if bounds[0] != 0 or bounds[-1] != n or descends:
        raise CorpusError(f"tokens: the documents of {index} do not run from 0 to its {n:,} sequences; write it again")
    documents = Documents(
        pointers=pointers, lengths=lengths, bounds=bounds, tile_the_file=tile_the_file and place == data_bytes
    )
    return TokenFile(path=data, dtype=dtype, start_byte=0, num_tokens=data_bytes // size, documents=documents)


def _blocks(length: int) -> Iterator[slice]:
    for start in range(0, length, BLOCK_SEQUENCES):
        yield slice(start, min(start + BLOCK_SEQUENCES, length))
