"""Which operator grows which family in which direction, and the refusal of every other pair by name.

======================  ==========================================================================================
pair                    why only these
======================  ==========================================================================================
depth direct, zero      a layer's tensors are copied whole, whatever they are; zero needs to know which of them add
                        to the residual stream
depth random, learn     new weights are drawn or summed by kind, and a mask sits on two modules of each layer
width, all operators    exact only where nothing but RMSNorm mixes channels, and every tensor's spaces are known:
                        LayerNorm's mean, and fused or post-normed branches, need maps of their own
======================  ==========================================================================================
"""

from __future__ import annotations

from app.contract.specs import Operator
from app.engine.operators.base import Direction
from app.engine.surgery.families import FAMILIES
from fitting.errors import InputError

LLAMA_FAMILY = ("llama", "mistral", "qwen2", "qwen3")
SUPPORT: dict[tuple[Direction, Operator], tuple[str, ...]] = {
    ("depth", "direct"): tuple(FAMILIES),
    ("depth", "zero"): tuple(FAMILIES),
    ("depth", "random"): LLAMA_FAMILY,
    ("depth", "learn"): LLAMA_FAMILY,
    ("width", "direct"): LLAMA_FAMILY,
    ("width", "zero"): LLAMA_FAMILY,
    ("width", "random"): LLAMA_FAMILY,
    ("width", "learn"): LLAMA_FAMILY,
}


def check_supported(model_type: str, direction: Direction, operator: Operator) -> None:
    """Refuse a pair that has no map here.

    Args:
        model_type: the config's ``model_type``.
        direction: ``depth`` or ``width``.
        operator: one of the four.

    Raises:
        InputError: names the pair and what is supported.
    """
    families = SUPPORT[(direction, operator)]
    if model_type in families:
        return
    if model_type not in FAMILIES:
        raise InputError("model_type", f"is {model_type!r}, but known are {', '.join(FAMILIES)}", "use one of them")
    others = [f"{a} {o}" for (a, o), supported in SUPPORT.items() if model_type in supported]
    raise InputError(
        "operator",
        f"{operator!r} in {direction} is not defined for {model_type!r}, only for {', '.join(families)}",
        f"{model_type!r} grows by {', '.join(others)}",
    )
