"""A tiny llama checkpoint written byte by byte, without torch: what is written here shares no code with what reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "intermediate_size": 24,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3, "vocab_size": 40,
    "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
    "dtype": "float32",
}  # fmt: skip
LAYER = {
    "self_attn.q_proj.weight": [16, 16], "self_attn.k_proj.weight": [8, 16], "self_attn.v_proj.weight": [8, 16],
    "self_attn.o_proj.weight": [16, 16], "mlp.gate_proj.weight": [24, 16], "mlp.up_proj.weight": [24, 16],
    "mlp.down_proj.weight": [16, 24], "input_layernorm.weight": [16], "post_attention_layernorm.weight": [16],
}  # fmt: skip


def shard_bytes(shapes: dict[str, list[int]], rng: np.random.Generator, **changes: Any) -> bytes:
    """A safetensors file of random float32 tensors; ``changes`` replace entries of its header."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, shape in shapes.items():
        values = rng.normal(size=shape).astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header | changes).encode()
    return len(text).to_bytes(8, "little") + text + data


def write_llama(folder: Path, num_shards: int = 1, **config: Any) -> Path:
    """A whole checkpoint with a tokenizer's and a generation file beside it, in one shard or several."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    values = CONFIG | config
    vocab, hidden = values["vocab_size"], 16
    shapes = {
        "model.embed_tokens.weight": [vocab, hidden],
        "model.norm.weight": [hidden],
        "lm_head.weight": [vocab, hidden],
    }
    for i in range(values["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in LAYER.items()}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    names = list(shapes)
    if num_shards == 1:
        (folder / "model.safetensors").write_bytes(shard_bytes(shapes, rng))
        return folder
    weight_map = {}
    for i in range(num_shards):
        mine = names[i::num_shards]
        file = f"model-{i + 1:05d}-of-{num_shards:05d}.safetensors"
        (folder / file).write_bytes(shard_bytes({name: shapes[name] for name in mine}, rng))
        weight_map |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its name in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
