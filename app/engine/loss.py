"""Next-token loss in nats, without the logits of the whole batch where the vocabulary is large.

    loss = -(1 / n) sum_i ln p_i[y_i],    p_i = softmax(W h_i)
    dloss/dz_i = (p_i - onehot(y_i)) / n,    dloss/dh_i = W^T dz_i,    dloss/dW = sum_i dz_i h_i^T

======  ==============================================================  ==========
symbol  meaning                                                         shape
======  ==============================================================  ==========
h_i     last hidden state at target i, i < n = B S                      (hidden,)
W       head                                                            (V, hidden)
z_i     logits W h_i                                                    (V,)
y_i     target token                                                    -
======  ==============================================================  ==========

Logits in fp32 with their gradient take 8 n V bytes: 4 GB at n = 16,384 and V = 32,768, more than the rest of a small
model. Each chunk of targets therefore gives its loss and both gradients at once, and its logits are dropped: no second
pass over the head, unlike recomputation in the backward pass (the idea of Hsu et al., "Liger Kernel", arXiv 2410.10989,
section 3.2). Below :data:`MAX_LOGITS` elements nothing is chunked: torch's own operations then give the very same bits
as ever.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers.modeling_utils import PreTrainedModel

MAX_LOGITS = 2**26
CHUNKED_METHOD = "chunked_next_token_loss"


def next_token_loss(model: PreTrainedModel, windows: torch.Tensor, *, precision: str) -> torch.Tensor:
    """Mean cross-entropy in nats over a batch of windows (B, S + 1): a scalar in fp32."""
    inputs, targets = windows[:, :-1], windows[:, 1:]
    with torch.autocast(windows.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        if inputs.numel() * model.config.vocab_size > MAX_LOGITS:
            return getattr(model, CHUNKED_METHOD, types.MethodType(_chunked_loss, model))(inputs, targets)
        logits = model(input_ids=inputs, use_cache=False).logits  # (B, S, V)
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def shard_loss(model: PreTrainedModel) -> None:
    """Let the chunked loss of a model that FSDP2 shards gather the weights that are sharded with its root."""
    is_sharded = isinstance(model, FSDPModule)
    if is_sharded:
        setattr(model, CHUNKED_METHOD, types.MethodType(_chunked_loss, model))
        register_fsdp_forward_method(model, CHUNKED_METHOD)


def _chunked_loss(model: PreTrainedModel, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    hidden = model.get_decoder()(input_ids=inputs, use_cache=False).last_hidden_state  # (B, S, hidden)
    head = model.get_output_embeddings()
    return _HeadLoss.apply(hidden.flatten(0, 1), head.weight, targets.flatten(), torch.is_grad_enabled())


class _HeadLoss(torch.autograd.Function):
    """Mean cross-entropy of hidden states (n, hidden) through a head (V, hidden) against targets (n,)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, needs_gradients: bool
    ) -> torch.Tensor:
        device_type = hidden.device.type
        dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden.dtype
        num_targets = len(targets)
        chunk = max(1, MAX_LOGITS // len(weight))
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        head = weight.to(dtype)
        hidden_grad = torch.empty_like(hidden) if needs_gradients else None
        weight_grad = torch.zeros_like(weight) if needs_gradients else None
        with torch.autocast(device_type, enabled=False):
            for start in range(0, num_targets, chunk):
                rows = slice(start, start + chunk)
                states = hidden[rows].to(dtype)  # (c, hidden)
                log_p = torch.log_softmax((states @ head.T).float(), dim=-1)  # (c, V)
                picked = targets[rows, None]
                loss -= log_p.gather(1, picked).sum() / num_targets
                if hidden_grad is None or weight_grad is None:
                    continue
                logits_grad = log_p.exp_()
                logits_grad.scatter_add_(1, picked, logits_grad.new_full((len(picked), 1), -1.0))
                logits_grad = logits_grad.div_(num_targets).to(dtype)
                hidden_grad[rows] = logits_grad @ head
                weight_grad += logits_grad.T @ states
        ctx.save_for_backward(hidden_grad, weight_grad)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        (scale,) = grad_outputs
        return hidden_grad * scale, weight_grad * scale, None, None
