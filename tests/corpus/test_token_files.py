"""Ready-made token files, written here by their published layouts, become corpora; what is no token file is refused."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from app.contract import Spec
from app.corpus.documents import CorpusError
from app.corpus.prepare_tokens import TokenFilesSpec, prepare_token_files
from app.corpus.shards import read_manifest
from app.corpus.token_files import open_token_file
from app.corpus.tokenizers import load_tokenizer, token_byte_lengths
from app.engine.data import open_corpus
from app.records import from_dict

VOCAB_SIZE = 50_257


def ids_of(length: int, seed: int = 0, below: int = VOCAB_SIZE) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(0, below, length)
    ids[:2] = below - 1, 0
    return ids


def spec_of(folder: Path, *train: Path, validation: Sequence[Path] = (), **changes: Any) -> TokenFilesSpec:
    values: dict[str, Any] = {"name": folder.name, "corpus_dir": str(folder)}
    files = {"train": tuple(map(str, train)), "validation": tuple(map(str, validation))}
    return TokenFilesSpec(**values | files | changes)


def tokens_of(folder: Path, split: str) -> np.ndarray:
    manifest = read_manifest(folder)
    return np.concatenate([np.fromfile(folder / name, dtype=manifest.dtype) for name in manifest.splits[split].files])


# --- independent writers, from the layouts that the tools publish -------------------------------------------------


def write_nanogpt(path: Path, ids: np.ndarray) -> Path:
    """data/*/prepare.py of nanoGPT: ids as uint16, nothing else."""
    ids.astype(np.uint16).tofile(path)
    return path


def write_llm_c(
    path: Path, ids: np.ndarray, *, magic: int = 20240520, version: int = 1, count: int | None = None
) -> Path:
    """dev/data/data_common.py of llm.c: 256 int32, then uint16 (GPT-2) or uint32 (Llama 3)."""
    header = np.zeros(256, dtype=np.int32)
    header[:3] = magic, version, len(ids) if count is None else count
    path.write_bytes(header.tobytes() + ids.astype(np.uint16 if magic == 20240520 else np.uint32).tobytes())
    return path


MEGATRON_CODES = {
    np.uint8: 1,
    np.int8: 2,
    np.int16: 3,
    np.int32: 4,
    np.int64: 5,
    np.float64: 6,
    np.float32: 7,
    np.uint16: 8,
}


def write_megatron(path: Path, documents: list[list[np.ndarray]], dtype: Any = np.uint16, **changes: Any) -> Path:
    """IndexedDatasetBuilder of Megatron-LM: documents of sequences; the .idx beside ``path`` (.bin)."""
    sequences = [sequence for document in documents for sequence in document]
    path.write_bytes(b"".join(sequence.astype(dtype).tobytes() for sequence in sequences))
    lengths = [len(sequence) for sequence in sequences]
    values: dict[str, Any] = {
        "magic": b"MMIDIDX\x00\x00", "version": 1, "code": MEGATRON_CODES[dtype], "lengths": lengths,
        "pointers": [sum(lengths[:i]) * np.dtype(dtype).itemsize for i in range(len(lengths))],
        "bounds": [0, *np.cumsum([len(document) for document in documents])],
    } | changes  # fmt: skip
    with open(path.with_suffix(".idx"), "wb") as index:
        index.write(values["magic"])
        index.write(struct.pack("<Q", values["version"]))
        index.write(struct.pack("<B", values["code"]))
        index.write(struct.pack("<Q", len(values["lengths"])))
        index.write(struct.pack("<Q", len(values["bounds"])))
        index.write(np.array(values["lengths"], dtype=np.int32).tobytes())
        index.write(np.array(values["pointers"], dtype=np.int64).tobytes())
        index.write(np.array(values["bounds"], dtype=np.int64).tobytes())
    return path


def documents_of_tokens(count: int, seed: int = 0) -> list[list[np.ndarray]]:
    """Documents of one to three sequences of 0 to 40 ids: of any length, an empty one among them."""
    rng = np.random.default_rng(seed)
    made = [[rng.integers(0, VOCAB_SIZE, rng.integers(1, 40)) for _ in range(rng.integers(1, 4))] for _ in range(count)]
    made[3] = [np.empty(0, dtype=int)]
    return made


# --- what becomes of them -----------------------------------------------------------------------------------------


def test_nanogpt_files_become_a_corpus_that_the_engine_reads(tmp_path: Path) -> None:
    train, validation = ids_of(20_001, 1), ids_of(3_000, 2)
    folder = tmp_path / "c"
    spec = spec_of(
        folder, write_nanogpt(tmp_path / "train.bin", train), vocab_size=VOCAB_SIZE,
        validation=[write_nanogpt(tmp_path / "val.bin", validation)],
    )  # fmt: skip
    manifest = prepare_token_files(spec)
    assert (manifest.dtype, manifest.vocab_size, manifest.bytes_per_token) == ("uint16", VOCAB_SIZE, None)
    assert manifest == read_manifest(folder)
    for path in tmp_path.glob("*.bin"):  # the corpus stands on its own
        path.unlink()
    np.testing.assert_array_equal(tokens_of(folder, "train"), train)
    np.testing.assert_array_equal(tokens_of(folder, "validation"), validation)
    run = {
        "run_id": "r", "name": "n", "cohort": "c", "corpus": "c", "corpus_dir": str(folder),
        "model": {
            "num_layers": 2, "hidden_size": 16, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 32,
            "vocab_size": VOCAB_SIZE, "context_length": 32,
        },
        "training": {"tokens": 40_000, "peak_lr": 1e-2, "batch_sequences": 4},
        "evaluation": {"every_tokens": 2_560, "num_windows": 8},
    }  # fmt: skip
    corpus = open_corpus(from_dict(Spec, run))
    np.testing.assert_array_equal(corpus.train.read(5, 100), train[5:105])
    assert corpus.content_hash == manifest.content_hash


@pytest.mark.parametrize(
    ("magic", "version", "below", "dtype"), [(20240520, 1, VOCAB_SIZE, "uint16"), (20240801, 7, 128_256, "uint32")]
)
def test_llm_c_shards_lose_their_headers(tmp_path: Path, magic: int, version: int, below: int, dtype: str) -> None:
    shards = [ids_of(3_000, seed, below) for seed in range(3)]
    for i, ids in enumerate(shards):
        write_llm_c(tmp_path / f"train_{i:06d}.bin", ids, magic=magic, version=version)
    held_out = write_llm_c(tmp_path / "val_000000.bin", ids_of(500, 9, below), magic=magic, version=version)
    spec = spec_of(tmp_path / "c", tmp_path / "train_*.bin", validation=[held_out])
    manifest = prepare_token_files(spec)
    assert (manifest.dtype, manifest.vocab_size) == (dtype, below)
    assert len(manifest.splits["train"].files) == 3
    np.testing.assert_array_equal(tokens_of(tmp_path / "c", "train"), np.concatenate(shards))
    np.testing.assert_array_equal(tokens_of(tmp_path / "c", "validation"), ids_of(500, 9, below))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64])
def test_megatron_documents_are_held_out_whole_by_their_hash(tmp_path: Path, dtype: Any) -> None:
    below = min(VOCAB_SIZE, np.iinfo(dtype).max)
    documents = [[sequence % below for sequence in document] for document in documents_of_tokens(300)]
    path = write_megatron(tmp_path / "text_document.bin", documents, dtype)
    manifest = prepare_token_files(spec_of(tmp_path / "c", path, vocab_size=VOCAB_SIZE, validation_fraction=0.25))
    flat = [np.concatenate(document) for document in documents]
    # The rule itself, computed apart: the first 64 bits of the SHA-256 of the ids as uint32, as a fraction.
    out = [int(hashlib.sha256(ids.astype("<u4").tobytes()).hexdigest()[:16], 16) / 16**16 < 0.25 for ids in flat]
    assert 40 < sum(out) < 110
    for split, wanted in (("train", False), ("validation", True)):
        expected = [ids for ids, is_out in zip(flat, out, strict=True) if is_out == wanted]
        np.testing.assert_array_equal(tokens_of(tmp_path / "c", split), np.concatenate(expected))
        assert manifest.splits[split].num_documents == len(expected)
    # 64-bit ids of a small vocabulary are stored in 16.
    assert manifest.dtype == ("uint32" if dtype is np.int32 else "uint16")


def test_megatron_pair_with_a_validation_pair_is_taken_as_it_lies(tmp_path: Path) -> None:
    train, held_out = documents_of_tokens(50, 1), documents_of_tokens(20, 2)
    write_megatron(tmp_path / "a.bin", train, np.int32)
    write_megatron(tmp_path / "b.bin", held_out, np.int32)
    manifest = prepare_token_files(spec_of(tmp_path / "c", tmp_path / "a.idx", validation=[tmp_path / "b.bin"]))
    flat = np.concatenate([sequence for document in train for sequence in document])
    np.testing.assert_array_equal(tokens_of(tmp_path / "c", "train"), flat)
    assert manifest.splits["train"].num_documents == 50
    assert (tmp_path / "c" / "train-00000.bin").read_bytes() == (tmp_path / "a.bin").read_bytes()


def test_megatron_sequences_out_of_order_are_read_by_their_pointers(tmp_path: Path) -> None:
    a, b = ids_of(100, 1), ids_of(60, 2)
    write_megatron(tmp_path / "x.bin", [[a], [b]], lengths=[60, 100], pointers=[200, 0])
    manifest = prepare_token_files(
        spec_of(tmp_path / "c", tmp_path / "x.bin", validation=[write_nanogpt(tmp_path / "v.bin", b)])
    )
    np.testing.assert_array_equal(tokens_of(tmp_path / "c", "train"), np.concatenate([b, a]))
    assert manifest.splits["train"].num_tokens == 160


def test_the_same_tokens_and_tokenizer_are_the_same_corpus(tmp_path: Path, tiny_corpus: Path) -> None:
    """Tokens that were prepared from text, handed in as files, give the same content hash and the same bytes of text."""
    manifest = prepare_token_files(
        spec_of(
            tmp_path / "c", tiny_corpus / "train-00000.bin", validation=[tiny_corpus / "validation-00000.bin"],
            tokenizer=str(tiny_corpus / "tokenizer.json"),
        )
    )  # fmt: skip
    original = read_manifest(tiny_corpus)
    assert manifest.content_hash == original.content_hash
    assert manifest.vocab_size == original.vocab_size
    for name, split in original.splits.items():
        assert manifest.splits[name].num_bytes == split.num_bytes


def test_links_share_the_blocks_and_outlive_the_name(tmp_path: Path) -> None:
    train, held_out = (write_nanogpt(tmp_path / f"{name}.bin", ids_of(500)) for name in ("train", "val"))
    prepare_token_files(spec_of(tmp_path / "c", train, validation=[held_out], link=True))
    assert (tmp_path / "c" / "train-00000.bin").stat().st_ino == train.stat().st_ino
    train.unlink()
    np.testing.assert_array_equal(tokens_of(tmp_path / "c", "train"), ids_of(500))
    prepare_token_files(spec_of(tmp_path / "d", held_out, validation=[tmp_path / "c" / "train-00000.bin"]))
    assert (tmp_path / "d" / "train-00000.bin").stat().st_ino != held_out.stat().st_ino


@pytest.mark.parametrize("hash_seed", [0, 1])
def test_copying_through_the_process_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hash_seed: int
) -> None:
    shard = write_llm_c(tmp_path / "t.bin", ids_of(5_000, hash_seed))
    held_out = write_llm_c(tmp_path / "v.bin", ids_of(500))
    by_kernel = prepare_token_files(spec_of(tmp_path / "c", shard, validation=[held_out]))
    monkeypatch.delattr(os, "copy_file_range")
    by_process = prepare_token_files(spec_of(tmp_path / "d", shard, validation=[held_out]))
    assert by_kernel.content_hash == by_process.content_hash


def test_byte_lengths_are_what_the_decoder_gives(tiny_corpus: Path, documents: list[str]) -> None:
    tokenizer = load_tokenizer(str(tiny_corpus / "tokenizer.json"))
    tokenizer.add_tokens(["naïve word"])
    lengths = token_byte_lengths(tokenizer)
    assert lengths is not None
    for text in [*documents[:20], "ünïcödé 漢字 🙂\n", "a naïve word"]:
        assert lengths[tokenizer.encode(text).ids].sum() == len(text.encode())
    assert lengths[tokenizer.token_to_id("<|endoftext|>")] == 0
    pieces = Tokenizer(models.Unigram([("▁a", -1.0), ("b", -2.0)], unk_id=0))
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    assert token_byte_lengths(pieces) is None


# --- what is refused ----------------------------------------------------------------------------------------------


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


Make = Callable[[Path], Path]
BAD: list[tuple[str, Make, dict[str, Any], str]] = [
    ("empty", lambda p: write(p, b""), {}, "is empty"),
    ("odd", lambda p: write(p, b"abc"), {}, "3 bytes, no multiple of the 2"),
    ("odd32", lambda p: write(p, ids_of(9).astype("<u2").tobytes()), {"token_dtype": "uint32"}, "no multiple of the 4"),
    ("above", lambda p: write_nanogpt(p, ids_of(99)), {"vocab_size": 50_000}, "holds id 50256, but .* has 50000 tokens"),
    ("wide", lambda p: write(p, ids_of(99).astype("<u4").tobytes()), {"token_dtype": "uint16"}, "set it to uint32"),
    ("dtype", lambda p: write_nanogpt(p, ids_of(9)), {"token_dtype": "int64"}, "raw token files are uint16 or uint32"),
    ("npy", lambda p: write(p, b"\x93NUMPY\x01\x00" + bytes(200)), {}, "a NumPy file"),
    ("zip", lambda p: write(p, b"PK\x03\x04" + bytes(200)), {}, "a zip archive"),
    ("cut llm.c", lambda p: write_llm_c(p, ids_of(9), count=10), {}, "header promises 10 tokens"),
    ("llm.c version", lambda p: write_llm_c(p, ids_of(9), version=2), {}, "header of version 2"),
    ("no documents", lambda p: write_nanogpt(p, ids_of(9)), {"validation": ()}, "does not tell its documents"),
    ("magic", lambda p: write_megatron(p, documents_of_tokens(9), magic=b"TNTIDX\x00\x00\x00"), {}, "no Megatron index"),
    ("version", lambda p: write_megatron(p, documents_of_tokens(9), version=2), {}, "has version 2"),
    ("floats", lambda p: write_megatron(p, documents_of_tokens(9), code=7), {}, "dtype code 7"),
    ("outside", lambda p: write_megatron(p, documents_of_tokens(1 + 4), pointers=[10**6] * 9, lengths=[1] * 9), {}, "outside"),
    ("negative", lambda p: write_megatron(p, [[ids_of(9)], [-ids_of(9)]], np.int32), {"vocab_size": 2**20}, "id -50256"),
    ("wraps", lambda p: write_megatron(p, [[ids_of(9) + 2**16]], np.int64), {"vocab_size": 2**16}, "has 65536 tokens"),
    ("bounds", lambda p: write_megatron(p, [[ids_of(9)]], bounds=[0, 2]), {}, "do not run from 0 to its 1"),
    ("link", lambda p: write_llm_c(p, ids_of(9)), {"link": True}, "its header must go; leave link out"),
    ("vocab", lambda p: write_nanogpt(p, ids_of(9)), {"vocab_size": 0}, r"vocab_size is 0"),
    ("tokenizer", lambda p: write_nanogpt(p, ids_of(9)), {"tokenizer": "none.json"}, "tokenizer: none.json cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "changes", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_token_files_are_named_and_nothing_is_left(
    tmp_path: Path, make: Make, changes: dict[str, Any], words: str
) -> None:
    held_out = write_nanogpt(tmp_path / "val.bin", ids_of(99, below=256))
    path = make(tmp_path / "x.bin")
    with pytest.raises(CorpusError, match=words):
        prepare_token_files(spec_of(tmp_path / "out" / "c", path, **{"validation": (str(held_out),)} | changes))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_cut_megatron_index_and_files_named_twice_are_refused(tmp_path: Path) -> None:
    path = write_megatron(tmp_path / "x.bin", documents_of_tokens(9))
    index = tmp_path / "x.idx"
    index.write_bytes(index.read_bytes()[:-3])
    with pytest.raises(CorpusError, match=r"x\.idx has [\d,]+ bytes, but its header promises"):
        open_token_file(path, None)
    train = write_nanogpt(tmp_path / "t.bin", ids_of(9))
    with pytest.raises(CorpusError, match="is a train file too"):
        prepare_token_files(spec_of(tmp_path / "c", train, validation=[train]))
    with pytest.raises(CorpusError, match="named twice"):
        prepare_token_files(spec_of(tmp_path / "c", train, train))
    with pytest.raises(CorpusError, match=r"nowhere\.bin does not exist"):
        prepare_token_files(spec_of(tmp_path / "c", tmp_path / "nowhere.bin"))


def test_the_command_prepares_tokens(tmp_path: Path, tiny_corpus: Path) -> None:
    def growthlaw(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "app.cli", *arguments],
            capture_output=True, text=True, check=False, cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip

    files = [str(tiny_corpus / "train-00000.bin"), "--validation-tokens", str(tiny_corpus / "validation-00000.bin")]
    made = growthlaw("corpus", "prepare", "mine", "--tokens", *files, "--token-dtype", "uint16", "--vocab-size", "512")
    assert made.returncode == 0, made.stderr
    assert "vocabulary 512, bytes a token unknown" in made.stdout
    listed = json.loads(growthlaw("corpus", "list", "--json").stdout)
    assert listed[0]["train_tokens"] == read_manifest(tiny_corpus).splits["train"].num_tokens
    refused = growthlaw("corpus", "prepare", "other", "--tokens", *files, "--vocab-size", "100")
    assert refused.returncode == 1
    assert "but the vocabulary has 100 tokens" in refused.stderr
    mixed = growthlaw("corpus", "prepare", "other", "text.txt", "--tokens", *files)
    assert mixed.returncode == 2
    assert "not both" in mixed.stderr
