"""What a checkpoint is evaluated on: a split of a prepared corpus, or text files through the checkpoint's own tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.corpus.documents import SUFFIXES, find_files, read_documents
from app.corpus.shards import DTYPES, MANIFEST_FILE, TOKENIZER_FILE, ShardWriter, read_manifest
from app.corpus.tokenizers import encode_texts, end_of_text_id, load_tokenizer, token_byte_lengths, vocab_size_of
from fitting.errors import InputError

SPLITS = ("train", "validation")
TEXTS_PER_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """A named token stream.

    Attributes:
        source: what was named: a corpus and its split, or files.
        dtype: of the files, little-endian (``<u2``, ``<u4``).
        content_hash: of the corpus; None for text files.
        byte_lengths: bytes of text of each token by id; None where the tokenizer is unknown or not byte-level.
        bytes_per_token: mean over the set; None where unknown.
        tokenizer: what made the tokens (a ``tokenizers.Tokenizer``); None where it is unknown.
    """

    name: str
    source: str
    files: tuple[Path, ...]
    dtype: str
    num_tokens: int
    content_hash: str | None
    byte_lengths: npt.NDArray[np.int64] | None
    bytes_per_token: float | None
    tokenizer: Any


def open_corpus_split(name: str, folder: Path, split: str = "validation") -> EvaluationSet:
    """One split of a prepared corpus.

    Raises:
        ValueError: the folder holds no whole corpus.
    """
    manifest = read_manifest(folder)
    stored, dtype = manifest.splits[split], DTYPES[manifest.dtype]
    files = tuple(folder / file for file in stored.files)
    num_bytes = sum(file.stat().st_size for file in files if file.is_file())
    if num_bytes != stored.num_tokens * np.dtype(dtype).itemsize:
        raise InputError(
            f"set {name}",
            f"is the {split} split of {folder}, whose files have {num_bytes:,} bytes instead of "
            f"{stored.num_tokens * np.dtype(dtype).itemsize:,}",
            "prepare the corpus again",
        )
    tokenizer = load_tokenizer(str(folder / TOKENIZER_FILE)) if (folder / TOKENIZER_FILE).exists() else None
    return EvaluationSet(
        name=name,
        source=f"{manifest.name}:{split}",
        files=files,
        dtype=dtype,
        num_tokens=stored.num_tokens,
        content_hash=manifest.content_hash,
        byte_lengths=_padded_byte_lengths(tokenizer, manifest.vocab_size),
        bytes_per_token=None if stored.num_bytes is None else stored.num_bytes / stored.num_tokens,
        tokenizer=tokenizer,
    )


def encode_files(
    name: str, path: Path, *, tokenizer_file: Path, scratch: Path, text_column: str = "text"
) -> EvaluationSet:
    """Text files (or a folder of them), encoded into ``scratch``; the end-of-text token, if there is one, closes a document.

    Raises:
        CorpusError: a file cannot be read.
        InputError: the files hold no text.
    """
    tokenizer = load_tokenizer(str(tokenizer_file))
    end_of_text = end_of_text_id(tokenizer)
    closing = [] if end_of_text is None else [end_of_text]
    folder = scratch / f"set-{name}"
    folder.mkdir(parents=True)
    writer = ShardWriter(folder, "tokens", np.dtype("<u4"))
    batch: list[str] = []

    def flush() -> None:
        for text, ids in zip(batch, encode_texts(tokenizer, batch), strict=True):
            writer.add([*ids, *closing], len(text.encode()))
        batch.clear()

    for file in find_files((str(path),)):
        for text in read_documents(file, text_column):
            batch.append(text)
            if len(batch) == TEXTS_PER_BATCH:
                flush()
    flush()
    split, _ = writer.close()
    if not split.num_tokens:
        raise InputError(f"set {name}", f"is {path}, which holds no text", "give files with text")
    return EvaluationSet(
        name=name,
        source=str(path),
        files=tuple(folder / file for file in split.files),
        dtype="<u4",
        num_tokens=split.num_tokens,
        content_hash=None,
        byte_lengths=_padded_byte_lengths(tokenizer, vocab_size_of(tokenizer)),
        bytes_per_token=(split.num_bytes or 0) / split.num_tokens,
        tokenizer=tokenizer,
    )


def is_corpus(path: Path) -> bool:
    return (path / MANIFEST_FILE).is_file()


def is_text(path: Path) -> bool:
    """Whether ``path`` is a text file by its name, or a folder."""
    return path.is_dir() or path.name.endswith(SUFFIXES)


def check_vocabulary(chosen: EvaluationSet, tokenizer_file: Path) -> None:
    """Refuse a set of another tokenizer than the checkpoint's: its ids would mean other tokens, or cut text elsewhere.

    The vocabularies must be equal; of added tokens the checkpoint may have more.

    Raises:
        InputError: a token has another id, or none, in one of the two.
    """
    if chosen.tokenizer is None:
        return
    own = load_tokenizer(str(tokenizer_file))
    theirs = chosen.tokenizer.get_vocab(with_added_tokens=False)
    ours = own.get_vocab(with_added_tokens=False)
    added = chosen.tokenizer.get_vocab(with_added_tokens=True)
    known = own.get_vocab(with_added_tokens=True)
    wrong = [token for token in theirs | ours if theirs.get(token) != ours.get(token)]
    wrong += [token for token, token_id in added.items() if known.get(token) != token_id]
    if wrong:
        token = min(wrong)
        raise InputError(
            f"set {chosen.name}",
            f"was made with another tokenizer than {tokenizer_file}: token {token!r} is {added.get(token, 'missing')} "
            f"there and {known.get(token, 'missing')} here",
            "prepare a corpus with the checkpoint's tokenizer, or give the text itself",
        )


def _padded_byte_lengths(tokenizer: Any, vocab_size: int) -> npt.NDArray[np.int64] | None:
    lengths = token_byte_lengths(tokenizer) if tokenizer else None
    return None if lengths is None else np.pad(lengths, (0, max(0, vocab_size - len(lengths))))
