"""The one way from a base to its target, for a live model and for a checkpoint: config in, config out; tensors in, tensors
out, one at a time.

    target tensor = f(growth, base config, its name, the base tensor behind it)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from app.engine.operators.base import Growth
from app.engine.operators.depth import changes_in_depth, grow_in_depth, source_name
from app.engine.operators.support import check_supported
from app.engine.operators.width import grow_in_width, spaces_of, width_config
from app.engine.surgery.config import grow_config
from app.engine.surgery.families import family_of


def target_config(growth: Growth, base_config: dict[str, Any]) -> dict[str, Any]:
    """The target's config from the base's, as config.json holds them.

    Raises:
        InputError: this family has no such growth, or its config cannot be grown so.
    """
    check_supported(family_of(base_config).model_type, growth.direction, growth.operator)
    if growth.layers is None:
        return width_config(growth, base_config)
    return grow_config(base_config, growth.layers)


def grow_tensors(
    growth: Growth, base_config: dict[str, Any], read: Callable[[str], torch.Tensor], names: Iterable[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The target's tensors, each made when it is asked for, so that one at a time is held.

    Args:
        growth: what to grow; ``learn`` gives its start, direct growth.
        base_config: the base's config.
        read: gives the base's tensor of a name.
        names: the target's tensor names, those of a checkpoint or those of a live model.

    Yields:
        Name and tensor: the base's own where nothing changes, else a new one on the same device, in float32 or wider.

    Raises:
        InputError: this family has no such growth, or a tensor that the operator does not know.
    """
    check_supported(family_of(base_config).model_type, growth.direction, growth.operator)
    for name in names:
        yield name, grow_tensor(growth, base_config, name, read)


def grow_tensor(
    growth: Growth, base_config: dict[str, Any], name: str, read: Callable[[str], torch.Tensor]
) -> torch.Tensor:
    """One tensor of :func:`grow_tensors`, for a pair that is supported."""
    if growth.layers is None:
        return grow_in_width(growth, base_config, name, read(name))
    return grow_in_depth(growth, base_config, name, read(source_name(family_of(base_config), name, growth.layers)))


def target_shape(growth: Growth, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a target tensor from the shape of the base tensor behind it."""
    if growth.layers is not None:
        return shape
    return tuple(
        size * growth.width_factor if space else size for size, space in zip(shape, spaces_of(name), strict=True)
    )


def is_copied(growth: Growth, base_config: dict[str, Any], name: str) -> bool:
    """Whether a target tensor is a base tensor's copy, byte for byte."""
    return growth.layers is not None and not changes_in_depth(growth, family_of(base_config), name)
