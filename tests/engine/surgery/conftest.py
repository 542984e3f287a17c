"""Tiny checkpoints of every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny_model


@pytest.fixture
def tiny_model_folder(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a tiny random model of a family into a new folder: see ``save_tiny_model``.

    ``tiny_model_folder("qwen3", num_layers=3, tied=True, max_shard_size="8KB")``
    """
    made = 0

    def make(family: str, **options: Any) -> Path:
        nonlocal made
        made += 1
        return save_tiny_model(tmp_path / f"{family}-{made}", family, **options)

    return make
