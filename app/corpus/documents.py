"""Documents out of files: .txt and .jsonl (plain, .gz, .xz, .zst) and .parquet.

Every reader yields texts one at a time, so a corpus larger than memory passes through, as long as each document fits.
A .txt file is cut at blank lines into documents of about :data:`TEXT_DOCUMENT_CHARACTERS`, because train and validation
are split by document; where :data:`MAX_TEXT_DOCUMENT_CHARACTERS` pass without a blank line it is cut there.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet

COMPRESSED = (".gz", ".xz", ".zst")
SUFFIXES = (*(kind + packed for kind in (".txt", ".jsonl") for packed in ("", *COMPRESSED)), ".parquet")
TEXT_DOCUMENT_CHARACTERS = 50_000
MAX_TEXT_DOCUMENT_CHARACTERS = 1_000_000
PARQUET_BATCH_ROWS = 64
# Read a column chunk in pieces of this size, and not ahead, instead of whole: row groups of a gigabyte are common.
PARQUET_BUFFER_BYTES = 1 << 20


class CorpusError(ValueError):
    """A corpus cannot be prepared; the message names the file, the limit and the mend."""


def find_files(sources: tuple[str, ...]) -> list[Path]:
    """The files of `sources` (folders are searched), sorted, each once.

    Raises:
        CorpusError: a source does not exist, has another suffix, or nothing is left.
    """
    files: set[Path] = set()
    for source in sources:
        path = Path(source)
        if path.is_dir():
            files.update(p for p in path.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))
        elif not path.exists():
            raise CorpusError(f"sources: {source} does not exist; give files or folders that do")
        elif not path.name.endswith(SUFFIXES):
            raise CorpusError(f"sources: {source} is none of {', '.join(SUFFIXES)}; convert it to one of them")
        else:
            files.add(path)
    if not files:
        raise CorpusError(f"sources: no {', '.join(SUFFIXES)} file in {', '.join(sources)}; give at least one")
    return sorted(files)


def read_documents(path: Path, text_column: str) -> Iterator[str]:
    """The texts of one file, in its order.

    Raises:
        CorpusError: the file is not what its name says, or a row has no text.
    """
    try:
        if path.suffix == ".parquet":
            yield from _read_parquet(path, text_column)
            return
        with _open_text(path) as file:
            if path.name.removesuffix(path.suffix if path.suffix in COMPRESSED else "").endswith(".txt"):
                yield from _cut_text(file)
            else:
                yield from _read_jsonl(file, path, text_column)
    except UnicodeDecodeError:
        raise CorpusError(f"{path} is not UTF-8; convert it first") from None
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError, pyarrow.ArrowException) as error:
        raise CorpusError(f"{path} is damaged ({error}); fetch it again") from None
    except OSError as error:
        if error.errno is not None:
            raise
        # What pyarrow says of bad Zstandard and of bad Parquet pages: an OSError that no system call raised.
        raise CorpusError(f"{path} is damaged ({error}); fetch it again") from None


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".zst":
        return io.TextIOWrapper(pyarrow.input_stream(path, compression="zstd"), encoding="utf-8")
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    file: IO[str] = opener(path, "rt", encoding="utf-8")
    return file


def _cut_text(file: IO[str]) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    # A line is read in pieces: a file without line ends must not be read whole.
    while line := file.readline(TEXT_DOCUMENT_CHARACTERS):
        lines.append(line)
        size += len(line)
        if size >= MAX_TEXT_DOCUMENT_CHARACTERS or (size >= TEXT_DOCUMENT_CHARACTERS and not line.strip()):
            yield "".join(lines)
            lines, size = [], 0
    if lines:
        yield "".join(lines)


def _read_jsonl(file: IO[str], path: Path, text_column: str) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = getattr(error, "msg", "it is too long or too deep")
            raise CorpusError(f"{path} line {number} is not JSON ({why}); mend or drop the line") from None
        text = row.get(text_column) if isinstance(row, dict) else None
        if isinstance(text, str) and not _is_unicode(text):
            raise CorpusError(
                f"{path} line {number} holds half a surrogate pair, which is no text; mend or drop the line"
            )
        if not isinstance(text, str):
            raise CorpusError(f"{path} line {number} has no text in {text_column!r}; name the column with text_column")
        yield text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(path: Path, text_column: str) -> Iterator[str]:
    with pyarrow.parquet.ParquetFile(path, buffer_size=PARQUET_BUFFER_BYTES, pre_buffer=False) as table:
        if text_column not in table.schema_arrow.names:
            names = ", ".join(table.schema_arrow.names)
            raise CorpusError(f"{path} has no column {text_column!r}, only {names}; name one with text_column")
        row = 0
        for batch in table.iter_batches(columns=[text_column], batch_size=PARQUET_BATCH_ROWS):
            for text in batch.column(0).to_pylist():
                row += 1
                if not isinstance(text, str):
                    raise CorpusError(
                        f"{path} row {row} has no text in {text_column!r}; drop it or name another column"
                    )
                yield text
