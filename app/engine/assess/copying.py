"""Whether a model has learned to copy from its context: text that is read twice in a row.

    window k = x_1 ... x_H x_1 ... x_H
    gain_k = (1 / (H - h)) sum_{i > h} (l_{k,i} - l_{k,H+i}),     h = H // 2

=========  ===============================================================================  ===========
symbol     meaning                                                                          unit
=========  ===============================================================================  ===========
H          tokens of the text, half the context length                                      tokens
l_{k,i}    loss of x_i in the first copy, l_{k,H+i} in the second                           nats a token
=========  ===============================================================================  ===========

A model that looks up what followed an earlier occurrence (an induction head: Olsson et al., "In-context Learning and Induction
Heads", arXiv 2209.11895) ends far lower in the second copy; longer context alone is worth little, as the
first h tokens of a copy are left out. Models learn this well after they learned which tokens are frequent, and those that
have end lower: two runs of one recipe of which only one has can differ by more than their designs do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.engine.assess.checkpoint import LoadedModel
from app.engine.assess.losses import DEFAULT_BATCH_TOKENS, Estimate, Progress, estimate, on_device, token_losses
from app.engine.data import Integers, TokenStream
from fitting.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Copying:
    """Losses of the first and the second copy, and how much lower the second is; errors are over windows."""

    first_nats: Estimate
    second_nats: Estimate
    gain_nats: Estimate


def copying(
    loaded: LoadedModel,
    stream: TokenStream,
    windows: Integers,
    *,
    context_length: int,
    batch_sequences: int | None = None,
    progress: Progress = lambda num_windows: None,
) -> Copying:
    """The gain on the texts that windows of the stream begin with.

    Args:
        windows: indices of windows of ``context_length`` targets, (K,).
        batch_sequences: windows run at once; None: about 8,192 tokens.

    Raises:
        InputError: the context is shorter than four tokens, or an id lies outside the model's vocabulary.
    """
    num_tokens = context_length // 2
    if num_tokens < 2:
        raise InputError("context_length", f"is {context_length}, but two copies of two tokens need 4", "raise it")
    batch = batch_sequences or max(1, DEFAULT_BATCH_TOKENS // context_length)
    skipped = num_tokens // 2
    first, second = np.empty(len(windows)), np.empty(len(windows))
    for start in range(0, len(windows), batch):
        text = stream.windows(windows[start : start + batch], context_length)[:, :num_tokens]
        losses = token_losses(loaded, on_device(loaded, np.concatenate([text, text], axis=1))).double()
        # The loss at place j is that of token j + 2, so x_i stands at i - 2 and, once more, at H + i - 2.
        rows = slice(start, start + len(text))
        first[rows] = losses[:, skipped - 1 : num_tokens - 1].mean(dim=1).cpu().numpy()
        second[rows] = losses[:, num_tokens + skipped - 1 :].mean(dim=1).cpu().numpy()
        progress(len(text))
    return Copying(first_nats=estimate(first), second_nats=estimate(second), gain_nats=estimate(first - second))
