"""A grid as data: what `grid.toml` says, read strictly into dataclasses.

A grid is sizes (targets, each with its budgets and learning rates) and steps, each a list of arms. An arm says what is
trained (the target from scratch, a smaller depth alone, or grown runs) over which sizes, seeds and rates; every list is
multiplied out by :mod:`app.sweep.families`. Whatever is wrong is named by its field, with the limit and the mend.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from app.contract import ENGINE_NUMERICS_VERSION, NAME_PATTERN
from app.contract.specs import OptimizerStatePolicy
from app.records import from_dict
from fitting.errors import InputError
from fitting.flops import Shape

ArmKind = Literal["scratch", "alone", "grown"]
RateChoice = Literal["shared", "others", "all"]
Schedule = Literal["wsd", "cosine"]
Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class CorpusNeed:
    """The corpus all runs read; ``train_tokens`` is one epoch and is compared with the prepared corpus."""

    name: str
    vocab_size: int
    train_tokens: int

    def check(self, *, vocab_size: int, train_tokens: int) -> None:
        """Refuse a prepared corpus that is not the one the grid was planned on.

        Raises:
            InputError: names what differs.
        """
        for field, value in (("vocab_size", vocab_size), ("train_tokens", train_tokens)):
            if value != getattr(self, field):
                raise InputError(
                    f"corpus.{field}",
                    f"is {getattr(self, field):,} in the grid, but the prepared corpus {self.name!r} has {value:,}",
                    "plan the grid on this corpus, or bring the other",
                )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every run shares.

    Attributes:
        fewest_grown_tokens: a grown phase shorter than this is not run: it could not leave its warm-up.
        evaluations_a_run: validation losses along a run of the family's largest budget.
    """

    context_length: int
    batch_sequences: int
    warmup_tokens: int
    decay_fraction: float
    final_lr_fraction: float
    fewest_grown_tokens: int
    num_validation_windows: int
    evaluations_a_run: int

    @property
    def batch_tokens(self) -> int:
        return self.batch_sequences * self.context_length


@dataclass(frozen=True, kw_only=True)
class CoreSpeed:
    """Training FLOPs a second on one core, measured for models of this width and depth."""

    hidden_size: int
    num_layers: int
    flops_per_core_second: float


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a run costs: speeds, seconds a process takes before its first step, and the span all steps should lie in."""

    startup_core_seconds: float
    core_hours_at_least: float
    core_hours_at_most: float
    speeds: tuple[CoreSpeed, ...]


@dataclass(frozen=True, kw_only=True)
class Size:
    """A target with its budgets (tokens per non-embedding parameter) and its learning rates."""

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    tokens_per_parameter: tuple[float, ...]
    shared_lr: float
    other_lrs: tuple[float, ...]

    def shape(self, corpus: CorpusNeed, recipe: Recipe) -> Shape:
        return Shape(
            num_layers=self.num_layers, hidden_size=self.hidden_size, num_heads=self.num_heads,
            num_kv_heads=self.num_heads, intermediate_size=self.intermediate_size, vocab_size=corpus.vocab_size,
            context_length=recipe.context_length,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Runs that differ in what the lists say; lists are multiplied out.

    Attributes:
        sizes: names; all sizes where empty.
        num_layers: of the smaller depths (``alone``) or of the bases (``grown``).
        timings: growth timings d over the scratch tokens of the arm's largest budget.
        tokens_per_parameter: budgets in place of the size's own.
        learning_rates: of the last phase; the base of a grown run always holds the shared one.
        rewarm: whether the rate warms up again at growth, or stands at its peak at once.
        may_pass_one_epoch: keep cells that read text twice, flagged.
    """

    kind: ArmKind
    sizes: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    learning_rates: RateChoice = "shared"
    num_layers: tuple[int, ...] = ()
    timings: tuple[float, ...] = ()
    tokens_per_parameter: tuple[float, ...] = ()
    order: str = "stack"
    optimizer_state_policies: tuple[str, ...] = ("reset",)
    rewarm: tuple[bool, ...] = (True,)
    schedule: Schedule = "wsd"
    may_pass_one_epoch: bool = False


@dataclass(frozen=True, kw_only=True)
class Step:
    number: int
    title: str
    arms: tuple[Arm, ...]


@dataclass(frozen=True, kw_only=True)
class Wave:
    """Families that run before the rest: those of these steps, sizes and seeds at the shared rate."""

    steps: tuple[int, ...]
    sizes: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All of `grid.toml`.

    ``cohort`` holds the runs that share one recipe; another schedule, or no warm-up at growth, is another recipe, whose
    runs stand in ``cohort``-cosine and ``cohort``-rewind: the run table would take them for repeats otherwise. For the same
    reason all runs of a grid are trained on one kind of device in one precision, and a grid for a GPU names a cohort of its
    own.
    """

    cohort: str
    engine_numerics_version: int
    corpus: CorpusNeed
    recipe: Recipe
    costs: Costs
    sizes: tuple[Size, ...]
    steps: tuple[Step, ...]
    first: tuple[Wave, ...] = ()
    device: Device = "cpu"
    precision: Precision = "fp32"

    def size(self, name: str) -> Size:
        return next(size for size in self.sizes if size.name == name)

    def cohort_of(self, schedule: Schedule, rewarm: bool) -> str:
        return "-".join([self.cohort, *([schedule] if schedule != "wsd" else []), *([] if rewarm else ["rewind"])])


def read_grid(path: Path) -> Grid:
    """The grid of a TOML file, checked.

    Raises:
        InputError: a value breaks a limit; names the field, the limit and the mend.
        ValueError: the file is no TOML, or a field is unknown, missing or of the wrong type.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            "GRID", f"{path} does not exist", "give the path of a grid such as data/runs/grid.toml"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("GRID", f"{path} is not TOML ({error})", "mend the line it names") from None
    grid = from_dict(Grid, values)
    _check_top(grid)
    _check_sizes(grid)
    _check_steps(grid)
    return grid


def _check(condition: bool, field: str, problem: str, mend: str) -> None:
    if not condition:
        raise InputError(field, problem, mend)


def _check_positive(where: str, record: object, *fields: str) -> None:
    for field in fields:
        value = getattr(record, field)
        _check(0 < value < 1e18, f"{where}.{field}", f"is {value!r}, but it must lie above 0", "give a positive number")


def _check_name(field: str, name: str) -> None:
    _check(re.fullmatch(NAME_PATTERN, name) is not None, field, f"is {name!r}, but names match {NAME_PATTERN}",
           "use small letters, digits and dashes")  # fmt: skip


def _check_top(grid: Grid) -> None:
    _check_name("cohort", grid.cohort)
    _check(
        grid.engine_numerics_version == ENGINE_NUMERICS_VERSION,
        "engine_numerics_version",
        f"is {grid.engine_numerics_version}, but this engine's numbers are version {ENGINE_NUMERICS_VERSION}",
        "run the grid with the growthlaw it was made for, or raise it and say which cells stand",
    )
    _check_positive("corpus", grid.corpus, "vocab_size", "train_tokens")
    recipe, costs = grid.recipe, grid.costs
    _check_positive("recipe", recipe, "context_length", "batch_sequences", "num_validation_windows", "evaluations_a_run",
                    "fewest_grown_tokens")  # fmt: skip
    for field in ("decay_fraction", "final_lr_fraction"):
        value = getattr(recipe, field)
        _check(
            0 < value < 1, f"recipe.{field}", f"is {value!r}, but it must lie in (0, 1)", "use a fraction such as 0.2"
        )
    _check(recipe.warmup_tokens >= 0, "recipe.warmup_tokens", f"is {recipe.warmup_tokens}, but it must not be negative",
           "use 0 or more")  # fmt: skip
    _check(
        recipe.fewest_grown_tokens * (1 - recipe.decay_fraction) > recipe.warmup_tokens,
        "recipe.fewest_grown_tokens",
        f"is {recipe.fewest_grown_tokens:,}, but a grown phase of that length decays before its warm-up of "
        f"{recipe.warmup_tokens:,} tokens ends",
        "raise it or shorten recipe.warmup_tokens",
    )
    _check_positive("costs", costs, "startup_core_seconds", "core_hours_at_most")
    _check(bool(costs.speeds), "costs.speeds", "is empty", "give one measured speed at least")
    for place, speed in enumerate(costs.speeds):
        _check_positive(f"costs.speeds[{place}]", speed, "hidden_size", "num_layers", "flops_per_core_second")


def _check_sizes(grid: Grid) -> None:
    _check(bool(grid.sizes), "sizes", "is empty", "give one [[sizes]] at least")
    names = [size.name for size in grid.sizes]
    for place, size in enumerate(grid.sizes):
        where = f"sizes[{place}]"
        _check_name(f"{where}.name", size.name)
        _check(
            names.count(size.name) == 1, f"{where}.name", f"{size.name!r} stands twice", "name every size differently"
        )
        _check_positive(where, size, "num_layers", "hidden_size", "num_heads", "intermediate_size", "shared_lr")
        _check(size.hidden_size % (2 * size.num_heads) == 0, f"{where}.hidden_size",
               f"is {size.hidden_size}, but rotary heads need a multiple of 2 x num_heads ({2 * size.num_heads})",
               "change hidden_size or num_heads")  # fmt: skip
        _check_budgets(f"{where}.tokens_per_parameter", size.tokens_per_parameter)
        _check(bool(size.tokens_per_parameter), f"{where}.tokens_per_parameter", "is empty", "give one budget at least")
        rates = (size.shared_lr, *size.other_lrs)
        _check(min(rates) > 0 and len(set(rates)) == len(rates), f"{where}.other_lrs",
               f"with the shared rate is {rates}, but rates must be positive and all different", "mend them")  # fmt: skip


def _check_budgets(field: str, budgets: tuple[float, ...]) -> None:
    _check(all(a < b for a, b in zip((0.0, *budgets), budgets, strict=False)), field,
           f"is {list(budgets)}, but budgets must be positive and rise", "write them from small to large")  # fmt: skip


def _check_steps(grid: Grid) -> None:
    numbers = [step.number for step in grid.steps]
    _check(bool(numbers) and numbers == sorted(set(numbers)), "steps", f"are numbered {numbers}, but each step needs one "
           "number and they must rise", "number the [[steps]] in the order they are useful")  # fmt: skip
    names = {size.name for size in grid.sizes}
    for step in grid.steps:
        for place, arm in enumerate(step.arms):
            _check_arm(f"step {step.number}, arms[{place}]", arm, names)
    for place, wave in enumerate(grid.first):
        for name in wave.sizes:
            _check(name in names, f"first[{place}].sizes", f"names {name!r}, which is no size", f"use {sorted(names)}")
        for number in wave.steps:
            _check(number in numbers, f"first[{place}].steps", f"names {number}, which is no step", f"use {numbers}")


def _check_arm(where: str, arm: Arm, names: set[str]) -> None:
    for name in arm.sizes:
        _check(name in names, f"{where}.sizes", f"names {name!r}, which is no size", f"use {sorted(names)}")
    _check(bool(arm.seeds) and len(set(arm.seeds)) == len(arm.seeds) and min(arm.seeds) >= 0, f"{where}.seeds",
           f"is {list(arm.seeds)}, but seeds must be different numbers from 0 on", "mend them")  # fmt: skip
    _check_budgets(f"{where}.tokens_per_parameter", arm.tokens_per_parameter)
    grown = arm.kind == "grown"
    _check((arm.kind != "scratch") == bool(arm.num_layers), f"{where}.num_layers",
           f"is {list(arm.num_layers)} for kind {arm.kind!r}, but it says how deep the smaller models are",
           "give it for 'alone' and 'grown', and only there")  # fmt: skip
    _check(grown == bool(arm.timings), f"{where}.timings", f"is {list(arm.timings)} for kind {arm.kind!r}",
           "give timings for 'grown', and only there")  # fmt: skip
    _check(all(timing > 0 for timing in arm.timings), f"{where}.timings", f"is {list(arm.timings)}, but d = 0 is scratch",
           "use timings above 0")  # fmt: skip
    policies = get_args(OptimizerStatePolicy)
    for policy in arm.optimizer_state_policies:
        _check(
            policy in policies, f"{where}.optimizer_state_policies", f"names {policy!r}", f"use {', '.join(policies)}"
        )
    for field in ("optimizer_state_policies", "rewarm"):
        _check(bool(getattr(arm, field)), f"{where}.{field}", "is empty", "leave it out or name one")
