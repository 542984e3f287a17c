"""Preparing a corpus: documents -> byte-level BPE tokenizer -> token shards, in a folder that appears whole or not.

Two passes over the documents. The first trains the tokenizer (unless one is given), counts bytes and finds which
documents are held out; the second encodes. The split is by document and depends on its text alone: a document is held
out when its SHA-256, read as a number in [0, 1), lies below `validation_fraction`. The bundled corpus comes already split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from app.bundled import bundled_dir
from app.contract import CorpusSpec
from app.corpus.documents import CorpusError, find_files, read_documents
from app.corpus.folders import new_corpus_folder, refuse_existing
from app.corpus.shards import DTYPES, TOKENIZER_FILE, Manifest, ShardWriter, content_hash, write_manifest
from app.corpus.tokenizers import END_OF_TEXT, encode_texts, end_of_text_id, load_tokenizer, vocab_size_of
from app.records import write_text_atomically

TEXTS_PER_BATCH = 64

# stage ("read" | "tokenize"), bytes done, bytes in all (None while unknown)
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where documents come from. ``split_of`` is None where the text's own hash decides."""

    files: list[tuple[Path, str | None]]
    text_column: str
    validation_fraction: float
    origin: str
    licence: str

    def documents(self) -> Iterator[tuple[str, str]]:
        """(split, text) of every document that is not blank."""
        for path, split in self.files:
            for text in read_documents(path, self.text_column):
                if text.strip():
                    yield split or self._split_of(text), text

    def _split_of(self, text: str) -> str:
        digest = hashlib.sha256(text.encode()).digest()
        position = int.from_bytes(digest[:8], "big") / 2**64
        return "validation" if position < self.validation_fraction else "train"


def _open_source(spec: CorpusSpec) -> _Source:
    if spec.sources:
        files: list[tuple[Path, str | None]] = [(path, None) for path in find_files(spec.sources)]
        origin, licence = ", ".join(Path(source).name for source in spec.sources), "unknown"
    else:
        folder = bundled_dir("corpus")
        card = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        files = [(folder / split["file"], name) for name, split in card["splits"].items()]
        origin, licence = card["origin"], card["licence"]
    return _Source(
        files=files,
        text_column=spec.text_column,
        validation_fraction=spec.validation_fraction,
        origin=origin,
        licence=licence,
    )


def prepare_corpus(spec: CorpusSpec, progress: Progress = lambda stage, done, total: None) -> Manifest:
    """Prepare ``spec.corpus_dir``.

    Raises:
        CorpusError: the folder exists, a source cannot be read, or a split would be empty.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    target = Path(spec.corpus_dir)
    refuse_existing(spec.name, target)
    source = _open_source(spec)
    tokenizer, num_bytes = _first_pass(spec, source, progress)
    with new_corpus_folder(spec.name, target) as folder:
        return _write_shards(spec, source, tokenizer, folder, num_bytes, progress)


def _first_pass(spec: CorpusSpec, source: _Source, progress: Progress) -> tuple[Any, int]:
    num_bytes = 0
    num_documents = {"train": 0, "validation": 0}

    def train_texts() -> Iterator[str]:
        nonlocal num_bytes
        for split, text in source.documents():
            num_bytes += len(text.encode())
            num_documents[split] += 1
            progress("read", num_bytes, None)
            if split == "train":
                yield text

    tokenizer = load_tokenizer(spec.tokenizer) if spec.tokenizer else _empty_tokenizer()
    if spec.tokenizer:
        if end_of_text_id(tokenizer) is None:
            tokenizer.add_special_tokens([END_OF_TEXT])
        for _ in train_texts():
            pass
    else:
        trainer = trainers.BpeTrainer(
            vocab_size=spec.vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(train_texts(), trainer)
    for split, count in num_documents.items():
        if count == 0:
            raise CorpusError(
                f"sources: {sum(num_documents.values())} documents leave none for {split}; "
                "give more text, or change validation_fraction"
            )
    return tokenizer, num_bytes


def _empty_tokenizer() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _write_shards(
    spec: CorpusSpec, source: _Source, tokenizer: Any, folder: Path, num_bytes: int, progress: Progress
) -> Manifest:
    vocab_size = vocab_size_of(tokenizer)
    dtype = "uint16" if vocab_size <= 2**16 else "uint32"
    end_of_text = end_of_text_id(tokenizer)
    assert end_of_text is not None, "the first pass gives every tokenizer one"
    writers = {split: ShardWriter(folder, split, np.dtype(DTYPES[dtype])) for split in ("train", "validation")}
    done = 0
    for batch in _batches(source.documents()):
        encoded = encode_texts(tokenizer, [text for _, text in batch])
        for (split, text), ids in zip(batch, encoded, strict=True):
            size = len(text.encode())
            writers[split].add([*ids, end_of_text], size)
            done += size
        progress("tokenize", done, num_bytes)
    write_text_atomically(folder / TOKENIZER_FILE, tokenizer.to_str(pretty=True))
    closed = {name: writer.close() for name, writer in writers.items()}
    manifest = Manifest(
        name=spec.name,
        content_hash=content_hash(folder, [digest for _, digest in closed.values()]),
        vocab_size=vocab_size,
        dtype=dtype,
        splits={name: split for name, (split, _) in closed.items()},
        origin=source.origin,
        licence=source.licence,
    )
    write_manifest(folder, manifest)
    return manifest


def _batches(documents: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    for document in documents:
        batch.append(document)
        if len(batch) == TEXTS_PER_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
