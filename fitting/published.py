"""Published guidelines as guideline values: each is a rule with its source and the ranges it was fitted on."""

from __future__ import annotations

from fitting.errors import InputError
from fitting.guideline import Guideline, KnownRange
from fitting.rules import RULES

# G_stack (arXiv 2405.15319): timing fits at 410M (0.8e20-2.2e20 FLOPs), 1.1B (2e20-7e20) and 3B (4e20-12e20), g = 4;
# factors 2 to 4 were best. Tokens per parameter: 4e20 / (6 N^2) at 3B to 2.2e20 / (6 N^2) at 410M.
_GSTACK_RANGE = KnownRange(
    target_params=(410e6, 3e9),
    compute_flops=(0.8e20, 12e20),
    tokens_per_parameter=(4e20 / (6 * 3e9**2), 2.2e20 / (6 * 410e6**2)),
    growth_factor=(2.0, 4.0),
)
# Where the rule was tried at all; None: it is a baseline that was never fitted.
_RANGES = {"gstack": _GSTACK_RANGE}
_TITLES = {
    "gstack": "G_stack's published guideline",
    "null": "Null rule (grow iff g < 3)",
    "never": "Never grow",
    "constant_fraction": "A constant fraction of the compute",
    "staged": "Staged training's slope",
    "eighty_percent": "80% of the run",
}
_CANNOT_IDENTIFY = {
    "gstack": (
        "error bars of the timing: three sizes, one seed, intermediate points of one long cosine schedule were fitted",
        "the growth factor's dependence on size or compute: the factor was varied at d = 10B only",
    ),
}

PUBLISHED_NAMES: tuple[str, ...] = tuple(RULES)


def published_guideline(name: str) -> Guideline:
    """The published guideline ``name`` (with or without "published:").

    Raises:
        InputError: no such name.
    """
    bare = name.removeprefix("published:")
    if bare not in RULES:
        raise InputError(
            "guideline",
            f"{name!r} is not a published guideline",
            f"use one of {', '.join('published:' + known for known in PUBLISHED_NAMES)}",
        )
    return Guideline(
        id=f"published:{bare}",
        name=_TITLES[bare],
        kind="published",
        law=bare,
        basis="published",
        source=RULES[bare].source,
        known=_RANGES.get(bare, KnownRange()),
        cannot_identify=_CANNOT_IDENTIFY.get(bare, ()),
    )
