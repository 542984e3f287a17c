"""Growth in depth: target layer i takes all tensors of base layer pi(i); new layers can be silenced or drawn.

    direct    W'_i = W_pi(i)
    zero      as direct; in new layers what closes a residual branch is 0: attention output and MLP down projections with
              their biases, or, where a norm follows them, that norm's gain
    random    as direct in old layers; in new layers W'_i ~ N(0, 0.02^2), gains 1, biases 0, and what closes a branch
              times m

======  ============================================================================================  =====
symbol  meaning                                                                                       unit
======  ============================================================================================  =====
pi(i)   base layer behind target layer i; the layer is old where it is the first copy of its source    -
m       mask of the random operator (:mod:`app.engine.operators.mask`); at 0 a new layer is silent     -
======  ============================================================================================  =====

Noise (:mod:`app.engine.operators.noise`) comes before silence. Sources: G_stack, arXiv 2405.15319, section 3; zero is
LLaMA Pro's, arXiv 2401.02415. Why a post-norm family silences its gain: :mod:`app.engine.surgery.families`.
"""

from __future__ import annotations

from typing import Any

import torch

from app.engine.operators.base import RANDOM_STD, Growth, draw, widened
from app.engine.operators.noise import matrix_noise, noise_std
from app.engine.surgery.families import family_of
from app.engine.surgery.family import Family


def source_name(family: Family, name: str, layers: tuple[int, ...]) -> str:
    """Base tensor behind a target tensor.

    >>> from app.engine.surgery.families import FAMILIES
    >>> source_name(FAMILIES["llama"], "model.layers.5.mlp.up_proj.weight", (0, 1, 2, 0, 1, 2))
    'model.layers.2.mlp.up_proj.weight'
    """
    found = family.split(name)
    return name if found is None else family.with_layer(name, layers[found[0]])


def changes_in_depth(growth: Growth, family: Family, name: str) -> bool:
    """Whether a target tensor holds new values; False where it is its source's copy, byte for byte."""
    found = family.split(name)
    if found is None:
        return False
    layer, suffix = found
    tensor, is_new = family.tensor(suffix), growth.is_new_layer[layer]
    if growth.operator == "random":
        return is_new and tensor.role != "buffer"
    if growth.operator == "zero":
        return is_new and (family.identity_value(suffix) is not None or (growth.noise > 0 and tensor.is_matrix))
    return growth.noise > 0 and tensor.is_matrix


def grow_in_depth(growth: Growth, base_config: dict[str, Any], name: str, source: torch.Tensor) -> torch.Tensor:
    """A target tensor from its source.

    Args:
        growth: a growth in depth; ``learn`` gives its start, direct growth.
        base_config: the base's config.
        name: name of the target tensor, in a checkpoint or in a live model.
        source: the base's tensor :func:`source_name`.

    Returns:
        ``source`` itself where nothing changes, else a new tensor on its device, in float32 or wider.
    """
    family = family_of(base_config)
    if not changes_in_depth(growth, family, name):
        return source
    layer, suffix = family.split(name) or (0, "")
    tensor, end = family.tensor(suffix), family.identity_value(suffix)
    source = widened(source)
    if growth.operator == "random":
        if not tensor.is_matrix:
            return torch.full_like(source, 0.0 if tensor.is_bias else 1.0)
        drawn = draw(source.shape, seed=growth.seed, what="new", name=f"{layer}.{suffix}", std=RANDOM_STD)
        return (drawn if end is None else growth.mask * drawn).to(source)
    if growth.operator == "zero" and end is not None:
        return torch.full_like(source, end)
    assert growth.layers is not None
    std = noise_std(
        hidden_size=base_config[family.own_names.get("hidden_size", "hidden_size")],
        num_layers=len(growth.layers),
        is_branch_output=tensor.role in ("o", "down"),
    )
    e = matrix_noise(family, layer, suffix, source.shape, seed=growth.seed, std=std)
    return (1.0 - growth.noise) * source + growth.noise * e.to(source)
