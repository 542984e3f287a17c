"""What all operators share: the growth asked for, names of tensors, and draws that depend on nothing but a seed.

    e = N(0, 1) from a generator seeded by SHA-256(seed, what is drawn, name of the target tensor)

So a value depends neither on the order in which tensors are made, nor on the device, nor on whether a live model or a
file grows: the two give the same bits.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from app.contract.specs import GrowthSpec, Operator, Spec
from fitting.errors import InputError
from fitting.orders import first_occurrences, source_layers

Direction = Literal["depth", "width"]

# Where growth in depth or width counts layers: model.layers.3.mlp..., transformer.h.3.attn..., gpt_neox.layers.3...
LAYER_NAME = re.compile(r"^(?P<before>(?:[a-z_]+\.)*?(?:layers|h)\.)(?P<layer>\d+)(?P<after>\..+)$")

# The paper's initialization of the weights that a base gives no value to.
RANDOM_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How a base becomes the target; everything that decides the new weights, with the base's own.

    Attributes:
        operator: how new weights are made; ``learn`` stands for its start, direct growth, until its maps are trained.
        layers: in depth, the base layer behind each target layer, (L',); None in width.
        width_factor: k, how many times wider; 1 in depth. Hidden size, heads, key-value heads and MLP width all grow k
            times, the head size stays.
        noise: share a of fresh noise (:mod:`app.engine.operators.noise`); 0 is none.
        seed: seed of all that is drawn.
        mask: m in [0, 1], folded into the new branches' outputs; only ``random`` has it. 1 leaves the new weights as
            drawn, and the mask, if any, to the live model (:mod:`app.engine.operators.mask`).

    Raises:
        InputError: the fields contradict one another.
    """

    operator: Operator = "direct"
    layers: tuple[int, ...] | None = None
    width_factor: int = 1
    noise: float = 0.0
    seed: int = 0
    mask: float = 1.0

    def __post_init__(self) -> None:
        if self.operator not in get_args(Operator):
            known = ", ".join(get_args(Operator))
            raise InputError("operator", f"is {self.operator!r}, but known operators are {known}", "use one of them")
        if self.width_factor < 1 or int(self.width_factor) != self.width_factor:
            raise InputError(
                "width_factor",
                f"is {self.width_factor!r}, but a growth is a whole number of times wider",
                "use 2 or more, or 1 for a growth in depth",
            )
        if (self.layers is None) == (self.width_factor == 1):
            raise InputError(
                "width_factor",
                f"is {self.width_factor} with {'no' if self.layers is None else len(self.layers)} target layers, but a "
                "growth goes in depth or in width",
                "grow in depth and in width one after the other",
            )
        if not 0 <= self.noise < 1:
            raise InputError("noise", f"is {self.noise!r}, but it must lie in [0, 1)", "use 0.2 as the paper, or 0")
        if self.noise and (self.operator, self.direction) not in NOISY:
            raise InputError(
                "noise",
                f"is {self.noise!r}, but {self.operator} growth in {self.direction} takes none: its new weights are "
                "drawn or trained anyway",
                "leave noise out, or use it with direct growth or with zero growth in depth",
            )
        if not 0 <= self.mask <= 1:
            raise InputError("mask", f"is {self.mask!r}, but it must lie in [0, 1]", "use 0, which keeps the function")
        if self.mask != 1 and self.operator != "random":
            raise InputError("mask", f"is {self.mask!r}, but only operator 'random' has a mask", "leave mask out")

    @property
    def direction(self) -> Direction:
        return "width" if self.width_factor > 1 else "depth"

    @property
    def is_new_layer(self) -> tuple[bool, ...]:
        """In depth, which target layers are not the first copy of their source, (L',)."""
        return tuple(not is_first for is_first in first_occurrences(self.layers or ()))


NOISY: tuple[tuple[Operator, Direction], ...] = (("direct", "depth"), ("zero", "depth"), ("direct", "width"))


def growth_from_spec(spec: Spec) -> Growth:
    """The growth that a run's spec asks for; its mask is open, since a run masks the live model.

    Raises:
        InputError: fields contradict one another.
    """
    asked: GrowthSpec | None = spec.growth
    assert asked is not None, "only a spec with growth has one"
    in_depth = asked.direction == "depth"
    return Growth(
        operator=asked.operator,
        layers=source_layers(asked.order, asked.num_base_layers, spec.model.num_layers) if in_depth else None,
        width_factor=asked.width_factor,
        noise=asked.noise,
        seed=asked.operator_seed,
    )


def draw(shape: Sequence[int], *, seed: int, what: str, name: str, std: float) -> torch.Tensor:
    """N(0, std^2) of a shape in float32 on the CPU, a function of the other arguments alone.

    Args:
        shape: shape of the result.
        seed: the growth's seed.
        what: what is drawn, so that one tensor can have several draws.
        name: name of the target tensor.
        std: standard deviation.
    """
    digest = hashlib.sha256(f"{seed}/{what}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(tuple(shape), dtype=torch.float32).normal_(0.0, std, generator=generator)


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the type that new values are computed in: float32, or what it has where that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
