"""The three arms' validation curves over FLOPs: data first, then the picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitting.speedup import speedup_lower_bound

TITLES = {"scratch": "target from scratch", "grown": "grown (G_stack)", "base_only": "base alone"}
# Okabe and Ito's palette: told apart by the colour-blind and in grey.
COLOURS = {"scratch": "#0072B2", "grown": "#D55E00", "base_only": "#666666"}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Validation loss of one arm over cumulative training FLOPs (base included), in the order it was measured."""

    role: str
    flops: tuple[float, ...]
    loss_nats: tuple[float, ...]
    growth_flops: float | None

    @property
    def final_loss_nats(self) -> float:
        return self.loss_nats[-1]


def curve_of(role: str, points: Sequence[Mapping[str, Any]]) -> Curve:
    """A curve out of a run's `validation_loss` points."""
    grown = [point["compute_flops"] for point in points if point["phase"] == "grown"]
    return Curve(
        role=role,
        flops=tuple(point["compute_flops"] for point in points),
        loss_nats=tuple(point["value"] for point in points),
        growth_flops=min(grown) if grown else None,
    )


def speedup_of(curves: Mapping[str, Curve]) -> float | None:
    """`speedup_lower_bound` of the grown arm; the base phase cannot count, its loss is another model's."""
    scratch, grown = curves["scratch"], curves["grown"]
    assert grown.growth_flops is not None
    after = [(f, loss) for f, loss in zip(grown.flops, grown.loss_nats, strict=True) if f >= grown.growth_flops]
    return speedup_lower_bound(
        scratch_final_loss_nats=scratch.final_loss_nats,
        scratch_flops=scratch.flops[-1],
        grown_flops=[f for f, _ in after],
        grown_loss_nats=[loss for _, loss in after],
    )


def plot_curves(curves: Mapping[str, Curve], title: str, path: Path) -> None:
    """Draw the curves into the PNG `path` (written beside, renamed)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    # The grown arm last: its base phase is the base alone's own curve, and would be hidden below it.
    for role in ("base_only", "scratch", "grown"):
        curve = curves[role]
        label = f"{TITLES[role]}: {curve.final_loss_nats:.3f}"
        axes.plot(curve.flops, curve.loss_nats, color=COLOURS[role], label=label, linewidth=1.8)
        axes.plot(curve.flops[-1], curve.final_loss_nats, "o", color=COLOURS[role], markersize=5)
        if curve.growth_flops is not None:
            axes.axvline(curve.growth_flops, color=COLOURS[role], linestyle=":", linewidth=1)
            axes.annotate(
                "grown here", (curve.growth_flops, 0.03), xycoords=("data", "axes fraction"), va="bottom", rotation=90,
                textcoords="offset points", xytext=(3, 0), color=COLOURS[role], fontsize=9,
            )  # fmt: skip
    lowest = min(min(curve.loss_nats) for curve in curves.values())
    late = [loss for curve in curves.values() for loss in curve.loss_nats[len(curve.loss_nats) // 8 :]]
    axes.set_ylim(lowest - 0.1, max(late) + 0.1)
    axes.axhline(curves["scratch"].final_loss_nats, color=COLOURS["scratch"], linestyle="--", linewidth=1, alpha=0.6)
    axes.set_xlabel("training FLOPs, base included")
    axes.set_ylabel("validation loss, nats per token")
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(title="final validation loss", frameon=False)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    beside = path.with_name(f".{path.name}.partial")
    FigureCanvasAgg(figure).print_png(str(beside))
    os.replace(beside, path)
