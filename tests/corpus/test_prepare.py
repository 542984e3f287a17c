"""Documents -> tokens, through every reader, and what happens to bad ones."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer

from app.bundled import bundled_dir
from app.contract import EVENTS_FILE, CorpusSpec, ExitCode
from app.corpus.documents import CorpusError, read_documents
from app.corpus.prepare import END_OF_TEXT, prepare_corpus
from app.corpus.shards import read_manifest
from app.records import to_dict, write_json_atomically


def spec_of(folder: Path, *sources: Path, **changes: Any) -> CorpusSpec:
    values: dict[str, Any] = {"run_id": "t", "name": folder.name, "corpus_dir": str(folder), "vocab_size": 400}
    return CorpusSpec(**values | {"sources": tuple(map(str, sources))} | changes)


def tokens_of(folder: Path, split: str) -> np.ndarray:
    manifest = read_manifest(folder)
    return np.concatenate([np.fromfile(folder / name, dtype=manifest.dtype) for name in manifest.splits[split].files])


def documents_of(folder: Path, split: str) -> list[str]:
    """The texts back from the tokens."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id(END_OF_TEXT)
    tokens = tokens_of(folder, split)
    pieces = np.split(tokens, np.flatnonzero(tokens == end) + 1)[:-1]
    return [tokenizer.decode(piece[:-1].tolist()) for piece in pieces]


def test_bundled_corpus_is_what_its_card_says() -> None:
    folder = bundled_dir("corpus")
    card = json.loads((folder / "corpus.json").read_text())
    assert (folder / "LICENSE.txt").read_text().count("PYTHON SOFTWARE FOUNDATION LICENSE") > 0
    compressed = raw = 0
    paths: dict[str, set[str]] = {}
    for name, split in card["splits"].items():
        compressed += (folder / split["file"]).stat().st_size
        content = lzma.decompress((folder / split["file"]).read_bytes())
        assert hashlib.sha256(content).hexdigest() == split["sha256_uncompressed"]
        rows = [json.loads(line) for line in content.splitlines()]
        assert len(rows) == split["num_documents"]
        raw += sum(len(row["text"].encode()) for row in rows)
        paths[name] = {row["path"] for row in rows}
    assert not paths["train"] & paths["validation"]
    assert raw >= 30e6
    assert compressed < 10e6


def test_shards_hold_the_documents_and_hold_some_out(
    tmp_path: Path, documents: list[str], documents_file: Path
) -> None:
    folder = tmp_path / "c"
    manifest = prepare_corpus(spec_of(folder, documents_file, validation_fraction=0.3))
    train, validation = documents_of(folder, "train"), documents_of(folder, "validation")
    assert sorted(train + validation) == sorted(documents)
    # The rule itself, computed apart: the first 64 bits of the text's SHA-256 as a fraction.
    held_out = [t for t in documents if int(hashlib.sha256(t.encode()).hexdigest()[:16], 16) / 16**16 < 0.3]
    assert validation == held_out
    assert manifest.splits["validation"].num_bytes == sum(len(text.encode()) for text in held_out)
    assert manifest == read_manifest(folder)


def test_every_format_gives_the_same_tokens(tmp_path: Path, documents: list[str]) -> None:
    texts = documents[:20]
    lines = "".join(json.dumps({"body": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as packed:
        packed.write(lines)
    with lzma.open(tmp_path / "c.jsonl.xz", "wt") as packed:
        packed.write(lines)
    pyarrow.parquet.write_table(pyarrow.table({"body": texts}), tmp_path / "d.parquet")
    with pyarrow.output_stream(tmp_path / "e.jsonl.zst", compression="zstd") as packed:
        packed.write(lines.encode())
    hashes = set()
    for source in ("a.jsonl", "b.jsonl.gz", "c.jsonl.xz", "d.parquet", "e.jsonl.zst"):
        folder = tmp_path / f"corpus-{source}"
        hashes.add(
            prepare_corpus(spec_of(folder, tmp_path / source, text_column="body", validation_fraction=0.3)).content_hash
        )
    assert len(hashes) == 1


def test_text_files_are_cut_between_paragraphs_and_nothing_is_lost(tmp_path: Path, documents: list[str]) -> None:
    text = "\n\n".join(documents[:10])
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    pieces = list(read_documents(tmp_path / "a.txt", "text"))
    assert "".join(pieces) == text
    assert len(pieces) > 2
    assert all(piece.endswith("\n") for piece in pieces[:-1])


def test_compressed_text_is_the_text(tmp_path: Path, documents: list[str]) -> None:
    text = documents[0]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(text.encode()))
    zstd = pyarrow.Codec("zstd")
    half = len(text.encode()) // 2  # two frames, as parallel compressors write; the cut may lie inside a character
    frames = [zstd.compress(part, asbytes=True) for part in (text.encode()[:half], text.encode()[half:])]
    (tmp_path / "a.txt.zst").write_bytes(b"".join(frames))
    for packed in ("a.txt.gz", "a.txt.xz", "a.txt.zst"):
        assert "".join(read_documents(tmp_path / packed, "text")) == text


def test_text_without_blank_lines_is_cut_all_the_same(tmp_path: Path) -> None:
    text = "no line ends " * 200_000
    (tmp_path / "a.txt").write_text(text)
    pieces = list(read_documents(tmp_path / "a.txt", "text"))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 1_000_000


def test_reading_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    """131 MB of documents as one Parquet row group, one .jsonl.zst, one .txt.gz: the peak rises by 80 MB at most."""
    texts = [f"{i} " + "abcdefgh" * 1_024 for i in range(16_000)]
    pyarrow.parquet.write_table(
        pyarrow.table({"text": texts}), tmp_path / "a.parquet", compression="none", use_dictionary=False
    )
    with pyarrow.output_stream(tmp_path / "b.jsonl.zst", compression="zstd") as packed:
        for text in texts:
            packed.write(json.dumps({"text": text}).encode() + b"\n")
    with gzip.open(tmp_path / "c.txt.gz", "wt", compresslevel=1) as plain:
        plain.writelines(text + "\n\n" for text in texts)
    code = """
import re, sys
from pathlib import Path
from app.corpus.documents import read_documents
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
for name in ("a.parquet", "b.jsonl.zst", "c.txt.gz"):
    before = peak()
    assert sum(len(text) for text in read_documents(Path(sys.argv[1]) / name, "text")) >= 131_000_000
    print(peak() - before)
"""
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    read = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
    )
    assert all(int(kilobytes) < 80_000 for kilobytes in read.stdout.split()), read.stdout


def test_names_of_special_tokens_in_a_text_are_text(tmp_path: Path) -> None:
    texts = [f"document {i} tells of {END_OF_TEXT} and goes on" for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    folder = tmp_path / "c"
    prepare_corpus(spec_of(folder, tmp_path / "a.jsonl", validation_fraction=0.3))
    assert sorted(documents_of(folder, "train") + documents_of(folder, "validation")) == sorted(texts)


def test_a_tokenizer_left_truncating_and_padding_encodes_documents_whole(
    tmp_path: Path, documents_file: Path, tiny_corpus: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_corpus / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    tokenizer.enable_padding(length=128)
    tokenizer.save(str(tmp_path / "t.json"))
    manifest = prepare_corpus(spec_of(tmp_path / "c", documents_file, tokenizer=str(tmp_path / "t.json")))
    assert manifest.content_hash == read_manifest(tiny_corpus).content_hash


def test_a_given_tokenizer_is_used_as_it_is(tmp_path: Path, documents_file: Path, tiny_corpus: Path) -> None:
    manifest = prepare_corpus(
        spec_of(tmp_path / "c", documents_file, tokenizer=str(tiny_corpus / "tokenizer.json"), vocab_size=300)
    )
    assert manifest.vocab_size == read_manifest(tiny_corpus).vocab_size
    assert manifest.content_hash == read_manifest(tiny_corpus).content_hash


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', ["line 2", "'text'", "text_column"]),
        ("a.jsonl", b'{"text": "x"}\n{oops\n', ["line 2", "not JSON"]),
        ("a.jsonl", b'{"text": "\\ud800"}\n', ["line 1", "surrogate"]),
        ("a.jsonl", b"[" * 100_000 + b"\n", ["line 1", "not JSON"]),
        ("a.txt", b"fine\n\xff\xfe broken", ["not UTF-8"]),
        ("a.jsonl.xz", b"not xz at all", ["damaged"]),
        ("a.jsonl.gz", b"not gzip at all", ["damaged"]),
        ("a.txt.gz", gzip.compress(b"x" * 99, mtime=0)[:-4], ["damaged"]),
        ("a.txt.zst", b"not zst at all", ["damaged"]),
        ("a.jsonl.zst", pyarrow.Codec("zstd").compress(b"{}" * 99, asbytes=True)[:-4], ["damaged"]),
        ("a.parquet", b"not parquet", ["damaged"]),
        ("a.docx", b"", ["none of .txt"]),
        ("a.txt", b"", ["0 documents"]),
        ("a.txt", b"one document only", ["1 documents", "validation_fraction"]),
    ],
)
def test_bad_sources_are_named_and_nothing_is_left(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises(CorpusError) as caught:
        prepare_corpus(spec_of(tmp_path / "out" / "c", tmp_path / "in" / name))
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_missing_and_existing_are_refused(tmp_path: Path, documents_file: Path) -> None:
    with pytest.raises(CorpusError, match="does not exist"):
        prepare_corpus(spec_of(tmp_path / "c", tmp_path / "nowhere.txt"))
    (tmp_path / "c").mkdir()
    with pytest.raises(CorpusError, match="exists already"):
        prepare_corpus(spec_of(tmp_path / "c", documents_file))
    with pytest.raises(ValueError, match="names match"):
        spec_of(tmp_path / "a\n", documents_file)
    with pytest.raises(ValueError, match="vocab_size is 12"):
        spec_of(tmp_path / "d", documents_file, vocab_size=12)


def test_a_killed_preparation_leaves_no_corpus_and_the_next_one_cleans_up(
    tmp_path: Path, documents_file: Path, until: Any
) -> None:
    run_dir, folder = tmp_path / "run", tmp_path / "corpora" / "c"
    run_dir.mkdir()
    write_json_atomically(run_dir / "spec.json", to_dict(spec_of(folder, documents_file)))
    command = [sys.executable, "-m", "app.corpus", str(run_dir)]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=environment)
    until(lambda: list(tmp_path.glob("corpora/.c.*.partial")), "shards are being written")
    process.kill()
    process.wait()
    assert not folder.exists()
    assert list(tmp_path.glob("corpora/.c.*.partial"))
    assert subprocess.run(command, env=environment, check=False).returncode == ExitCode.DONE
    assert [path.name for path in (tmp_path / "corpora").iterdir()] == ["c"]
    events = [json.loads(line) for line in (run_dir / EVENTS_FILE).read_text().splitlines()]
    assert [event["seq"] for event in events] == list(range(len(events)))
    assert events[-1]["event"] == "finished"


@pytest.mark.parametrize("largest", [4_000, 200_000], ids=["tokenizer", "shards"])
def test_a_preparation_that_may_write_no_more_says_so_and_leaves_nothing(
    tmp_path: Path, documents_file: Path, largest: int
) -> None:
    """A file-size limit, which any machine can set, is refused as a full disk and a used-up quota are."""
    run_dir, folder = tmp_path / "run", tmp_path / "corpora" / "c"
    run_dir.mkdir()
    write_json_atomically(run_dir / "spec.json", to_dict(spec_of(folder, documents_file)))
    ended = subprocess.run(
        [sys.executable, "-m", "app.corpus", str(run_dir)], env={"PYTHONPATH": str(Path(__file__).parents[2])},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)), check=False,
    )  # fmt: skip
    assert ended.returncode == ExitCode.NO_SPACE
    events = [json.loads(line) for line in (run_dir / EVENTS_FILE).read_text().splitlines()]
    assert (events[-1]["event"], events[-1]["exit_code"]) == ("failed", ExitCode.NO_SPACE)
    assert "no space left for the corpus" in events[-1]["message"]
    assert list((tmp_path / "corpora").iterdir()) == []
