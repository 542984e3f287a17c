"""From a grid to what is trained: families (one trunk and its decay legs) and cells (one final loss each).

    C = B f_target                              one compute budget for every cell of a size and budget
    D = (C - d f_base) / f_target               a grown run's last phase
    D = C / f_alone                             a smaller depth alone
    branch = (1 - decay_fraction) D             where a leg leaves its trunk

========  =============================================================================  ======
symbol    meaning                                                                        unit
========  =============================================================================  ======
B         scratch tokens of the target at a budget (tokens per parameter x parameters)   tokens
d, D      tokens of the base, of the last phase                                          tokens
f         training FLOPs a token (:mod:`fitting.flops`)                                  FLOPs
========  =============================================================================  ======

Every length is whole batches, so cells of a budget differ by at most half a batch of their own model.

The run of a family's largest budget is its trunk: it holds its rate to 80% of its tokens, keeps a checkpoint where each
smaller budget branches, and then decays itself. A leg goes on from there and decays over the last 20% of its own budget,
bit for bit what an undivided run of that budget would be (:mod:`app.engine.branching`). A cosine depends on its length
from the first step, so there every budget is a family of its own.

What cannot be had is dropped by name: a budget that leaves a grown phase too short, a cell of more than one epoch (unless
its arm is flagged), and a cell that stands in an earlier step already.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from app.sweep.grid import Arm, Grid, Schedule, Size, Step
from fitting.errors import InputError
from fitting.flops import Shape, flops_per_token, non_embedding_params


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How a family's base becomes its target."""

    num_base_layers: int
    growth_timing_tokens: int
    order: str
    optimizer_state_policy: str
    rewarm: bool


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run to its final loss.

    Attributes:
        tokens_per_parameter: of the target from scratch at this budget.
        tokens: D, what the last phase sees, a leg's part on the trunk included.
        branch_tokens: tokens of the last phase at which the run leaves the family's trunk; None: it is the trunk.
        num_epochs: over the corpus, base and last phase together.
        control: the cell of the target from scratch with the same seed, rate and budget; None where the grid has none.
    """

    name: str
    tokens_per_parameter: float
    budget_tokens: int
    budget_flops: float
    tokens: int
    branch_tokens: int | None
    compute_flops: float
    num_epochs: float
    control: str | None = None


@dataclass(frozen=True, kw_only=True)
class Family:
    """Runs that share one trunk; ``cells`` from the largest budget (the trunk) to the smallest."""

    name: str
    step: int
    size: Size
    shape: Shape
    growth: Growth | None
    schedule: Schedule
    cohort: str
    seed: int
    peak_lr: float
    base_peak_lr: float | None
    cells: tuple[Cell, ...]
    wave: int = 0

    @property
    def base_shape(self) -> Shape | None:
        return self.shape.with_layers(self.growth.num_base_layers) if self.growth else None

    @property
    def base_tokens(self) -> int:
        return self.growth.growth_timing_tokens if self.growth else 0

    @property
    def trunk(self) -> Cell:
        return self.cells[0]

    @property
    def legs(self) -> tuple[Cell, ...]:
        return self.cells[1:]


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A cell that is asked for and will not be run."""

    name: str
    step: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Design:
    """All families of a grid in the order in which they run."""

    grid: Grid
    families: tuple[Family, ...]
    dropped: tuple[Dropped, ...]

    def cells(self) -> Iterator[tuple[Family, Cell]]:
        for family in self.families:
            for cell in family.cells:
                yield family, cell


def expand(grid: Grid) -> Design:
    """Multiply the grid out.

    Raises:
        InputError: a timing is below one batch, or nothing is left to run.
    """
    families: list[Family] = []
    dropped: list[Dropped] = []
    standing: dict[str, int] = {}
    for step in grid.steps:
        for arm in step.arms:
            for family in _families_of(grid, step, arm):
                kept = []
                for cell in family.cells:
                    reason = _refusal(grid, arm, family, cell, standing)
                    if reason is None:
                        kept.append(cell)
                        standing[cell.name] = step.number
                    else:
                        dropped.append(Dropped(name=cell.name, step=step.number, reason=reason))
                if kept:
                    trunk = replace(kept[0], branch_tokens=None)
                    largest = f"to{kept[0].tokens_per_parameter:g}"
                    families.append(replace(family, name=f"{family.name}-{largest}", cells=(trunk, *kept[1:])))
    if not families:
        raise InputError("steps", "leave no cell to run", "raise the budgets or take timings that they can pay for")
    families = [_with_controls(family, standing) for family in families]
    sizes = [size.name for size in grid.sizes]
    ordered = sorted(families, key=lambda f: (f.wave, f.step, f.seed, sizes.index(f.size.name)))
    return Design(grid=grid, families=tuple(ordered), dropped=tuple(dropped))


def _families_of(grid: Grid, step: Step, arm: Arm) -> Iterator[Family]:
    """The arm multiplied out, every cell in it; names end before the part that says which budgets are left."""
    for size in grid.sizes if not arm.sizes else [grid.size(name) for name in arm.sizes]:
        target = size.shape(grid.corpus, grid.recipe)
        budgets = arm.tokens_per_parameter or size.tokens_per_parameter
        rates = {"shared": (size.shared_lr,), "others": size.other_lrs, "all": (size.shared_lr, *size.other_lrs)}
        for seed, rate in itertools.product(arm.seeds, rates[arm.learning_rates]):
            for shape, growth in _models(grid, step, arm, target, max(budgets)):
                growth_rate = size.shared_lr if growth is not None else None
                family = Family(
                    name=_stem(size, shape, growth, arm.schedule, rate, growth_rate, seed), step=step.number, size=size,
                    shape=shape, growth=growth, schedule=arm.schedule,
                    cohort=grid.cohort_of(arm.schedule, growth is None or growth.rewarm), seed=seed, peak_lr=rate,
                    base_peak_lr=growth_rate, cells=(), wave=_wave(grid, step, size, seed, rate),
                )  # fmt: skip
                cells = tuple(_cell(grid, family, target, budget) for budget in sorted(budgets, reverse=True))
                # A cosine run is no trunk: each budget stands alone.
                for group in [cells] if arm.schedule == "wsd" else [(cell,) for cell in cells]:
                    yield replace(family, cells=group)


def _models(
    grid: Grid, step: Step, arm: Arm, target: Shape, largest_budget: float
) -> Iterator[tuple[Shape, Growth | None]]:
    if arm.kind == "scratch":
        yield target, None
    elif arm.kind == "alone":
        for num_layers in arm.num_layers:
            yield target.with_layers(num_layers), None
    else:
        largest_tokens = _whole_batches(grid, largest_budget * non_embedding_params(target))
        ways = itertools.product(arm.num_layers, arm.timings, arm.optimizer_state_policies, arm.rewarm)
        for num_layers, timing, policy, rewarm in ways:
            timing_tokens = _whole_batches(grid, timing * largest_tokens)
            if timing_tokens == 0:
                raise InputError(
                    f"step {step.number}, timings",
                    f"hold {timing:g}, which is {timing * largest_tokens:,.0f} tokens of the largest budget, below half "
                    f"of one batch ({grid.recipe.batch_tokens:,})",
                    "grow later or make the batch smaller",
                )
            yield target, Growth(
                num_base_layers=num_layers, growth_timing_tokens=timing_tokens, order=arm.order,
                optimizer_state_policy=policy, rewarm=rewarm,
            )  # fmt: skip


def _stem(
    size: Size, shape: Shape, growth: Growth | None, schedule: Schedule, rate: float, base_rate: float | None, seed: int
) -> str:
    """What a run is, in a name; defaults go without saying."""
    parts = [size.name, f"l{shape.num_layers}"]
    if growth is not None:
        parts = [size.name, f"l{growth.num_base_layers}to{shape.num_layers}", f"d{growth.growth_timing_tokens}"]
        parts += [] if growth.order == "stack" else [re.sub(r"[^a-z0-9]+", ".", growth.order)]
        parts += [] if growth.optimizer_state_policy == "reset" else [growth.optimizer_state_policy]
        parts += [] if growth.rewarm else ["rewind"]
    parts += [] if schedule == "wsd" else [schedule]
    parts.append(f"lr{rate:g}" if base_rate in (None, rate) else f"lr{base_rate:g}to{rate:g}")
    return "-".join([*parts, f"s{seed}"])


def _cell(grid: Grid, family: Family, target: Shape, budget: float) -> Cell:
    f_last = flops_per_token(family.shape)
    base_flops = family.base_tokens * flops_per_token(family.base_shape) if family.base_shape else 0.0
    budget_tokens = _whole_batches(grid, budget * non_embedding_params(target))
    budget_flops = budget_tokens * flops_per_token(target)
    tokens = _whole_batches(grid, (budget_flops - base_flops) / f_last)
    context_length = grid.recipe.context_length
    num_windows = (grid.corpus.train_tokens - 1) // context_length
    return Cell(
        name=f"{family.name}-b{budget:g}",
        tokens_per_parameter=budget,
        budget_tokens=budget_tokens,
        budget_flops=budget_flops,
        tokens=tokens,
        branch_tokens=branch_tokens(grid, tokens) if family.schedule == "wsd" else None,
        compute_flops=base_flops + tokens * f_last,
        num_epochs=(family.base_tokens + tokens) / context_length / num_windows,
    )


def branch_tokens(grid: Grid, tokens: int) -> int:
    """Where a run of ``tokens`` begins to decay, in whole batches."""
    return int(tokens * (1 - grid.recipe.decay_fraction)) // grid.recipe.batch_tokens * grid.recipe.batch_tokens


def _refusal(grid: Grid, arm: Arm, family: Family, cell: Cell, standing: dict[str, int]) -> str | None:
    if cell.name in standing:
        return f"stands in step {standing[cell.name]}"
    if cell.tokens < grid.recipe.fewest_grown_tokens:
        return (
            f"the base costs {family.base_tokens * flops_per_token(family.base_shape or family.shape):.3g} of "
            f"{cell.budget_flops:.3g} FLOPs, which leaves {max(cell.tokens, 0):,} tokens, fewer than "
            f"{grid.recipe.fewest_grown_tokens:,}"
        )
    if cell.num_epochs > 1 and not arm.may_pass_one_epoch:
        return f"reads the corpus {cell.num_epochs:.2f} times"
    return None


def _with_controls(family: Family, standing: dict[str, int]) -> Family:
    if family.growth is None or not family.growth.rewarm:
        return family
    stem = _stem(family.size, family.shape, None, family.schedule, family.peak_lr, None, family.seed)
    names = {cell.name: f"{stem}-b{cell.tokens_per_parameter:g}" for cell in family.cells}
    cells = [replace(cell, control=names[cell.name] if names[cell.name] in standing else None) for cell in family.cells]
    return replace(family, cells=tuple(cells))


def _wave(grid: Grid, step: Step, size: Size, seed: int, rate: float) -> int:
    for place, wave in enumerate(grid.first):
        if step.number in wave.steps and size.name in wave.sizes and seed in wave.seeds and rate == size.shared_lr:
            return place
    return len(grid.first)


def _whole_batches(grid: Grid, tokens: float) -> int:
    return round(tokens / grid.recipe.batch_tokens) * grid.recipe.batch_tokens
