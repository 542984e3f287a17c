"""Token shards: which tokens each training step and each evaluation reads.

A corpus folder holds `corpus.json` and raw little-endian token files; the files of a split are one flat stream,
memory-mapped. Window i is tokens [i S, i S + S]: S inputs and the same shifted by one as targets, so the inputs
of all windows tile the stream without overlap.

    epoch e = s div W,  window = P_(seed, e)(s mod W)

======  ====================================================================  ======
symbol  meaning                                                               unit
======  ====================================================================  ======
s       sequences read before this one in the whole run, across all phases    -
W       windows of the train split, floor((tokens - 1) / S)                   -
S       context length                                                        tokens
P       permutation of 0..W-1, see :func:`permute`                            -
======  ====================================================================  ======

The order is a function of (data seed, s) alone: there is no reader state to save, a restart reads on at the same
token, also with another number of processes (:func:`share_of_rank`), and the grown phase starts exactly where the base
stopped.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.contract import Spec
from app.engine.errors import BadDataError

MANIFEST_FILE = "corpus.json"
MANIFEST_VERSION = 1
DTYPES = {"uint16": "<u2", "uint32": "<u4"}
NUM_FEISTEL_ROUNDS = 6
NUM_CHECKED_BLOCKS = 64
CHECKED_BLOCK_TOKENS = 65_536

Integers = npt.NDArray[np.int64]


class TokenStream:
    """One split: its files as one flat stream of token ids."""

    def __init__(self, files: list[Path], dtype: str) -> None:
        self._parts = [np.memmap(file, dtype=dtype, mode="r") for file in files if file.stat().st_size]
        self._starts = np.cumsum([0] + [len(part) for part in self._parts])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, length: int) -> Integers:
        """Tokens [start, start + length) as int64 (length,); may cross files."""
        pieces: list[npt.NDArray[Any]] = []
        part = int(np.searchsorted(self._starts, start, side="right")) - 1
        while length > 0:
            piece = self._parts[part][start - self._starts[part] :][:length]
            pieces.append(piece)
            start, length, part = start + len(piece), length - len(piece), part + 1
        return np.concatenate(pieces).astype(np.int64)

    def windows(self, indices: Integers, context_length: int) -> Integers:
        """Windows (len(indices), context_length + 1): inputs are [:, :-1], targets [:, 1:]."""
        return np.stack([self.read(int(i) * context_length, context_length + 1) for i in indices])

    def num_windows(self, context_length: int) -> int:
        return max(0, (len(self) - 1) // context_length)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A prepared corpus, checked against a spec."""

    directory: Path
    content_hash: str
    train: TokenStream
    validation: TokenStream


def open_corpus(spec: Spec) -> Corpus:
    """The spec's corpus, checked before any training.

    Raises:
        BadDataError: it is missing, of another version, damaged, too small, or made for a larger vocabulary.
    """
    directory = Path(spec.corpus_dir)
    manifest = _read_manifest(directory)
    vocab_size = manifest["vocab_size"]
    if vocab_size > spec.model.vocab_size:
        raise BadDataError(
            f"model.vocab_size is {spec.model.vocab_size}, but {directory / MANIFEST_FILE} was made with {vocab_size} "
            "tokens; raise model.vocab_size or prepare the corpus with a smaller vocabulary"
        )
    train, validation = (_open_split(directory, manifest, name) for name in ("train", "validation"))
    for name, stream, field, needed in (
        ("train", train, "training.batch_sequences", spec.training.batch_sequences),
        ("validation", validation, "evaluation.num_windows", spec.evaluation.num_windows),
    ):
        num_windows = stream.num_windows(spec.model.context_length)
        if num_windows < needed:
            raise BadDataError(
                f"{field} is {needed}, but the {name} split of {directory} holds {num_windows} windows of "
                f"{spec.model.context_length} tokens; lower {field} or prepare more text"
            )
        largest = _largest_token(stream)
        if largest >= vocab_size:
            raise BadDataError(
                f"the {name} split of {directory} holds token id {largest}, but its vocabulary has {vocab_size} "
                "tokens; the files are damaged: prepare the corpus again"
            )
    return Corpus(directory=directory, content_hash=manifest["content_hash"], train=train, validation=validation)


def open_train_split(directory: Path, *, vocab_size: int) -> TokenStream:
    """The train split of a prepared corpus, for a model of ``vocab_size`` tokens.

    Raises:
        BadDataError: it is missing, of another version, damaged, or made for a larger vocabulary.
    """
    manifest = _read_manifest(directory)
    if manifest["vocab_size"] > vocab_size:
        raise BadDataError(
            f"the model's vocabulary has {vocab_size} tokens, but {directory / MANIFEST_FILE} was made with "
            f"{manifest['vocab_size']}; prepare the corpus with the model's own tokenizer"
        )
    return _open_split(directory, manifest, "train")


def train_windows(sequences: Integers, *, num_windows: int, data_seed: int) -> Integers:
    """Window of each sequence of the run.

    Args:
        sequences: indices s of sequences in the whole run, (B,), any values from 0.
        num_windows: W, windows of the train split.
        data_seed: seed of the order, from 0.

    Returns:
        Window indices (B,), each in [0, W); W sequences in a row from a multiple of W are a permutation.
    """
    windows = np.empty_like(sequences)
    epochs = sequences // num_windows
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        windows[inside] = permute(sequences[inside] % num_windows, size=num_windows, seed=(data_seed, int(epoch)))
    return windows


def share_of_rank(count: int, *, rank: int, size: int) -> slice:
    """The part of ``count`` sequences or windows in a row that one of ``size`` processes reads.

    In the order of ranks the parts are the whole, so the processes of a run read together what one alone would read,
    and a restart with another number of them reads on at the same token.

    >>> [share_of_rank(8, rank=rank, size=2) for rank in range(2)]
    [slice(0, 4, None), slice(4, 8, None)]
    """
    assert count % size == 0, f"{count} does not divide among {size} processes; Spec.num_processes checks that"
    length = count // size
    return slice(rank * length, (rank + 1) * length)


def validation_windows(*, num_available: int, num_windows: int) -> Integers:
    """``num_windows`` windows spread evenly over a split: the same for every run of a corpus."""
    return np.arange(num_windows, dtype=np.int64) * num_available // num_windows


def permute(indices: Integers, *, size: int, seed: tuple[int, int]) -> Integers:
    """A seeded permutation of 0..size-1, evaluated at ``indices`` only, in constant memory.

    A Feistel network is a bijection on pairs of k-bit halves whatever its round function; an image at or above
    ``size`` is sent through again until it falls inside, which keeps it a bijection on 0..size-1 (cycle-walking:
    Black and Rogaway, CT-RSA 2002, "Ciphers with arbitrary finite domains").
    """
    half_bits = max(1, -(-(size - 1).bit_length() // 2))
    keys = _round_keys(seed)
    images = _feistel(indices.astype(np.uint64), half_bits, keys)
    while (outside := images >= size).any():
        images[outside] = _feistel(images[outside], half_bits, keys)
    return images.astype(np.int64)


@functools.lru_cache(maxsize=8)
def _round_keys(seed: tuple[int, int]) -> npt.NDArray[np.uint64]:
    return np.random.SeedSequence(seed).generate_state(NUM_FEISTEL_ROUNDS, np.uint64).astype(np.uint64)


def _feistel(values: npt.NDArray[np.uint64], half_bits: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    # The finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): every input bit reaches every output bit.
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["version"]
        known = version == MANIFEST_VERSION
        if known:
            for name in ("train", "validation"):
                list(manifest["splits"][name]["files"]), int(manifest["splits"][name]["num_tokens"])
            known = manifest["dtype"] in DTYPES and int(manifest["vocab_size"]) > 0 and bool(manifest["content_hash"])
    except OSError as error:
        raise BadDataError(
            f"corpus_dir is {str(directory)!r}, but {path.name} cannot be read there ({error.strerror}); prepare the "
            "corpus first or point corpus_dir at a prepared one"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise BadDataError(f"{path} is damaged ({error!r}); prepare the corpus again") from None
    if not known:
        raise BadDataError(
            f"{path} has version {version!r} and dtype {manifest.get('dtype')!r}, but this engine reads version "
            f"{MANIFEST_VERSION} with uint16 or uint32 tokens; prepare the corpus again"
        )
    return dict(manifest)


def _open_split(directory: Path, manifest: dict[str, Any], name: str) -> TokenStream:
    split, dtype = manifest["splits"][name], DTYPES[manifest["dtype"]]
    files = [directory / file for file in split["files"]]
    for file in files:
        if not file.is_file():
            raise BadDataError(f"{file} of the {name} split is missing; prepare the corpus again")
    num_bytes = sum(file.stat().st_size for file in files)
    expected_bytes = split["num_tokens"] * np.dtype(dtype).itemsize
    whole_tokens = all(file.stat().st_size % np.dtype(dtype).itemsize == 0 for file in files)
    if num_bytes != expected_bytes or not whole_tokens:
        raise BadDataError(
            f"the {name} split of {directory} has {num_bytes} bytes in its files, but {MANIFEST_FILE} promises "
            f"{expected_bytes}; a file is cut off or damaged: prepare the corpus again"
        )
    if not num_bytes:
        raise BadDataError(f"the {name} split of {directory} is empty; prepare the corpus from more text")
    return TokenStream(files, dtype)


def _largest_token(stream: TokenStream) -> int:
    """Largest id in up to 64 blocks spread evenly: all of a small corpus, a sample of a large one."""
    length = min(CHECKED_BLOCK_TOKENS, len(stream))
    last = len(stream) - length
    starts = sorted({last * i // (NUM_CHECKED_BLOCKS - 1) for i in range(NUM_CHECKED_BLOCKS)})
    return max(int(stream.read(start, length).max()) for start in starts)
