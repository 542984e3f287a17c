"""The spec of one corpus preparation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from app.contract.checks import CONTRACT_VERSION, NAME_PATTERN, require, require_version


@dataclass(frozen=True, kw_only=True)
class CorpusSpec:
    """One corpus preparation: documents -> tokenizer -> token shards in ``corpus_dir``.

    ``sources`` are files or folders of .txt, .jsonl, .parquet; empty means the corpus that ships with the package.
    """

    run_id: str
    name: str
    corpus_dir: str
    sources: tuple[str, ...] = ()
    vocab_size: int = 1024
    tokenizer: str | None = None
    text_column: str = "text"
    validation_fraction: float = 0.05
    version: int = CONTRACT_VERSION

    def __post_init__(self) -> None:
        require_version(self.version)
        require(
            re.fullmatch(NAME_PATTERN, self.name) is not None,
            "name",
            self.name,
            f"names match {NAME_PATTERN}",
            "choose such a name",
        )
        require(
            257 <= self.vocab_size <= 1_000_000,
            "vocab_size",
            self.vocab_size,
            "a byte-level vocabulary holds 256 bytes and an end-of-text mark, and at most 1,000,000 tokens",
            "choose 257 or more",
        )
        require(
            0 < self.validation_fraction <= 0.5,
            "validation_fraction",
            self.validation_fraction,
            "it must lie in (0, 0.5]",
            "hold out 0.05 if unsure",
        )
