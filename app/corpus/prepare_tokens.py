"""A corpus from ready-made token files (:mod:`app.corpus.token_files`): placed, checked, described.

A file whose tokens are stored as the engine reads them (uint16, uint32, or the same bits as int16, int32) is copied by
the kernel: on file systems that share blocks (XFS, Btrfs) this takes no space, and what happens to the original later
does not reach the corpus. ``link`` makes hard links instead, anywhere: no space and no time, but whoever later writes
*into* the original (not: deletes or replaces it) changes the corpus. Other types are converted.

Without validation files whole documents are held out, where the files tell documents (Megatron): one is held out when
the SHA-256 of its ids (as uint32), read as a number in [0, 1), lies below ``validation_fraction``. The documents are
then written anew, one flat stream a split. End-of-text tokens are where the files have them; none is added.

Every id is read once, for the hash, the bounds, and, with a byte-level tokenizer, the bytes of text.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.contract import NAME_PATTERN
from app.corpus.documents import CorpusError
from app.corpus.folders import new_corpus_folder, refuse_existing
from app.corpus.shards import DTYPES, TOKENIZER_FILE, Manifest, ShardWriter, Split, content_hash, write_manifest
from app.corpus.token_files import TokenFile, open_token_file
from app.corpus.tokenizers import load_tokenizer, token_byte_lengths, vocab_size_of
from app.records import write_text_atomically

SAME_BITS = {"<u2": "uint16", "<i2": "uint16", "<u4": "uint32", "<i4": "uint32"}
CHUNK_BYTES = 1 << 24

# stage ("copy" | "check" | "split"), bytes done, bytes in all
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class TokenFilesSpec:
    """One corpus of ready-made tokens.

    Attributes:
        train, validation: files, or patterns such as ``train_*.bin``; the files of a pattern in the order of their names.
        token_dtype: of raw files, ``uint16`` or ``uint32``; None: found from the ids.
        vocab_size: every id lies below it. None: the tokenizer's, or without one the largest id found plus one.
        tokenizer: tokenizers JSON the ids belong to; only with a byte-level one are bits per byte known.
        validation_fraction: of documents, where no validation file is given.
        link: hard links instead of copies.
    """

    name: str
    corpus_dir: str
    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    token_dtype: str | None = None
    vocab_size: int | None = None
    tokenizer: str | None = None
    validation_fraction: float = 0.05
    link: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME_PATTERN, self.name):
            raise CorpusError(f"name is {self.name!r}, but names match {NAME_PATTERN}; choose such a name")
        if not self.train:
            raise CorpusError("tokens: none given; give the files of the train split")
        if self.vocab_size is not None and not 0 < self.vocab_size <= 2**32:
            raise CorpusError(f"vocab_size is {self.vocab_size}, but it must lie in [1, 2^32]; give the tokenizer's")
        if not 0 < self.validation_fraction <= 0.5:
            raise CorpusError(
                f"validation_fraction is {self.validation_fraction}, but it must lie in (0, 0.5]; hold out 0.05 if unsure"
            )


@dataclass
class _Census:
    """What one pass over the ids of a split finds."""

    byte_lengths: npt.NDArray[np.int64] | None
    vocab_size: int | None
    largest: int = -1
    num_bytes: int = 0

    def add(self, ids: npt.NDArray[Any], where: str) -> None:
        if not len(ids):
            return
        smallest, largest = int(ids.min()), int(ids.max())
        self.largest = max(self.largest, largest)
        if smallest < 0 or largest >= (self.vocab_size or 2**32):
            wrong = smallest if smallest < 0 else largest
            limit = f"the vocabulary has {self.vocab_size} tokens" if self.vocab_size else "ids lie below 2^32"
            raise CorpusError(
                f"tokens: {where} holds id {wrong}, but {limit}; give the right vocab_size, tokenizer or token_dtype"
            )
        if self.byte_lengths is not None:
            self.num_bytes += int(self.byte_lengths[ids].sum())


def prepare_token_files(spec: TokenFilesSpec, progress: Progress = lambda stage, done, total: None) -> Manifest:
    """Prepare ``spec.corpus_dir`` from token files.

    Raises:
        CorpusError: the folder exists, a file is not what it says, an id lies outside the vocabulary, or a split is empty.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    refuse_existing(spec.name, Path(spec.corpus_dir))
    files = {
        "train": [open_token_file(path, spec.token_dtype) for path in _find(spec.train, "tokens")],
        "validation": [open_token_file(path, spec.token_dtype) for path in _find(spec.validation, "validation_tokens")],
    }
    if twice := {file.path.resolve() for file in files["train"]} & {f.path.resolve() for f in files["validation"]}:
        raise CorpusError(f"validation_tokens: {min(twice)} is a train file too; hold out other tokens")
    tokenizer = load_tokenizer(spec.tokenizer) if spec.tokenizer else None
    vocab_size = spec.vocab_size or (vocab_size_of(tokenizer) if tokenizer else None)
    if tokenizer and vocab_size_of(tokenizer) > (vocab_size or 0):
        raise CorpusError(
            f"vocab_size is {vocab_size}, but {spec.tokenizer} has ids up to {vocab_size_of(tokenizer) - 1}; "
            "leave vocab_size out or raise it"
        )
    dtype = _common_dtype([*files["train"], *files["validation"]], vocab_size)
    lengths = token_byte_lengths(tokenizer) if tokenizer else None
    if lengths is not None:
        lengths = np.pad(lengths, (0, (vocab_size or 0) - len(lengths)))
    censuses = {name: _Census(byte_lengths=lengths, vocab_size=vocab_size) for name in files}
    with new_corpus_folder(spec.name, Path(spec.corpus_dir)) as folder:
        if tokenizer:
            write_text_atomically(folder / TOKENIZER_FILE, tokenizer.to_str(pretty=True))
        if files["validation"]:
            closed = {
                name: _place(files[name], folder, name, dtype, censuses[name], spec.link, progress) for name in files
            }
        else:
            closed = _hold_out(files["train"], folder, dtype, censuses, spec, progress)
        for name, (split, _) in closed.items():
            if not split.num_tokens:
                raise CorpusError(
                    f"tokens: none are left for {name}; give validation_tokens, or change validation_fraction"
                )
        manifest = Manifest(
            name=spec.name,
            content_hash=content_hash(folder, [digest for _, digest in closed.values()]),
            vocab_size=vocab_size or max(census.largest for census in censuses.values()) + 1,
            dtype=dtype,
            splits={name: split for name, (split, _) in closed.items()},
            origin=", ".join(file.path.name for file in files["train"] + files["validation"]),
            licence="unknown",
        )
        write_manifest(folder, manifest)
    return manifest


def _find(patterns: tuple[str, ...], field: str) -> list[Path]:
    found: list[Path] = []
    for pattern in patterns:
        matches = sorted(glob.glob(pattern)) if not Path(pattern).exists() else [pattern]
        if not matches:
            raise CorpusError(f"{field}: {pattern} does not exist; give token files that do")
        found += map(Path, matches)
    if len({path.resolve() for path in found}) < len(found):
        raise CorpusError(f"{field}: a file is named twice; name each once")
    return found


def _common_dtype(files: list[TokenFile], vocab_size: int | None) -> str:
    """How the corpus stores ids: as the files do where they agree, else by the vocabulary."""
    stored = {SAME_BITS.get(file.dtype) for file in files}
    if len(stored) == 1 and (same := stored.pop()):
        return same
    return "uint16" if (vocab_size or 2**32) <= 2**16 else "uint32"


def _place(
    files: list[TokenFile], folder: Path, split: str, dtype: str, census: _Census, link: bool, progress: Progress
) -> tuple[Split, str]:
    """One file of the corpus for each file given; returns the split and the SHA-256 of its token bytes."""
    digest = hashlib.sha256()
    names: list[str] = []
    num_tokens = 0
    for file in files:
        names.append(f"{split}-{len(names):05d}.bin")
        target = folder / names[-1]
        if reason := _why_rewritten(file, dtype):
            if link:
                raise CorpusError(f"link: {file.path} cannot be linked: {reason}; leave link out")
            chunks = _rewrite(file, target, dtype)
        else:
            if link:
                _link(file, target)
            else:
                _copy_bytes(file, target, progress)
            # The corpus's own file is read: the hash is of what will be trained on. As stored: -1 is seen as such.
            chunks = _chunks(np.memmap(target, dtype=file.dtype, mode="r"))
        done = 0
        for chunk in chunks:
            census.add(chunk, str(file.path))
            digest.update(chunk.astype(DTYPES[dtype]).tobytes())
            done += len(chunk)
            progress(f"check {file.path.name}", done * chunk.itemsize, file.num_tokens * chunk.itemsize)
        num_tokens += done
    documents = [len(file.documents) for file in files if file.documents is not None]
    made = Split(
        files=tuple(names),
        num_tokens=num_tokens,
        num_bytes=census.num_bytes if census.byte_lengths is not None else None,
        num_documents=sum(documents) if len(documents) == len(files) else None,
    )
    return made, digest.hexdigest()


def _hold_out(
    files: list[TokenFile],
    folder: Path,
    dtype: str,
    censuses: dict[str, _Census],
    spec: TokenFilesSpec,
    progress: Progress,
) -> dict[str, tuple[Split, str]]:
    """Documents written anew into two splits, each by its own hash."""
    if bare := [file.path for file in files if file.documents is None]:
        raise CorpusError(
            f"validation_tokens: none given, and {bare[0]} does not tell its documents, so that none can be held out; "
            "give validation_tokens"
        )
    if spec.link:
        raise CorpusError("link: without validation_tokens documents are sorted into new files; give them or copy")
    writers = {name: ShardWriter(folder, name, np.dtype(DTYPES[dtype])) for name in censuses}
    for file in files:
        done = 0
        for ids in file.iter_documents():
            position = int.from_bytes(hashlib.sha256(ids.astype("<u4").tobytes()).digest()[:8], "big") / 2**64
            name = "validation" if position < spec.validation_fraction else "train"
            before = censuses[name].num_bytes
            censuses[name].add(ids, str(file.path))
            writers[name].add(ids, None if censuses[name].byte_lengths is None else censuses[name].num_bytes - before)
            done += ids.nbytes
            progress(f"split {file.path.name}", done, file.path.stat().st_size)
    return {name: writer.close() for name, writer in writers.items()}


def _why_rewritten(file: TokenFile, dtype: str) -> str | None:
    """Why the file's bytes cannot be the corpus's; None where they can."""
    if SAME_BITS.get(file.dtype) != dtype:
        return f"its ids are {np.dtype(file.dtype).name} and become {dtype}"
    if file.documents is not None and not file.documents.tile_the_file:
        return "its sequences overlap, leave gaps or are out of order"
    return None


def _rewrite(file: TokenFile, target: Path, dtype: str) -> Iterator[npt.NDArray[Any]]:
    """Write the ids as ``dtype``, each chunk after the caller has seen it as it was stored."""
    as_it_lies = file.documents is None or file.documents.tile_the_file
    with open(target, "wb") as written:
        for chunk in _chunks(file.read()) if as_it_lies else file.iter_documents():
            yield chunk
            written.write(chunk.astype(DTYPES[dtype]).tobytes())
        written.flush()
        os.fsync(written.fileno())


def _chunks(ids: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    step = CHUNK_BYTES // ids.itemsize
    for start in range(0, len(ids), step):
        yield np.asarray(ids[start : start + step])


def _link(file: TokenFile, target: Path) -> None:
    if not file.is_whole_file:
        raise CorpusError(f"link: {file.path} cannot be linked: its header must go; leave link out")
    try:
        os.link(file.path.resolve(), target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        raise CorpusError(
            f"link: {file.path} cannot be linked ({error.strerror}); leave link out, or keep the corpus beside it"
        ) from None


def _copy_bytes(file: TokenFile, target: Path, progress: Progress) -> None:
    """The file's token bytes by the kernel, or through this process where it will not."""
    total = file.num_tokens * np.dtype(file.dtype).itemsize
    with open(file.path, "rb") as source, open(target, "wb") as written:
        done, by_kernel = 0, hasattr(os, "copy_file_range")
        while done < total:
            length = min(total - done, CHUNK_BYTES)
            if by_kernel:
                try:
                    copied = os.copy_file_range(
                        source.fileno(), written.fileno(), length, offset_src=file.start_byte + done, offset_dst=done
                    )
                except OSError as error:
                    if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
                        raise
                    by_kernel = False
                    continue
            else:
                copied = os.pwrite(written.fileno(), os.pread(source.fileno(), length, file.start_byte + done), done)
            if not copied:
                raise CorpusError(f"tokens: {file.path} became shorter while it was copied; leave it alone meanwhile")
            done += copied
            progress(f"copy {file.path.name}", done, total)
        os.fsync(written.fileno())
