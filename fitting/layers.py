"""The base models a target can be grown from, as layer lists.

A target of L layers grown from l layers repeats the base in one of the orders of :mod:`fitting.orders`; where l does not
divide L it is the partial stack, named with its connection rate R_c.

========  ======================================  =========
symbol    meaning                                 unit
========  ======================================  =========
L, l      layers of the target, of the base       -
g         growth factor L / l                     -
R_c       connection rate                         -
========  ======================================  =========
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fitting.flops import Shape, flops_per_token, non_embedding_params
from fitting.orders import connection_rate, stacked_layers

# 2, 4 and 8 span what has been tried with success (G_stack: best between 2 and 4, one-layer bases lose).
DEFAULT_GROWTH_FACTORS = (2.0, 4.0, 8.0)
# A factor that divides stands for a default one that it is this close to.
_CLOSE_FACTOR = 1.15


@dataclass(frozen=True, kw_only=True)
class Target:
    """The model wanted: by shape, or by its size (and perhaps its layers) alone.

    ``flops_per_token`` follows ``fitting.flops`` where the shape is known (convention "flops_per_token"), else 6 N
    (convention "6nd").
    """

    params: float
    num_layers: int | None = None
    shape: Shape | None = None

    @property
    def flops_convention(self) -> str:
        return "6nd" if self.shape is None else "flops_per_token"

    @cached_property
    def flops_per_token(self) -> float:
        return 6.0 * self.params if self.shape is None else flops_per_token(self.shape)


@dataclass(frozen=True, kw_only=True)
class BaseOption:
    """One base a target can be grown from; ``growth_factor`` is the ratio of layers where layers are known."""

    growth_factor: float
    params: float
    num_layers: int | None
    order: str
    connection_rate: float | None
    flops_per_token: float

    @property
    def exact(self) -> bool:
        """Every base layer is repeated equally often."""
        return not self.order.startswith("list:")


def order_name(num_base_layers: int, num_target_layers: int) -> str:
    """The ``order`` of the file contract: "stack" where l divides L, else the partial stack as an explicit list."""
    if num_target_layers % num_base_layers == 0:
        return "stack"
    return "list:" + ",".join(map(str, stacked_layers(num_base_layers, num_target_layers)))


def single_size_params(target: Target, num_layers: int) -> float:
    """Non-embedding parameters of the target cut to ``num_layers``."""
    if target.shape is not None:
        return float(non_embedding_params(target.shape.with_layers(num_layers)))
    assert target.num_layers is not None
    return target.params * num_layers / target.num_layers


def single_size_flops_per_token(target: Target, num_layers: int) -> float:
    """Training FLOPs per token of the target cut to ``num_layers``."""
    if target.shape is not None:
        return flops_per_token(target.shape.with_layers(num_layers))
    return 6.0 * single_size_params(target, num_layers)


def base_options(target: Target, growth_factors: Sequence[float] | None = None) -> tuple[BaseOption, ...]:
    """The bases to consider, by rising growth factor.

    Args:
        target: the model wanted.
        growth_factors: factors asked for. Where layers are known each becomes the base with round(L / g) layers, so the
            factor in the answer may differ from the one asked for; doubles are dropped. By default 2, 4, 8, or where
            layers are known every factor from 2 to 8 that divides them, with partial stacks for 2, 4 and 8 where none
            comes close.
    """
    factors = growth_factors or default_factors(target.num_layers)
    if target.num_layers is None:
        return tuple(
            BaseOption(
                growth_factor=float(g), params=target.params / g, num_layers=None, order="stack",
                connection_rate=None, flops_per_token=6.0 * target.params / g,
            )
            for g in sorted(set(factors))
        )  # fmt: skip
    num_layers = {max(1, round(target.num_layers / g)) for g in factors}
    return tuple(
        base_of_layers(target, layers) for layers in sorted(num_layers, reverse=True) if layers < target.num_layers
    )


def default_factors(num_layers: int | None) -> tuple[float, ...]:
    """The factors to consider where none were asked for."""
    if num_layers is None:
        return DEFAULT_GROWTH_FACTORS
    low, high = int(DEFAULT_GROWTH_FACTORS[0]), int(DEFAULT_GROWTH_FACTORS[-1])
    dividing = [float(g) for g in range(low, high + 1) if num_layers % g == 0]
    partial = [
        g
        for g in DEFAULT_GROWTH_FACTORS
        if not any(g / _CLOSE_FACTOR < other < g * _CLOSE_FACTOR for other in dividing)
    ]
    return tuple(sorted([*dividing, *partial]))


def base_of_layers(target: Target, num_layers: int) -> BaseOption:
    """The base with ``num_layers`` layers of the target's width."""
    assert target.num_layers is not None
    return BaseOption(
        growth_factor=target.num_layers / num_layers,
        params=single_size_params(target, num_layers),
        num_layers=num_layers,
        order=order_name(num_layers, target.num_layers),
        connection_rate=connection_rate(stacked_layers(num_layers, target.num_layers)),
        flops_per_token=single_size_flops_per_token(target, num_layers),
    )
