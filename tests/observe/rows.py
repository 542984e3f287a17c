"""Rows of everything that metrics count."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from app.store.database import Database
from app.store.tables import CohortRow, GuidelineRow, JobRow, RunRow

HOUR_AGO = (datetime.now(UTC) - timedelta(hours=1)).isoformat(timespec="milliseconds")


def job(name: str, state: str) -> JobRow:
    """A job whose directory is nobody's, so that no launcher runs it."""
    return JobRow(
        id=f"job_{name}", kind="growth", name=name, role="grown", state=state, engine="exec", run_dir="/nowhere/x", spec="{}"
    )  # fmt: skip


def run(name: str, source: str, status: str) -> RunRow:
    return RunRow(
        run_id=f"run_{name}", cohort="c0", source=source, name=name, status=status, target_params=1e6, growth_factor=1.0,
        growth_timing_tokens=0.0, grown_tokens=1e6, is_final=False,
    )  # fmt: skip


def guideline(cohort: str, version: int, *, is_active: bool) -> GuidelineRow:
    return GuidelineRow(
        id=f"gl_{cohort}_{version}", cohort=cohort, version=version, is_active=is_active, num_runs=3, data_hash="h",
        reason="", body="{}", created_at=HOUR_AGO,
    )  # fmt: skip


def fill(database: Database, *, num_cohorts: int = 2) -> None:
    """Cohorts with an old and an active guideline each, five jobs and three runs."""
    with database.write() as session:
        for place in range(num_cohorts):
            session.add(
                CohortRow(
                    name=f"c{place}",
                    recipe="{}",
                    recipe_hash="h",
                    decision_metric="validation_loss",
                    decision_dataset="v",
                )
            )
        session.flush()
        for place in range(num_cohorts):
            session.add(guideline(f"c{place}", 1, is_active=False))
            session.add(guideline(f"c{place}", 2, is_active=True))
        session.add_all([job("p", "paused"), job("p2", "paused"), job("s", "succeeded"), job("f", "failed")])
        session.add_all([run("a", "job", "finished"), run("b", "import", "finished"), run("c", "import", "running")])
