"""Models of the Llama family from a spec's shape, with a width-aware initialization.

    every matrix                            W ~ N(0, s^2),          s = 0.5 / sqrt(h)
    attention output and MLP down matrices  W ~ N(0, s^2 / (2 L))
    norm gains                              1
    biases                                  0

======  =============================================================  =====
symbol  meaning                                                        unit
======  =============================================================  =====
h       hidden size                                                    -
L       layers of the model being made (of the base, for a base)       -
======  =============================================================  =====

Division by sqrt(2 L) keeps the residual stream's variance flat in depth: 2 L branches add to it (GPT-2, Radford
et al. 2019, section 2.3). The usual fixed std of 0.02 is meant for hidden sizes near 600; at hidden 64 it costs a
scratch run 0.09 nats, and a handicapped control makes growth look good.

Families differ from Llama in one thing each, none of which takes part in a matrix product: ``qwen2`` adds biases to
queries, keys and values ((h_q + 2 h_kv) d_h parameters a layer), ``qwen3`` a gain to each query's and key's head (2 d_h),
and ``mistral`` a sliding window, which is off here.
"""

from __future__ import annotations

import math

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from app.contract import ModelSpec
from app.engine.distributed import put
from app.engine.errors import BadSpecError
from app.engine.loss import next_token_loss

__all__ = ["build_config", "build_model", "initialize", "model_of_config", "next_token_loss", "resolve_device"]

INIT_STD_BY_ROOT_WIDTH = 0.5
RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight")
FAMILY_OPTIONS: dict[str, dict[str, object]] = {"mistral": {"sliding_window": None}}


def build_config(shape: ModelSpec, *, num_layers: int) -> PreTrainedConfig:
    """The family's config at ``num_layers`` layers."""
    return AutoConfig.for_model(
        shape.family,
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.context_length,
        tie_word_embeddings=shape.tie_embeddings,
        rms_norm_eps=1e-5,
        # No token of a corpus is special to the model; ids past a small vocabulary would be worse than none.
        bos_token_id=None,
        eos_token_id=None,
        dtype="float32",
        **FAMILY_OPTIONS.get(shape.family, {}),
    )


def build_model(shape: ModelSpec, *, num_layers: int) -> PreTrainedModel:
    """The family's model at ``num_layers`` layers, on the CPU in fp32, its weights not ours yet."""
    return model_of_config(build_config(shape, num_layers=num_layers))


def model_of_config(config: PreTrainedConfig) -> PreTrainedModel:
    """A config's model, on the CPU in fp32, its weights not ours yet."""
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)


def initialize(model: PreTrainedModel, *, seed: int) -> None:
    """Draw all weights from ``seed`` by the rule above, in the order of ``named_parameters``.

    Drawn on the CPU whatever the training device, so a seed means the same model everywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    std = INIT_STD_BY_ROOT_WIDTH / math.sqrt(model.config.hidden_size)
    residual_std = std / math.sqrt(2 * model.config.num_hidden_layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
                continue
            drawn = torch.empty(parameter.shape, dtype=torch.float32)
            drawn.normal_(0.0, residual_std if name.endswith(RESIDUAL_OUTPUTS) else std, generator=generator)
            put(parameter, drawn)


def resolve_device(requested: str) -> torch.device:
    """``auto`` is the CUDA device where there is one, else the CPU.

    Raises:
        BadSpecError: CUDA was asked for and there is none.
    """
    if requested == "cuda" and not torch.cuda.is_available():
        raise BadSpecError("device is 'cuda', but this machine has no CUDA device; set device to 'auto' or 'cpu'")
    return torch.device("cuda" if requested != "cpu" and torch.cuda.is_available() else "cpu")
