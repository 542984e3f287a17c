"""AdamW as every run of this engine uses it, and its state by parameter name.

    m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2,  w <- w - lr (m^ / (sqrt(v^) + 1e-8) + decay w)

Decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2) acts on matrices: projections, head
and embeddings alike. Norm gains are not decayed: they have no scale that a following matrix could take back to 1.
Gradients are clipped to a global norm first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from app.contract import TrainingSpec
from app.engine.distributed import put, whole

STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")


def build_optimizer(model: torch.nn.Module, training: TrainingSpec) -> torch.optim.AdamW:
    """AdamW over all parameters of a model on its device; the learning rate is set anew at every step."""
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=training.peak_lr,
        betas=(training.beta1, training.beta2),
        fused=True,
    )


def apply_gradients(
    model: torch.nn.Module, optimizer: torch.optim.AdamW, *, learning_rate: float, gradient_clip: float
) -> torch.Tensor:
    """One update from the gradients in place, which are then dropped; returns their norm before clipping, ()."""
    norm = whole(torch.nn.utils.clip_grad_norm_(model.parameters(), gradient_clip))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.AdamW) -> dict[str, dict[str, torch.Tensor]]:
    """Per parameter name its moments and step count; parameters without a step yet are absent."""
    return {
        name: {key: optimizer.state[parameter][key] for key in STATE_KEYS}
        for name, parameter in model.named_parameters()
        if optimizer.state[parameter]
    }


def load_optimizer_tensors(
    model: torch.nn.Module, optimizer: torch.optim.AdamW, tensors: Mapping[str, Mapping[str, torch.Tensor]]
) -> None:
    """Put copies of ``tensors`` (as :func:`optimizer_tensors` gives them, but whole) in as the optimizer's state."""
    state = empty_optimizer_tensors(model, optimizer, tensors)
    for name, values in tensors.items():
        for key, value in values.items():
            put(state[name][key], value)


def empty_optimizer_tensors(
    model: torch.nn.Module, optimizer: torch.optim.AdamW, names: Collection[str]
) -> dict[str, dict[str, torch.Tensor]]:
    """Give the parameters of these names a state to be filled, sharded as they are; the others get none."""
    for name, parameter in model.named_parameters():
        if name in names:
            # Fresh storage: the allocator's alignment is part of being bit-identical, and layers must not share.
            optimizer.state[parameter] = {
                key: torch.zeros((), dtype=torch.float32, device=parameter.device)
                if key == "step"
                else torch.empty_like(parameter.detach(), memory_format=torch.preserve_format)
                for key in STATE_KEYS
            }
    return optimizer_tensors(model, optimizer)
