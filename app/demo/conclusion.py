"""What the three arms mean: the numbers of the result line, and a planner's words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fitting.cells import DEFAULT_SEED_SD_NATS

# Arms may differ by one batch of the target each way, which a budget of hundreds of batches keeps below this.
FLOPS_TOLERANCE = 0.005


def result_of(runs: Mapping[str, dict[str, Any]], speedup: float | None) -> dict[str, Any]:
    """The result line, without where things were written.

    Args:
        runs: role -> the stored run's header, for `scratch`, `grown` and `base_only`.
        speedup: `speedup_lower_bound` of the grown arm.
    """
    flops = {role: run["compute_flops"] for role, run in runs.items()}
    return {
        "scratch_loss": runs["scratch"]["final_loss"],
        "grown_loss": runs["grown"]["final_loss"],
        "base_only_loss": runs["base_only"]["final_loss"],
        "delta_nats": runs["grown"]["final_loss"] - runs["scratch"]["final_loss"],
        "speedup_lower_bound": speedup,
        "flops_equal": max(flops.values()) / min(flops.values()) - 1 < FLOPS_TOLERANCE,
        "compute_flops": flops,
        "run_ids": {role: run["run_id"] for role, run in runs.items()},
    }


def words(result: Mapping[str, Any]) -> list[str]:
    """What a planner should conclude, the most important sentence first."""
    scratch, grown, base = result["scratch_loss"], result["grown_loss"], result["base_only_loss"]
    noise = 2 * math.sqrt(2) * DEFAULT_SEED_SD_NATS
    sentences = []
    if base < min(scratch, grown) - noise:
        sentences.append(
            f"The target is over-sized for this budget: the base alone, at the same FLOPs, ends at {base:.3f}, below "
            f"scratch ({scratch:.3f}) and grown ({grown:.3f}). Train a smaller model, or raise the budget."
        )
    elif base < min(scratch, grown) + noise:
        sentences.append(
            f"The base alone ends level with the best arm ({base:.3f} against {min(scratch, grown):.3f}): at this budget "
            "a smaller model does as well, and growing pays only for what the larger one is worth beyond this run."
        )
    if grown < scratch - noise:
        sentences.append(f"Growing beat the target from scratch by {scratch - grown:.3f} nats at equal FLOPs.")
    elif grown > scratch + noise:
        sentences.append(f"Growing lost to the target from scratch by {grown - scratch:.3f} nats at equal FLOPs.")
    else:
        sentences.append(
            f"Growing and scratch are {abs(grown - scratch):.3f} nats apart, within the {noise:.3f} that two seeds may "
            "differ by: a tie."
        )
    sentences.append(
        "One seed, one timing, one factor, one size: this tells nothing about larger models, and no chance is given. "
        "Three runs make a guideline provisional; it names what more runs would have to vary."
    )
    return sentences
