"""The learned operator (LiGO, Wang et al., arXiv 2303.00980): train the maps from base to target, then fold them.

    w <- Adam(dl/dw),    dl/dw = sum over target tensors W' of  (dl/dW') (dW'/dw),    W' = f(w, W)  throughout

======  ============================================================================================  =====
symbol  meaning                                                                                       unit
======  ============================================================================================  =====
w       maps: one (L', L) matrix a kind of weight in depth (:mod:`app.engine.operators.learn_depth`),  -
        one matrix a space in width (:mod:`app.engine.operators.learn_width`)
W, W'   weights of base and target; only w is trained                                                 -
l       next-token loss of the target on real tokens                                                  nats
======  ============================================================================================  =====

The chain rule is cut at W': the target is a plain model that trains forward and backward like any other, and each
tensor's gradient is then pulled back through its own map alone. So beside base, target and its gradients one group of
tensors is held at a time, not a graph through all maps with every tensor it makes on the way.

The steps cost what steps of the target cost, :func:`learn_flops_per_token`; they count against the compute budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from transformers.modeling_utils import PreTrainedModel

from app.engine.data import open_train_split, train_windows
from app.engine.distributed import whole
from app.engine.errors import BadDataError
from app.engine.growth import grow_model
from app.engine.operators.base import Growth
from app.engine.operators.learn_depth import DepthMaps
from app.engine.operators.learn_width import WidthMaps
from app.engine.operators.support import check_supported
from app.engine.step import accumulate_gradients
from fitting.errors import InputError
from fitting.flops import ModelShape, flops_per_token

NOISE_STD = 0.01
GRADIENT_CLIP = 1.0
BETAS = (0.9, 0.95)
# Best of grids of factors of 3 on the demo corpus, 20 to 30 steps of 1,024 tokens: 0.01 to 0.03 from 3 layers to 6; in
# width, times 2, 0.003 at hidden 16, 0.001 (0.003 next) at 64 and 0.001 at 128, so the rate falls as the root of it.
DEPTH_LEARNING_RATE = 0.01
WIDTH_LEARNING_RATE_TIMES_ROOT = 0.012


class Maps(Protocol):
    """Trainable maps, and the target's tensors as functions of them."""

    maps: dict[str, torch.Tensor]

    def groups(self) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
        """Names of target parameters with their values stacked along a first dimension, group by group."""
        ...


def learn(
    base: PreTrainedModel,
    growth: Growth,
    batches: Iterator[torch.Tensor],
    num_steps: int,
    *,
    learning_rate: float | None = None,
    noise_std: float = NOISE_STD,
    precision: str = "fp32",
    micro_batch_sequences: int | None = None,
    mean: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.detach,
    progress: Callable[[int, torch.Tensor], None] | None = None,
) -> PreTrainedModel:
    """Grow a base by maps trained on real tokens; the result is a plain model, and the same for the same arguments.

    Args:
        base: the base, on its device; not changed.
        growth: what to grow, with operator ``learn``; its seed draws the noise that the maps start with.
        batches: windows of token ids, (B, S + 1) each; ``num_steps`` are taken.
        num_steps: steps of training the maps; 0 gives direct growth plus the start's noise.
        learning_rate: Adam's at the first step, from where it falls linearly to zero; None chooses by direction.
        noise_std: spread of the start's noise; 0 starts at direct growth exactly.
        precision: ``fp32`` or ``bf16`` autocast of the target's steps; the maps are fp32 always.
        micro_batch_sequences: sequences a forward pass takes; all of a batch where None.
        mean: mean over ranks that read batches of their own (:meth:`app.engine.distributed.World.mean`); every rank then
            holds the whole target and ends with the same.
        progress: called with the number of steps done and the loss, (), of the batch that comes next.

    Raises:
        InputError: ``learn`` is not defined for this pair, or the batches end early.
    """
    device = next(base.parameters()).device
    maps = start_maps(base, growth, noise_std=noise_std, device=device)
    target = grow_model(base, replace(growth, operator="direct"))
    fold(target, maps)
    mapped = {name for names, _ in maps.groups() for name in names}
    for name, parameter in target.named_parameters():
        parameter.requires_grad_(name in mapped)
    if learning_rate is None:
        learning_rate = DEPTH_LEARNING_RATE
        if growth.direction == "width":
            learning_rate = WIDTH_LEARNING_RATE_TIMES_ROOT / math.sqrt(base.config.hidden_size)
    optimizer = torch.optim.Adam(maps.maps.values(), lr=learning_rate, betas=BETAS)
    for step in range(num_steps):
        windows = next(batches, None)
        if windows is None:
            raise InputError("batches", f"end after {step} of {num_steps} learn steps", "give more text or fewer steps")
        loss = accumulate_gradients(
            target, windows.to(device), micro_batch_sequences=micro_batch_sequences, precision=precision
        )
        pull_back(target, maps)
        if progress is not None:
            progress(step, loss)
        for trained in maps.maps.values():
            assert trained.grad is not None
            trained.grad = mean(trained.grad)
        torch.nn.utils.clip_grad_norm_(maps.maps.values(), GRADIENT_CLIP)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1.0 - step / num_steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        fold(target, maps)
    target.requires_grad_(True)
    return target


def learn_on_corpus(
    base: PreTrainedModel,
    growth: Growth,
    corpus_dir: Path,
    num_steps: int,
    *,
    batch_sequences: int,
    context_length: int,
    data_seed: int = 0,
    learning_rate: float | None = None,
    precision: str = "fp32",
    progress: Callable[[int, torch.Tensor], None] | None = None,
) -> PreTrainedModel:
    """:func:`learn` on the train split of a prepared corpus, read in the order of a run with this ``data_seed``.

    Raises:
        BadDataError: the corpus is missing, damaged, too small, or made for a larger vocabulary.
        InputError: ``learn`` is not defined for this pair.
    """
    stream = open_train_split(corpus_dir, vocab_size=base.config.vocab_size)
    num_windows = stream.num_windows(context_length)
    if num_windows < batch_sequences:
        raise BadDataError(
            f"batch_sequences is {batch_sequences}, but the train split of {corpus_dir} holds {num_windows} windows of "
            f"{context_length} tokens; lower batch_sequences or prepare more text"
        )

    def batches() -> Iterator[torch.Tensor]:
        for first in range(0, num_steps * batch_sequences, batch_sequences):
            sequences = np.arange(first, first + batch_sequences, dtype=np.int64)
            indices = train_windows(sequences, num_windows=num_windows, data_seed=data_seed)
            yield torch.from_numpy(stream.windows(indices, context_length))

    return learn(
        base, growth, batches(), num_steps, learning_rate=learning_rate, precision=precision, progress=progress
    )


def learn_flops_per_token(target: ModelShape) -> float:
    """FLOPs a token of a learn step: those of training the target, forward and backward.

    A step saves the gradients of weights that no map makes (embeddings and head, in depth) and pays, whatever its tokens,
    for making W' twice and pulling its gradient back: shares of L / (B S) of the whole in depth and about 2 d / (B S)
    in width, with B S tokens a batch, L layers and hidden size d of the base.
    """
    return flops_per_token(target)


def start_maps(base: PreTrainedModel, growth: Growth, *, noise_std: float, device: torch.device) -> Maps:
    """Maps at direct growth, but for noise.

    Raises:
        InputError: ``learn`` is not defined for this family in this direction.
    """
    check_supported(base.config.model_type, growth.direction, "learn")
    tensors = {name: whole(parameter.detach()) for name, parameter in base.named_parameters()}
    generator = torch.Generator().manual_seed(growth.seed)
    if growth.layers is not None:
        return DepthMaps(tensors, growth.layers, noise_std=noise_std, generator=generator, device=device)
    return WidthMaps(
        tensors, base.config.to_dict(), growth.width_factor, noise_std=noise_std, generator=generator, device=device
    )


@torch.no_grad()
def fold(target: PreTrainedModel, maps: Maps) -> None:
    """Write W' = f(w, W) into the target."""
    for names, grown in maps.groups():
        for name, value in zip(names, grown, strict=True):
            target.get_parameter(name).copy_(value)


def pull_back(target: PreTrainedModel, maps: Maps) -> None:
    """Turn the gradients of the target's weights, which are dropped, into gradients of the maps."""
    for names, grown in maps.groups():
        parameters = [target.get_parameter(name) for name in names]
        grown.backward(torch.stack([parameter.grad for parameter in parameters]).to(grown.dtype))
        for parameter in parameters:
            parameter.grad = None
