"""How much the loss rises when one layer is dropped: are grown layers redundant?

    rise_i = (1 / K) sum_k (l_k without layer i - l_k)

A dropped layer is the identity on the residual stream: what entered it leaves it. A copy that changes little when
dropped has not found work of its own (Gromov et al., arXiv 2403.17887, drop layers in the same way). Errors are of the K
paired differences (:mod:`app.engine.assess.losses`).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from app.engine.assess.checkpoint import LoadedModel
from app.engine.assess.losses import Estimate, Floats, Progress, estimate, window_losses
from app.engine.data import Integers, TokenStream
from fitting.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LayerDrop:
    """One layer, counted from 0. ``source_layer`` is the base layer it was copied from, ``copy`` the how-manyth copy of
    that layer it is, counted from 1; both None where the checkpoint does not tell."""

    layer: int
    source_layer: int | None
    copy: int | None
    rise_nats: Estimate


def layers_of(model: Any) -> torch.nn.ModuleList:
    """The model's layers in order.

    Raises:
        InputError: the family keeps them where this program does not find them.
    """
    num_layers = model.config.get_text_config().num_hidden_layers
    for module in getattr(model, model.base_model_prefix).modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == num_layers:
            return module
    raise InputError(
        "checkpoint", f"of type {model.config.model_type!r} has no list of {num_layers} layers", "leave out drop_layers"
    )


@contextlib.contextmanager
def dropped(layer: torch.nn.Module) -> Iterator[None]:
    """Inside the block ``layer`` gives back the hidden states that it was given."""

    def pass_on(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        entered = args[0] if args else kwargs["hidden_states"]
        return entered if isinstance(output, torch.Tensor) else (entered, *output[1:])

    hook = layer.register_forward_hook(pass_on, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def drop_layers(
    loaded: LoadedModel,
    stream: TokenStream,
    windows: Integers,
    whole: Floats,
    *,
    context_length: int,
    source_layers: tuple[int, ...] | None,
    batch_sequences: int | None = None,
    progress: Progress = lambda num_windows: None,
) -> list[LayerDrop]:
    """The rise for each layer in turn.

    Args:
        whole: losses of the whole model on the same windows, (K,).
        source_layers: base layer of each layer, where the model was grown.
    """
    layers = layers_of(loaded.model)
    if source_layers is not None and len(source_layers) != len(layers):
        raise InputError(
            "checkpoint",
            f"has {len(layers)} layers, but its growth record tells of {len(source_layers)}",
            "mend or remove growth.json",
        )
    copies: Counter[int] = Counter()
    drops = []
    for i, layer in enumerate(layers):
        with dropped(layer):
            losses = window_losses(
                loaded, stream, windows, context_length=context_length, batch_sequences=batch_sequences, progress=progress
            )  # fmt: skip
        source = source_layers[i] if source_layers is not None else None
        if source is not None:
            copies[source] += 1
        drops.append(
            LayerDrop(
                layer=i,
                source_layer=source,
                copy=copies[source] if source is not None else None,
                rise_nats=estimate(losses - whole),
            )
        )
    return drops
