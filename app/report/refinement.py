"""Writing a replay: `refinement.csv`, a row a pair, and `refinement.png`, three cumulative curves with every promotion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.guidelines.said import ACTIVE, CANDIDATE
from app.report.figures import png
from app.report.replay import PREDICTORS, TITLES, Replay
from app.report.writing import write_file
from app.sweep.runs_folder import as_text, csv_text
from fitting.prequential.predicting import NEVER

CSV_FILE, FIGURE_FILE, VERSIONS_FILE = "refinement.csv", "refinement.png", "refinement_versions.csv"

_STYLES: dict[str, dict[str, Any]] = {
    ACTIVE: {"color": "#1f4e9c", "linewidth": 2.4},
    CANDIDATE: {"color": "#1f4e9c", "linewidth": 1.2, "linestyle": ":"},
    "gstack": {"color": "#c0392b"},
    "null": {"color": "#8e6c8a"},
    "constant_fraction": {"color": "#d98c1f"},
    "eighty_percent": {"color": "#7f8c8d", "linestyle": "--"},
    "staged": {"color": "#2c8c6b", "linestyle": "--"},
    NEVER: {"color": "#222222"},
}


def write_replay(result: Replay, out: Path) -> list[Path]:
    """The files of a replay, each written beside and renamed. Returns what was written."""
    out.mkdir(parents=True, exist_ok=True)
    return [
        write_file(out / CSV_FILE, _steps_csv(result).encode()),
        write_file(out / VERSIONS_FILE, _versions_csv(result).encode()),
        write_file(out / FIGURE_FILE, png(lambda figure: draw(figure, result), 12.0, 5.0)),
    ]


def _steps_csv(result: Replay) -> str:
    sums = [(kind, name) for kind in ("regret_nats", "wrong_signs", "error_nats") for name in PREDICTORS]
    rows = []
    for step in result.steps:
        row = {
            "cohort": result.cohort, "num_runs": as_text(step.num_runs), "run_id": step.run_id, "family": step.family,
            "active_version": as_text(step.version), "delta_nats": as_text(step.delta_nats),
        }  # fmt: skip
        row |= {f"{kind}_{name}": as_text(getattr(step, kind).get(name)) for kind, name in sums}
        rows.append(row)
    named = [f"{kind}_{name}" for kind, name in sums if kind != "error_nats" or name in (ACTIVE, CANDIDATE, NEVER)]
    columns = ("cohort", "num_runs", "run_id", "family", "active_version", "delta_nats", *named)
    return csv_text(columns, [{column: row[column] for column in columns} for row in rows])


def _versions_csv(result: Replay) -> str:
    columns = ("version", "num_runs", "outcome", "is_active", "reason")
    return csv_text(
        columns, [{column: _word(getattr(one, column)) for column in columns} for one in result.versions]
    )  # fmt: skip


def _word(value: Any) -> str:
    return value if isinstance(value, str) else as_text(value)


def draw(figure: Any, result: Replay) -> None:
    """Cumulative regret, wrong calls and errors over the runs that had arrived; vertical lines are changes of version."""
    panels = (
        ("regret_nats", "cumulative regret (nats)", PREDICTORS),
        ("wrong_signs", "wrong calls to grow or not", PREDICTORS),
        ("error_nats", "cumulative |error of delta| (nats)", (ACTIVE, CANDIDATE, NEVER)),
    )
    axes = figure.subplots(1, len(panels))
    for axis, (kind, title, names) in zip(axes, panels, strict=True):
        # Lines that lie on one another are told apart by the thin one on top, so the active guideline comes first.
        for name in names:
            runs = [step.num_runs for step in result.steps]
            axis.plot(runs, [getattr(step, kind)[name] for step in result.steps], label=TITLES[name], **_STYLES[name])
        for one in result.versions:
            if one.is_active:
                promoted = one.outcome == "promoted"
                axis.axvline(
                    one.num_runs,
                    color="#1f4e9c" if promoted else "#bbbbbb",
                    linewidth=1.0 if promoted else 0.5,
                    alpha=0.8 if promoted else 0.5,
                    zorder=0,
                )
            elif one.outcome == "rejected":
                axis.plot([one.num_runs], [0], marker="x", color="#c0392b", markersize=5, clip_on=False)
        axis.set_xlabel("runs that had arrived")
        axis.set_title(title, fontsize=10)
        axis.set_xlim(0, result.num_runs)
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize=7, loc="upper left")
    figure.suptitle(
        f"Cohort {result.cohort}: {len(result.steps)} of {result.num_pairs} pairs predicted before they were seen; "
        "blue lines: promoted by scores, grey: newest version taken while there was nothing to compare by, red: rejected",
        fontsize=9,
    )
