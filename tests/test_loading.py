"""The garbage collector rests while a process loads, and goes on whatever happened."""

from __future__ import annotations

import gc

import pytest

from app.loading import loading


def test_the_collector_rests_and_what_was_loaded_is_out_of_its_way() -> None:
    gc.unfreeze()
    try:
        with loading():
            assert not gc.isenabled()
            stays = [[] for _ in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= len(stays)
        assert not any(one is stays for one in gc.get_objects())
    finally:
        gc.unfreeze()


def test_the_collector_goes_on_where_loading_failed() -> None:
    with pytest.raises(ImportError), loading():
        raise ImportError("missing")
    assert gc.isenabled()
