"""Growing a checkpoint where tensors get new values, one target tensor at a time: noise, zero, random, learn, width, casts.

    tensor' = round(f(growth, config, tensor))      f as for the live model (:mod:`app.engine.operators.tensors`)

A tensor is read, grown in float32 (or wider), rounded once to its type, and appended to its shard. So memory is bounded by
a few copies of the largest tensor, whatever the checkpoint's size; only ``learn``, which trains, holds base and target.
Tensors that stay byte for byte are still copied by the kernel.

A plain transformers checkpoint has no place for the mask of the random operator, so it is folded: what new branches write is
stored multiplied by m, which growth.json records. At m = 0 the checkpoint computes the base's function; the same growth and
seed with m = 1 give the weights as they were drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.engine.operators.base import Growth
from app.engine.operators.learn import learn_on_corpus
from app.engine.operators.tensors import grow_tensor, is_copied, target_config, target_shape
from app.engine.surgery.copying import Sink
from app.engine.surgery.families import family_of
from app.engine.surgery.folder import Folder, StoredTensor
from app.engine.surgery.layout import TargetTensor
from app.engine.surgery.writing import Produce
from fitting.errors import InputError

# Types that hold weights; everything else (masks that old versions stored) is copied as it is.
FLOAT_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# What --dtype takes, with safetensors' name and config.json's.
DTYPES = {"fp32": ("F32", "float32"), "bf16": ("BF16", "bfloat16"), "fp16": ("F16", "float16")}

# Makes a target tensor's values from what the sink reads of the base.
Make = Callable[[TargetTensor, Sink], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What the operator ``learn`` trains its maps on.

    Attributes:
        corpus_dir: a prepared corpus, made with the checkpoint's tokenizer.
        num_steps: steps of training the maps.
        batch_sequences, context_length: shape of a batch; tokens.
    """

    corpus_dir: Path
    num_steps: int = 100
    batch_sequences: int = 8
    context_length: int = 1024


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """What :mod:`app.engine.surgery.grow` writes a target from.

    Attributes:
        config: the target's config.json.
        tensors: the target's, in the order to be written.
        produce: appends one of them to a sink.
        record: what growth.json adds to the request: of ``random`` its mask, of ``learn`` its training.
    """

    config: dict[str, Any]
    tensors: tuple[TargetTensor, ...]
    produce: Produce
    record: dict[str, Any]


def plan_rewrite(
    source: Folder, growth: Growth, *, dtype: str | None = None, learning: Learning | None = None
) -> Rewrite:
    """Check a growth with new values against a checkpoint; nothing is computed before the first tensor is asked for.

    Args:
        source: the base.
        growth: what to grow. Its mask is folded into the weights.
        dtype: type of the target's weights, a key of ``DTYPES``; each keeps its own where None.
        learning: what ``learn`` trains on; other operators take none.

    Raises:
        InputError: the family has no such growth, or a tensor has a type that does not compute.
    """
    _check_learning(growth, learning)
    config = target_config(growth, source.config)
    stored_type = None
    if dtype is not None:
        if dtype not in DTYPES:
            raise InputError("--dtype", f"is {dtype!r}, but known are {', '.join(DTYPES)}", "use one of them")
        stored_type, named = DTYPES[dtype]
        field = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        config = config | {field: named}
    tensors = tuple(_target_tensors(source, growth, stored_type))
    record: dict[str, Any] = {}
    make = _grower(source, growth)
    if growth.operator == "random":
        record = {"mask": growth.mask, "mask_is_folded": True}
    if learning is not None:
        make = _learner(source, growth, learning)
        record = {
            "learn_steps": learning.num_steps,
            "batch_sequences": learning.batch_sequences,
            "context_length": learning.context_length,
        }

    def produce(tensor: TargetTensor, sink: Sink) -> None:
        stored = source.tensors[tensor.source]
        if learning is None and stored.dtype == tensor.dtype and is_copied(growth, source.config, tensor.name):
            sink.copy(stored)
        else:
            sink.write(bytes_of(make(tensor, sink), tensor.dtype))

    return Rewrite(config=config, tensors=tensors, produce=produce, record=record)


def _check_learning(growth: Growth, learning: Learning | None) -> None:
    if growth.operator == "learn" and learning is None:
        raise InputError(
            "--corpus",
            "is missing, and operator 'learn' trains its maps on real text",
            "prepare a corpus with the checkpoint's tokenizer and give its folder",
        )
    if growth.operator != "learn" and learning is not None:
        raise InputError("--corpus", "is given, but only operator 'learn' reads text", "leave it out")


def _target_tensors(source: Folder, growth: Growth, dtype: str | None) -> Iterator[TargetTensor]:
    for name, origin in _target_names(source, growth):
        stored = source.tensors[origin]
        is_float = stored.dtype in FLOAT_TYPES
        if not is_float and not is_copied(growth, source.config, name):
            raise InputError(
                f"{stored.file}: {origin}",
                f"is stored as {stored.dtype}, which this operator does not compute with",
                "give a checkpoint in float32, float16 or bfloat16, or grow by order alone",
            )
        yield TargetTensor(
            name=name,
            dtype=dtype if dtype is not None and is_float else stored.dtype,
            shape=target_shape(growth, name, stored.shape),
            source=origin,
        )


def _target_names(source: Folder, growth: Growth) -> Iterator[tuple[str, str]]:
    """Target tensor and the base tensor behind it: those outside the layers first, then layer by layer."""
    family = family_of(source.config)
    in_width, is_tied = growth.layers is None, family.is_tied(source.config)
    by_layer: dict[int, list[tuple[str, str]]] = {}
    for name in source.tensors:
        found = family.split(name)
        if found is not None:
            by_layer.setdefault(found[0], []).append((name, found[1]))
        elif not (
            in_width and is_tied and name in family.heads
        ):  # a stored copy of the embedding would be another tensor
            yield name, name
    for i, layer in enumerate(growth.layers if growth.layers is not None else sorted(by_layer)):
        for name, suffix in by_layer[layer]:
            if not (in_width and family.tensor(suffix).role == "buffer"):  # today's classes compute them
                yield family.with_layer(name, i), name


def _grower(source: Folder, growth: Growth) -> Make:
    def make(tensor: TargetTensor, sink: Sink) -> torch.Tensor:
        stored = source.tensors[tensor.source]
        base = tensor_of(sink.read(stored), stored)
        return grow_tensor(growth, source.config, tensor.name, lambda _: base)

    return make


def _learner(source: Folder, growth: Growth, learning: Learning) -> Make:
    """Trains when the first tensor is asked for, and holds the target from then on."""
    trained: dict[str, torch.Tensor] = {}

    def make(tensor: TargetTensor, sink: Sink) -> torch.Tensor:
        if not trained:
            trained.update(_train(source, growth, learning))
        return trained[tensor.name]

    return make


def _train(source: Folder, growth: Growth, learning: Learning) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = AutoModelForCausalLM.from_pretrained(
        source.path, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
    )
    target = learn_on_corpus(
        base.to(device),
        growth,
        learning.corpus_dir,
        learning.num_steps,
        batch_sequences=learning.batch_sequences,
        context_length=learning.context_length,
        data_seed=growth.seed,
    )
    return {name: tensor.detach().cpu() for name, tensor in target.state_dict().items()}


def tensor_of(data: bytearray, stored: StoredTensor) -> torch.Tensor:
    """The tensor that a checkpoint stores as these bytes; it lives in their memory."""
    dtype = FLOAT_TYPES[stored.dtype]
    return torch.frombuffer(data, dtype=dtype).reshape(stored.shape) if data else torch.empty(stored.shape, dtype=dtype)


def bytes_of(tensor: torch.Tensor, dtype: str) -> memoryview:
    """A tensor's bytes as safetensors stores them in a type: little endian, row by row."""
    return tensor.to(FLOAT_TYPES[dtype]).contiguous().reshape(-1).view(torch.uint8).numpy().data
