"""Token shards on disk: what the engine memory-maps.

A corpus folder holds `corpus.json` (the manifest), `tokenizer.json` (where the tokenizer is known), and per split raw
little-endian token files, one flat stream. Documents follow each other; those prepared from text are each closed by the
end-of-text token, ready-made token files are as they came.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.records import write_json_atomically

MANIFEST_FILE = "corpus.json"
TOKENIZER_FILE = "tokenizer.json"
MANIFEST_VERSION = 1
SHARD_TOKENS = 50_000_000
DTYPES = {"uint16": "<u2", "uint32": "<u4"}


@dataclass(frozen=True, kw_only=True)
class Split:
    """``num_bytes`` of text and ``num_documents`` are None where ready-made tokens do not tell."""

    files: tuple[str, ...]
    num_tokens: int
    num_bytes: int | None
    num_documents: int | None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared corpus is; ``content_hash`` covers the tokenizer and every token."""

    name: str
    content_hash: str
    vocab_size: int
    dtype: str
    splits: dict[str, Split]
    origin: str
    licence: str

    @property
    def bytes_per_token(self) -> float | None:
        """Text bytes a token of the validation split: what turns nats per token into bits per byte. None: unknown."""
        split = self.splits["validation"]
        return None if split.num_bytes is None else split.num_bytes / split.num_tokens


class ShardWriter:
    """Appends documents of one split; :meth:`close` syncs the files and returns what they hold."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype[Any]) -> None:
        self._folder, self._split, self._dtype = folder, split, dtype
        self._files: list[str] = []
        self._open_file: Any = None
        self._tokens_in_file = 0
        self._num_tokens = self._num_documents = 0
        self._num_bytes: int | None = 0
        self._hash = hashlib.sha256()

    def add(self, token_ids: npt.ArrayLike, num_bytes: int | None) -> None:
        """Append one document; ``num_bytes`` of its text, None where that is unknown."""
        if self._open_file is None or self._tokens_in_file >= SHARD_TOKENS:
            self._finish_file()
            self._files.append(f"{self._split}-{len(self._files):05d}.bin")
            self._open_file = open(self._folder / self._files[-1], "wb")  # noqa: SIM115 - closed by _finish_file
        ids = np.asarray(token_ids).astype(self._dtype)
        data = ids.tobytes()
        self._open_file.write(data)
        self._hash.update(data)
        self._tokens_in_file += len(ids)
        self._num_tokens += len(ids)
        self._num_bytes = None if num_bytes is None or self._num_bytes is None else self._num_bytes + num_bytes
        self._num_documents += 1

    def _finish_file(self) -> None:
        if self._open_file is not None:
            self._open_file.flush()
            os.fsync(self._open_file.fileno())
            self._open_file.close()
        self._open_file, self._tokens_in_file = None, 0

    def close(self) -> tuple[Split, str]:
        """The split and the SHA-256 of its token bytes."""
        self._finish_file()
        split = Split(
            files=tuple(self._files),
            num_tokens=self._num_tokens,
            num_bytes=self._num_bytes,
            num_documents=self._num_documents,
        )
        return split, self._hash.hexdigest()


def content_hash(folder: Path, split_digests: list[str]) -> str:
    """SHA-256 over the tokenizer's file, if there is one, and the SHA-256 of each split's token bytes, train first."""
    tokenizer = folder / TOKENIZER_FILE
    content = hashlib.sha256(tokenizer.read_bytes() if tokenizer.exists() else b"")
    for digest in split_digests:
        content.update(digest.encode())
    return content.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    values = {
        "version": MANIFEST_VERSION,
        "name": manifest.name,
        "content_hash": manifest.content_hash,
        "vocab_size": manifest.vocab_size,
        "dtype": manifest.dtype,
        "origin": manifest.origin,
        "licence": manifest.licence,
        "splits": {name: vars(split) | {"files": list(split.files)} for name, split in manifest.splits.items()},
    }
    write_json_atomically(folder / MANIFEST_FILE, values)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared corpus.

    Raises:
        ValueError: the folder holds no prepared corpus, or one of another version.
    """
    path = folder / MANIFEST_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"corpus {folder.name!r} is not prepared; run growthlaw corpus prepare {folder.name}"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); prepare the corpus again") from None
    version = values.get("version") if isinstance(values, dict) else None
    if version != MANIFEST_VERSION:
        raise ValueError(f"{path} has version {version!r}, but this program reads {MANIFEST_VERSION}; prepare it again")
    try:
        splits = {name: Split(**(split | {"files": tuple(split["files"])})) for name, split in values["splits"].items()}
        names = ("name", "content_hash", "vocab_size", "dtype", "origin", "licence")
        return Manifest(**{name: values[name] for name in names}, splits=splits)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); prepare the corpus again") from None


def prepared_corpora(folder: Path) -> list[Manifest]:
    """Every corpus prepared in a folder of corpora, by name; a damaged one is left out."""
    found = []
    for path in sorted(folder.glob(f"[!.]*/{MANIFEST_FILE}")):
        with contextlib.suppress(ValueError):
            found.append(read_manifest(path.parent))
    return found
