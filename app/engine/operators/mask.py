"""The mask of the random operator: new weights fade in, so that growth starts at the base's function exactly.

    m = min(t / T_mask, 1)

    depth   h <- h + m branch(h)                                             in layers that are new
    width   embeddings, Wo and Wd write m times their value to new channels of the residual stream;
            Wo and Wd read m times the value of new heads and new MLP units

======  ==========================================================================================  ======
symbol  meaning                                                                                     unit
======  ==========================================================================================  ======
t       tokens since growth                                                                         tokens
T_mask  tokens the mask takes to open                                                               tokens
h       residual stream; its old channels are the first of its hidden size / width factor, and so   -
        are old heads and old MLP units the first of theirs
======  ==========================================================================================  ======

(G_stack, arXiv 2405.15319, G_random; after masked structural growth, arXiv 2305.02869.) At m = 0 the new residual
channels are zero, and nothing new reaches the old ones. With tied embeddings the head reads the new channels m times
too, so that folding m into the one tensor serves both.

The mask is made of forward hooks that multiply activations by a tensor written in place: parameters keep their names,
a compiled graph stays valid when m moves, and recomputation under activation checkpointing meets the same m. It is a
pure function of tokens, so a checkpoint needs no field for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate
from torch.utils.hooks import RemovableHandle
from transformers.modeling_utils import PreTrainedModel

from app.engine.operators.base import Growth
from fitting.errors import InputError
from fitting.orders import first_occurrences


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """One place where activations are multiplied by ``value``: 1 on old entries, m on ``is_new`` ones."""

    module: torch.nn.Module
    side: Literal["input", "output"]
    is_new: torch.Tensor  # bool; (entries,) in width, () in depth, where the whole branch is new
    value: torch.Tensor  # fp32, of is_new's shape
    folds: bool = True  # False where another scale folds the same tensor

    def hook(self) -> RemovableHandle:
        value = self.value
        if self.side == "input":
            return self.module.register_forward_pre_hook(lambda _, args: (_scaled(args[0], value), *args[1:]))
        return self.module.register_forward_hook(lambda _, args, output: _scaled(output, value))

    def factors(self) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
        """Each parameter that m folds into, and what it is multiplied by."""
        if not self.folds:
            return
        weight = self.module.get_parameter("weight")
        rows_are_outputs = not isinstance(self.module, torch.nn.Embedding)  # an embedding's weight is [in, out]
        of_rows = self.value.ndim == 1 and self.side == "output" and rows_are_outputs
        yield weight, self.value[:, None] if of_rows else self.value
        if self.side == "output" and (bias := getattr(self.module, "bias", None)) is not None:
            yield bias, self.value


class BranchMask:
    """The mask on a live model; made by :func:`attach_mask`."""

    def __init__(self, model: PreTrainedModel, scales: list[_Scale]) -> None:
        self._model = model
        self._scales = scales
        self._handles = [scale.hook() for scale in scales]

    def set(self, m: float) -> None:
        """Open the mask to m in [0, 1], from the next forward pass on."""
        if not 0.0 <= m <= 1.0:
            raise ValueError(f"m is {m}, but a mask lies between 0 and 1")
        for scale in self._scales:
            scale.value.masked_fill_(scale.is_new, m)

    @torch.no_grad()
    def folded(self) -> dict[str, torch.Tensor]:
        """The masked parameters, by all their names, with m folded in: what an export writes while training goes on."""
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # weights that an evaluation left gathered are copies, and would be folded in vain
        folded: dict[torch.nn.Parameter, torch.Tensor] = {}
        for scale in self._scales:
            for parameter, factor in scale.factors():
                current = folded.get(parameter, parameter)
                folded[parameter] = current * _on_mesh_of(current, factor.to(current.dtype))
        named = self._model.named_parameters(remove_duplicate=False)
        return {name: folded[parameter] for name, parameter in named if parameter in folded}

    @torch.no_grad()
    def fold(self) -> None:
        """Fold m into the weights and take the mask off: the same function, a plain model."""
        for name, tensor in self.folded().items():
            self._model.get_parameter(name).copy_(tensor)
        self.set(1.0)  # a graph compiled with the hooks goes on to multiply
        for handle in self._handles:
            handle.remove()
        self._handles, self._scales = [], []


def attach_mask(model: PreTrainedModel, growth: Growth) -> BranchMask:
    """Mask what a growth with operator ``random`` made new in ``model``; closed (m = 0) until it is set.

    Attach on the training device and before a compiled model's first forward pass, which fixes the hooks it sees.

    Args:
        model: the grown model, of the Llama family.
        growth: the growth that made it.

    Raises:
        InputError: the growth is not a random one.
    """
    if growth.operator != "random":
        raise InputError("operator", f"is {growth.operator!r}, but only 'random' has a mask", "attach none")
    decoder = model.get_decoder()
    device = next(model.parameters()).device
    scales: list[_Scale] = []
    if growth.layers is not None:
        for block, is_first in zip(decoder.layers, first_occurrences(growth.layers), strict=True):
            if not is_first:
                everything = torch.ones((), dtype=torch.bool, device=device)
                scales += [
                    _scale(module, "output", everything) for module in (block.self_attn.o_proj, block.mlp.down_proj)
                ]
        return BranchMask(model, scales)

    def new_of(size: int) -> torch.Tensor:
        return torch.arange(size, device=device) >= size // growth.width_factor

    residual = new_of(model.config.hidden_size)
    scales.append(_scale(decoder.embed_tokens, "output", residual))
    for block in decoder.layers:
        for module in (block.self_attn.o_proj, block.mlp.down_proj):
            scales += [_scale(module, "input", new_of(module.in_features)), _scale(module, "output", residual)]
    if model.get_output_embeddings().weight is decoder.embed_tokens.weight:
        # What the head reads, not the head: a loss in chunks takes the head's weight past its hooks.
        scales.append(_scale(decoder.norm, "output", residual, folds=False))
    return BranchMask(model, scales)


def _scale(
    module: torch.nn.Module, side: Literal["input", "output"], is_new: torch.Tensor, *, folds: bool = True
) -> _Scale:
    return _Scale(module=module, side=side, is_new=is_new, value=(~is_new).float(), folds=folds)


def _scaled(activations: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return activations * value.to(activations.dtype)


def _on_mesh_of(tensor: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """``factor`` as something that multiplies ``tensor``: a sharded tensor takes none but its own kind."""
    if not isinstance(tensor, DTensor):
        return factor
    replicated = [Replicate()] * tensor.device_mesh.ndim
    return DTensor.from_local(factor.to(tensor.device), tensor.device_mesh, replicated, run_check=False)
