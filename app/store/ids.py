"""Typed, sortable ids: `run_` + 26 Crockford base-32 digits, 48 bits of milliseconds then 80 random bits (a ULID)."""

from __future__ import annotations

import base64
import os
import threading
import time
from typing import Literal

# Crockford's digits where RFC 4648 has 0 to 9 and A to V.
_DIGITS = str.maketrans("0123456789ABCDEFGHIJKLMNOPQRSTUV", "0123456789abcdefghjkmnpqrstvwxyz")
_lock = threading.Lock()
_last = 0


def new_id(kind: Literal["run", "job", "group", "gl", "rec", "req", "key", "refit"]) -> str:
    """A new id; it sorts after every id that this process made before it."""
    global _last
    with _lock:
        _last = max(_last + 1, (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big"))
        number = _last
    # Base 32 takes five bytes at a time: 26 digits of the number, then six of nothing.
    digits = base64.b32hexencode((number << 30).to_bytes(20, "big"))[:26]
    return f"{kind}_{digits.decode().translate(_DIGITS)}"
