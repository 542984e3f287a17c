"""The first lines of a report, made from its numbers by the thresholds of its sections; what is negative is said first.

Nothing here knows what the runs will say: every sentence is chosen by a verdict and filled with its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from fitting.conventions import INTERVAL_LEVEL
from fitting.grid_report.copying import COPIES_NATS, CopyingAt
from fitting.grid_report.gains import Gain
from fitting.grid_report.held_out import CONSTANT_SPEEDUP, GUIDELINE, NEVER_GROW, LargestLeftOut
from fitting.grid_report.report import GridReport
from fitting.grid_report.rule_regret import Difference, RuleScore
from fitting.grid_report.spread import Interval
from fitting.grid_report.timing import TimingTrend


def findings(report: GridReport) -> tuple[str, ...]:
    """Sentences, the most important first."""
    sentences = [*_growth(report.gains), _copying(report.copying), _timing(report.trend, report.missing.get("timing"))]
    sentences.append(_rules(report.differences, report.rules))
    sentences.append(_held_out(report.held_out, report.missing.get("held_out")))
    sentences.append(_ablation(report))
    sentences.append(_rates(report))
    return tuple(sentence for sentence in sentences if sentence)


def _growth(gains: Sequence[Gain]) -> list[str]:
    if not gains:
        return ["Nothing can be said of growth yet: no grown run stands beside a scratch run at equal FLOPs."]
    total = len(gains)
    lower = sum(gain.against_scratch == "lower" for gain in gains)
    higher = sum(gain.against_scratch == "higher" for gain in gains)
    known = [gain for gain in gains if gain.against_fixed is not None]
    below = sum(gain.against_fixed == "lower" for gain in known)
    above = sum(gain.against_fixed == "higher" for gain in known)
    scratch = (
        f"Against the same target from scratch at equal FLOPs the best grown run ended lower in {lower} of {total} (size, "
        f"budget) cells, higher in {higher}, not told apart in {total - lower - higher}; median difference "
        f"{_median([gain.valley.best.delta_nats for gain in gains]):+.4f} nats"
    )
    scratch += f", speedup {_median([gain.speedup for gain in gains]):+.0%}." if _speedups(gains) else "."
    if not known:
        return [scratch, "Whether a smaller model would have done better is not known: no smaller depth was run alone."]
    fixed = (
        f"in {below} of {len(known)} cells growth ended below the best fixed size at equal FLOPs, in {above} above it, in "
        f"{len(known) - below - above} the two are not told apart; median difference "
        f"{_median([gain.delta_fixed_nats for gain in known if gain.delta_fixed_nats is not None]):+.4f} nats."
    )
    if below == above == 0:
        return [scratch, f"Whether growing beats simply training a smaller model cannot be told: {fixed}"]
    if lower == 0 and below == 0:
        return [
            f"Negative: growth helped in no cell, neither against scratch nor against the best fixed size; {fixed}",
            scratch,
        ]
    if below == 0:
        return [f"Negative: growing nowhere beat simply training a smaller model: {fixed}", scratch]
    if above > below:
        return [f"Mostly negative: {fixed}", scratch]
    where = "in every cell" if below == len(known) else "in part of the grid"
    return [f"Growth ended below the best fixed size {where}: {fixed}", scratch]


def _speedups(gains: Sequence[Gain]) -> bool:
    return all(gain.speedup == gain.speedup for gain in gains)


def _copying(found: Sequence[CopyingAt]) -> str:
    if not found:
        return ""
    steps = [one.step_nats for one in found if one.step_nats is not None]
    if not steps:
        return (
            f"Learning to copy from the context upsets no comparison: in each of {len(found)} (size, budget) cells that were "
            "measured all of the target's runs do it, or none does."
        )
    apart = sum(
        one.scratch.num_measured > 0
        and one.best_grown.num_measured > 0
        and (one.scratch.num_copying == 0) != (one.best_grown.num_copying == 0)
        for one in found
    )
    return (
        f"Caution: in {len(steps)} of {len(found)} (size, budget) cells some of the target's runs had learned to copy from "
        f"their context (a text read again costs over {COPIES_NATS} nats less) and others had not; the former end lower by "
        f"{_median(steps):.4f} nats at the median. In {apart} of them only one of scratch and the best grown run had: what is "
        "told of growth there is when that step came, which says little of runs that all take it early."
    )


def _timing(trend: TimingTrend | None, why: str | None) -> str:
    if trend is None:
        return f"How the best timing moves with compute cannot be told: {why}."
    low, high = trend.call_interval
    numbers = (
        f"exponent of d* in C at fixed size {trend.exponent:+.2f} ({INTERVAL_LEVEL:.0%} interval {trend.interval[0]:+.2f} to "
        f"{trend.interval[1]:+.2f}, {trend.num_valleys} valleys of {trend.num_targets} size(s), {trend.num_edges} more with "
        "their lowest timing at an edge)"
    )
    first, last = trend.published_exponents
    outside = high < first or low > last
    published = (
        f"the published law's {first:.2f} to {last:.2f} lies {'outside' if outside else 'inside'} its 95% interval"
    )
    if high < 0:
        return f"The best timing falls with compute: {numbers}; {published}."
    if low > 0:
        return f"The best timing rises with compute, where the published law says it falls: {numbers}; {published}."
    return f"Whether the best timing rises or falls with compute cannot be told: {numbers}; {published}."


def _rules(differences: Sequence[Difference], rules: Sequence[RuleScore]) -> str:
    if not differences:
        return ""
    better = sorted((one for one in differences if one.verdict == "lower"), key=lambda one: one.nats)
    worse = [one for one in differences if one.verdict == "higher"]
    parts = []
    if better:
        named = ", ".join(f"{one.rule} ({one.nats:+.4f} nats)" for one in better)
        parts.append(f"rules that end lower than never growing: {named}")
    else:
        parts.append("no published rule is told to end lower than never growing")
    if worse:
        parts.append("higher: " + ", ".join(f"{one.rule} ({one.nats:+.4f})" for one in worse))
    rest = [one.rule for one in differences if one.verdict == "not told apart"]
    if rest:
        parts.append(f"not told apart from it: {', '.join(rest)}")
    never = [f"{one.rule} ({one.num_infeasible} of {len(one.picks)})" for one in rules if one.num_infeasible]
    if never:
        parts.append(f"asking for more than the whole budget, which counts as scratch: {', '.join(never)}")
    return f"Of {len(differences)} rules followed on the cells that were run, {'; '.join(parts)}."


def _held_out(found: LargestLeftOut | None, why: str | None) -> str:
    if found is None:
        return f"No guideline was tested on a size it had not seen: {why}."
    errors = {one.name: one for one in found.errors}
    told = [
        f"{errors[name].guideline_is} than {name}'s {errors[name].rmse_nats:.4f}"
        if errors[name].guideline_is != "not told apart"
        else f"not told apart from {name}'s {errors[name].rmse_nats:.4f}"
        for name in (NEVER_GROW, CONSTANT_SPEEDUP)
        if name in errors
    ]
    cover = found.coverage[0]
    return (
        f"A guideline fitted on the {found.num_train_sizes} smaller size(s) ({found.num_train_pairs} pairs) misses the deltas "
        f"of {found.label} by {errors[GUIDELINE].rmse_nats:.4f} nats: {', '.join(told)}; its 80% intervals held "
        f"{cover.share:.0%} of {cover.num_pairs} pairs ({cover.binomial_interval[0]:.0%} to "
        f"{cover.binomial_interval[1]:.0%}): {_width(cover.binomial_interval)}."
    )


def _width(interval: Interval) -> str:
    if interval[1] < INTERVAL_LEVEL:
        return "they are too narrow"
    return "they are wider than they need be" if interval[0] > INTERVAL_LEVEL else "as they should"


def _ablation(report: GridReport) -> str:
    found = report.ablation
    if not found:
        return f"The ablation of the optimizer state says nothing yet: {report.missing['ablation']}."
    called = [one for one in found if one.verdict != "not told apart"]
    widest = max(abs(one.effect_nats) for one in found)
    seeds = min(one.num_pairs for one in found)
    if not called:
        return (
            f"Optimizer state at growth: none of {len(found)} settings is told apart from the reference "
            f"({_setting(found[0].reference)}) with {seeds} or more common seeds; the largest difference is {widest:.4f} nats."
        )
    named = ", ".join(f"{_setting(one.setting)} {one.verdict} by {abs(one.effect_nats):.4f} nats" for one in called)
    return (
        f"Optimizer state at growth, against {_setting(found[0].reference)}: {named}; {len(found) - len(called)} of "
        f"{len(found)} settings are not told apart."
    )


def _setting(setting: dict[str, object]) -> str:
    return f"{setting['optimizer_state_policy']}, {setting['variant'] or 'rewarm'}"


def _rates(report: GridReport) -> str:
    if not report.rates:
        return ""
    worse = [one for one in report.rates if one.verdict == "higher"]
    if not worse:
        return (
            f"The shared learning rate is not told apart from the best one tried in any of {len(report.rates)} designs that "
            "were trained at several."
        )
    by_kind = {kind: sum(one.kind == kind for one in worse) for kind in ("scratch", "grown")}
    return (
        f"Caution: the shared learning rate ends higher than another one in {len(worse)} of {len(report.rates)} designs "
        f"({by_kind['scratch']} scratch, {by_kind['grown']} grown), by up to {max(one.excess_nats for one in worse):.4f} nats; "
        "comparisons there are of runs not tuned equally well."
    )


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])
