"""One evaluation: checkpoints on named sets, their paired differences, dropped layers, copying and tasks, as one record.

Every checkpoint reads the same windows of a set: K of them, spread evenly (:func:`app.engine.data.validation_windows`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.engine.assess.checkpoint import CheckpointFolder, LoadedModel, load_checkpoint
from app.engine.assess.copying import Copying, copying
from app.engine.assess.harness import TaskRequest, TaskScore, run_tasks
from app.engine.assess.layer_drop import LayerDrop, drop_layers, layers_of
from app.engine.assess.losses import Estimate, Floats, SetLoss, estimate, summarize, window_bytes, window_losses
from app.engine.data import Integers, TokenStream, validation_windows
from fitting.errors import InputError

# what is being done, windows done, windows in all
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """A named set as the evaluation reads it; ``byte_lengths`` and ``bytes_per_token`` as in :func:`window_bytes`."""

    name: str
    source: str
    content_hash: str | None
    stream: TokenStream
    byte_lengths: npt.NDArray[np.int64] | None
    bytes_per_token: float | None


@dataclass(frozen=True, kw_only=True)
class SetReport:
    """What was read of a set. ``bytes_basis``: bits per byte divide by the bytes of the very ``windows``, by the mean of
    the whole ``set``, or are not given (None)."""

    name: str
    source: str
    content_hash: str | None
    num_windows: int
    num_windows_available: int
    bytes_per_token: float | None
    bytes_basis: str | None


@dataclass(frozen=True, kw_only=True)
class CheckpointReport:
    """One checkpoint: ``losses`` in the order of the sets, ``dropped_layers`` and ``copying`` on the first of them."""

    path: str
    model_type: str
    num_layers: int
    total_params: int
    precision: str
    device: str
    losses: tuple[SetLoss, ...]
    dropped_layers: tuple[LayerDrop, ...]
    copying: Copying | None
    tasks: tuple[TaskScore, ...]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Second checkpoint less first on one set, window by window; below 0 the second is better."""

    set: str
    loss_nats: Estimate
    bits_per_byte: float | None


@dataclass(frozen=True, kw_only=True)
class Report:
    context_length: int
    sets: tuple[SetReport, ...]
    checkpoints: tuple[CheckpointReport, ...]
    differences: tuple[Difference, ...]


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A set with the windows that are read and their bytes (K,)."""

    tokens: TokenSet
    windows: Integers
    num_bytes: Floats | None


def assess(
    folders: Sequence[CheckpointFolder],
    sets: Sequence[TokenSet],
    *,
    context_length: int,
    num_windows: int | None = None,
    drop: bool = False,
    copies: bool = False,
    tasks: TaskRequest | None = None,
    batch_sequences: int | None = None,
    precision: str = "auto",
    device: str = "auto",
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Evaluate one checkpoint, or two and their difference.

    Args:
        num_windows: K of each set, fewer where a set has fewer; None: all.
        drop: whether each layer is dropped in turn, on the first set.
        copies: whether copying from the context is measured, on the first set.

    Raises:
        InputError: a set is shorter than a window, or does not fit a checkpoint; a checkpoint cannot be loaded.
    """
    opened = [_open(tokens, context_length, num_windows) for tokens in sets]
    checkpoints, losses = [], []
    for number, folder in enumerate(folders):
        loaded = load_checkpoint(folder, device=device, precision=precision)
        meter = _Meter(progress, "AB"[number] if len(folders) > 1 else "")
        read = [
            window_losses(
                loaded,
                one.tokens.stream,
                one.windows,
                context_length=context_length,
                batch_sequences=batch_sequences,
                progress=meter.start(one.tokens.name, len(one.windows)),
            )
            for one in opened
        ]
        drops: list[LayerDrop] = []
        if drop:
            first, num_layers = opened[0], len(layers_of(loaded.model))
            drops = drop_layers(
                loaded,
                first.tokens.stream,
                first.windows,
                read[0],
                context_length=context_length,
                source_layers=folder.source_layers,
                batch_sequences=batch_sequences,
                progress=meter.start("dropping layers", num_layers * len(first.windows)),
            )
        copied = None
        if copies:
            first = opened[0]
            copied = copying(
                loaded,
                first.tokens.stream,
                first.windows,
                context_length=context_length,
                batch_sequences=batch_sequences,
                progress=meter.start("text read twice", len(first.windows)),
            )
        scores = run_tasks(loaded, folder, tasks) if tasks else []
        losses.append(read)
        summaries = [
            summarize(values, context_length=context_length, num_bytes=one.num_bytes)
            for values, one in zip(read, opened, strict=True)
        ]
        checkpoints.append(_checkpoint_report(folder, loaded, summaries, drops, copied, scores))
        del loaded  # before the next one is loaded
    differences = []
    if len(folders) == 2:
        differences = [
            _difference(one, second - first, context_length)
            for one, first, second in zip(opened, losses[0], losses[1], strict=True)
        ]
    return Report(
        context_length=context_length,
        sets=tuple(_set_report(one, context_length) for one in opened),
        checkpoints=tuple(checkpoints),
        differences=tuple(differences),
    )


class _Meter:
    """Turns 'windows just read' into 'windows done of all' for one bar after the other."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress, self._label = progress, f"{label}: " if label else ""

    def start(self, what: str, total: int) -> Callable[[int], None]:
        done = 0

        def add(count: int) -> None:
            nonlocal done
            done += count
            self._progress(self._label + what, done, total)

        add(0)
        return add


def _open(tokens: TokenSet, context_length: int, num_windows: int | None) -> _Opened:
    available = tokens.stream.num_windows(context_length)
    if not available:
        raise InputError(
            f"set {tokens.name}",
            f"has {len(tokens.stream):,} tokens, fewer than a window of {context_length} and its last target",
            "lower context_length or give more text",
        )
    windows = validation_windows(num_available=available, num_windows=min(available, num_windows or available))
    num_bytes = window_bytes(
        tokens.stream,
        windows,
        context_length=context_length,
        byte_lengths=tokens.byte_lengths,
        bytes_per_token=tokens.bytes_per_token,
    )
    return _Opened(tokens=tokens, windows=windows, num_bytes=num_bytes)


def _set_report(one: _Opened, context_length: int) -> SetReport:
    basis = None
    if one.num_bytes is not None:
        basis = "set" if one.tokens.byte_lengths is None else "windows"
    return SetReport(
        name=one.tokens.name,
        source=one.tokens.source,
        content_hash=one.tokens.content_hash,
        num_windows=len(one.windows),
        num_windows_available=one.tokens.stream.num_windows(context_length),
        bytes_per_token=None if one.num_bytes is None else float(one.num_bytes.mean()) / context_length,
        bytes_basis=basis,
    )


def _checkpoint_report(
    folder: CheckpointFolder,
    loaded: LoadedModel,
    losses: list[SetLoss],
    drops: list[LayerDrop],
    copied: Copying | None,
    scores: list[TaskScore],
) -> CheckpointReport:
    config: Any = loaded.model.config.get_text_config()
    return CheckpointReport(
        path=str(folder.path),
        model_type=config.model_type,
        num_layers=config.num_hidden_layers,
        total_params=sum(parameter.numel() for parameter in loaded.model.parameters()),
        precision=loaded.precision,
        device=str(loaded.device),
        losses=tuple(losses),
        dropped_layers=tuple(drops),
        copying=copied,
        tasks=tuple(scores),
    )


def _difference(one: _Opened, differences: Floats, context_length: int) -> Difference:
    loss = estimate(differences)
    bits = None
    if one.num_bytes is not None:
        bits = float(differences.sum()) * context_length / math.log(2) / float(one.num_bytes.sum())
    return Difference(set=one.tokens.name, loss_nats=loss, bits_per_byte=bits)
