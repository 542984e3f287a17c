"""Loading what stays until the process ends: the garbage collector rests meanwhile, and leaves it alone afterwards."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Around imports and the building of what stays.

    Looking through them for garbage meanwhile would take a tenth of the processor time of a start (of the engine's, with
    torch and transformers, 7.3 s instead of 6.5 s), and once more in every full collection of the process: what is there at
    the end is kept out of those too.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
