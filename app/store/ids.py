"""Typed, sortable ids: `run_` + 26 Crockford base-32 digits, 48 bits of milliseconds then 80 random bits (a ULID)."""

from __future__ import annotations

import os
import threading
import time
from typing import Literal

_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
_lock = threading.Lock()
_last = 0


def new_id(kind: Literal["run", "job", "group", "gl", "rec", "req", "key", "refit"]) -> str:
    """A new id; it sorts after every id that this process made before it."""
    global _last
    with _lock:
        _last = max(_last + 1, (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big"))
        number = _last
    return f"{kind}_" + "".join(_DIGITS[(number >> shift) & 31] for shift in range(125, -1, -5))
