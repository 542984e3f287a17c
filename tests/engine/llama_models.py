"""Small random models of the families that every operator grows: what the operators' tests share."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import PreTrainedModel

HEAD_SIZE, NUM_HEADS, NUM_KV_HEADS = 6, 4, 2
# What each adds to the family's own config.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "llama tied": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"attention_bias": True},
}


def model_of(family: str) -> PreTrainedModel:
    """Two layers, four query heads on two key-value heads; gains and biases are no ones and zeros."""
    config = AutoConfig.for_model(
        family.split()[0], vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=NUM_HEADS, num_key_value_heads=NUM_KV_HEADS, head_dim=HEAD_SIZE,
        max_position_embeddings=32, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        **{"tie_word_embeddings": False} | FAMILIES[family],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model
