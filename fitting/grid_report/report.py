"""Everything a grid of growth runs says, as values: one field a section, or a sentence on why it cannot run yet.

    headers.csv -> arms -> spread -> valleys, gains, timing, rules, held out, contrasts -> findings

What is drawn and printed is made from this alone (``app.report``); each section names the runs it rests on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd

from fitting.cells import cells, noise, pairs, singles
from fitting.grid_report.arms import Grid, read_grid
from fitting.grid_report.contrasts import (
    ABLATION,
    ORDER,
    Contrast,
    RateCheck,
    ScheduleDelta,
    contrasts,
    rate_checks,
    schedule_deltas,
)
from fitting.grid_report.copying import CopyingAt, copying_at, read_copying
from fitting.grid_report.gains import Gain, Valley, gain, valleys
from fitting.grid_report.held_out import LargestLeftOut, largest_left_out
from fitting.grid_report.rule_regret import Difference, RuleScore, cases, difference, rule_scores
from fitting.grid_report.spread import Resampler, Spread, pooled_spread, spreads
from fitting.grid_report.timing import BestTiming, TimingTrend, best_timings, timing_trend
from fitting.identifiability import cannot_identify

T = TypeVar("T")
# The factor that the published rule is about, and that most of the timings were tried with.
TIMING_FACTOR = 4.0
REFERENCE_RULE = "never"


@dataclass(frozen=True, kw_only=True)
class GridReport:
    """``missing`` maps a section to the sentence that stands in its place; ``rests_on`` to the ids of its runs."""

    grid: Grid
    spread: Spread
    spreads: Mapping[str, Spread]
    valleys: tuple[Valley, ...]
    gains: tuple[Gain, ...]
    best_timings: tuple[BestTiming, ...]
    trend: TimingTrend | None
    rules: tuple[RuleScore, ...]
    rules_by_target: Mapping[str, tuple[RuleScore, ...]]
    differences: tuple[Difference, ...]
    held_out: LargestLeftOut | None
    ablation: tuple[Contrast, ...]
    orders: tuple[Contrast, ...]
    schedules: tuple[ScheduleDelta, ...]
    rates: tuple[RateCheck, ...]
    copying: tuple[CopyingAt, ...]
    cannot_tell: tuple[str, ...]
    missing: Mapping[str, str]
    rests_on: Mapping[str, tuple[str, ...]]


def grid_report(
    source: Path | pd.DataFrame, *, copying: Mapping[str, float] | None = None, seed: int = 0
) -> GridReport:
    """The report on a folder with ``headers.csv``, or on such a table; the same runs and seed give the same values.

    Args:
        copying: cell -> gain of a text read again, in nats; where left out, that of the folder's ``copying.csv``, if any.

    Raises:
        InputError: the table is bad or holds no final loss.
    """
    grid = read_grid(source)
    if copying is None:
        copying = read_copying(source) if isinstance(source, Path) else {}
    missing: dict[str, str] = {}

    def tried(section: str, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except ValueError as error:
            missing[section] = str(error)
            return None

    noises = spreads(grid.targets)
    found = [valley for target in grid.targets for valley in valleys(target, noises)]
    gains = [gain(valley, noises) for valley in found]
    resampler = Resampler(grid, seed=seed)
    timings, draws = best_timings(grid, TIMING_FACTOR, resampler)
    trend = tried("timing", lambda: timing_trend(grid, TIMING_FACTOR, timings, draws))
    compared = cases(grid, resampler)
    rules = rule_scores(grid, compared) if compared else []
    held_out = tried("held_out", lambda: largest_left_out(grid, compared, rules, seed=seed))
    ablation, orders = contrasts(grid, ABLATION, noises), contrasts(grid, ORDER, noises)
    rates, schedules = rate_checks(grid, noises), schedule_deltas(grid, noises)
    run_of_cell = dict(zip(grid.table["cell"], grid.table["run_id"], strict=True))
    copied = copying_at(gains, {run_of_cell[cell]: nats for cell, nats in copying.items() if cell in run_of_cell})
    for section, values, why in (
        ("valleys", found, "no target has a scratch and a grown run of one setting at equal FLOPs"),
        ("rules", rules, "no target has a scratch and a grown run of one setting at equal FLOPs"),
        ("ablation", ablation, "no grown arm differs from another in its optimizer state or re-warm-up alone"),
        ("orders", orders, "no grown arm differs from another in its layer order alone"),
        ("schedules", schedules, "no design was run from scratch and grown under two schedules"),
        ("rates", rates, "no design was trained at two learning rates"),
        ("copying", copied, "of no run was it measured (`growthlaw sweep copying`)"),
    ):
        if not values:
            missing[section] = why
    never = next((score for score in rules if score.rule == REFERENCE_RULE), None)
    others = [score for score in rules if score.rule != REFERENCE_RULE]
    return GridReport(
        grid=grid,
        spread=noises.pooled,
        spreads=_spreads(grid, noises.own),
        valleys=tuple(found),
        gains=tuple(gains),
        best_timings=tuple(timings),
        trend=trend,
        rules=tuple(rules),
        rules_by_target=_by_target(rules),
        differences=tuple(difference(one, never, num_compared=len(others)) for one in others) if never else (),
        held_out=held_out,
        ablation=tuple(ablation),
        orders=tuple(orders),
        schedules=tuple(schedules),
        rates=tuple(rates),
        copying=tuple(copied),
        cannot_tell=_cannot_tell(grid, found, timings, noises.pooled),
        missing=missing,
        rests_on={
            "runs": tuple(sorted(grid.table["run_id"])),
            "valleys": _ids(found),
            "gains": _ids(gains),
            "timing": () if trend is None else tuple(sorted(set(trend.run_ids))),
            "rules": tuple(sorted({run_id for case in compared for run_id in case.run_ids})),
            "held_out": () if held_out is None else held_out.run_ids,
            "ablation": _ids(ablation),
            "orders": _ids(orders),
            "schedules": _ids(schedules),
            "rates": _ids(rates),
            "copying": _ids(copied),
            "spread": tuple(
                run_id for target in grid.targets for arm in target.arms if len(arm.seeds) > 1 for run_id in arm.run_ids
            ),
        },
    )


def _ids(
    found: list[Valley] | list[Gain] | list[Contrast] | list[RateCheck] | list[ScheduleDelta] | list[CopyingAt],
) -> tuple[str, ...]:
    return tuple(sorted({run_id for one in found for run_id in one.run_ids}))


def _spreads(grid: Grid, own: Mapping[tuple[float, int], Spread]) -> dict[str, Spread]:
    """Spread by target and kind, where there are repeats, and by target and budget where differences rest on it."""
    found = {}
    for target in grid.targets:
        for budget in range(len(target.budget_tokens)):
            if (target.params, budget) in own:
                ratio = f"{target.tokens_per_parameter(budget):.3g} tokens per parameter"
                found[f"{target.label}, {ratio}"] = own[target.params, budget]
        for kind in ("scratch", "fixed", "grown"):
            spread = pooled_spread(target.of_kind(kind, reference=False))
            if spread.measured:
                found[f"{target.label}, {kind}"] = spread
    return found


def _by_target(rules: list[RuleScore]) -> dict[str, tuple[RuleScore, ...]]:
    from fitting.grid_report.rule_regret import score

    labels = dict.fromkeys(pick.case.target.label for rule in rules for pick in rule.picks)
    return {
        label: tuple(
            score(rule.rule, [pick for pick in rule.picks if pick.case.target.label == label]) for rule in rules
        )
        for label in labels
    }


def _cannot_tell(grid: Grid, found: list[Valley], timings: list[BestTiming], spread: Spread) -> tuple[str, ...]:
    """By name what these runs leave open."""
    designs = cells(grid.main)
    sentences = list(cannot_identify(pairs(designs), singles(designs), noise(designs)))
    edges = [timing for timing in timings if timing.edge]
    if edges:
        named = ", ".join(
            f"{timing.target.label} at {timing.target.tokens_per_parameter(timing.budget):.3g} tokens per parameter "
            f"({timing.edge})"
            for timing in edges
        )
        sentences.append(f"the best timing where the lowest one tried is an end one: {named}")
    single = sum(point.num_seeds == 1 for valley in found for point in valley.points)
    total = sum(len(valley.points) for valley in found)
    if single:
        sentences.append(f"the seed spread of {single} of {total} grown cells, which were run with one seed")
    if not spread.measured:
        sentences.append("any seed spread: every design was run with one seed, and the house's value is assumed")
    rows = grid.table
    largest, smallest = rows["target_params"].max(), rows["target_params"].min()
    sentences.append(
        f"anything about models 30 times larger than {largest:,.0f} parameters, or about 30 times the "
        f"{rows['compute_flops'].max():.2g} FLOPs of the largest run (the smallest model has {smallest:,.0f} parameters)"
    )
    corpora = sorted({str(value) for value in rows["corpus"].dropna()})
    sentences.append(
        f"whether another corpus, tokenizer or recipe would say the same: all runs read {', '.join(corpora) or 'one corpus'}"
    )
    return tuple(sentences)
