"""A grid of growth runs judged: from run headers to what growth gained, which rule was right, and what cannot be told."""

from __future__ import annotations

from fitting.grid_report.arms import Grid, read_grid
from fitting.grid_report.findings import findings
from fitting.grid_report.report import GridReport, grid_report

__all__ = ["Grid", "GridReport", "findings", "grid_report", "read_grid"]
