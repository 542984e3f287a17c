"""Writing a grid report: REPORT.md, its figures, and runs_by_section.csv with the runs that each section rests on."""

from __future__ import annotations

import os
from pathlib import Path

from app.records import fsync_dir
from app.report.figures import figures, png
from app.report.markdown import PlannedStep, page
from app.sweep.families import expand
from app.sweep.grid import read_grid
from fitting.grid_report import GridReport, grid_report

REPORT_FILE = "REPORT.md"
FIGURES_DIR = "figures"
RUNS_FILE = "runs_by_section.csv"
GRID_FILE = "grid.toml"


def write_report(runs_dir: Path, out: Path, *, seed: int = 0) -> list[Path]:
    """Report on a folder of runs; every file is written beside and renamed. Returns what was written.

    Raises:
        InputError: the folder's headers.csv is missing or bad, or holds no final loss.
    """
    report = grid_report(runs_dir, seed=seed)
    (out / FIGURES_DIR).mkdir(parents=True, exist_ok=True)
    drawn = figures(report)
    written = [write_file(out / FIGURES_DIR / f"{name}.png", png(draw)) for name, (_, draw) in drawn.items()]
    captions = {name: (f"{FIGURES_DIR}/{name}.png", caption) for name, (caption, _) in drawn.items()}
    written.append(write_file(out / RUNS_FILE, _runs_by_section(report).encode()))
    written.append(write_file(out / REPORT_FILE, page(report, captions, _planned(runs_dir, report)).encode()))
    return written


def _planned(runs_dir: Path, report: GridReport) -> list[PlannedStep]:
    """The steps of the folder's own grid with the cells planned and there; empty where the folder names no grid."""
    path = runs_dir / GRID_FILE
    if not path.is_file():
        return []
    design = expand(read_grid(path))
    there = set(report.grid.table["cell"])
    return [
        PlannedStep(
            number=step.number,
            title=step.title,
            num_planned=len(cells := [cell.name for family, cell in design.cells() if family.step == step.number]),
            num_there=len(there.intersection(cells)),
        )
        for step in design.grid.steps
    ]


def _runs_by_section(report: GridReport) -> str:
    lines = [f"{section},{run_id}" for section, run_ids in report.rests_on.items() for run_id in sorted(set(run_ids))]
    return "\n".join(["section,run_id", *lines]) + "\n"


def write_file(path: Path, content: bytes) -> Path:
    """Write beside, fsync, rename."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)
    return path
