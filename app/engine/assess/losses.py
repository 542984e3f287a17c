"""Losses of a checkpoint on windows of a token stream, with their errors.

    l_k = -(1 / S) sum_i ln p(t_{k,i} | what stands before it in window k)
    loss = (1 / K) sum_k l_k,     perplexity = exp(loss)
    bits per byte = sum_k S l_k / (ln 2 sum_k b_k)
    SE(loss)^2 = sum_k (l_k - loss)^2 / (K (K - 1))
    SE(bits per byte)^2 = K / (K - 1) sum_k (S l_k / ln 2 - bpb b_k)^2 / (sum_k b_k)^2
    difference = (1 / K) sum_k (l'_k - l_k), its error from the K differences; interval = value +- t_{0.975, K-1} SE

======  ==================================================================================  ===========
symbol  meaning                                                                             unit
======  ==================================================================================  ===========
K, S    windows read, targets in each (the context length)                                  -
l_k     mean loss of window k; l'_k of the second checkpoint on the same window             nats a token
b_k     bytes of text that the S targets of window k decode to                              bytes
======  ==================================================================================  ===========

The loss is that of :func:`app.engine.evaluation.evaluate`. Errors are over windows, not tokens: tokens of one window share a
document. The second line's error is that of a ratio of sums (Cochran, Sampling Techniques, 1977, section 6.4).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from app.engine.assess.checkpoint import LoadedModel
from app.engine.data import Integers, TokenStream
from fitting.errors import InputError

# Logits of one chunk in fp32: 256 MiB.
MAX_LOGITS = 2**26
DEFAULT_BATCH_TOKENS = 8_192

Floats = npt.NDArray[np.float64]
Progress = Callable[[int], None]  # windows just read


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over windows with its standard error and 95% interval; both None from one window."""

    value: float
    standard_error: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class SetLoss:
    """Losses of one checkpoint on one set. ``bits_per_byte`` is None where the bytes of the tokens are unknown."""

    num_windows: int
    num_tokens: int
    loss_nats: Estimate
    perplexity: float
    bits_per_byte: Estimate | None


def window_losses(
    loaded: LoadedModel,
    stream: TokenStream,
    windows: Integers,
    *,
    context_length: int,
    batch_sequences: int | None = None,
    progress: Progress = lambda num_windows: None,
) -> Floats:
    """l_k of every window, (K,), nats a token.

    Args:
        windows: indices of windows of the stream, (K,).
        batch_sequences: windows run at once; None: about 8,192 tokens.

    Raises:
        InputError: an id lies outside the model's vocabulary, or a loss is not finite.
    """
    batch = batch_sequences or max(1, DEFAULT_BATCH_TOKENS // context_length)
    losses = np.empty(len(windows))
    for start in range(0, len(windows), batch):
        ids = stream.windows(windows[start : start + batch], context_length)
        tokens = on_device(loaded, ids)
        losses[start : start + len(ids)] = token_losses(loaded, tokens).double().mean(dim=1).cpu().numpy()
        progress(len(ids))
    if not np.isfinite(losses).all():
        raise InputError(
            "checkpoint",
            f"gives a loss that is no number on {int((~np.isfinite(losses)).sum())} of {len(losses)} windows",
            "look for broken weights, or use precision fp32",
        )
    return losses


def on_device(loaded: LoadedModel, ids: Integers) -> torch.Tensor:
    """Ids of a set as a tensor beside the model.

    Raises:
        InputError: an id lies outside the model's vocabulary.
    """
    if ids.max() >= loaded.vocab_size:
        raise InputError(
            "checkpoint",
            f"has a vocabulary of {loaded.vocab_size}, but the set holds id {ids.max()}",
            "give a set of the checkpoint's own tokenizer",
        )
    return torch.from_numpy(ids).to(loaded.device)


@torch.no_grad()
def token_losses(loaded: LoadedModel, windows: torch.Tensor) -> torch.Tensor:
    """Loss of every target of windows (B, S + 1): (B, S) fp32, nats.

    Where the logits are large, the model's head is run on slices of the targets: its own forward, fed with the last
    hidden states instead of its layers, so that what a family does behind its layers (soft caps, scales) is done.
    """
    model, inputs, targets = loaded.model, windows[:, :-1], windows[:, 1:]
    with torch.autocast(windows.device.type, dtype=torch.bfloat16, enabled=loaded.precision == "bf16"):
        if inputs.numel() * loaded.vocab_size <= MAX_LOGITS:
            return _cross_entropy(model(input_ids=inputs, use_cache=False).logits, targets)
        layers = getattr(model, model.base_model_prefix)
        outputs = layers(input_ids=inputs, use_cache=False)
        step = max(1, MAX_LOGITS // (len(inputs) * loaded.vocab_size))
        pieces = []
        with _layers_replaced(model, _Replay(outputs)):
            for positions in torch.arange(targets.shape[1], device=windows.device).split(step):
                logits = model(input_ids=inputs, use_cache=False, logits_to_keep=positions).logits
                pieces.append(_cross_entropy(logits, targets[:, positions]))
    return torch.cat(pieces, dim=1)


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


class _Replay(torch.nn.Module):
    """Stands in for a model's layers: gives what they gave."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.outputs


@contextlib.contextmanager
def _layers_replaced(model: Any, replacement: torch.nn.Module) -> Iterator[None]:
    layers = getattr(model, model.base_model_prefix)
    setattr(model, model.base_model_prefix, replacement)
    try:
        yield
    finally:
        setattr(model, model.base_model_prefix, layers)


def window_bytes(
    stream: TokenStream,
    windows: Integers,
    *,
    context_length: int,
    byte_lengths: npt.NDArray[np.int64] | None,
    bytes_per_token: float | None,
) -> Floats | None:
    """b_k of every window, (K,).

    Args:
        byte_lengths: bytes of each token, by id: then b_k is exact.
        bytes_per_token: the set's mean, used where ``byte_lengths`` is None; None too: unknown.
    """
    if byte_lengths is None:
        return None if bytes_per_token is None else np.full(len(windows), bytes_per_token * context_length)
    return np.array(
        [byte_lengths[stream.read(int(k) * context_length + 1, context_length)].sum() for k in windows],
        dtype=np.float64,
    )


def summarize(losses: Floats, *, context_length: int, num_bytes: Floats | None) -> SetLoss:
    """Losses l_k (K,) and bytes b_k (K,), if known, as means with errors."""
    loss = estimate(losses)
    bits_per_byte = None
    if num_bytes is not None and num_bytes.sum() > 0:
        bits = losses * context_length / math.log(2)
        ratio = bits.sum() / num_bytes.sum()
        bits_per_byte = estimate((bits - ratio * num_bytes) / num_bytes.mean(), offset=ratio)
    return SetLoss(
        num_windows=len(losses),
        num_tokens=len(losses) * context_length,
        loss_nats=loss,
        # Beyond float's range a perplexity says nothing that the loss does not.
        perplexity=math.exp(min(loss.value, 709.0)),
        bits_per_byte=bits_per_byte,
    )


def estimate(values: Floats, *, offset: float = 0.0) -> Estimate:
    """``offset`` plus the mean of values (K,), with the standard error of that mean and its 95% interval."""
    mean, count = float(values.mean()) + offset, len(values)
    if count < 2:
        return Estimate(value=mean, standard_error=None, interval=None)
    error = float(values.std(ddof=1)) / math.sqrt(count)
    half = float(stats.t.ppf(0.975, count - 1)) * error
    return Estimate(value=mean, standard_error=error, interval=(mean - half, mean + half))
