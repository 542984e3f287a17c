"""The spec of one export of a run's files to a URL."""

from __future__ import annotations

from dataclasses import dataclass

from app.contract.checks import CONTRACT_VERSION, require, require_version


@dataclass(frozen=True, kw_only=True)
class UploadSpec:
    """One export: every file of ``source_dir`` below ``url``.

    Attributes:
        run_id: the export's own id, which its unfinished files bear.
        source_run_id, source: the run, and ``exports/final``, ``exports/base`` or ``checkpoints/NAME`` of it.
        source_dir: where that lies.
        url: of a folder that is empty or does not exist yet.
        allowed_urls: below one of which it must lie.
    """

    run_id: str
    name: str
    source_run_id: str
    source: str
    source_dir: str
    url: str
    allowed_urls: tuple[str, ...]
    version: int = CONTRACT_VERSION

    def __post_init__(self) -> None:
        require_version(self.version)
        require("://" in self.url, "url", self.url, "it must be a URL", "begin it with a protocol, such as s3://")
