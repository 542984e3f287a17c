"""Orders: which base layer each layer of a deeper target is copied from.

    stack          012 012 012      pi(i) = i mod L; where L does not divide L', the whole base k times and then its
                                    last r layers once more
    interpose      00 11 22         pi(i) = floor(i L / L')
    middle:A:B     01 2323 45       the first A and last B layers once, those between repeated as a stack
    middle:A:B:interpose            the same, those between repeated in place
    solar:M        0123 2345        layers 0..L-M-1, then M..L-1 (SOLAR, arXiv 2312.15166, depth up-scaling)
    list:0,1,...                    any list of base layers, counted from 0
    12-3456*5-56                    the G_stack paper's notation: groups of layers, counted from 1, each ``*`` k times;
                                    a digit is a layer, ``10..15`` a range, for bases of ten layers and more

    R_c = |{i : pi(i + 1) = pi(i) + 1}| / (L' - 1)

======  ======================================================================  =====
symbol  meaning                                                                 unit
======  ======================================================================  =====
L, L'   layers of the base, of the target                                       -
k, r    whole copies floor(L' / L), layers left over L' - k L                   -
pi(i)   base layer that target layer i is copied from                           -
R_c     connection rate: share of the target's neighbour links the base had     -
======  ======================================================================  =====

Every target needs at least ceil(L' / L) unbroken runs of base layers, and the partial stack needs no more, so no order
has a higher connection rate; among those it keeps the layer below the final norm the one that was trained there
(G_stack, arXiv 2405.15319, appendix on how to stack). Standard library only: the file contract imports it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from fitting.errors import InputError

MAX_LAYERS = 10_000
_GROUP = re.compile(r"(?P<layers>(?:\d|\d+\.\.\d+)+?)(?:\*(?P<times>\d{1,5}))?")
_PATTERN = re.compile(r"[\d.*-]*[*-][\d.*-]*")
_KNOWN = "stack, interpose, middle:A:B, solar:M, list:0,1,... and patterns such as 12-3456*5-56"


def source_layers(order: str, num_base_layers: int, num_target_layers: int) -> tuple[int, ...]:
    """Base layer of every target layer.

    Args:
        order: one of the orders above.
        num_base_layers: layers of the base, L.
        num_target_layers: layers of the target, L'; above L.

    Returns:
        L' indices into the base's layers, counted from 0.

    Raises:
        InputError: the order is unknown or gives another number of layers, or a layer does not exist.
    """
    if not 0 < num_base_layers < num_target_layers <= MAX_LAYERS:
        raise InputError(
            "num_base_layers",
            f"is {num_base_layers!r}, but it must lie above 0 and below the target's {num_target_layers!r} layers (at "
            f"most {MAX_LAYERS:,})",
            "choose a shallower base or a deeper target",
        )
    layers = _layers(order, num_base_layers, num_target_layers)
    if len(layers) != num_target_layers:
        raise InputError(
            "order",
            f"{order!r} makes {len(layers)} layers of {num_base_layers}, but the target has {num_target_layers}",
            f"ask for {len(layers)} layers or change the order",
        )
    return layers


def order_length(order: str, num_base_layers: int) -> int | None:
    """Target layers that an order fixes by itself; None where it fits any number (stack, interpose, middle).

    Raises:
        InputError: the order is unknown, or names a layer that does not exist.
    """
    kind = order.partition(":")[0]
    if kind in ("stack", "interpose", "middle"):
        return None
    return len(_layers(order, num_base_layers, num_base_layers))


def stacked_layers(num_base_layers: int, num_target_layers: int) -> tuple[int, ...]:
    """The base k times, then its last r layers once more: ``stack`` for any number of layers.

    >>> stacked_layers(3, 8)
    (0, 1, 2, 0, 1, 2, 1, 2)
    """
    if not 0 < num_base_layers <= num_target_layers:
        raise ValueError(f"num_base_layers is {num_base_layers}, but it must lie in 1..{num_target_layers}")
    copies, rest = divmod(num_target_layers, num_base_layers)
    return tuple(range(num_base_layers)) * copies + tuple(range(num_base_layers - rest, num_base_layers))


def connection_rate(layers: Sequence[int]) -> float:
    """Share of the target's neighbour links that the base had, R_c; 1 for a single layer."""
    links = list(itertools.pairwise(layers))
    return sum(after == before + 1 for before, after in links) / len(links) if links else 1.0


def first_occurrences(layers: Sequence[int]) -> tuple[bool, ...]:
    """Whether each target layer is the first copy of its source: the layers that zero and random growth leave as is."""
    return tuple(layer not in layers[:i] for i, layer in enumerate(layers))


def _layers(order: str, L: int, L_target: int) -> tuple[int, ...]:
    kind, _, rest = order.partition(":")
    if order == "stack":
        return stacked_layers(L, L_target)
    if order == "interpose":
        return _interposed(L, L_target)
    if kind == "middle":
        return _middle(order, rest, L, L_target)
    if kind == "solar":
        overlap = _whole(order, rest, f"write solar:M with M from 0 to {L - 1}, the layers dropped on each side")
        _require_layer(order, overlap, 0, L)
        return (*range(L - overlap), *range(overlap, L))
    if kind == "list":
        mend = "write list:0,1,0,1"
        parts = rest.split(",", MAX_LAYERS)
        layers = tuple(_whole(order, part.strip(), mend) for part in parts)
        for layer in layers:
            _require_layer(order, layer, 0, L)
        return layers
    if _PATTERN.fullmatch(order):
        return _pattern(order, L)
    raise InputError("order", f"is {order!r}, but known orders are {_KNOWN}", "use one of them")


def _interposed(L: int, L_target: int) -> tuple[int, ...]:
    return tuple(i * L // L_target for i in range(L_target))


def _middle(order: str, rest: str, L: int, L_target: int) -> tuple[int, ...]:
    mend = "write middle:A:B or middle:A:B:interpose, A first and B last layers kept once"
    parts = rest.split(":")
    if len(parts) not in (2, 3) or (len(parts) == 3 and parts[2] not in ("stack", "interpose")):
        raise InputError("order", f"is {order!r}, which is no middle order", mend)
    num_first, num_last = (_whole(order, part, mend) for part in parts[:2])
    num_middle = L - num_first - num_last
    if num_middle < 1:
        raise InputError(
            "order", f"is {order!r}, but of {L} base layers none is left between", "keep fewer layers at the ends"
        )
    repeat = _interposed if parts[2:] == ["interpose"] else stacked_layers
    middle = repeat(num_middle, L_target - num_first - num_last)
    return (*range(num_first), *(num_first + layer for layer in middle), *range(L - num_last, L))


def _pattern(order: str, L: int) -> tuple[int, ...]:
    layers: list[int] = []
    for group in order.split("-"):
        match = _GROUP.fullmatch(group)
        if match is None:
            raise InputError(
                "order", f"is {order!r}, but {group!r} is no group of layers", "write groups such as 1-234*7-56"
            )
        found: list[int] = []
        for part in re.findall(r"\d+\.\.\d+|\d", match["layers"]):
            first, _, last = part.partition("..")
            for layer in (int(first), int(last or first)):
                _require_layer(order, layer, 1, L)
            found += range(int(first) - 1, int(last or first))
        times = int(match["times"] or 1)
        if not found or not 0 < times * len(found) <= MAX_LAYERS:
            raise InputError(
                "order",
                f"is {order!r}, but {group!r} names no layer or more than {MAX_LAYERS:,}",
                "name layers, lower one first",
            )
        layers += found * times
    return tuple(layers)


def _whole(order: str, text: str, mend: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise InputError("order", f"is {order!r}, but {text!r} is no whole number", mend)
    return int(text)


def _require_layer(order: str, layer: int, first: int, L: int) -> None:
    if not first <= layer < first + L:
        raise InputError(
            "order",
            f"is {order!r}, but the base has layers {first} to {first + L - 1} and no {layer}",
            "use layers that exist",
        )
