"""The figures of a grid report. Each takes the report's values and draws; which figures there are depends on what was run."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from fitting.grid_report import GridReport
from fitting.grid_report.gains import Gain, Valley

Draw = Callable[[Any], None]


def figures(report: GridReport) -> dict[str, tuple[str, Draw]]:
    """name -> (caption, draw on a matplotlib figure)."""
    found: dict[str, tuple[str, Draw]] = {}
    if report.valleys:
        found["valleys"] = (
            "Grown - scratch at equal FLOPs over the growth timing, by size (columns) and tokens per parameter (colours); bars "
            "are 80% intervals from the seed spread, circles g = 4, other marks other factors.",
            lambda figure: _valleys(figure, report.valleys),
        )
    if report.gains:
        found["gains"] = (
            "The best grown cell against scratch and against the best fixed size at equal FLOPs; bars are 80% intervals.",
            lambda figure: _gains(figure, report.gains),
        )
        found["speedup"] = (
            "Speedup and saved target tokens of the best grown cell over tokens per parameter; hollow: read beyond scratch's "
            "runs.",
            lambda figure: _speedup(figure, report.gains),
        )
    if report.best_timings:
        found["best_timing"] = (
            "The best timing of each size over compute at g = 4, with 80% intervals; hollow: the lowest timing tried is an end "
            "one. Dashed: the published law's slope through each size's first inner point.",
            lambda figure: _best_timing(figure, report),
        )
    if report.rules:
        found["rules"] = (
            "Loss of each rule's pick above scratch (negative: better than never growing), mean over all cells, 80% intervals.",
            lambda figure: _rules(figure, report),
        )
    if report.ablation:
        found["ablation"] = (
            "Optimizer state at growth: loss above the reference arm, paired by seed, 80% t intervals.",
            lambda figure: _ablation(figure, report),
        )
    return found


def png(draw: Draw, width_inches: float = 9.0, height_inches: float = 4.5) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    draw(figure)
    buffer = io.BytesIO()
    # Without the date the same runs give the same bytes.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _valleys(figure: Any, valleys: Sequence[Valley]) -> None:
    labels = list(dict.fromkeys(valley.target.label for valley in valleys))
    panels = figure.subplots(1, len(labels), sharey=True, squeeze=False)[0]
    for label, axes in zip(labels, panels, strict=True):
        for valley in (one for one in valleys if one.target.label == label):
            colour = None
            for factor, mark in zip(
                sorted({p.growth_factor for p in valley.points}, key=_from_four), "os^dv", strict=False
            ):
                points = [point for point in valley.points if point.growth_factor == factor]
                drawn = axes.errorbar(
                    [point.timing_tokens for point in points], [point.delta_nats for point in points],
                    yerr=[point.interval_nats[1] - point.delta_nats for point in points], fmt=f"{mark}-", markersize=4,
                    linewidth=1, elinewidth=0.7, color=colour, alpha=1.0 if colour is None else 0.5,
                    label=f"{valley.target.tokens_per_parameter(valley.budget):.3g}" if colour is None else None,
                )  # fmt: skip
                colour = drawn[0].get_color()
        axes.axhline(0, color="#888", linewidth=1)
        axes.set_xscale("log")
        axes.set_title(label, fontsize=10)
        axes.set_xlabel("growth timing d (tokens)")
        axes.legend(fontsize=7, title="tokens per parameter", title_fontsize=7)
    panels[0].set_ylabel("grown - scratch (nats)")


def _from_four(factor: float) -> float:
    return abs(factor - 4.0)


def _gains(figure: Any, gains: Sequence[Gain]) -> None:
    axes = figure.subplots()
    names = [f"{gain.valley.target.label}\n{_ratio(gain):.3g} t/p" for gain in gains]
    for shift, label, ends in (
        (-0.12, "against scratch", [(gain.valley.best.delta_nats, gain.valley.best.interval_nats) for gain in gains]),
        (0.12, "against the best fixed size", [(gain.delta_fixed_nats, gain.fixed_interval_nats) for gain in gains]),
    ):
        known = [
            (place, delta, span) for place, (delta, span) in enumerate(ends) if delta is not None and span is not None
        ]
        axes.errorbar(
            [place + shift for place, _, _ in known], [delta for _, delta, _ in known],
            yerr=[span[1] - delta for _, delta, span in known], fmt="o", markersize=5, label=label,
        )  # fmt: skip
    axes.axhline(0, color="#888", linewidth=1)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_ylabel("best grown cell - control (nats)")
    axes.legend(fontsize=8)


def _ratio(gain: Gain) -> float:
    return gain.valley.target.tokens_per_parameter(gain.valley.budget)


def _speedup(figure: Any, gains: Sequence[Gain]) -> None:
    panels = figure.subplots(1, 2)
    known = [gain for gain in gains if gain.speedup == gain.speedup]
    for axes, name, scale in zip(
        panels, ("speedup at equal loss (%)", "saved target tokens (M)"), (100.0, 1e-6), strict=True
    ):
        for label in dict.fromkeys(gain.valley.target.label for gain in known):
            own = [gain for gain in known if gain.valley.target.label == label]
            values = [gain.speedup if axes is panels[0] else gain.saved_tokens for gain in own]
            (line,) = axes.plot([_ratio(gain) for gain in own], [scale * value for value in values], "-", label=label)
            for gain, value in zip(own, values, strict=True):
                face = "none" if gain.beyond_scratch_runs else line.get_color()
                axes.plot(_ratio(gain), scale * value, "o", markerfacecolor=face, color=line.get_color())
        axes.axhline(0, color="#888", linewidth=1)
        axes.set_xscale("log")
        ticks = sorted({round(_ratio(gain), 1) for gain in known})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("tokens per parameter")
        axes.set_ylabel(name)
        if known:
            axes.legend(fontsize=8)


def _best_timing(figure: Any, report: GridReport) -> None:
    axes = figure.subplots()
    published = None if report.trend is None else sum(report.trend.published_exponents) / 2
    for label in dict.fromkeys(one.target.label for one in report.best_timings):
        own = [one for one in report.best_timings if one.target.label == label]
        flops = [one.target.compute_flops(one.budget) for one in own]
        (line,) = axes.plot(flops, [one.best_timing_tokens for one in own], "-", linewidth=1, label=label)
        for x, one in zip(flops, own, strict=True):
            face = "none" if one.edge else line.get_color()
            axes.vlines(x, *one.interval_tokens, color=line.get_color(), linewidth=1)
            axes.plot(x, one.best_timing_tokens, "o", markerfacecolor=face, color=line.get_color())
        inner = [(x, one.best_timing_tokens) for x, one in zip(flops, own, strict=True) if one.edge is None]
        if published is not None and inner:
            x, y = inner[0]
            axes.plot(
                flops, [y * (flop / x) ** published for flop in flops], "--", color=line.get_color(), linewidth=0.8
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("compute (FLOPs)")
    axes.set_ylabel("best growth timing d* (tokens)")
    axes.legend(fontsize=8)


def _rules(figure: Any, report: GridReport) -> None:
    axes = figure.subplots()
    for place, one in enumerate(reversed(report.rules)):
        axes.hlines(place, *one.excess_interval, color="#4c72b0")
        axes.plot(one.excess_nats, place, "o", color="#4c72b0")
    axes.set_yticks(range(len(report.rules)), [one.rule for one in reversed(report.rules)])
    axes.axvline(0, color="#888", linewidth=1)
    axes.set_xlabel("loss of the pick - scratch (nats)")


def _ablation(figure: Any, report: GridReport) -> None:
    axes = figure.subplots()
    for place, one in enumerate(report.ablation):
        axes.hlines(place, *one.interval_nats, color="#c0504d")
        axes.plot(one.effect_nats, place, "o", color="#c0504d")
    names = [
        f"{one.setting['optimizer_state_policy']}, {one.setting['variant'] or 'rewarm'}" for one in report.ablation
    ]
    axes.set_yticks(range(len(names)), names)
    axes.axvline(0, color="#888", linewidth=1)
    axes.set_xlabel("loss - reference (nats)")
