"""How much of an upload has been read for sending, told while it is."""

from __future__ import annotations

import io
from collections.abc import Callable


class Sent:
    """How many bytes of some files have been read for sending."""

    def __init__(self, total: int, tell: Callable[[str, int, int | None], None]) -> None:
        self._total, self._done, self._tell = total, 0, tell

    def add(self, count: int) -> None:
        self._done += count
        stage = "sending" if self._done < self._total else "the service reads and stores"
        self._tell(stage, self._done, self._total if self._done < self._total else None)


class Told(io.BytesIO):
    """A file's bytes that say when they are read."""

    def __init__(self, content: bytes, sent: Sent) -> None:
        super().__init__(content)
        self._sent = sent

    def read(self, size: int | None = -1) -> bytes:
        chunk = super().read(size)
        self._sent.add(len(chunk))
        return chunk
