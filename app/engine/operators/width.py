"""Growth in width: direct (function preserving copies), zero and random (the base as a block of a wider model).

    direct    W'[i, j] = W[g_out(i), g_in(j)] / k                 biases b'[i] = b[g_out(i)], gains n' = n[g]
              E'[:, j] = E[:, g(j)];   untied head U'[:, j] = U[:, g(j)] / k;   tied: nf' = nf[g] / k
    zero      W' = [[W, A], [B, C]],   E' = [E, 0],   Wo' = [[Wo, 0], [0, 0]],   Wd' = [[Wd, 0], [0, 0]]
    random    W' = [[W, A], [B, C]] throughout, with m folded into E, Wo, Wd:   [E, m A],   [[W, m A], [m B, m^2 C]]
    zero and random     n' = [n, 1] / sqrt(k),   eps' = eps / k,   [bq; B] / sqrt(k) with QK-norms (below)

==========  ==============================================================================================  =====
symbol      meaning                                                                                         unit
==========  ==============================================================================================  =====
k           how many times wider; hidden size, heads, key-value heads and MLP grow k times, heads keep      -
            their size
W', W       a matrix [out, in] of the target, of the base
g           index map of a space, target index -> base index; every base index has k copies                 -
E, U        embedding, head (V, d)                                                                          -
n, nf       norm gains, the final norm's                                                                    -
Wo, Wd      attention output and MLP down projections: what adds to the residual stream                     -
A, B, C     new blocks, N(0, 0.02^2); bias entries that are new are 0                                       -
m           mask of the random operator; at m = 0 nothing new is felt                                       -
==========  ==============================================================================================  =====

Grouped queries: with r = h_q / h_kv and r' of the target, a head goes where its group goes,
g_q(i) = r g_kv(floor(i / r')) + i mod r, so that g_kv(floor(i / r')) = floor(g_q(i) / r) for any two factors.

Direct is exact because every channel has k equal copies: RMSNorm sees the same mean square, and a matrix reads k equal
inputs times W / k. Noise keeps that exact: e has zero mean over the k copies of an input, so equal inputs cancel it,
while equal rows, which would get equal gradients forever, part. (Net2Net, arXiv 1511.05641; HyperCloning, 2409.12903.)

Zero and random: with the new channels 0 the mean square falls k times, so the gains and eps fall with it. A QK-norm
shares eps, and its input must fall likewise: Wq and Wk (and their biases) times 1 / sqrt(k), which it divides out.
All that zero leaves at 0 gets a gradient at the first step, because what reads or feeds it is drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from app.engine.operators.base import RANDOM_STD, Growth, draw, widened
from app.engine.operators.noise import noise_std
from app.engine.surgery.families import family_of
from app.engine.surgery.family import Family
from fitting.errors import InputError


@dataclass(frozen=True, kw_only=True)
class WidthIndices:
    """Direct growth's index maps, one a space: target index -> base index, each int64 on the CPU.

    Attributes:
        residual: (D,) from (d,).
        query: rows of q and columns of o, (H_q head_size,).
        key_value: rows of k and v, (H_kv head_size,).
        mlp: rows of gate and up, columns of down, (F,).
    """

    residual: torch.Tensor
    query: torch.Tensor
    key_value: torch.Tensor
    mlp: torch.Tensor


def width_indices(base_config: dict[str, Any], width_factor: int) -> WidthIndices:
    """Index maps of a base of the Llama family: copies lie one behind the other, so the base is the first block."""
    num_heads, num_kv_heads, head_size = _heads(base_config)
    heads, kv_heads = head_maps(num_heads, num_kv_heads, num_heads * width_factor, num_kv_heads * width_factor)
    return WidthIndices(
        residual=torch.arange(base_config["hidden_size"]).repeat(width_factor),
        query=_rows_of(heads, head_size),
        key_value=_rows_of(kv_heads, head_size),
        mlp=torch.arange(base_config["intermediate_size"]).repeat(width_factor),
    )


def head_maps(
    num_heads: int, num_kv_heads: int, num_target_heads: int, num_target_kv_heads: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Base head behind each target query head and each target key-value head, group by group.

    >>> [heads.tolist() for heads in head_maps(4, 2, 8, 4)]
    [[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 0, 1]]
    >>> [heads.tolist() for heads in head_maps(4, 2, 8, 2)]
    [[0, 1, 0, 1, 2, 3, 2, 3], [0, 1]]
    """
    group, target_group = num_heads // num_kv_heads, num_target_heads // num_target_kv_heads
    kv_heads = torch.arange(num_target_kv_heads) % num_kv_heads
    index = torch.arange(num_target_heads)
    return kv_heads[index // target_group] * group + index % group, kv_heads


def _heads(config: dict[str, Any]) -> tuple[int, int, int]:
    """Query heads, key-value heads and head size, the last two with their defaults."""
    num_heads = config["num_attention_heads"]
    num_kv_heads = config.get("num_key_value_heads") or num_heads
    return num_heads, num_kv_heads, config.get("head_dim") or config["hidden_size"] // num_heads


def _rows_of(heads: torch.Tensor, head_size: int) -> torch.Tensor:
    return (heads[:, None] * head_size + torch.arange(head_size)).flatten()


# Spaces of a module's weight, [out, in] or [entries] of a norm; None does not grow.
_SPACES: dict[str, tuple[str | None, ...]] = {
    "embed_tokens": (None, "residual"),
    "lm_head": (None, "residual"),
    "norm": ("residual",),
    "input_layernorm": ("residual",),
    "post_attention_layernorm": ("residual",),
    "q_norm": (None,),
    "k_norm": (None,),
    "q_proj": ("query", "residual"),
    "k_proj": ("key_value", "residual"),
    "v_proj": ("key_value", "residual"),
    "o_proj": ("residual", "query"),
    "gate_proj": ("mlp", "residual"),
    "up_proj": ("mlp", "residual"),
    "down_proj": ("residual", "mlp"),
}
# What writes to the residual stream: where zero puts zeros, and random its mask.
_WRITERS = ("embed_tokens", "o_proj", "down_proj")
_WITH_QK_NORM = ("qwen3",)
_DEFAULT_EPS = 1e-6  # of every class of the family, where config.json does not say


def spaces_of(name: str) -> tuple[str | None, ...]:
    """Space of each dimension of a Llama-family tensor, a field of :class:`WidthIndices`; None does not grow.

    >>> spaces_of("model.layers.0.self_attn.q_proj.bias"), spaces_of("model.embed_tokens.weight")
    (('query',), (None, 'residual'))

    Raises:
        InputError: the tensor is none of the family's.
    """
    *_, module, kind = name.split(".")
    if module not in _SPACES or kind not in ("weight", "bias"):
        raise InputError("tensor", f"{name!r} is none that growth in width knows", "grow this model in depth")
    return _SPACES[module] if kind == "weight" else _SPACES[module][:1]


def width_config(growth: Growth, base_config: dict[str, Any]) -> dict[str, Any]:
    """The base's config at k times its width; head size kept and written out, eps as the operator needs it."""
    k = growth.width_factor
    num_heads, num_kv_heads, head_size = _heads(base_config)
    config = {
        **base_config,
        "hidden_size": base_config["hidden_size"] * k,
        "num_attention_heads": num_heads * k,
        "num_key_value_heads": num_kv_heads * k,
        "head_dim": head_size,
        "intermediate_size": base_config["intermediate_size"] * k,
    }
    if growth.operator in ("zero", "random"):
        config["rms_norm_eps"] = base_config.get("rms_norm_eps", _DEFAULT_EPS) / k
    return config


def grow_in_width(growth: Growth, base_config: dict[str, Any], name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A target tensor from the base's tensor of the same name.

    Args:
        growth: a growth in width; ``learn`` gives its start, direct growth.
        base_config: the base's config.
        name: name of the tensor, in the Llama family's words.
        tensor: the base's.

    Returns:
        A new tensor, on the base tensor's device, in float32 or wider.
    """
    tensor = widened(tensor)
    if growth.operator in ("direct", "learn"):
        return _copied(growth, base_config, name, tensor)
    return _embedded(growth, base_config, name, tensor)


def _key(family: Family, name: str) -> str:
    """Name to draw by, the same whether a checkpoint was saved with the head or without it."""
    found = family.split(name)
    return ".".join(name.split(".")[-2:]) if found is None else f"{found[0]}.{found[1]}"


def _copied(growth: Growth, base_config: dict[str, Any], name: str, tensor: torch.Tensor) -> torch.Tensor:
    family, module = family_of(base_config), name.split(".")[-2]
    indices = width_indices(base_config, growth.width_factor)
    maps = [getattr(indices, space) if space else None for space in spaces_of(name)]
    for dimension, index in enumerate(maps):
        if index is not None:
            tensor = tensor.index_select(dimension, index.to(tensor.device))
    if all(index is None for index in maps):
        return tensor.clone()
    if tensor.ndim == 2 and module != "embed_tokens":  # a matrix sums over k equal copies of each of its inputs
        tensor /= growth.width_factor
    if module == "norm" and family.is_tied(base_config):
        tensor /= growth.width_factor  # the head is the embedding, which stays whole
    found = family.split(name)
    if growth.noise and found is not None and family.tensor(found[1]).is_matrix:
        index = maps[1]
        assert index is not None, "every matrix of a layer reads a space that grows"
        std = noise_std(
            hidden_size=base_config["hidden_size"] * growth.width_factor,
            num_layers=base_config["num_hidden_layers"],
            is_branch_output=module in _WRITERS,
        )
        e = draw(tensor.shape, seed=growth.seed, what="noise", name=_key(family, name), std=std).to(tensor.dtype)
        num_inputs = len(index) // growth.width_factor
        # On the CPU, as drawn: a device may add in any order.
        mean = e.new_zeros(len(e), num_inputs).index_add_(1, index, e) / growth.width_factor
        tensor += growth.noise * (e - mean.index_select(1, index)).to(tensor.device)
    return tensor


def _embedded(growth: Growth, base_config: dict[str, Any], name: str, tensor: torch.Tensor) -> torch.Tensor:
    k, spaces, module = growth.width_factor, spaces_of(name), name.split(".")[-2]
    if spaces == (None,):
        return tensor.clone()
    shape = [size * k if space else size for size, space in zip(tensor.shape, spaces, strict=True)]
    is_norm = module.endswith("norm")
    is_writer, is_zero = module in _WRITERS, growth.operator == "zero"
    if tensor.ndim == 1 or (is_writer and is_zero):
        grown = tensor.new_full(shape, 1.0 if is_norm else 0.0)
    else:
        grown = draw(shape, seed=growth.seed, what="new", name=_key(family_of(base_config), name), std=RANDOM_STD).to(
            tensor
        )
    if is_writer and not is_zero:
        for dimension, (size, space) in enumerate(zip(tensor.shape, spaces, strict=True)):
            if space:
                grown.narrow(dimension, size, (k - 1) * size).mul_(growth.mask)
    grown[tuple(slice(size) for size in tensor.shape)] = tensor
    if is_norm or (module in ("q_proj", "k_proj") and base_config["model_type"] in _WITH_QK_NORM):
        grown /= math.sqrt(k)
    return grown
