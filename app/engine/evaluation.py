"""Validation loss on fixed windows.

    loss = (1 / (K S)) sum over K windows, S targets each, of -ln p(target | what stands before it in the window)

The K windows are spread evenly over the validation split and the same at every evaluation of every run of a corpus
(:func:`app.engine.data.validation_windows`), so losses of two runs differ by the models alone. Unit: nats a token.
"""

from __future__ import annotations

import torch
from transformers.modeling_utils import PreTrainedModel

from app.engine.distributed import reshard
from app.engine.models import next_token_loss


@torch.no_grad()
def evaluate(model: PreTrainedModel, windows: torch.Tensor, *, batch_sequences: int, precision: str) -> float:
    """Mean loss in nats a token over windows (K, S + 1) on the model's device."""
    total = torch.zeros((), dtype=torch.float64, device=windows.device)
    for batch in windows.split(batch_sequences):
        total += next_token_loss(model, batch, precision=precision).double() * len(batch)
    reshard(model)
    return float(total) / len(windows)
