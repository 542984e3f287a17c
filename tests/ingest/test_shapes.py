"""Configurations held against transformers' own classes: what a missing field means is never guessed."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from app.ingest.shapes import GATED, STATED_BY, shape_of
from fitting.errors import InputError

SIZES = {
    "num_hidden_layers": 4, "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32,
    "intermediate_size": 128, "vocab_size": 1000, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("family", GATED)
@pytest.mark.parametrize("field", ["num_key_value_heads", "head_dim"])
def test_a_field_that_the_class_fills_by_itself_must_be_stated(family: str, field: str) -> None:
    """`num_key_value_heads` or `head_dim` left out: either transformers derives it as we do, or it must be given."""
    given = {name: value for name, value in SIZES.items() if name != field}
    config: Any = CONFIG_MAPPING[family](**given)
    theirs = getattr(config, field, None)
    ours = {"num_key_value_heads": 6, "head_dim": 96 // 6}[field]
    if family in STATED_BY[field]:
        with pytest.raises(InputError, match=f"lacks {field}"):
            shape_of({"model_type": family, **given}, None, "config")
    else:
        assert theirs in (None, ours)
        shape = shape_of({"model_type": family, **given}, None, "config")
        assert (shape.num_kv_heads if field == "num_key_value_heads" else shape.head_size) == ours


def test_heads_with_a_width_of_their_own_count() -> None:
    shape = shape_of({"model_type": "qwen3", **SIZES}, None, "config")
    assert (shape.head_size, shape.with_layers(2).head_size) == (32, 32)
