"""What a checkpoint folder is, from config.json and the shards' headers alone.

    FLOPs a token = 6 (M + V h) + 12 L a S

======  ===================================================================================================  ==========
symbol  meaning                                                                                              unit
======  ===================================================================================================  ==========
M       parameters of the layers that take part in matrix products for a token; of a mixture of experts' the  parameters
        share that a token is sent to
V, h    vocabulary, hidden size (the head; the embedding look-up costs 0)                                    -
L, a    layers, num_heads x head_size                                                                        -
S       context length, attended in full (windows and the causal half are not discounted)                    tokens
======  ===================================================================================================  ==========

Training, forward and backward: the accounting of :func:`fitting.flops.flops_per_token`, which is used as it stands where a
layer is dense with a gated MLP. Standard library only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.engine.surgery.families import family_of
from app.engine.surgery.family import Family
from app.engine.surgery.folder import Folder, read_folder
from app.engine.surgery.manifest import growth_history
from app.engine.surgery.plan import check_layers
from fitting.flops import flops_per_token

_QUANTIZED = "the weights are quantized, so their headers do not tell the parameters"


@dataclass(frozen=True, kw_only=True)
class CheckpointShape:
    """A model's shape as the FLOPs accounting takes it; counts without unit, the context length in tokens."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    vocab_size: int
    context_length: int


def describe(path: Path) -> dict[str, Any]:
    """Facts about a folder, ready for JSON.

    Returns:
        ``model_type``, ``num_layers``, ``shape``, parameters by place, ``flops_per_token`` with ``flops_convention``,
        ``dtypes`` (parameters by type), ``shards``, ``num_bytes``, ``is_tied``, ``tensor_shapes`` (those outside the layers and
        those of layer 0) and ``growth_history``, oldest first.

    Raises:
        InputError: the folder is no whole checkpoint of a known family.
    """
    folder = read_folder(path)
    family = family_of(folder.config)
    check_layers(folder, family)
    embedding, head, layers, other = _parameters(folder, family)
    is_tied = family.is_tied(folder.config)
    shape = shape_of(folder.config, family)
    flops, convention = _flops(folder, family, shape)
    dtypes: Counter[str] = Counter()
    for tensor in folder.tensors.values():
        dtypes[tensor.dtype] += math.prod(tensor.shape)
    num_head = 0 if is_tied else head  # a tied head that is stored all the same is no parameter of its own
    return {
        "name": path.resolve().name,
        "model_type": family.model_type,
        "num_layers": shape.num_layers,
        "shape": vars(shape),
        "is_tied": is_tied,
        "total_params": embedding + num_head + layers + other,
        "non_embedding_params": layers + other,
        "embedding_params": embedding,
        "head_params": num_head,
        "params_are_elements_of_packed_weights": "quantization_config" in folder.config,
        "flops_per_token": flops,
        "flops_convention": convention,
        "dtypes": dict(dtypes),
        "num_bytes": folder.num_bytes,
        "shards": {shard.name: shard.num_bytes for shard in folder.shards.values()},
        "tensor_shapes": {
            name: [tensor.dtype, list(tensor.shape)]
            for name, tensor in folder.tensors.items()
            if (family.split(name) or (0, ""))[0] == 0
        },
        "growth_history": growth_history(path),
    }


def shape_of(config: Mapping[str, Any], family: Family) -> CheckpointShape:
    """The shape that a config.json gives, by the family's own names and transformers' defaults."""

    def value(name: str, default: Any = None) -> Any:
        found = config.get(family.own_names.get(name, name))
        return default if found is None else found

    hidden_size, num_heads = value("hidden_size"), value("num_attention_heads")
    return CheckpointShape(
        num_layers=family.num_layers(config),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=value("num_key_value_heads", num_heads),
        head_size=value("head_dim", hidden_size // num_heads),
        intermediate_size=value("intermediate_size", 4 * hidden_size),
        vocab_size=value("vocab_size"),
        context_length=value("max_position_embeddings"),
    )


def _parameters(folder: Folder, family: Family) -> tuple[int, int, int, int]:
    """Parameters of embeddings, head, layers, and the rest (the last norm); masks in old files are none."""
    embedding = head = layers = other = 0
    is_quantized = "quantization_config" in folder.config
    for name, tensor in folder.tensors.items():
        count = math.prod(tensor.shape)
        place = family.split(name)
        if place is not None:
            is_buffer = not is_quantized and family.tensor(place[1]).role == "buffer"
            layers += 0 if is_buffer else count
        elif _is_in(name, family.embeddings):
            embedding += count
        elif name in family.heads:
            head += count
        else:
            other += count
    return embedding, head, layers, other


def _is_in(name: str, modules: tuple[str, ...]) -> bool:
    # The part up to the first dot is missing from checkpoints that were saved without the head.
    return any(name.startswith((f"{module}.", f"{module.partition('.')[2]}.")) for module in modules)


def _flops(folder: Folder, family: Family, shape: CheckpointShape) -> tuple[float | None, str]:
    if "quantization_config" in folder.config:
        return None, _QUANTIZED
    is_gated = bool({"gate", "gate_up"} & set(family.modules.values()))
    if is_gated and not any(".experts." in name for name in folder.tensors):
        return flops_per_token(shape), "training, 6 x matmul parameters + 12 L a S (fitting.flops)"
    config = folder.config
    num_experts = config.get("num_local_experts") or config.get("num_experts") or 1
    share = (config.get("num_experts_per_tok") or 1) / num_experts
    matmul_params = 0.0
    for name, tensor in folder.tensors.items():
        place = family.split(name)
        if place is not None and family.tensor(place[1]).is_matrix:
            matmul_params += math.prod(tensor.shape) * (share if ".experts." in name else 1.0)
    head = shape.vocab_size * shape.hidden_size
    attention = 12 * shape.num_layers * shape.num_heads * shape.head_size * shape.context_length
    told = (
        "training, 6 x matmul parameters (of experts the share a token is sent to) + 12 L a S, counted from the tensors"
    )
    return 6 * (matmul_params + head) + attention, told
