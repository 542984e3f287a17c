"""A base that exists already: the one a target is then grown from, so that its size fixes the growth factor.

    g = L / l   where both are known in layers,   else N / n

========  ====================================================  ==========
symbol    meaning                                               unit
========  ====================================================  ==========
L, l      layers of the target, of the base                     -
N, n      non-embedding parameters of the target, of the base   parameters
========  ====================================================  ==========
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fitting.errors import InputError
from fitting.flops import Shape
from fitting.layers import BaseOption, Target, base_of_layers, single_size_params

# What growth in depth leaves as it is. The context may differ: growth does not change it.
_SAME_IN_BOTH = ("hidden_size", "num_heads", "num_kv_heads", "head_size", "intermediate_size", "vocab_size")
# A size this close to that of a whole number of the target's layers is that many layers.
_SIZE_AGREES = 0.02


@dataclass(frozen=True, kw_only=True)
class ExistingBase:
    """A trained base.

    Args:
        tokens: what it was trained on.
        params: its non-embedding parameters, where its shape is not given.
        num_layers: its layers, beside ``params``.
        shape: its shape; the target's shape must then be known and equal but for the layers.
    """

    tokens: float
    params: float | None = None
    num_layers: int | None = None
    shape: Shape | None = None


def base_of_existing(target: Target, existing: ExistingBase) -> BaseOption:
    """The existing base as a base of ``target``.

    Raises:
        InputError: its size is not known, it is not smaller, or the target does not come from it by growth in depth.
    """
    if existing.shape is not None:
        return base_of_layers(target, _layers_by_shape(target, existing.shape))
    if existing.params is None:
        raise InputError("existing_base.params", "is missing", "give the base's size, config or checkpoint")
    if existing.params >= target.params:
        raise InputError(
            "existing_base.params", f"is {existing.params:,.0f}, but the target has {target.params:,.0f} parameters",
            "give a base smaller than the target",
        )  # fmt: skip
    if target.num_layers is None:
        if existing.num_layers is not None:
            raise InputError(
                "existing_base.num_layers", "needs the target's layers beside it", "give num_target_layers"
            )
        factor = target.params / existing.params
        return BaseOption(
            growth_factor=factor, params=existing.params, num_layers=None, order="stack", connection_rate=None,
            flops_per_token=6.0 * existing.params,
        )  # fmt: skip
    return _of_layers_and_size(target, target.num_layers, existing.params, existing.num_layers)


def _of_layers_and_size(target: Target, num_target_layers: int, params: float, given: int | None) -> BaseOption:
    """The base with the whole number of the target's layers that has this size."""
    per_layer = single_size_params(target, 2) - single_size_params(target, 1)
    layers = given or round(num_target_layers - (target.params - params) / per_layer)
    found = single_size_params(target, layers) if 1 <= layers < num_target_layers else None
    if found is None or abs(params / found - 1) > _SIZE_AGREES:
        raise InputError(
            "existing_base.num_layers" if given else "existing_base.params",
            f"is {layers if given else params:,.0f}: no base of {layers} of the target's {num_target_layers} layers has "
            f"{params:,.0f} parameters, so it would have to grow in width, which no guideline can honour yet",
            "mend the sizes, or give both shapes",
        )  # fmt: skip
    return replace(base_of_layers(target, layers), params=params)


def _layers_by_shape(target: Target, base: Shape) -> int:
    if target.shape is None:
        raise InputError(
            "target_shape", "is missing, and an existing base with a shape grows into a target with one",
            "give the target's shape or config, or the base by its parameters",
        )  # fmt: skip
    for name in _SAME_IN_BOTH:
        ours, theirs = getattr(target.shape, name), getattr(base, name)
        if ours != theirs:
            raise InputError(
                "existing_base", f"has {name} {theirs:,}, but the target {ours:,}: growth in width, which no guideline "
                "can honour yet", "give a target that differs from the base in its layers only",
            )  # fmt: skip
    if base.num_layers >= target.shape.num_layers:
        raise InputError(
            "existing_base", f"has {base.num_layers} layers, but the target {target.shape.num_layers}",
            "give a base with fewer layers than the target",
        )  # fmt: skip
    return base.num_layers
