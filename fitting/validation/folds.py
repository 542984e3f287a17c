"""Folds over pairs: leave one target size out, or roll the origin of compute forward.

========  ===========================================================  ======
symbol    meaning                                                      unit
========  ===========================================================  ======
train     pairs a law may be fitted to                                 mask
test      pairs it is scored on                                        mask
scratch   scratch runs that are known when the prediction is made      mask
========  ===========================================================  ======

Leaving out a target keeps its scratch runs: the question is what growth would do to a model whose scratch curve is
known. Rolling by compute keeps neither pair nor scratch run above the origin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fitting.conventions import SAME_SIZE
from fitting.growth_data import GrowthData

LeaveOut = Literal["target_params", "compute"]
_ORIGINS = (0.4, 0.55, 0.7, 0.85)
_FEWEST_PAIRS = 2


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One split; ``name`` is the value left out, as it stands in reports."""

    name: str
    train: np.ndarray
    test: np.ndarray
    scratch: np.ndarray


def folds(data: GrowthData, leave_out: LeaveOut) -> tuple[Fold, ...]:
    """The folds that leave enough pairs on both sides; empty where there are none."""
    return _by_target(data) if leave_out == "target_params" else _by_compute(data)


def _by_target(data: GrowthData) -> tuple[Fold, ...]:
    sizes = data.points.target_params
    result = []
    for size in _targets(sizes):
        test = np.abs(sizes / size - 1) < SAME_SIZE
        if (~test).sum() >= _FEWEST_PAIRS:
            result.append(
                Fold(name=f"{size:.4g}", train=~test, test=test, scratch=np.ones(len(data.scratch), dtype=bool))
            )
    return tuple(result) if len(result) > 1 else ()


def _targets(sizes: np.ndarray) -> list[float]:
    found: list[float] = []
    for size in np.sort(sizes):
        if not found or abs(size / found[-1] - 1) >= SAME_SIZE:
            found.append(float(size))
    return found


def _by_compute(data: GrowthData) -> tuple[Fold, ...]:
    compute = data.compute_flops
    ordered = np.sort(compute)
    origins = sorted({float(ordered[int(share * len(ordered))]) for share in _ORIGINS}) if len(ordered) else []
    result = []
    for index, origin in enumerate(origins):
        # A grain of tolerance: runs of one budget must not fall on both sides by rounding.
        below = compute < origin * (1 - 1e-3)
        until = origins[index + 1] * (1 - 1e-3) if index + 1 < len(origins) else np.inf
        test = ~below & (compute < until)
        scratch = data.scratch_compute_flops < origin * (1 - 1e-3)
        if below.sum() >= _FEWEST_PAIRS and test.any() and scratch.sum() >= 3:
            result.append(Fold(name=f"above {origin:.3g} FLOPs", train=below, test=test, scratch=scratch))
    return tuple(result)
