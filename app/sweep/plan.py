"""The cell table of a grid: one row a cell, in the order in which they run, with what each costs."""

from __future__ import annotations

from typing import Any

from app.sweep.costs import core_seconds, own_flops
from app.sweep.families import Design
from fitting.flops import non_embedding_params


def plan_rows(design: Design) -> list[dict[str, Any]]:
    """One dict a cell; tokens, FLOPs and core-seconds as counts, missing values None.

    ``tokens_per_parameter`` is the cell's own (last phase over its model); ``budget_tokens_per_parameter`` the target's
    from scratch. ``train_flops`` and ``core_seconds`` are what its own run does: a leg's are those of its decay.
    """
    rows = []
    seconds_so_far = 0.0
    for place, (family, cell) in enumerate(design.cells(), start=1):
        growth = family.growth
        seconds = core_seconds(design.grid, family, cell)
        seconds_so_far += seconds
        rows.append(
            {
                "place": place,
                "step": family.step,
                "cell": cell.name,
                "family": family.name,
                "cohort": family.cohort,
                "size": family.size.name,
                "num_layers": family.shape.num_layers,
                "num_base_layers": growth.num_base_layers if growth else None,
                "growth_timing_tokens": family.base_tokens,
                "timing_over_budget": round(family.base_tokens / cell.budget_tokens, 4),
                "order": growth.order if growth else None,
                "optimizer_state_policy": growth.optimizer_state_policy if growth else None,
                "rewarm": growth.rewarm if growth else None,
                "schedule": family.schedule,
                "seed": family.seed,
                "peak_lr": family.peak_lr,
                "base_peak_lr": family.base_peak_lr,
                "budget_tokens_per_parameter": cell.tokens_per_parameter,
                "budget_tokens": cell.budget_tokens,
                "tokens": cell.tokens,
                "branch_tokens": cell.branch_tokens,
                "tokens_per_parameter": round(cell.tokens / non_embedding_params(family.shape), 3),
                "num_epochs": round(cell.num_epochs, 4),
                "passes_one_epoch": cell.num_epochs > 1,
                "compute_flops": cell.compute_flops,
                "train_flops": own_flops(family, cell),
                "core_seconds": round(seconds, 1),
                "core_hours_so_far": round(seconds_so_far / 3600, 3),
                "control": cell.control,
            }
        )
    return rows
