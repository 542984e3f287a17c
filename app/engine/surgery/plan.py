"""What a growth of a checkpoint will write, found and checked before its first byte.

=============  ================================================================================================
checked        how
=============  ================================================================================================
source         :mod:`app.engine.surgery.folder`; its tensors are the layers that its config names, and the head is
               there unless it is tied
family, depth  :mod:`app.engine.surgery.families` and :mod:`app.engine.surgery.config`
target         does not exist, in a folder that exists and is writable, not in the source nor around it
disk           the output and a margin fit
=============  ================================================================================================

Which tensors the target has, and its config, whoever makes new values brings along (:mod:`app.engine.surgery.grow`).
Standard library only: the byte copy imports this.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.engine.surgery.families import family_of
from app.engine.surgery.family import Family
from app.engine.surgery.folder import CONFIG_FILE, Folder, read_folder
from app.engine.surgery.layout import DEFAULT_SHARD_BYTES, TargetShard, TargetTensor, lay_out
from app.engine.surgery.writing import companions
from fitting.errors import InputError
from fitting.orders import MAX_LAYERS, connection_rate, order_length, source_layers

Operator = Literal["direct", "zero", "random", "learn"]

# Metadata, journals and what others write meanwhile.
DISK_MARGIN_BYTES = 64 * 2**20
# Quantization that keeps a layer's every tensor in the layer, whatever its depth.
_QUANTIZED_BY_LAYER = ("fp8", "mxfp4")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A growth as it is asked for; fields named like the command's options.

    Attributes:
        source, target: folders.
        factor: target layers / base layers; or
        num_layers: target layers; neither where the order fixes them.
        order: see :mod:`fitting.orders`.
        operator: how new weights are made.
        noise, seed: share of fresh noise and the seed of all that is drawn.
        width_factor: how many times wider; 1 for a growth in depth.
        mask: m in [0, 1] of the operator ``random``, folded into the weights; at 0 the base's function is kept.
        dtype: ``fp32``, ``bf16`` or ``fp16``; None keeps every tensor's own.
        checksums: hash copied tensors too.
        rescale_multipliers: divide residual multipliers by sqrt(L' / L).
        base_tokens: tokens the base was trained on, if known.
        corpus, learn_steps: what ``learn`` trains its maps on, and for how many steps.
        max_shard_bytes: of tensors, in a shard.
    """

    source: Path
    target: Path
    factor: float | None = None
    num_layers: int | None = None
    order: str = "stack"
    operator: Operator = "direct"
    noise: float = 0.0
    seed: int = 0
    mask: float = 0.0
    width_factor: int = 1
    dtype: str | None = None
    checksums: bool = False
    rescale_multipliers: bool = False
    base_tokens: int | None = None
    corpus: Path | None = None
    learn_steps: int = 100
    max_shard_bytes: int = DEFAULT_SHARD_BYTES

    @property
    def is_byte_copy(self) -> bool:
        """Whether every byte of the target's tensors is a byte of the base's."""
        return self.operator == "direct" and self.noise == 0 and self.width_factor == 1 and self.dtype is None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A growth that passed every check.

    Attributes:
        request: what was asked for.
        folder: the base.
        layers: base layer of each target layer; None in width.
        config: the target's config.json.
        shards: what will be written.
        warnings: what a user should know, a sentence each.
        free_bytes: on the target's file system.
    """

    request: Request
    folder: Folder
    layers: tuple[int, ...] | None
    config: dict[str, Any]
    shards: tuple[TargetShard, ...]
    warnings: tuple[str, ...]
    free_bytes: int

    @property
    def num_base_layers(self) -> int:
        return family_of(self.folder.config).num_layers(self.folder.config)

    @property
    def num_bytes(self) -> int:
        """Bytes of the shards."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def connection_rate(self) -> float | None:
        """R_c of a growth in depth."""
        return None if self.layers is None else connection_rate(self.layers)

    def config_changes(self) -> dict[str, tuple[Any, Any]]:
        """Fields of config.json that differ: what they were (None if absent) and what they become."""
        before, after = self.folder.config, self.config
        names = (*before, *(name for name in after if name not in before))
        return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}

    def multipliers(self) -> dict[str, str]:
        """What happens to each multiplier of residual branches that the base's depth decided."""
        before, after = self.folder.config, self.config
        return {
            name: f"kept at {before[name]:g}" if before[name] == after[name] else f"{before[name]:g} -> {after[name]:g}"
            for name in family_of(before).depth_multipliers
            if name in before
        }


def make_plan(
    request: Request,
    folder: Folder,
    layers: tuple[int, ...] | None,
    config: dict[str, Any],
    tensors: Iterable[TargetTensor],
    warnings: Iterable[str],
) -> Plan:
    """Lay out the target and check its place and the disk; the same for depth and width.

    Args:
        request: what was asked for.
        folder: from :func:`read_source`.
        layers: base layer of each target layer; None in width.
        config: the target's config.json.
        tensors: the target's, in the order to be written.
        warnings: what to tell.
    """
    told = list(warnings)
    if "auto_map" in config:
        config = {name: value for name, value in config.items() if name != "auto_map"}
        told.append(
            "auto_map is left out of config.json and no code is copied: transformers' own class loads the result"
        )
    shards = lay_out(tensors, max_shard_bytes=request.max_shard_bytes)
    plan = Plan(
        request=request,
        folder=folder,
        layers=layers,
        config=config,
        shards=shards,
        warnings=tuple(told),
        free_bytes=shutil.disk_usage(request.target.parent).free,
    )
    num_companion_bytes = sum((folder.path / name).stat().st_size for name in companions(folder.path))
    needed = plan.num_bytes + num_companion_bytes + DISK_MARGIN_BYTES
    if needed > plan.free_bytes:
        raise InputError(
            str(request.target),
            f"needs {needed:,} bytes with a margin, but {plan.free_bytes:,} are free",
            "free some, or write to another disk",
        )
    return plan


def read_source(request: Request) -> Folder:
    """The base's folder, and the target's place, checked.

    Raises:
        InputError: either cannot be used.
    """
    _check_request(request)
    _check_target(request.source, request.target)
    folder = read_folder(request.source)
    family = family_of(folder.config)
    _check_quantization(folder.config, is_byte_copy=request.is_byte_copy)
    check_layers(folder, family)
    _check_head(folder, family)
    return folder


def target_layers(request: Request, num_base_layers: int) -> tuple[tuple[int, ...], list[str]]:
    """Base layer of each target layer, and what to tell about it.

    Raises:
        InputError: factor, layers and order contradict one another, or give no deeper model.
    """
    fixed = order_length(request.order, num_base_layers)
    if request.factor is not None and request.num_layers is not None:
        raise InputError("--factor", "and --layers say the same thing", "give one of them")
    notes = []
    num_layers = fixed if fixed is not None else request.num_layers
    if request.num_layers is not None:
        num_layers = request.num_layers
    elif request.factor is not None:
        if not 1 < request.factor <= MAX_LAYERS / num_base_layers:
            raise InputError(
                "--factor",
                f"is {request.factor:g}, but it must lie above 1, and the target have at most {MAX_LAYERS:,} layers",
                "use 2 to 8; 4 is the paper's choice",
            )
        exact = request.factor * num_base_layers
        num_layers = round(exact)
        if num_layers != exact:
            notes.append(
                f"factor {request.factor:g} of {num_base_layers} layers is {exact:g}: the target gets {num_layers}, "
                f"a factor of {num_layers / num_base_layers:.4g}"
            )
    if num_layers is None:
        raise InputError("--factor", f"is missing, and order {request.order!r} fits any depth", "give it or --layers")
    if num_layers <= num_base_layers:
        raise InputError(
            "--layers",
            f"is {num_layers}, but the base has {num_base_layers} already",
            f"ask for {num_base_layers + 1} or more",
        )
    layers = source_layers(request.order, num_base_layers, num_layers)
    if request.order == "stack" and num_layers % num_base_layers:
        copies, rest = divmod(num_layers, num_base_layers)
        notes.append(
            f"{num_layers} layers are no multiple of {num_base_layers}: a partial stack, {copies} times the base, then its "
            f"last {rest} layers; connection rate {connection_rate(layers):.3f}, the highest this depth allows"
        )
    return layers, notes


def depth_tensors(folder: Folder, layers: tuple[int, ...]) -> tuple[TargetTensor, ...]:
    """The target's tensors: those outside the layers, then layer by layer, each in the order of the base's bytes."""
    family = family_of(folder.config)
    outside, by_layer = [], dict[int, list[str]]()
    for name in folder.tensors:
        found = family.split(name)
        if found is None:
            outside.append(name)
        else:
            by_layer.setdefault(found[0], []).append(name)
    pairs = [(name, name) for name in outside]
    pairs += [(family.with_layer(name, i), name) for i, layer in enumerate(layers) for name in by_layer[layer]]
    stored = folder.tensors
    return tuple(
        TargetTensor(name=name, dtype=stored[source].dtype, shape=stored[source].shape, source=source)
        for name, source in pairs
    )


def check_layers(folder: Folder, family: Family) -> None:
    """Refuse a folder whose tensors are not the layers that its config names.

    Raises:
        InputError: layers are missing or too many, or a layer holds a tensor that the family does not know.
    """
    num_layers = family.num_layers(folder.config)
    is_quantized = "quantization_config" in folder.config
    found: dict[int, set[str]] = {}
    for name in folder.tensors:
        place = family.split(name)
        if place is None:
            continue
        layer, suffix = place
        if not is_quantized:
            family.tensor(suffix)
        found.setdefault(layer, set()).add(suffix)
    field = f"{folder.path / CONFIG_FILE}: {family.num_layers_field}"
    missing = [layer for layer in range(num_layers) if layer not in found]
    if missing or len(found) != num_layers:
        many = f"{len(found)} layers, numbers {min(found)} to {max(found)}" if found else f"no {family.layer_prefix}N."
        raise InputError(field, f"is {num_layers}, but the weights hold {many}", "mend the config, or save it again")


def _check_request(request: Request) -> None:
    if request.width_factor < 1:
        raise InputError("--width", f"is {request.width_factor}, but it counts times, from 1", "use 2")
    depth_options = {
        "--factor": request.factor is not None,
        "--layers": request.num_layers is not None,
        "--order": request.order != "stack",
        "--rescale-multipliers": request.rescale_multipliers,
    }
    for name in [name for name, is_given in depth_options.items() if is_given and request.width_factor > 1]:
        raise InputError(name, "is for depth, but --width is given", "grow in depth and in width one after the other")
    if request.base_tokens is not None and request.base_tokens < 0:
        raise InputError("--base-tokens", f"is {request.base_tokens}, but it must not be negative", "give a count")
    if request.max_shard_bytes < 1:
        raise InputError("--max-shard-bytes", f"is {request.max_shard_bytes}, but it must lie above 0", "use 5e9")


def _check_head(folder: Folder, family: Family) -> None:
    architectures = folder.config.get("architectures") or ["ForCausalLM"]
    has_head = any(name in folder.tensors for name in family.heads)
    if has_head or family.is_tied(folder.config) or not str(architectures[0]).endswith(("ForCausalLM", "LMHeadModel")):
        return
    raise InputError(
        f"{folder.path / CONFIG_FILE}: tie_word_embeddings",
        f"is false, but {family.heads[0]} is not among the weights",
        "save the checkpoint again, or set the field to true if the head shares the embedding",
    )


def _check_quantization(config: Mapping[str, Any], *, is_byte_copy: bool) -> None:
    quantization = config.get("quantization_config")
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if method in _QUANTIZED_BY_LAYER and is_byte_copy:
        return
    problem = f"is {method!r}, which is not known to keep each layer's tensors apart"
    if method in _QUANTIZED_BY_LAYER:
        problem = f"is {method!r}, and only direct growth in depth copies quantized weights as they are"
    raise InputError("config.json: quantization_config", problem, "dequantize the checkpoint first")


def _check_target(source: Path, target: Path) -> None:
    if os.path.lexists(target):
        raise InputError(str(target), "exists already", "give another name, or delete it")
    parent = target.parent
    if not parent.is_dir():
        raise InputError(str(target), f"cannot be made: {parent} is no folder", "make it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(str(target), f"cannot be made: {parent} is not writable", "write elsewhere")
    base, place = source.resolve(), target.resolve()
    if place.is_relative_to(base) or base.is_relative_to(place):
        raise InputError(str(target), f"lies in the source {source}, or around it", "write beside it")
