"""The growth step: a live base becomes the deeper target (G_direct in depth, arXiv 2405.15319, section 3).

    theta'[layer i] = theta[layer pi(i)] for i < L',   embeddings, final norm and head copied

======  ========================================================================================  =====
symbol  meaning                                                                                   unit
======  ========================================================================================  =====
L, L'   layers of base and target                                                                 -
pi      source layer of a target layer: ``fitting.orders.source_layers``; i mod L for ``stack``    -
m, v    AdamW's moments; ``reset`` drops them (the paper), ``copy`` takes those of layer pi(i)    -
======  ========================================================================================  =====

Every tensor of a layer comes from the same source layer. The function is not preserved: the loss jumps and heals.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from app.contract import ModelSpec
from app.engine.models import build_model

LAYER_NAME = re.compile(r"^(?P<before>model\.layers\.)(?P<layer>\d+)(?P<after>\..+)$")


def source_names(target_names: Iterable[str], layers: tuple[int, ...]) -> dict[str, str]:
    """Base parameter behind each target parameter.

    >>> source_names(["model.layers.5.mlp.up_proj.weight", "lm_head.weight"], (0, 1, 2, 0, 1, 2))
    {'model.layers.5.mlp.up_proj.weight': 'model.layers.2.mlp.up_proj.weight', 'lm_head.weight': 'lm_head.weight'}
    """
    names = {}
    for name in target_names:
        match = LAYER_NAME.match(name)
        names[name] = f"{match['before']}{layers[int(match['layer'])]}{match['after']}" if match else name
    return names


def grow_model(base: LlamaForCausalLM, shape: ModelSpec, layers: tuple[int, ...]) -> LlamaForCausalLM:
    """A new model of ``len(layers)`` layers whose layer i holds copies of all tensors of base layer ``layers[i]``.

    The result is on the base's device; base and target share no storage.
    """
    target = build_model(shape, num_layers=len(layers))
    target.to(next(base.parameters()).device)
    base_state = base.state_dict()
    state = {name: base_state[source] for name, source in source_names(target.state_dict(), layers).items()}
    target.load_state_dict(state, strict=True)
    return target


def grow_optimizer_tensors(
    base_tensors: Mapping[str, Mapping[str, torch.Tensor]], target: LlamaForCausalLM, layers: tuple[int, ...]
) -> dict[str, Mapping[str, torch.Tensor]]:
    """Optimizer state of the target under policy ``copy``: per target parameter, that of its source parameter."""
    names = source_names((name for name, _ in target.named_parameters()), layers)
    return {name: base_tensors[source] for name, source in names.items() if source in base_tensors}
