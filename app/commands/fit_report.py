"""The page of ``growthlaw fit report``: what was fitted, how well it predicts what it had not seen, and what the
data cannot tell.

Each figure has two functions: ``*_info`` picks the numbers (tested), ``*_plot`` draws them. The page is one HTML
file with its figures inside; the same figures lie beside it as PNG files.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import ConvexHull, QhullError
from scipy.stats import norm

from fitting.growth_report import GrowthReport, averaged_delta
from fitting.laws.base import Array
from fitting.predictors.isoflop import TimingLaw, Valley, timing_law, valleys

# A near-optimal timing loses at most this share of the loss.
_NEAR_OPTIMAL = 0.0025
_INTERVAL_WIDTH_IN_SD = 2 * float(norm.ppf(0.9))
_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}
table{border-collapse:collapse;font-size:14px}td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}figure{margin:1.5rem 0}figcaption{color:#555}"""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Observed and predicted delta (R,) in nats; ``held_out`` with the ends of the 80% interval, else in-sample without."""

    held_out: bool
    observed: Array
    predicted: Array
    low: Array | None
    high: Array | None
    compute_flops: Array
    target_params: Array


def prediction_info(report: GrowthReport) -> Prediction:
    """Held-out predictions of the average where there are any, else its fit to the pairs it was fitted to."""
    tested = report.validation.tested
    if tested is None:
        return Prediction(
            held_out=False, observed=report.data.delta_nats, predicted=averaged_delta(report), low=None, high=None,
            compute_flops=report.data.compute_flops, target_params=report.data.points.target_params,
        )  # fmt: skip
    averaged = report.validation.held_out["averaged"]
    return Prediction(
        held_out=True, observed=tested.delta_nats, predicted=averaged.delta_nats,
        low=averaged.low_nats, high=averaged.high_nats,
        compute_flops=tested.compute_flops, target_params=tested.points.target_params,
    )  # fmt: skip


def calibration_info(prediction: Prediction) -> list[tuple[float, float]]:
    """(nominal, observed) coverage of central intervals, scaled as normal ones from the 80% interval; empty if in-sample."""
    if prediction.low is None or prediction.high is None:
        return []
    centre = 0.5 * (prediction.low + prediction.high)
    sd = np.maximum((prediction.high - prediction.low) / _INTERVAL_WIDTH_IN_SD, 1e-12)
    distance = np.abs(prediction.observed - centre) / sd
    return [(level, float(np.mean(distance <= norm.ppf(0.5 + level / 2)))) for level in _LEVELS]


def hull_info(report: GrowthReport) -> tuple[Array, Array]:
    """Log10 (target parameters, tokens per parameter) of all runs (R, 2), and the corners of their convex hull (H, 2)."""
    points = report.data.points
    sizes = np.concatenate([points.target_params, report.data.scratch.num_params])
    tokens = np.concatenate([points.grown_tokens, report.data.scratch.tokens])
    cloud = np.log10(np.stack([sizes, tokens / sizes], axis=1))
    try:
        return cloud, cloud[ConvexHull(cloud).vertices]
    except (QhullError, ValueError):
        # One size or one budget only: the hull is a line, drawn as its two ends.
        order = np.lexsort((cloud[:, 1], cloud[:, 0]))
        return cloud, cloud[order[[0, -1]]]


def valley_info(report: GrowthReport) -> tuple[tuple[Valley, ...], TimingLaw | None, str]:
    """Valleys with two or more timings, the timing law over their minima if there is one, and a sentence on it."""
    found = tuple(valley for valley in valleys(report.data) if len(valley.timing_tokens) > 1)
    try:
        law = timing_law(found)
    except ValueError as error:
        return found, None, f"No timing law: {error}."
    slopes = [
        f"{name} {value:.2f}"
        for name, value in (("size", law.by_size), ("compute", law.by_compute))
        if value is not None
    ]
    slope_text = f"; exponents by {' and '.join(slopes)}" if slopes else "; too few valleys for an exponent"
    return (
        found,
        law,
        (
            f"{law.num_valleys} valley(s) with their minimum inside the timings tried, {law.num_edge} with it at an edge; "
            f"best timing at "
            f"their centre {np.exp(law.intercept):.3g} tokens (factor {np.exp(law.standard_errors[0]):.2f}){slope_text}."
        ),
    )


def prediction_plot(axes: Any, prediction: Prediction) -> None:
    low, high = prediction.low, prediction.high
    if low is not None and high is not None:
        axes.vlines(prediction.observed, low, high, color="#9bb7d4", linewidth=1)
    for size in np.unique(prediction.target_params):
        rows = prediction.target_params == size
        axes.plot(prediction.observed[rows], prediction.predicted[rows], "o", markersize=4, label=f"N {size:.3g}")
    ends = [
        float(min(prediction.observed.min(), prediction.predicted.min(), 0)),
        float(max(prediction.observed.max(), 0)),
    ]
    axes.plot(ends, ends, color="#888", linewidth=1)
    axes.set_xlabel("observed delta (nats)")
    axes.set_ylabel("predicted delta (nats)")
    axes.legend(fontsize=8)


def residual_plot(axes: Any, prediction: Prediction) -> None:
    for size in np.unique(prediction.target_params):
        rows = prediction.target_params == size
        residual = (prediction.predicted - prediction.observed)[rows]
        axes.semilogx(prediction.compute_flops[rows], residual, "o", markersize=4, label=f"N {size:.3g}")
    axes.axhline(0, color="#888", linewidth=1)
    axes.set_xlabel("compute (FLOPs)")
    axes.set_ylabel("predicted - observed delta (nats)")
    axes.legend(fontsize=8)


def calibration_plot(axes: Any, coverage: Sequence[tuple[float, float]]) -> None:
    nominal, observed = zip(*coverage, strict=True)
    axes.plot([0, 1], [0, 1], color="#888", linewidth=1)
    axes.plot(nominal, observed, "o-")
    axes.set_xlabel("nominal coverage")
    axes.set_ylabel("observed coverage")


def hull_plot(axes: Any, cloud: Array, corners: Array) -> None:
    axes.plot(cloud[:, 0], cloud[:, 1], ".", color="#777", markersize=4)
    closed = np.vstack([corners, corners[:1]])
    axes.plot(closed[:, 0], closed[:, 1], color="#c0504d")
    axes.set_xlabel("log10 parameters")
    axes.set_ylabel("log10 tokens per parameter")


def valley_plot(axes: Any, found: Sequence[Valley], margin_nats: float) -> None:
    for valley in found:
        label = f"N {valley.target_params:.3g}, g {valley.growth_factor:.3g}, C {valley.compute_flops:.2g} ({valley.status})"
        (line,) = axes.semilogx(valley.timing_tokens, valley.delta_nats, "o-", markersize=4, label=label)
        near = valley.near_optimal(margin_nats)
        if near is not None:
            axes.plot(near, [valley.best_delta_nats] * 2, color=line.get_color(), linewidth=4, alpha=0.4)
            axes.plot(valley.best_timing_tokens, valley.best_delta_nats, "*", color=line.get_color(), markersize=12)
    axes.axhline(0, color="#888", linewidth=1)
    axes.set_xlabel("growth timing (tokens)")
    axes.set_ylabel("delta (nats)")
    if len(found) <= 12:
        axes.legend(fontsize=7)


def write_report(report: GrowthReport, folder: Path) -> list[Path]:
    """Write ``report.html`` and its figures to ``folder``, each beside and renamed; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    prediction = prediction_info(report)
    coverage = calibration_info(prediction)
    found, _, timing_sentence = valley_info(report)
    margin = _NEAR_OPTIMAL * float(np.median(report.data.scratch.loss_nats))
    seen = "held-out" if prediction.held_out else "in-sample (nothing could be held out)"
    figures: list[tuple[str, str, Callable[[Any], None]]] = [
        (
            "predicted",
            f"Predicted against observed delta, {seen}; bars are 80% intervals.",
            lambda a: prediction_plot(a, prediction),
        ),
        ("residuals", f"Residuals over compute, {seen}.", lambda a: residual_plot(a, prediction)),
        (
            "hull",
            "Where the runs lie; outside the hull every answer is an extrapolation.",
            lambda a: hull_plot(a, *hull_info(report)),
        ),
    ]
    if coverage:
        figures.append(
            ("calibration", "How often intervals held the held-out deltas.", lambda a: calibration_plot(a, coverage))
        )
    if found:
        text = (
            f"IsoFLOP valleys: stars are fitted minima, thick lines timings within {margin:.3f} nats. {timing_sentence}"
        )
        figures.append(("valleys", text, lambda a: valley_plot(a, found, margin)))
    drawn = [(name, caption, _png(draw)) for name, caption, draw in figures]
    written = []
    for name, _, image in drawn:
        written.append(_write(folder / f"{name}.png", image))
    written.append(_write(folder / "report.html", _page(report, drawn, timing_sentence).encode()))
    return written


def _png(draw: Callable[[Any], None]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    draw(figure.add_subplot())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> Path:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    beside.replace(path)
    return path


def _page(report: GrowthReport, figures: Sequence[tuple[str, str, bytes]], timing_sentence: str) -> str:
    values = report.to_dict()
    scratch = values["scratch_law"]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Growth laws of "
        f"{html.escape(values['cohort'])}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Growth laws of cohort {html.escape(values['cohort'])}</h1>",
        f"<p>{values['num_pairs']} pairs of a grown run and its control at equal FLOPs, "
        f"{values['num_scratch_runs']} scratch runs, "
        f"{html.escape(values['basis'].replace('_', '-'))} losses. "
        f"Held out by {values['left_out']}. Data {values['data_hash'][:12]}.</p>",
        "<h2>What was fitted</h2>",
        f"<p>Scratch law {scratch['law']}: "
        + ", ".join(f"{name} = {value:.4g}" for name, value in scratch["parameters"].items())
        + ", bent to each target's own runs.</p>",
        _law_table(values),
        "<h2>How well it predicts what it had not seen</h2>",
        _score_table(values),
    ]
    if not any(name == "valleys" for name, *_ in figures):
        parts.append(f"<h2>IsoFLOP valleys</h2><p>{html.escape(timing_sentence)}</p>")
    for name, caption, image in figures:
        source = base64.b64encode(image).decode()
        parts.append(
            f"<figure><img alt='{name}' src='data:image/png;base64,{source}'>"
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    parts.append("<h2>What the data cannot tell</h2><ul>")
    verdicts = [
        f"{name}: {law['verdict']}" for name, law in values["laws"].items() if law["verdict"].startswith("no weight")
    ]
    parts += [f"<li>{html.escape(sentence)}</li>" for sentence in [*values["warnings"], *verdicts]]
    parts.append("</ul></body></html>")
    return "\n".join(parts)


def _law_table(values: dict[str, Any]) -> str:
    rows = ["<table><tr><th>law</th><th>weight</th><th>parameters</th><th>form</th></tr>"]
    for name, law in sorted(values["laws"].items(), key=lambda item: -item[1]["weight"]):
        errors = law["standard_errors"] or {}
        parameters = ", ".join(
            f"{key} {value:.3g}" + (f" &plusmn; {errors[key]:.2g}" if key in errors else "")
            for key, value in law["parameters"].items()
        )
        rows.append(
            f"<tr><td>{html.escape(name)}</td><td>{law['weight']:.2f}</td><td>{parameters or 'none'}</td>"
            f"<td>{html.escape(law['formula'])}</td></tr>"
        )
    return "".join([*rows, "</table>"])


def _score_table(values: dict[str, Any]) -> str:
    columns = ("law", "error of delta (nats)", "signs", "best g", "regret (nats)", "80% coverage")
    head = "<table><tr>" + "".join(f"<th>{column}</th>" for column in columns) + "</tr>"
    rows = [head]
    for name, scores in [("averaged", values["averaged"]), *values["laws"].items()]:
        if scores["rmse_delta_nats"] is None:
            rows.append(f"<tr><td>{html.escape(name)}</td><td colspan='5'>not held out</td></tr>")
            continue
        cells = [
            f"{scores['rmse_delta_nats']:.4f}{_range(scores['rmse_interval'], '.4f')}",
            f"{scores['sign_hits']}/{scores['sign_cases']}{_range(scores['sign_interval'], '.0%')}",
            f"{scores['best_factor_hits']}/{scores['best_factor_cases']}{_range(scores['best_factor_interval'], '.0%')}",
            f"{scores['regret_nats']:.4f}{_range(scores['regret_interval'], '.4f')}",
            f"{scores['coverage_80']:.0%}{_range(scores['coverage_interval'], '.0%')}",
        ]
        rows.append(f"<tr><td>{html.escape(name)}</td>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    for name, scores in values["rules"].items():
        rows.append(
            f"<tr><td>rule {html.escape(name)}</td><td></td><td>{scores['sign_hits']}/{scores['sign_cases']}</td><td></td>"
            f"<td>{scores['regret_nats']:.4f}</td><td></td></tr>"
        )
    return "".join([*rows, "</table>"])


def _range(interval: Sequence[float] | None, form: str) -> str:
    return "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"
