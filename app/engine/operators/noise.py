"""Noise at growth: fresh weights mixed into copied ones, so that copies of one layer or channel can part.

    depth    W' <- (1 - a) W + a e                                            on every matrix of a layer
    width    W' <- W' + a (e - mean of e over the copies of an input)         on every matrix of a layer
    e ~ N(0, 2 / (5 d));     attention output and MLP down projections  e ~ N(0, 1 / (d L^2))

======  =========================================================================================  =====
symbol  meaning                                                                                    unit
======  =========================================================================================  =====
a       share of noise; 0.2 did slightly better than none in the paper                             -
d, L    hidden size and layers of the target                                                       -
======  =========================================================================================  =====

(G_stack, arXiv 2405.15319, noise ablation.) Depth direct takes noise in every layer, as in the paper; depth zero in new
layers alone, which are silenced afterwards, so the function stays. In width it stays too (:mod:`.width`). Embeddings,
head, gains and biases take none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from app.engine.operators.base import draw
from app.engine.surgery.family import Family


def noise_std(*, hidden_size: int, num_layers: int, is_branch_output: bool) -> float:
    """Standard deviation of e for a matrix of a target of this hidden size and number of layers."""
    if is_branch_output:
        return 1.0 / (math.sqrt(hidden_size) * num_layers)
    return math.sqrt(2.0 / (5.0 * hidden_size))


def matrix_noise(
    family: Family, layer: int, suffix: str, shape: Sequence[int], *, seed: int, std: float
) -> torch.Tensor:
    """e for a matrix of a layer, float32 on the CPU.

    Drawn by the names that a checkpoint has: where the live model holds one tensor for all experts, it gets the very
    noise that each expert's own tensors would get.
    """
    stored = family.stored_suffixes(suffix, num_experts=shape[0])
    e = torch.empty(tuple(shape))
    for expert, suffixes in enumerate(stored):
        whole = e if len(stored) == 1 and len(suffixes) == 1 else e[expert]  # (rows, columns) of all the suffixes
        num_rows = whole.shape[0] // len(suffixes)
        for part, name in enumerate(suffixes):
            rows = whole[part * num_rows : (part + 1) * num_rows]
            rows.copy_(draw(rows.shape, seed=seed, what="noise", name=f"{layer}.{name}", std=std))
    return e
