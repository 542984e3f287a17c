"""What a grid costs: core-seconds from measured speeds, and disk.

    seconds = startup + sum over phases of (training FLOPs + evaluations x windows x S x f / 3) / speed

A forward pass is a third of a training step. ``speed`` is the measured one of the nearest model: width first, then depth.
A leg pays for its own decay alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from app.sweep.families import Cell, Design, Family
from app.sweep.grid import Grid
from fitting.flops import Shape, flops_per_token, non_embedding_params

# A forward pass over the forward and backward passes of training.
EVALUATION_FLOPS_RATIO = 1 / 3
# fp32 weights and both moments of a kept checkpoint; fp32 weights of an export.
CHECKPOINT_BYTES, EXPORT_BYTES = 12, 4


@dataclass(frozen=True, kw_only=True)
class StepTotal:
    """What a step adds to the grid."""

    step: int
    title: str
    num_families: int
    num_cells: int
    train_flops: float
    core_seconds: float
    disk_bytes: float


def evaluation_every_tokens(grid: Grid, family: Family) -> int:
    """Tokens between validation losses, the same along a family's trunk and legs."""
    tokens = (family.base_tokens + family.trunk.tokens) / grid.recipe.evaluations_a_run
    return max(1, round(tokens / grid.recipe.batch_tokens)) * grid.recipe.batch_tokens


def core_seconds(grid: Grid, family: Family, cell: Cell) -> float:
    """Seconds of one core that the cell's own run takes."""
    every_tokens = evaluation_every_tokens(grid, family)
    seconds = grid.costs.startup_core_seconds
    for shape, tokens in _own_phases(family, cell):
        num_evaluations = tokens // every_tokens + 1
        evaluated = num_evaluations * grid.recipe.num_validation_windows * grid.recipe.context_length
        work = (tokens + EVALUATION_FLOPS_RATIO * evaluated) * flops_per_token(shape)
        seconds += work / _speed(grid, shape)
    return seconds


def own_flops(family: Family, cell: Cell) -> float:
    """Training FLOPs that the cell's own run does: a leg's are those of its decay."""
    return sum(tokens * flops_per_token(shape) for shape, tokens in _own_phases(family, cell))


def own_tokens(family: Family, cell: Cell) -> int:
    """Tokens that the cell's own run trains on, a leg those of its decay."""
    return sum(tokens for _, tokens in _own_phases(family, cell))


def hours(seconds: float) -> str:
    """Seconds as people say them: 2 h 05 min, 12 min, 40 s."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    return f"{int(seconds // 60)} min" if seconds >= 60 else f"{seconds:.0f} s"


def disk_bytes(family: Family) -> float:
    """What a finished family leaves on disk: the branch checkpoints of its trunk and every run's export."""
    exports = len(family.cells) * EXPORT_BYTES * _all_params(family.shape)
    if family.base_shape is not None:
        exports += EXPORT_BYTES * _all_params(family.base_shape)
    return len(family.legs) * CHECKPOINT_BYTES * _all_params(family.shape) + exports


def step_totals(design: Design) -> list[StepTotal]:
    by_step: dict[int, list[Family]] = defaultdict(list)
    for family in design.families:
        by_step[family.step].append(family)
    totals = []
    for step in design.grid.steps:
        families = by_step[step.number]
        runs = [(family, cell) for family in families for cell in family.cells]
        totals.append(
            StepTotal(
                step=step.number,
                title=step.title,
                num_families=len(families),
                num_cells=len(runs),
                train_flops=sum(own_flops(family, cell) for family, cell in runs),
                core_seconds=sum(core_seconds(design.grid, family, cell) for family, cell in runs),
                disk_bytes=sum(map(disk_bytes, families)),
            )
        )
    return totals


def _own_phases(family: Family, cell: Cell) -> list[tuple[Shape, int]]:
    if cell.branch_tokens is not None:
        return [(family.shape, cell.tokens - cell.branch_tokens)]
    base = [(family.base_shape, family.base_tokens)] if family.base_shape is not None else []
    return [*base, (family.shape, cell.tokens)]


def _speed(grid: Grid, shape: Shape) -> float:
    nearest = min(
        grid.costs.speeds,
        key=lambda speed: (
            abs(math.log(speed.hidden_size / shape.hidden_size)),
            abs(math.log(speed.num_layers / shape.num_layers)),
        ),
    )
    return nearest.flops_per_core_second


def _all_params(shape: Shape) -> int:
    return non_embedding_params(shape) + 2 * shape.vocab_size * shape.hidden_size
