"""The model families whose checkpoints grow in depth, with names as transformers 5 writes and reads them.

The tests hold every name against transformers' own model classes. Standard library only: the byte copy imports this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.engine.surgery.family import Family, Fused, Packed, Role
from fitting.errors import InputError

_ATTENTION: dict[str, Role] = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
}
_QK_NORM: dict[str, Role] = {"self_attn.q_norm": "qk_norm", "self_attn.k_norm": "qk_norm"}
_GATED_MLP: dict[str, Role] = {"mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down"}
_TWO_NORMS: dict[str, Role] = {"input_layernorm": "norm", "post_attention_layernorm": "norm"}
_CLOSING_NORMS: dict[str, Role] = {"post_attention_layernorm": "post_norm", "post_feedforward_layernorm": "post_norm"}
_SANDWICH: dict[str, Role] = {"input_layernorm": "norm", "pre_feedforward_layernorm": "norm", **_CLOSING_NORMS}
_LLAMA = _ATTENTION | _GATED_MLP | _TWO_NORMS
_QKV_BLOCKS = Fused(parts=("q", "k", "v"), arrangement="blocks")
_QKV_HEADS = Fused(parts=("q", "k", "v"), arrangement="heads")
_GATE_UP_BLOCKS = Fused(parts=("gate", "up"), arrangement="blocks")
_GATE_UP_ALTERNATING = Fused(parts=("gate", "up"), arrangement="alternating")
_POST_NORM_ENDS: frozenset[Role] = frozenset({"post_norm"})

_GPT2 = Family(
    model_type="gpt2",
    layer_prefix="transformer.h.",
    embeddings=("transformer.wte", "transformer.wpe"),
    final_norm="transformer.ln_f",
    modules={
        "ln_1": "norm",
        "attn.c_attn": "qkv",
        "attn.c_proj": "o",
        "ln_2": "norm",
        "mlp.c_fc": "up",
        "mlp.c_proj": "down",
        # With add_cross_attention: a third branch, its keys and values from an encoder.
        "ln_cross_attn": "norm",
        "crossattention.q_attn": "q",
        "crossattention.c_attn": "qkv",
        "crossattention.c_proj": "o",
    },
    transposed=frozenset(
        {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
        | {"crossattention.q_attn", "crossattention.c_attn", "crossattention.c_proj"}
    ),
    fused={"qkv": _QKV_BLOCKS},
    norm_kind="layernorm",
    own_names={
        "num_hidden_layers": "n_layer",
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
    },
    tied_by_default=True,
)
_GPT_NEOX = Family(
    model_type="gpt_neox",
    layer_prefix="gpt_neox.layers.",
    embeddings=("gpt_neox.embed_in",),
    final_norm="gpt_neox.final_layer_norm",
    heads=("embed_out.weight", "lm_head.weight"),
    modules={
        **_TWO_NORMS,
        "attention.query_key_value": "qkv",
        "attention.dense": "o",
        "mlp.dense_h_to_4h": "up",
        "mlp.dense_4h_to_h": "down",
    },
    fused={"qkv": _QKV_HEADS},
    norm_kind="layernorm",
)
_STARCODER2 = Family(
    model_type="starcoder2",
    modules={**_ATTENTION, **_TWO_NORMS, "mlp.c_fc": "up", "mlp.c_proj": "down"},
    norm_kind="layernorm",
    tied_by_default=True,
)
_PHI3 = Family(
    model_type="phi3",
    modules={
        **_TWO_NORMS,
        "self_attn.qkv_proj": "qkv",
        "self_attn.o_proj": "o",
        "mlp.gate_up_proj": "gate_up",
        "mlp.down_proj": "down",
    },
    fused={"qkv": _QKV_BLOCKS, "gate_up": _GATE_UP_BLOCKS},
)
_MIXTRAL = Family(
    model_type="mixtral",
    modules={
        **_ATTENTION,
        **_TWO_NORMS,
        "block_sparse_moe.gate": "router",
        "block_sparse_moe.experts.*.w1": "gate",
        "block_sparse_moe.experts.*.w3": "up",
        "block_sparse_moe.experts.*.w2": "down",
        "mlp.gate": "router",
        "mlp.experts.gate_up_proj": "gate_up",
        "mlp.experts.down_proj": "down",
    },
    fused={"gate_up": _GATE_UP_BLOCKS},
    packed=(
        Packed(live="mlp.gate.weight", stored=("block_sparse_moe.gate.weight",)),
        Packed(
            live="mlp.experts.gate_up_proj",
            stored=("block_sparse_moe.experts.*.w1.weight", "block_sparse_moe.experts.*.w3.weight"),
        ),
        Packed(live="mlp.experts.down_proj", stored=("block_sparse_moe.experts.*.w2.weight",)),
    ),
)
_QWEN3_MOE = Family(
    model_type="qwen3_moe",
    modules={
        **_LLAMA,  # its dense layers have the Llama family's MLP
        **_QK_NORM,
        "mlp.gate": "router",
        "mlp.experts.*.gate_proj": "gate",
        "mlp.experts.*.up_proj": "up",
        "mlp.experts.*.down_proj": "down",
        "mlp.experts.gate_up_proj": "gate_up",
        "mlp.experts.down_proj": "down",
    },
    fused={"gate_up": _GATE_UP_BLOCKS},
    packed=(
        Packed(
            live="mlp.experts.gate_up_proj",
            stored=("mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"),
        ),
        Packed(live="mlp.experts.down_proj", stored=("mlp.experts.*.down_proj.weight",)),
    ),
)
_GPT_OSS = Family(
    model_type="gpt_oss",
    modules={
        **_ATTENTION,
        **_TWO_NORMS,
        "self_attn.sinks": "sink",
        "mlp.router": "router",
        "mlp.experts.gate_up_proj": "gate_up",
        "mlp.experts.down_proj": "down",
    },
    transposed=frozenset({"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}),
    fused={"gate_up": _GATE_UP_ALTERNATING},
)

FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        Family(model_type="llama", modules=_LLAMA),
        Family(model_type="mistral", modules=_LLAMA),
        Family(model_type="qwen2", modules=_LLAMA),
        Family(model_type="qwen3", modules=_LLAMA | _QK_NORM),
        Family(
            model_type="gemma2",
            modules=_ATTENTION | _GATED_MLP | _SANDWICH,
            norm_offset=1.0,
            branch_ends=_POST_NORM_ENDS,
            tied_by_default=True,
        ),
        Family(
            model_type="gemma3_text",
            modules=_ATTENTION | _QK_NORM | _GATED_MLP | _SANDWICH,
            norm_offset=1.0,
            branch_ends=_POST_NORM_ENDS,
            tied_by_default=True,
        ),
        Family(
            model_type="olmo2",
            modules=_ATTENTION | _QK_NORM | _GATED_MLP | _CLOSING_NORMS,
            branch_ends=_POST_NORM_ENDS,
        ),
        _PHI3,
        Family(model_type="smollm3", modules=_LLAMA, tied_by_default=True),
        _GPT_NEOX,
        _GPT2,
        _STARCODER2,
        Family(model_type="granite", modules=_LLAMA, depth_multipliers=("residual_multiplier",)),
        _MIXTRAL,
        _QWEN3_MOE,
        _GPT_OSS,
    )
}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json.

    Raises:
        InputError: the model type is missing or not among those that grow, or the config wraps a language model in another
            (images, sound).
    """
    model_type = str(config.get("model_type"))
    if "text_config" in config:
        raise InputError(
            "config.json: model_type",
            f"is {model_type!r}, which wraps a language model in a multi-modal one",
            "save its language model by itself and grow that (for gemma3: Gemma3ForCausalLM, model_type gemma3_text)",
        )
    if model_type not in FAMILIES:
        raise InputError(
            "config.json: model_type",
            f"is {model_type!r}, but those that grow are {', '.join(FAMILIES)}",
            "use one of them",
        )
    return FAMILIES[model_type]
