"""Tiny random models of every family whose checkpoints grow, each from its own transformers config class.

A few thousand parameters each. Every tensor is random, norm gains and biases included, so that a layer in the wrong
place, or a tensor that was never loaded, shows in the logits.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB_SIZE = 40
CONTEXT_LENGTH = 32
_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_LENGTH,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


@dataclass(frozen=True, kw_only=True)
class TinyFamily:
    """What a family's tiny config needs beyond the common values.

    ``biases`` names the options that switch the family's biases on; a family without them has no biased variant.
    """

    values: dict[str, Any] = field(default_factory=dict)
    biases: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


_GEMMA = {"head_dim": 4, "query_pre_attn_scalar": 4, "sliding_window": 4}
_ATTENTION_BIAS = ("attention_bias",)
_ALL_BIASES = ("attention_bias", "mlp_bias")

TINY_FAMILIES: dict[str, TinyFamily] = {
    "llama": TinyFamily(biases=_ALL_BIASES),
    "mistral": TinyFamily(values={"sliding_window": 4}),
    "qwen2": TinyFamily(),  # its query, key and value biases are no option
    "qwen3": TinyFamily(values={"head_dim": 8}, biases=_ATTENTION_BIAS),
    "gemma2": TinyFamily(values=_GEMMA, biases=_ATTENTION_BIAS),
    "gemma3_text": TinyFamily(values=_GEMMA, biases=_ATTENTION_BIAS),
    "olmo2": TinyFamily(biases=_ATTENTION_BIAS),
    "phi3": TinyFamily(),
    "smollm3": TinyFamily(biases=_ALL_BIASES),
    "gpt_neox": TinyFamily(biases=_ATTENTION_BIAS, drop=("num_key_value_heads",)),
    "gpt2": TinyFamily(
        values={"n_embd": 16, "n_head": 4, "n_inner": 24, "n_positions": CONTEXT_LENGTH},
        drop=(
            "hidden_size",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
            "max_position_embeddings",
        ),
    ),
    "starcoder2": TinyFamily(values={"sliding_window": 4}, biases=("use_bias",)),
    "granite": TinyFamily(
        values={
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.3,
            "logits_scaling": 2.0,
        },
        biases=_ALL_BIASES,
    ),
    "mixtral": TinyFamily(values=_EXPERTS),
    "qwen3_moe": TinyFamily(
        values={"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 8},
        biases=_ATTENTION_BIAS,
    ),
    "gpt_oss": TinyFamily(values={**_EXPERTS, "head_dim": 4, "sliding_window": 4}, biases=_ATTENTION_BIAS),
}


def tiny_config(
    family: str, *, num_layers: int = 4, tied: bool | None = None, biases: bool | None = None, **overrides: Any
) -> PretrainedConfig:
    """The family's own config at a few thousand parameters; ``overrides`` are fields of that config class.

    Args:
        family: a key of ``TINY_FAMILIES``, transformers' ``model_type``.
        num_layers: layers.
        tied: whether the head shares the embedding; None leaves the family's default.
        biases: every bias that the family has an option for, on or off; None leaves the family's default.
    """
    tiny = TINY_FAMILIES[family]
    if biases and not tiny.biases:
        raise ValueError(f"{family} has no option for biases")
    values = {name: value for name, value in _COMMON.items() if name not in tiny.drop} | tiny.values
    values |= {"n_layer" if family == "gpt2" else "num_hidden_layers": num_layers}
    values |= {"tie_word_embeddings": tied} if tied is not None else {}
    values |= dict.fromkeys(tiny.biases, biases) if biases is not None else {}
    return CONFIG_MAPPING[family](**(values | overrides))


def random_model(config: PretrainedConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of ``config`` in eval mode with eager attention, every parameter drawn from ``seed``.

    Matrices N(0, 0.25^2): at hidden size 16 wide enough for attention to be far from uniform. Vectors keep the value
    of their initialization (a norm's 1, a bias's 0) and get N(0, 0.1^2) on top.
    """
    torch.manual_seed(seed)  # buffers or parameters that only the class itself draws
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                parameter.nan_to_num_().add_(0.1 * noise)
            else:
                parameter.copy_(0.25 * noise)
    return model.to(dtype)


def save_tiny_model(
    folder: Path,
    family: str,
    *,
    num_layers: int = 4,
    tied: bool | None = None,
    biases: bool | None = None,
    max_shard_size: str | int = "5GB",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Write a random tiny model with ``save_pretrained``; ``max_shard_size="8KB"`` makes several shards of it.

    Returns:
        ``folder``, which then holds config.json, generation_config.json and the safetensors files.
    """
    config = tiny_config(family, num_layers=num_layers, tied=tied, biases=biases, **overrides)
    random_model(config, seed=seed, dtype=dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def layer_list(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The module list of a model's layers."""
    inner = model.base_model
    return inner.h if hasattr(inner, "h") else inner.layers


def grown_reference(model: PreTrainedModel, layers: tuple[int, ...]) -> PreTrainedModel:
    """The grown model put together by hand on live modules: deep copies of the base's layers in a new list.

    What a forward pass reads by index follows its layer: ``layer_idx`` (the cache's slot) and ``config.layer_types`` (the
    mask). Nothing of the code under test is used.
    """
    grown = copy.deepcopy(model)
    copies = torch.nn.ModuleList(copy.deepcopy(layer_list(model)[layer]) for layer in layers)
    for i, block in enumerate(copies):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = i
    if getattr(model.config, "layer_types", None) is not None:
        grown.config.layer_types = [model.config.layer_types[layer] for layer in layers]
    grown.config.num_hidden_layers = len(layers)
    setattr(grown.base_model, "h" if hasattr(grown.base_model, "h") else "layers", copies)
    return grown.eval()


def token_ids(num_sequences: int = 2, num_tokens: int = 12) -> torch.Tensor:
    """Token ids (B, S), longer than the tiny models' attention windows."""
    return torch.randint(3, VOCAB_SIZE, (num_sequences, num_tokens), generator=torch.Generator().manual_seed(7))
