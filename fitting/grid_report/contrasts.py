"""Settings held against the reference: the optimizer-state ablation, the order of layers, schedules, learning rates.

    effect = mean over seeds of (L_setting - L_reference), same seeds        interval: t of the paired differences

========  ===========================================================================  ======
symbol    meaning                                                                      unit
========  ===========================================================================  ======
effect    loss of the setting minus that of the reference arm of the same target,      nats
          factor, timing and budget; negative: the setting ends lower
========  ===========================================================================  ======

An effect is called one only if the t interval at 95%, widened for all that are compared in its table (Bonferroni), leaves out
zero and the effect is no tie. With one common seed the seed spread of the target and budget stands in for the paired one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from fitting.conventions import INTERVAL_LEVEL, TIE_NATS
from fitting.grid_report.arms import SETTING_COLUMNS, Arm, Grid, Target
from fitting.grid_report.gains import Verdict, verdict
from fitting.grid_report.spread import CALL_LEVEL, Interval, Spread, Spreads

# The columns that make up each question; everything else must be as in the reference.
ABLATION = ("optimizer_state_policy", "variant")
ORDER = ("order",)
# A variant cohort of this name differs in its schedule, so its losses are held against its own scratch runs.
_SCHEDULE_COLUMNS = ("variant", "schedule")


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One setting against the reference at one target, (g, d) and budget; the interval is at the house's level."""

    target: Target
    budget: int
    growth_factor: float
    timing_tokens: float
    setting: dict[str, Any]
    reference: dict[str, Any]
    effect_nats: float
    interval_nats: Interval
    num_pairs: int
    verdict: Verdict
    run_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RateCheck:
    """Losses by peak learning rate of one design; ``excess_nats`` is the shared rate's loss above the lowest."""

    target: Target
    budget: int
    kind: str
    growth_factor: float
    timing_tokens: float
    losses_nats: dict[float, float]
    shared_rate: float
    best_rate: float
    at_end: bool
    excess_nats: float
    verdict: Verdict
    run_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ScheduleDelta:
    """Grown - scratch inside one schedule, for designs that were run in several."""

    target: Target
    budget: int
    growth_factor: float
    timing_tokens: float
    schedule: str
    delta_nats: float
    interval_nats: Interval
    num_grown: int
    num_scratch: int
    run_ids: tuple[str, ...]


def contrasts(grid: Grid, columns: Sequence[str], spreads: Spreads) -> list[Contrast]:
    """Every grown arm that differs from its reference arm in some of ``columns`` and in nothing else."""
    pairs = [
        (target, budget, arm, reference)
        for target in grid.targets
        for reference in target.of_kind("grown")
        for arm in target.of_kind("grown", reference=False)
        if _same_design(arm, reference) and _differs_in(arm, reference, columns)
        for budget in sorted(arm.runs.keys() & reference.runs.keys())
    ]
    return [_contrast(*pair, len(pairs), spreads.at(pair[0], pair[1])) for pair in pairs]


def _same_design(a: Arm, b: Arm) -> bool:
    return a.growth_factor == b.growth_factor and a.timing_tokens == b.timing_tokens


def _differs_in(arm: Arm, reference: Arm, columns: Sequence[str]) -> bool:
    different = {column for column in SETTING_COLUMNS if arm.setting[column] != reference.setting[column]}
    return bool(different) and different <= set(columns)


def _common(a: Arm, b: Arm, budget: int) -> list[str]:
    return sorted({run.seed for run in a.runs[budget]} & {run.seed for run in b.runs[budget]})


def _contrast(target: Target, budget: int, arm: Arm, reference: Arm, num_compared: int, spread: Spread) -> Contrast:
    seeds = _common(arm, reference, budget)
    ours, theirs = ({run.seed: run.loss_nats for run in one.runs[budget]} for one in (arm, reference))
    if len(seeds) > 1:
        differences = np.array([ours[seed] - theirs[seed] for seed in seeds])
        effect = float(differences.mean())
        error = float(differences.std(ddof=1)) / math.sqrt(len(seeds))
        half, wide = (
            error * float(student.ppf(1 - tail, len(seeds) - 1))
            for tail in (0.5 * (1 - INTERVAL_LEVEL), 0.5 * (1 - CALL_LEVEL) / num_compared)
        )
    else:
        effect = arm.loss(budget) - reference.loss(budget)
        numbers = (arm.num_seeds(budget), reference.num_seeds(budget))
        half = spread.half_width(*numbers)
        wide = spread.half_width(*numbers, level=CALL_LEVEL, num_compared=num_compared)
    called: Verdict = "not told apart"
    if abs(effect) > max(wide, TIE_NATS):
        called = "lower" if effect < 0 else "higher"
    return Contrast(
        target=target, budget=budget, growth_factor=arm.growth_factor, timing_tokens=arm.timing_tokens,
        setting=dict(arm.setting), reference=dict(reference.setting), effect_nats=effect,
        interval_nats=(effect - half, effect + half), num_pairs=len(seeds), verdict=called,
        run_ids=tuple(run.run_id for one in (arm, reference) for run in one.runs[budget]),
    )  # fmt: skip


def rate_checks(grid: Grid, spreads: Spreads) -> list[RateCheck]:
    """Designs that were trained at two or more peak rates, with the shared rate (the reference's) among them."""
    designs: list[tuple[Target, int, dict[float, Arm], float]] = []
    for target in grid.targets:
        shared = target.reference["peak_lr"]
        for arm in (*target.of_kind("scratch"), *target.of_kind("grown")):
            others = [
                other
                for other in target.of_kind(arm.kind, reference=False)
                if _same_design(other, arm)
                and _differs_in(other, arm, ("peak_lr", "base_peak_lr"))
                and (arm.kind == "scratch" or other.setting["base_peak_lr"] == arm.setting["base_peak_lr"])
            ]
            for budget in sorted(arm.runs):
                by_rate = {one.setting["peak_lr"]: one for one in (arm, *others) if one.num_seeds(budget)}
                if len(by_rate) > 1:
                    designs.append((target, budget, by_rate, shared))
    num_compared = sum(len(by_rate) - 1 for _, _, by_rate, _ in designs)
    return [_rate_check(*design, num_compared, spreads.at(design[0], design[1])) for design in designs]


def _rate_check(
    target: Target, budget: int, by_rate: dict[float, Arm], shared: float, num_compared: int, spread: Spread
) -> RateCheck:
    losses = {rate: by_rate[rate].loss(budget) for rate in sorted(by_rate)}
    best = min(losses, key=lambda rate: losses[rate])
    ours, theirs = by_rate[shared], by_rate[best]
    excess = losses[shared] - losses[best]
    return RateCheck(
        target=target, budget=budget, kind=ours.kind, growth_factor=ours.growth_factor, timing_tokens=ours.timing_tokens,
        losses_nats=losses, shared_rate=shared, best_rate=best, at_end=best in (min(losses), max(losses)), excess_nats=excess,
        verdict=verdict(excess, spread, ours.num_seeds(budget), theirs.num_seeds(budget), num_compared),
        run_ids=tuple(run.run_id for one in by_rate.values() for run in one.runs[budget]),
    )  # fmt: skip


def schedule_deltas(grid: Grid, spreads: Spreads) -> list[ScheduleDelta]:
    """Delta by schedule of the designs that have grown and scratch runs in two schedules or more."""
    rows: list[ScheduleDelta] = []
    for target in grid.targets:
        for reference in target.of_kind("grown"):
            same = [
                arm
                for arm in target.of_kind("grown", reference=False)
                if _same_design(arm, reference) and (arm is reference or _differs_in(arm, reference, _SCHEDULE_COLUMNS))
            ]
            for budget in sorted(reference.runs):
                spread = spreads.at(target, budget)
                found = [row for arm in same if (row := _schedule_delta(target, budget, arm, spread)) is not None]
                if len({row.schedule for row in found}) > 1:
                    rows += found
    return rows


def _schedule_delta(target: Target, budget: int, arm: Arm, spread: Spread) -> ScheduleDelta | None:
    wanted = {column: arm.setting[column] for column in (*_SCHEDULE_COLUMNS, "peak_lr")}
    scratch = next((one for one in _scratch_arms(target) if all(one.setting[c] == v for c, v in wanted.items())), None)
    if scratch is None or not scratch.num_seeds(budget) or not arm.num_seeds(budget):
        return None
    delta = arm.loss(budget) - scratch.loss(budget)
    half = spread.half_width(arm.num_seeds(budget), scratch.num_seeds(budget))
    return ScheduleDelta(
        target=target, budget=budget, growth_factor=arm.growth_factor, timing_tokens=arm.timing_tokens,
        schedule=str(arm.setting["schedule"]), delta_nats=delta, interval_nats=(delta - half, delta + half),
        num_grown=arm.num_seeds(budget), num_scratch=scratch.num_seeds(budget),
        run_ids=tuple(run.run_id for one in (arm, scratch) for run in one.runs[budget]),
    )  # fmt: skip


def _scratch_arms(target: Target) -> Iterable[Arm]:
    return target.of_kind("scratch", reference=False)
