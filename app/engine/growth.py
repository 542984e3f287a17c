"""The growth step on a live model: a transformers model in, a plain transformers model of the same class out.

The numbers are those of :mod:`app.engine.operators.tensors`, the same as a checkpoint gets.
"""

from __future__ import annotations

import copy

import torch
from transformers.modeling_utils import PreTrainedModel

from app.engine.distributed import whole
from app.engine.operators.base import Growth
from app.engine.operators.depth import source_name
from app.engine.operators.tensors import grow_tensors, target_config
from app.engine.surgery.families import family_of


@torch.no_grad()
def grow_model(base: PreTrainedModel, growth: Growth) -> PreTrainedModel:
    """The target grown from a live base.

    Args:
        base: a model of a known family, unmasked; sharded parameters are gathered one at a time. Not changed.
        growth: what to grow; ``learn`` gives its start, direct growth.

    Returns:
        A model of the base's class, on its device, each parameter in the type of the one it comes from; it shares no
        storage with the base, nor do its layers with one another.

    Raises:
        InputError: this family has no such growth, or its config cannot be grown so.
    """
    base_config = base.config.to_dict()
    config = type(base.config).from_dict(target_config(growth, base_config))
    config._attn_implementation = base.config._attn_implementation
    with torch.device("meta"):
        target = type(base)(config)
    sources = dict(base.named_parameters())

    def read(name: str) -> torch.Tensor:
        return whole(sources[name].detach())

    names = [name for name, _ in target.named_parameters()]
    for name, tensor in grow_tensors(growth, base_config, read, names):
        dtype = sources[_source(base_config, growth, name)].dtype
        # Fresh storage always: the allocator's alignment is part of being bit-identical.
        _module_of(target, name)._parameters[name.rpartition(".")[2]] = torch.nn.Parameter(
            torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format).copy_(tensor)
        )
    # Tables that the class computes and no checkpoint holds, rotary frequencies above all: the base's own bits.
    buffers = dict(base.named_buffers())
    for name, _ in list(target.named_buffers()):
        _module_of(target, name)._buffers[name.rpartition(".")[2]] = buffers[_source(base_config, growth, name)].clone()
    target.tie_weights()
    target.generation_config = copy.deepcopy(base.generation_config)
    return target.train(base.training)


def _source(base_config: dict[str, object], growth: Growth, name: str) -> str:
    return name if growth.layers is None else source_name(family_of(base_config), name, growth.layers)


def _module_of(model: torch.nn.Module, name: str) -> torch.nn.Module:
    return model.get_submodule(name.rpartition(".")[0])
