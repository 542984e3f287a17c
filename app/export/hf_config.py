"""The transformers `config.json` of a model, and a target read back from one: the one format every trainer can be led to.

Field names and defaults: transformers 5.23, ``LlamaConfig``, ``MistralConfig``, ``Qwen2Config``, ``Qwen3Config``. Version 5
keeps the rotary base in ``rope_parameters``, version 4 in ``rope_theta``; both are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from app.contract import ModelSpec
from app.contract.specs import Family
from app.export.plan import ModelArguments
from app.export.stages import ModelDetails
from fitting.errors import InputError

_ARCHITECTURES: dict[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def hf_config(model: ModelArguments) -> dict[str, Any]:
    """The `config.json` with which `AutoModelForCausalLM` builds the model."""
    fields: dict[str, Any] = {
        "model_type": model.family,
        "architectures": [_ARCHITECTURES[model.family]],
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_size,
        "intermediate_size": model.intermediate_size,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.context_length,
        "tie_word_embeddings": model.tie_embeddings,
        "rms_norm_eps": model.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "hidden_act": "silu",
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
    }
    return fields | ({"sliding_window": None} if model.family == "mistral" else {})


def target_of(config: Mapping[str, Any], context_length: int | None) -> tuple[ModelSpec, ModelDetails]:
    """The target that a `config.json` describes.

    Args:
        context_length: tokens of one training sequence; the config's ``max_position_embeddings`` where None.

    Raises:
        InputError, SpecError: a field is missing, or the model is none that a plan can write.
    """
    family: Any = config.get("model_type")
    if family not in get_args(Family):
        raise InputError(
            "model_type", f"is {family!r}, but a plan writes {', '.join(get_args(Family))}", "use one of them"
        )
    sizes = {
        "num_layers": "num_hidden_layers",
        "hidden_size": "hidden_size",
        "num_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "vocab_size": "vocab_size",
    }
    for name in sizes.values():
        if not isinstance(config.get(name), int):
            raise InputError(
                name, f"is {config.get(name)!r}", "give the config.json of the target, with a whole number"
            )
    model = ModelSpec(
        **{ours: config[theirs] for ours, theirs in sizes.items()},
        num_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        context_length=context_length or config.get("max_position_embeddings") or 0,
        family=family,
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
    )
    if config.get("head_dim") not in (None, model.head_size):
        raise InputError(
            "head_dim", f"is {config['head_dim']}, but a plan writes heads of hidden_size / num_attention_heads "
            f"({model.head_size})", "use such heads",
        )  # fmt: skip
    if config.get("sliding_window") is not None and config.get("use_sliding_window", family == "mistral"):
        raise InputError(
            "sliding_window", f"is {config['sliding_window']!r}, but a plan writes full attention", "use null"
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        raise InputError(
            "rope_parameters", f"has rope_type {rope['rope_type']!r}, but a plan writes plain rotary positions",
            "pre-train with 'default' and extend the context later",
        )  # fmt: skip
    theta = rope.get("rope_theta", config.get("rope_theta", ModelDetails.rope_theta))
    return model, ModelDetails(
        rope_theta=float(theta), norm_epsilon=float(config.get("rms_norm_eps", ModelDetails.norm_epsilon))
    )
