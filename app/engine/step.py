"""Forward and backward over one batch, and how a model is made ready for it.

    loss = sum_m (b_m / B) loss_m,    grad = sum_m (b_m / B) grad_m

======  ==============================================================================  =====
symbol  meaning                                                                         unit
======  ==============================================================================  =====
B, b_m  sequences of a batch, of its micro batch m; one micro batch where no size is    -
        set
loss_m  mean next-token loss of a micro batch (:mod:`app.engine.loss`)                  nats
======  ==============================================================================  =====

Both are means over the whole batch, up to the order of the sums. Losses are summed in fp64.
"""

from __future__ import annotations

import torch
from transformers.modeling_utils import PreTrainedModel

from app.contract import Spec
from app.engine.loss import next_token_loss


def make_ready(model: PreTrainedModel, spec: Spec) -> None:
    """Turn on what the spec asks for: activation checkpointing, then compilation, of each layer on its own.

    Layers share their code, so one is compiled and the others find it done; what shards a layer comes after this.
    """
    if spec.activation_checkpointing:
        # The name changed in the course of transformers 5.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False, "preserve_rng_state": False})
    if spec.compile:
        torch.compiler.reset()  # what was compiled for the base, whose layers share their code with the target's
        for layer in model.get_decoder().layers:
            layer.compile(dynamic=False)


def accumulate_gradients(
    model: PreTrainedModel, windows: torch.Tensor, *, micro_batch_sequences: int | None, precision: str
) -> torch.Tensor:
    """Add the gradients of a batch of windows (B, S + 1); returns its mean loss in nats, () and detached."""
    if micro_batch_sequences is None or micro_batch_sequences >= len(windows):
        loss = next_token_loss(model, windows, precision=precision)
        loss.backward()
        return loss.detach()
    total = torch.zeros((), dtype=torch.float64, device=windows.device)
    for micro_batch in windows.split(micro_batch_sequences):
        loss = next_token_loss(model, micro_batch, precision=precision) * (len(micro_batch) / len(windows))
        loss.backward()
        total += loss.detach()
    return total
