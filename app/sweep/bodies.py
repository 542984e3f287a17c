"""What the service is asked for: the body of `POST /jobs` for a cell, and the key under which asking twice is asking once."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from app.contract import NAME_PATTERN, EvaluationSpec, GrowthSpec, ModelSpec, Spec, SpecError, TrainingSpec, TrunkSpec
from app.sweep.costs import evaluation_every_tokens
from app.sweep.families import Cell, Design, Family
from app.sweep.grid import Grid
from fitting.errors import InputError

# Checkpoints along a trunk for a machine that dies; a pause saves by itself.
CHECKPOINTS_A_RUN = 8
# A leg ends its family, so it goes before the next trunk.
LEG_PRIORITY = 1


def job_body(grid: Grid, family: Family, cell: Cell, trunk_run_id: str | None) -> dict[str, Any]:
    """The body for one cell; a leg needs the run id of its trunk."""
    assert (cell.branch_tokens is None) == (trunk_run_id is None)
    recipe, shape = grid.recipe, family.shape
    run_tokens = family.base_tokens + family.trunk.tokens
    return {
        "name": cell.name,
        "cohort": family.cohort,
        "corpus": grid.corpus.name,
        "model": {
            "num_layers": shape.num_layers,
            "hidden_size": shape.hidden_size,
            "num_heads": shape.num_heads,
            "num_kv_heads": shape.num_kv_heads,
            "intermediate_size": shape.intermediate_size,
            "context_length": shape.context_length,
        },
        "growth": _growth(family),
        "training": {
            "tokens": cell.tokens,
            "peak_lr": family.peak_lr,
            "batch_sequences": recipe.batch_sequences,
            "schedule": family.schedule,
            "warmup_tokens": recipe.warmup_tokens,
            "decay_fraction": recipe.decay_fraction,
            "final_lr_fraction": recipe.final_lr_fraction,
        }
        | ({} if family.base_peak_lr is None else {"base_peak_lr": family.base_peak_lr}),
        "keep_checkpoints_at_tokens": (
            sorted({leg.branch_tokens for leg in family.legs if leg.branch_tokens}) if cell is family.trunk else []
        ),
        "trunk": None if trunk_run_id is None else {"run_id": trunk_run_id, "branch_tokens": cell.branch_tokens},
        # The table of the grid names the controls; a control may have been trained by an earlier data directory.
        "control_run_id": None,
        "evaluation_every_tokens": evaluation_every_tokens(grid, family),
        "num_validation_windows": recipe.num_validation_windows,
        "checkpoint_every_tokens": max(recipe.batch_tokens, run_tokens // CHECKPOINTS_A_RUN),
        "init_seed": family.seed,
        "data_seed": family.seed,
        "device": grid.device,
        "precision": grid.precision,
        "priority": 0 if cell.branch_tokens is None else LEG_PRIORITY,
    }


def request_key(body: dict[str, Any], attempt: int) -> str:
    """The Idempotency-Key of an attempt at a body."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:24]
    return f"sweep-{digest}-{attempt}"


def check_design(design: Design) -> None:
    """Refuse before work starts whatever the engine would refuse.

    Raises:
        InputError: names the cell and the field.
    """
    for family, cell in design.cells():
        trunk_run_id = None if cell.branch_tokens is None else "trunk"
        if re.fullmatch(NAME_PATTERN, cell.name) is None:
            raise InputError(
                f"step {family.step}, cell {cell.name}", f"has a name that does not match {NAME_PATTERN}",
                "shorten the size's name",
            )  # fmt: skip
        try:
            spec_of(design.grid, job_body(design.grid, family, cell, trunk_run_id))
        except SpecError as error:
            raise InputError(f"step {family.step}, cell {cell.name}", str(error), "mend the grid") from None


def _growth(family: Family) -> dict[str, Any] | None:
    growth = family.growth
    if growth is None:
        return None
    return {
        "num_base_layers": growth.num_base_layers,
        "growth_timing_tokens": growth.growth_timing_tokens,
        "order": growth.order,
        "operator": "direct",
        "optimizer_state_policy": growth.optimizer_state_policy,
        "learning_rate_policy": "rewarm" if growth.rewarm else "rewind",
    }


def spec_of(
    grid: Grid, body: dict[str, Any], *, run_id: str = "check", corpus_dir: str = "-", trunk_run_dir: str = "-"
) -> Spec:
    """The spec the service would make of a body; by default one to be checked alone, with no corpus and no trunk there."""
    trunk = body["trunk"]
    return Spec(
        run_id=run_id,
        name=body["name"],
        cohort=body["cohort"],
        corpus=body["corpus"],
        corpus_dir=corpus_dir,
        model=ModelSpec(**body["model"], vocab_size=grid.corpus.vocab_size),
        training=TrainingSpec(**body["training"]),
        growth=None if body["growth"] is None else GrowthSpec(**body["growth"]),
        evaluation=EvaluationSpec(
            every_tokens=body["evaluation_every_tokens"], num_windows=body["num_validation_windows"]
        ),
        keep_checkpoints_at_tokens=tuple(body["keep_checkpoints_at_tokens"]),
        trunk=None
        if trunk is None
        else TrunkSpec(trunk_run_dir=trunk_run_dir, trunk_id=trunk["run_id"], branch_tokens=trunk["branch_tokens"]),
        init_seed=body["init_seed"],
        data_seed=body["data_seed"],
        device=body["device"],
        precision=body["precision"],
        checkpoint_every_tokens=body["checkpoint_every_tokens"],
    )
