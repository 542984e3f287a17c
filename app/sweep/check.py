"""Is the grid complete and right? Every cell of the design against the header and the points that stand for it.

What must be so of a finished run: it is the cell's (size, shape, growth, seeds, rates, schedule, cohort, lengths), trained
by the grid's engine numerics on its corpus; its FLOPs are the design's, which are those of its own tokens, and within half
a batch of the budget's; it has a final loss, the last validation loss among its points is that loss, and its points reach
the last token. A diverged run is a result: what it was asked to be is checked, how far it came is not. No cell and no run
may stand twice, no row of the grid's cohorts may be no cell of the grid.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.sweep.families import Cell, Design, Family
from app.sweep.runs_folder import Row, as_text, read_headers, read_points
from fitting.flops import flops_per_token, non_embedding_params

DECISION_METRIC = "validation_loss"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What stands, what is missing and what is wrong, in the order in which the grid runs."""

    num_cells: int
    num_standing: int
    num_diverged: int
    missing: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        return not self.missing and not self.wrong


def expected_values(design: Design, family: Family, cell: Cell) -> dict[str, Any]:
    """What the header of a cell's run must say before anything is trained, by column."""
    grid, shape, growth = design.grid, family.shape, family.growth
    base = family.base_shape
    recipe = grid.recipe
    return {
        "family": family.name,
        "step": family.step,
        "budget_tokens": cell.budget_tokens,
        "cohort": family.cohort,
        "name": cell.name,
        "target_params": non_embedding_params(shape),
        "num_target_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "num_heads": shape.num_heads,
        "num_kv_heads": shape.num_kv_heads,
        "intermediate_size": shape.intermediate_size,
        "vocab_size": shape.vocab_size,
        "context_length": shape.context_length,
        "base_params": non_embedding_params(base) if base else None,
        "num_base_layers": growth.num_base_layers if growth else None,
        "growth_factor": shape.num_layers / growth.num_base_layers if growth else 1,
        "operator": "direct" if growth else None,
        "order": growth.order if growth else None,
        "optimizer": "adamw",
        "optimizer_state_policy": growth.optimizer_state_policy if growth else None,
        "peak_lr": family.peak_lr,
        "base_peak_lr": family.base_peak_lr,
        "schedule": family.schedule,
        "warmup_tokens": recipe.warmup_tokens,
        "planned_tokens": cell.tokens,
        "batch_tokens": recipe.batch_tokens,
        "corpus": grid.corpus.name,
        "unique_tokens": grid.corpus.train_tokens,
        "init_seed": family.seed,
        "data_seed": family.seed,
        "base_flops_per_token": flops_per_token(base) if base else None,
        "target_flops_per_token": flops_per_token(shape),
        "engine_numerics_version": grid.engine_numerics_version,
    }


def standing_cells(design: Design, headers: list[Row]) -> set[str]:
    """Cells that need no training any more: those with a row, and legs whose trunk diverged."""
    by_cell = {row["cell"]: [row] for row in headers}
    return by_cell.keys() | {cell.name for family, cell in design.cells() if _lost_to_trunk(family, cell, by_cell)}


def check_runs(design: Design, folder: Path, *, step: int | None = None) -> Verdict:
    """Hold a runs folder against the design, or against one step of it.

    Raises:
        InputError: a file cannot be read.
    """
    headers, points = read_headers(folder), defaultdict(list)
    for point in read_points(folder):
        points[point["run_id"]].append(point)
    by_cell: dict[str, list[Row]] = defaultdict(list)
    for row in headers:
        by_cell[row["cell"]].append(row)
    wrong = [*_doubled(headers), *_strangers(design, headers, points)]
    missing, num_standing, num_diverged = [], 0, 0
    asked = [(family, cell) for family, cell in design.cells() if step in (None, family.step)]
    for family, cell in asked:
        rows = by_cell.get(cell.name, [])
        if not rows and _lost_to_trunk(family, cell, by_cell):
            num_diverged += 1
        elif not rows:
            missing.append(cell.name)
        else:
            num_standing += 1
            num_diverged += rows[0]["status"] == "diverged"
            wrong += [f"{cell.name}: {said}" for said in _faults(design, family, cell, rows[0], points, by_cell)]
    return Verdict(
        num_cells=len(asked), num_standing=num_standing, num_diverged=num_diverged, missing=tuple(missing),
        wrong=tuple(wrong),
    )  # fmt: skip


def _lost_to_trunk(family: Family, cell: Cell, by_cell: Mapping[str, list[Row]]) -> bool:
    """No leg can leave a trunk that diverged."""
    trunk = by_cell.get(family.trunk.name, [])
    return cell is not family.trunk and bool(trunk) and trunk[0]["status"] == "diverged"


def _doubled(headers: list[Row]) -> Iterator[str]:
    for column, what in (("cell", "cell"), ("run_id", "run")):
        for value, count in Counter(row[column] for row in headers).items():
            if count > 1:
                yield f"{what} {value} stands {count} times"


def _strangers(design: Design, headers: list[Row], points: Mapping[str, list[Row]]) -> Iterator[str]:
    names = {cell.name for _, cell in design.cells()}
    # Another grid's cohorts may stand in the same folder.
    cohorts = {family.cohort for family in design.families}
    for row in headers:
        if row["cell"] not in names and row["cohort"] in cohorts:
            yield f"{row['cell']}: is no cell of the grid"
    for run_id in sorted(points.keys() - {row["run_id"] for row in headers}):
        yield f"{run_id}: has points but no header"


def _faults(
    design: Design, family: Family, cell: Cell, row: Row, points: Mapping[str, list[Row]],
    by_cell: Mapping[str, list[Row]],
) -> Iterator[str]:  # fmt: skip
    for column, value in expected_values(design, family, cell).items():
        if not _equal(row[column], value):
            yield f"{column} is {row[column] or 'empty'}, the design says {as_text(value) or 'empty'}"
    if row["status"] == "diverged":
        return
    if row["status"] != "finished" or row["is_final"] != "true":
        yield f"status is {row['status'] or 'empty'}, is_final {row['is_final'] or 'empty'}: no final loss of a whole run"
        return
    lengths = {
        "grown_tokens": cell.tokens,
        "growth_timing_tokens": family.base_tokens,
        "compute_flops": cell.compute_flops,
    }
    for column, value in lengths.items():
        if not _equal(row[column], value):
            yield f"{column} is {row[column] or 'empty'}, the design says {as_text(value)}: truncated or another run"
    slack = 0.5 * design.grid.recipe.batch_tokens * flops_per_token(family.shape)
    if abs(cell.compute_flops - cell.budget_flops) > slack:
        yield f"compute_flops {cell.compute_flops:.6g} is not the budget's {cell.budget_flops:.6g}"
    trunk = by_cell.get(family.trunk.name, [])
    if family.legs and row["trunk_id"] != (trunk[0]["run_id"] if trunk else None):
        yield f"trunk_id is {row['trunk_id'] or 'empty'}, but its trunk {family.trunk.name} is " + (
            trunk[0]["run_id"] if trunk else "missing"
        )
    control = by_cell.get(cell.control or "", [])
    if control and row["control_id"] != control[0]["run_id"]:
        yield f"control_id is {row['control_id'] or 'empty'}, but its control {cell.control} is {control[0]['run_id']}"
    yield from _point_faults(cell, row, points.get(row["run_id"], []))


def _point_faults(cell: Cell, row: Row, points: list[Row]) -> Iterator[str]:
    losses = [point for point in points if point["metric"] == DECISION_METRIC]
    if not losses:
        yield f"has no {DECISION_METRIC} among its points"
        return
    if len({point["seq"] for point in points}) < len(points):
        yield "holds a seq twice among its points"
    last = max(losses, key=lambda point: int(point["seq"]))
    if int(last["tokens"]) != cell.tokens:
        yield f"its points end at token {int(last['tokens']):,} of {cell.tokens:,}"
    elif not _equal(row["final_loss"], float(last["value"])):
        yield f"final_loss is {row['final_loss'] or 'empty'}, its last validation loss {last['value']}"


def _equal(text: str, value: Any) -> bool:
    if value is None or isinstance(value, str):
        return text == (value or "")
    try:
        return math.isclose(float(text), float(value), rel_tol=1e-12)
    except ValueError:
        return False
