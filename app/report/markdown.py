"""A grid report as Markdown: the findings first, then a section a question, each with the runs it rests on.

Every number comes from `fitting.grid_report`. A section without enough runs holds the sentence that says what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.report.cells import nats, place, span, table, tokens
from fitting.conventions import INTERVAL_LEVEL, TIE_NATS
from fitting.grid_report import GridReport, findings
from fitting.grid_report.contrasts import Contrast
from fitting.grid_report.copying import COPIES_NATS, CopyingAt, Share
from fitting.grid_report.gains import Gain, Valley
from fitting.grid_report.report import REFERENCE_RULE, TIMING_FACTOR
from fitting.grid_report.rule_regret import RuleScore
from fitting.grid_report.spread import CALL_LEVEL, FEWEST_OWN_DEGREES

Captions = Mapping[str, tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """A step of the grid's design: cells planned, and cells with a final loss."""

    number: int
    title: str
    num_planned: int
    num_there: int


def page(report: GridReport, captions: Captions, planned: Sequence[PlannedStep] = ()) -> str:
    """The whole page; ``captions`` maps a figure's name to its path and caption, ``planned`` is what the design asks for."""
    parts = [
        f"# What the growth runs of cohort `{report.grid.cohort}` say",
        "",
        *_part_way(planned),
        *(f"- {sentence}" for sentence in findings(report)),
        "",
        _how_to_read(report),
        *_section("1. What was run, and how much seeds differ", _runs(report, planned), report, "runs", captions, ()),
        *_section(
            "2. Valleys in timing and factor", _valleys(report.valleys), report, "valleys", captions, ("valleys",)
        ),
        *_section(
            "3. Against scratch and against the best fixed size",
            _gains(report.gains),
            report,
            "gains",
            captions,
            ("gains",),
        ),
        *_section("4. Speedup and saved tokens", _speedups(report.gains), report, "gains", captions, ("speedup",)),
        *_section(
            "5. How the best timing moves with compute", _timing(report), report, "timing", captions, ("best_timing",)
        ),
        *_section("6. Which rule is right where", _rules(report), report, "rules", captions, ("rules",)),
        *_section("7. The largest size, unseen", _held_out(report), report, "held_out", captions, ()),
        *_section(
            "8. Optimizer state at growth", _contrasts(report.ablation), report, "ablation", captions, ("ablation",)
        ),
        *_section("9. Layer order", _contrasts(report.orders), report, "orders", captions, ()),
        *_section("10. Schedules", _schedules(report), report, "schedules", captions, ()),
        *_section("11. Was the learning rate right?", _rates(report), report, "rates", captions, ()),
        *_section("12. Copying from the context", _copying(report.copying), report, "copying", captions, ()),
        "## 13. What cannot be told",
        "",
        *(f"- {sentence[0].upper()}{sentence[1:]}." for sentence in report.cannot_tell),
        "",
    ]
    return "\n".join(parts)


def _how_to_read(report: GridReport) -> str:
    return (
        "Losses are final validation losses in nats per token; differences are at equal FLOPs (within 1%), the base's "
        f"included; negative: the first ends lower. Intervals are {INTERVAL_LEVEL:.0%} two-sided. A difference is *called* one "
        f"(lower, higher) only if it is above {TIE_NATS} nats and an interval of {CALL_LEVEL:.0%}, widened for everything "
        "compared in its table, leaves out zero; else it is *not told apart*. `runs_by_section.csv` beside this file names "
        "the runs of every section. Made by `growthlaw runs report`.\n"
    )


def _section(
    title: str, lines: list[str], report: GridReport, key: str, captions: Captions, shown: Sequence[str]
) -> list[str]:
    parts = [f"## {title}", ""]
    rests_on = sorted(set(report.rests_on.get(key, ())))
    if not lines:
        return [
            *parts,
            f"Not yet: {report.missing.get(key, report.missing.get('valleys', 'no run of this kind is there'))}.",
            "",
        ]
    for name in shown:
        if name in captions:
            path, caption = captions[name]
            parts += [f"![{caption}]({path})", "", f"*{caption}*", ""]
    return [*parts, *lines, "", f"*Rests on {len(rests_on)} runs.{_steps(report, rests_on)}*", ""]


def _steps(report: GridReport, run_ids: Sequence[str]) -> str:
    """How many of them come from which step of the grid."""
    table = report.grid.table
    counts = table.loc[table["run_id"].isin(run_ids), "step"].dropna().astype(str).value_counts()
    if counts.empty:
        return ""
    return " By step of the grid: " + ", ".join(f"{step}: {counts[step]}" for step in sorted(counts.index)) + "."


def _part_way(planned: Sequence[PlannedStep]) -> list[str]:
    there, total = sum(step.num_there for step in planned), sum(step.num_planned for step in planned)
    if there == total:
        return []
    return [f"- **Part-way: {there} of the grid's {total} cells are there.** What follows may change with the rest."]


def _runs(report: GridReport, planned: Sequence[PlannedStep]) -> list[str]:
    grid = report.grid
    rows = []
    for target in grid.targets:
        budgets = ", ".join(f"{target.tokens_per_parameter(b):.3g}" for b in range(len(target.budget_tokens)))
        counts = [len(target.of_kind(kind, reference=False)) for kind in ("scratch", "fixed", "grown")]
        runs = sum(len(arm.run_ids) for arm in target.arms)
        rows.append((target.label, f"{target.params:,.0f}", budgets, *counts, runs))
    lines = table(
        ("target", "non-embedding parameters", "budgets (tokens per parameter)", "scratch arms", "smaller depths", "grown arms",
         "final losses"), rows,
    )  # fmt: skip
    if planned:
        rows = [(step.number, step.title, f"{step.num_there} of {step.num_planned}") for step in planned]
        lines += ["", *table(("step", "what", "cells there"), rows)]
    versions = sorted({f"{value:g}" for value in grid.table["engine_numerics_version"].dropna()})
    sd = report.spread
    lines += ["", f"{len(grid.table)} final losses; engine numerics version {', '.join(versions) or 'not stated'}."]
    if grid.excluded:
        lines.append(f"Left out: {', '.join(f'{count} {reason}' for reason, count in sorted(grid.excluded.items()))}.")
    if sd.measured:
        lines.append(
            f"**Seed spread, pooled: {sd.sd_nats:.4f} nats** ({span(sd.interval_nats, '.4f')}) a run, from {sd.num_runs} "
            f"losses of {sd.num_arms} repeated designs ({sd.degrees_of_freedom:g} degrees of freedom, a trunk's legs "
            f"counted once). Differences rest on the spread of their own size and budget where that has {FEWEST_OWN_DEGREES} "
            "degrees of freedom or more, else on this."
        )
        rows = [
            (name, f"{one.sd_nats:.4f}", span(one.interval_nats, ".4f"), one.num_arms, one.num_runs)
            for name, one in report.spreads.items()
        ]
        lines += ["", *table(("size and budget, or kind", "seed sd (nats)", "80% interval", "designs", "losses"), rows)]
    else:
        lines.append(
            f"No design was repeated: a seed spread of {sd.sd_nats:.3f} nats is assumed, measured elsewhere at hidden 64."
        )
    return lines


def _valleys(valleys: Sequence[Valley]) -> list[str]:
    rows = [
        (
            *place(valley.target, valley.budget), f"{point.growth_factor:g}", tokens(point.timing_tokens),
            f"{point.share:.3g}",
            ("**" + nats(point.delta_nats) + "**") if point is valley.best else nats(point.delta_nats),
            span(point.interval_nats), point.num_seeds, "-" if point.sd_nats is None else f"{point.sd_nats:.4f}",
            {"only": "one timing", None: ""}.get(valley.edge, f"{valley.edge} tried") if point is valley.best else "",
        )
        for valley in valleys
        for point in valley.points
    ]  # fmt: skip
    header = ("target", "tokens per parameter", "g", "d", "d / scratch tokens", "grown - scratch", "80% interval", "seeds",
              "seed sd", "best is the")  # fmt: skip
    return table(header, rows) if rows else []


def _gains(gains: Sequence[Gain]) -> list[str]:
    rows = []
    for gain in gains:
        best = gain.valley.best
        smaller = "not run"
        if gain.fixed_loss_nats is not None:
            layers = f"{gain.fixed_layers} layers" if gain.fixed_layers else f"N = {gain.fixed_params:.4g}"
            smaller = f"{layers}: {gain.fixed_loss_nats:.4f}"
        rows.append(
            (
                *place(gain.valley.target, gain.valley.budget), f"{gain.valley.scratch_loss_nats:.4f}", smaller,
                f"{best.loss_nats:.4f} (g {best.growth_factor:g}, d {tokens(best.timing_tokens)})",
                f"{nats(best.delta_nats)} ({span(best.interval_nats)})", gain.against_scratch,
                f"{nats(gain.delta_fixed_nats)} ({span(gain.fixed_interval_nats)})", gain.against_fixed or "-",
                len(gain.valley.points),
            )
        )  # fmt: skip
    header = ("target", "tokens per parameter", "scratch", "best fixed size", "best grown", "grown - scratch", "called",
              "grown - fixed", "called", "cells tried")  # fmt: skip
    if not rows:
        return []
    return [
        *table(header, rows), "",
        "The best of several cells looks better than it is; the calls are widened for all cells tried, the intervals are not.",
    ]  # fmt: skip


def _speedups(gains: Sequence[Gain]) -> list[str]:
    rows = [
        (
            *place(gain.valley.target, gain.valley.budget), f"{gain.speedup:+.0%}", span(gain.speedup_interval, "+.0%"),
            tokens(gain.saved_tokens), "beyond scratch's runs" if gain.beyond_scratch_runs else "",
        )
        for gain in gains
        if gain.speedup == gain.speedup
    ]  # fmt: skip
    if not rows:
        return []
    return [
        *table(("target", "tokens per parameter", "speedup at equal loss", "80% interval", "saved tokens", "read"), rows),
        "",
        "Scratch's final losses are joined by a power law between neighbouring budgets; beyond them the last piece goes on.",
    ]  # fmt: skip


def _timing(report: GridReport) -> list[str]:
    if not report.best_timings:
        return []
    rows = [
        (
            *place(one.target, one.budget), f"{one.target.compute_flops(one.budget):.3g}", one.num_timings,
            tokens(one.best_timing_tokens), f"{tokens(one.interval_tokens[0])} to {tokens(one.interval_tokens[1])}",
            f"beyond the {one.edge} tried" if one.edge else "",
        )
        for one in report.best_timings
    ]  # fmt: skip
    header = (
        "target",
        "tokens per parameter",
        "C (FLOPs)",
        f"timings (g = {TIMING_FACTOR:g})",
        "best d",
        "80% interval",
        "",
    )
    trend = report.trend
    sentence = f"No exponent: {report.missing.get('timing', '')}."
    if trend is not None:
        sentence = (
            f"Exponent of d* in C at fixed size: **{trend.exponent:+.2f}** ({span(trend.interval, '+.2f')}; {CALL_LEVEL:.0%}: "
            f"{span(trend.call_interval, '+.2f')}), from {trend.num_valleys} inner minima of {trend.num_targets} size(s) over "
            f"{trend.decades_of_compute:.2f} decades of compute at most; published (arXiv 2405.15319) at these C: "
            f"{span(trend.published_exponents, '+.2f')}. Trunk families were resampled."
        )
    return [*table(header, rows), "", sentence]


def _score_rows(scores: Sequence[RuleScore]) -> list[tuple[Any, ...]]:
    return [
        (
            one.rule, f"{one.regret_nats:.4f}", span(one.regret_interval), nats(one.excess_nats), span(one.excess_interval),
            f"{one.num_best} of {len(one.picks)}", one.num_infeasible,
        )
        for one in scores
    ]  # fmt: skip


_SCORE_HEADER = (
    "rule", "regret (nats)", "80% interval", "pick - scratch", "80% interval", "best cell picked", "cannot be followed"
)  # fmt: skip


def _rules(report: GridReport) -> list[str]:
    if not report.rules:
        return []
    lines = [
        "Regret is the loss of the measured cell that a rule's answer is nearest to, minus the lowest of all measured cells "
        "of the target at that budget (scratch among them). The rules hold no number from these runs, but for staged "
        "training's loss curve.",
        "",
        *table(_SCORE_HEADER, _score_rows(report.rules)), "",
        f"Against {REFERENCE_RULE} (never grow): " + "; ".join(
            f"{one.rule} {nats(one.nats)} ({span(one.interval_nats)}), {one.verdict}" for one in report.differences
        ) + ".",
    ]  # fmt: skip
    for label, scores in report.rules_by_target.items():
        lines += ["", f"{label}:", "", *table(_SCORE_HEADER, _score_rows(scores))]
    picks = [
        (
            one.rule, *place(pick.case.target, pick.case.budget), pick.decision,
            "-" if pick.asked_timing_tokens is None else tokens(pick.asked_timing_tokens),
            _cell(pick.case.cells[pick.cell]), f"{pick.regret_nats:.4f}",
        )
        for one in report.rules
        for pick in one.picks
    ]  # fmt: skip
    header = ("rule", "target", "tokens per parameter", "says", "wants d", "nearest cell run", "regret")
    return [*lines, "", "<details><summary>every pick</summary>", "", *table(header, picks), "", "</details>"]


def _cell(arm: Any) -> str:
    return "scratch" if arm.kind == "scratch" else f"g {arm.growth_factor:g}, d {tokens(arm.timing_tokens)}"


def _held_out(report: GridReport) -> list[str]:
    found = report.held_out
    if found is None:
        return []
    errors = [
        (one.name, f"{one.rmse_nats:.4f}", span(one.rmse_interval, ".4f"), f"{one.sign_hits} of {one.sign_cases}",
         "-" if one.name == found.errors[0].name else f"guideline {one.guideline_is}")
        for one in found.errors
    ]  # fmt: skip
    coverage = [
        (one.left_out, one.num_pairs, one.num_families, f"{one.share:.0%}", span(one.binomial_interval, ".0%"),
         span(one.family_interval, ".0%"))
        for one in found.coverage
    ]  # fmt: skip
    weights = ", ".join(
        f"{law} {weight:.0%}" for law, weight in sorted(found.weights.items(), key=lambda item: -item[1])
    )
    return [
        f"Trained on {found.num_train_pairs} pairs of {found.num_train_sizes} smaller size(s), tested on "
        f"{found.num_test_pairs} pairs of {found.label} in {found.num_families} trunk families; its scratch runs are known. "
        f"Laws by weight: {weights}.",
        "",
        *table(("predictor", "error of delta (nats)", "80% interval", "signs", "error compared"), errors), "",
        "Following them on that size, beside the rules:", "",
        *table(_SCORE_HEADER, _score_rows(found.picks)), "",
        "Coverage of 80% intervals of held-out predictions:", "",
        *table(("left out", "pairs", "families", "held", "Clopper-Pearson", "over trunks or controls"), coverage),
    ]  # fmt: skip


def _contrasts(found: Sequence[Contrast]) -> list[str]:
    if not found:
        return []
    rows = [
        (
            *place(one.target, one.budget), f"{one.growth_factor:g}", tokens(one.timing_tokens), _named(one.setting),
            nats(one.effect_nats), span(one.interval_nats), one.num_pairs, one.verdict,
        )
        for one in found
    ]  # fmt: skip
    header = (
        "target",
        "tokens per parameter",
        "g",
        "d",
        "setting",
        "loss - reference",
        "80% interval",
        "common seeds",
        "called",
    )
    reference = _named(found[0].reference)
    return [f"Reference: {reference}. Differences are paired by seed.", "", *table(header, rows)]


def _named(setting: Mapping[str, Any]) -> str:
    return f"{setting['optimizer_state_policy']}, {setting['variant'] or 'rewarm'}, {setting['order'] or 'stack'}"


def _schedules(report: GridReport) -> list[str]:
    rows = [
        (*place(one.target, one.budget), f"{one.growth_factor:g}", tokens(one.timing_tokens), one.schedule,
         nats(one.delta_nats), span(one.interval_nats), one.num_grown, one.num_scratch)
        for one in report.schedules
    ]  # fmt: skip
    header = (
        "target",
        "tokens per parameter",
        "g",
        "d",
        "schedule",
        "grown - scratch",
        "80% interval",
        "grown seeds",
        "scratch seeds",
    )
    return table(header, rows) if rows else []


def _rates(report: GridReport) -> list[str]:
    rows = [
        (
            *place(one.target, one.budget), one.kind, f"{one.growth_factor:g}" if one.kind == "grown" else "-",
            tokens(one.timing_tokens) if one.kind == "grown" else "-",
            ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in one.losses_nats.items()), f"{one.shared_rate:g}",
            f"{one.best_rate:g}" + (" (an end)" if one.at_end else ""), f"{one.excess_nats:.4f}",
            {"higher": "higher than the best"}.get(one.verdict, one.verdict) if one.excess_nats else "the best",
        )
        for one in report.rates
    ]  # fmt: skip
    header = (
        "target",
        "tokens per parameter",
        "kind",
        "g",
        "d",
        "loss by peak rate",
        "shared",
        "best",
        "shared - best",
        "called",
    )
    return table(header, rows) if rows else []


def _copying(found: Sequence[CopyingAt]) -> list[str]:
    if not found:
        return []
    rows = [
        (
            *place(one.target, one.budget), f"{one.num_copying} of {one.num_measured}",
            span(one.gains_nats, ".3f"),
            *("-" if loss is None else f"{loss:.4f}" for loss in (one.loss_copying_nats, one.loss_other_nats)),
            "-" if one.step_nats is None else f"{one.step_nats:.4f}",
            *map(_share, (one.scratch, one.best_grown, one.best_fixed)),
        )
        for one in found
    ]  # fmt: skip
    header = ("target", "tokens per parameter", "runs that copy", "gains (nats)", "their loss", "loss of the others",
              "step (nats)", "scratch", "best grown", "best fixed size")  # fmt: skip
    return [
        "Held-out text is read twice in a row. A model that has learned to look up what followed an earlier occurrence (arXiv "
        f"2209.11895) costs less the second time. Gains rise gradually; over {COPIES_NATS} nats a token a run is counted as "
        "one that copies, a bound set after the first gains were seen. The first columns count the target's runs of all "
        "settings, from scratch and grown; the last ones those that section 3 compares.",
        "",
        *table(header, rows),
    ]


def _share(share: Share) -> str:
    return f"{share.num_copying} of {share.num_measured}" if share.num_measured else "not measured"
