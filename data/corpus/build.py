"""Makes the bundled corpus again: CPython's documentation sources and standard library as two compressed files.

    python data/corpus/build.py --doc-sources DIR --stdlib DIR --licence FILE

``--doc-sources`` is the `_sources` folder of Debian's package python3.11-doc (3.11.2), ``--stdlib`` the `Lib` folder of
CPython 3.11.7. One JSON object a line: {"path", "text"}. A document is held out for validation when the first byte of
the SHA-256 of its path is below 10 (about one in 26), once and for all: the split depends on nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import shutil
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
# Tables of character mappings, a copy of the documentation, and one file that names the machine it was built on.
LEFT_OUT = ("encodings/", "pydoc_data/", "site-packages/", "_sysconfigdata")


def documents(doc_sources: Path, stdlib: Path) -> Iterator[tuple[str, str]]:
    """(path, text) of every document, sorted by path, each text once."""
    found = [(f"Doc/{p.relative_to(doc_sources)}".removesuffix(".txt"), p) for p in doc_sources.rglob("*.rst.txt")]
    for path in stdlib.rglob("*.py"):
        name = path.relative_to(stdlib).as_posix()
        if not name.startswith(LEFT_OUT):
            found.append((f"Lib/{name}", path))
    seen = set()
    for name, path in sorted(found):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        digest = hashlib.sha256(text.encode()).digest()
        if text.strip() and digest not in seen:
            seen.add(digest)
            yield name, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--doc-sources", "--stdlib", "--licence"):
        parser.add_argument(option, type=Path, required=True)
    options = parser.parse_args()

    lines: dict[str, list[bytes]] = {"train": [], "validation": []}
    text_bytes = dict.fromkeys(lines, 0)
    for name, text in documents(options.doc_sources, options.stdlib):
        split = "validation" if hashlib.sha256(name.encode()).digest()[0] < 10 else "train"
        lines[split].append(json.dumps({"path": name, "text": text}, ensure_ascii=False).encode() + b"\n")
        text_bytes[split] += len(text.encode())

    card: dict[str, object] = {
        "name": "cpython",
        "description": "CPython documentation sources (3.11.2) and standard library (3.11.7), technical English and Python",
        "origin": "Debian package python3.11-doc 3.11.2-6 (_sources); CPython 3.11.7, Lib/",
        "licence": "PSF-2.0 (LICENSE.txt beside this file)",
        "splits": {},
    }
    splits = card["splits"]
    assert isinstance(splits, dict)
    for split, rows in lines.items():
        content = b"".join(rows)
        (HERE / f"{split}.jsonl.xz").write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
        splits[split] = {
            "file": f"{split}.jsonl.xz",
            "num_documents": len(rows),
            "num_text_bytes": text_bytes[split],
            "sha256_uncompressed": hashlib.sha256(content).hexdigest(),
        }
    (HERE / "corpus.json").write_text(json.dumps(card, indent=1) + "\n")
    shutil.copyfile(options.licence, HERE / "LICENSE.txt")


if __name__ == "__main__":
    main()
