"""The size and the FLOPs of a model: from its transformers ``config.json``, or, flagged, from its parameter count alone.

A configuration counts where the model is a dense decoder with gated MLPs, as `fitting.flops` counts one. Others (experts,
MLPs without a gate) are known by their non-embedding parameters, and their FLOPs are 6 N D.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fitting.errors import InputError
from fitting.flops import Shape, flops_by_6nd, flops_per_token, non_embedding_params

# model_type of transformers whose blocks are q, k, v, o and gate, up, down, in full in every layer.
GATED = (
    "llama", "mistral", "qwen2", "qwen3", "olmo", "olmo2", "gemma", "gemma2", "gemma3_text", "granite", "phi3", "smollm3",
)  # fmt: skip
_FIELDS = {
    "num_layers": "num_hidden_layers", "hidden_size": "hidden_size", "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size", "vocab_size": "vocab_size",
}  # fmt: skip
# Fields whose absence means a constant of the family's class and not what other families make of it: never guessed here.
STATED_BY = {
    "num_key_value_heads": ("mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3"),
    "head_dim": ("qwen3", "gemma", "gemma2", "gemma3_text"),
}
_LARGEST = 10**9


@dataclass(frozen=True, kw_only=True)
class Model:
    """One stage's model: N, training FLOPs a token, and its shape and family where they are known."""

    params: float
    flops_per_token: float
    shape: Shape | None = None
    family: str | None = None


def model_of(
    config: Mapping[str, Any] | None, params: float | None, *, context_length: int | None, field: str
) -> Model | None:
    """The model that a configuration, or a size alone, describes; None where neither is given.

    Args:
        config: a transformers ``config.json``.
        params: non-embedding parameters, for a model whose shape `fitting.flops` cannot count.
        context_length: tokens of one training sequence; the configuration's ``max_position_embeddings`` where None.
        field: what an error calls the configuration.

    Raises:
        InputError: both are given, or the configuration cannot be counted.
    """
    if config is not None and params is not None:
        raise InputError(field, "is given beside a parameter count", "give one of them")
    if config is not None:
        shape = shape_of(config, context_length, field)
        return Model(
            params=non_embedding_params(shape), flops_per_token=flops_per_token(shape), shape=shape,
            family=str(config["model_type"]),
        )  # fmt: skip
    return None if params is None else Model(params=params, flops_per_token=flops_by_6nd(params, 1.0))


def shape_of(config: Mapping[str, Any], context_length: int | None, field: str) -> Shape:
    """The shape that a transformers ``config.json`` describes; arguments and errors as of :func:`model_of`."""
    family = config.get("model_type")
    if "text_config" in config:
        raise InputError(
            field, f"has model_type {str(family)[:40]!r}, which wraps a language model in another",
            "give what stands under its text_config",
        )  # fmt: skip
    if family not in GATED:
        raise InputError(
            field, f"has model_type {str(family)[:40]!r}, but only dense decoders with gated MLPs are counted from one "
            f"({', '.join(GATED)})", "give the non-embedding parameters instead (target_params, base_params)",
        )  # fmt: skip
    for name, families in STATED_BY.items():
        if family in families and name not in config:
            raise InputError(field, f"lacks {name}, which {family} does not leave to its other fields", "add it")
    sizes = {ours: _count(config, theirs, field) for ours, theirs in _FIELDS.items()}
    shared = max(1, sizes["hidden_size"] // sizes["num_heads"])
    head_size = _count(config, "head_dim", field, shared)
    return Shape(
        **sizes,
        num_kv_heads=_count(config, "num_key_value_heads", field, sizes["num_heads"]),
        own_head_size=None if head_size == shared else head_size,
        context_length=context_length or _count(config, "max_position_embeddings", field),
    )


def _count(config: Mapping[str, Any], name: str, field: str, otherwise: int | None = None) -> int:
    value = config.get(name)
    if value is None and otherwise is not None:
        return otherwise
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
        raise InputError(field, f"has {name} {str(value)[:40]!r}", f"give a whole number from 1 to {_LARGEST:,}")
    return value
