"""The gauges that are read from the database at each scrape, so that they are right after any restart.

=====================================  ====================================================================
growthlaw_database_up                  1 where it answered this scrape; the gauges below are missing where not
growthlaw_jobs                         by engine and state
growthlaw_queue_length                 queued jobs by engine
growthlaw_runs                         stored runs by source and status
growthlaw_guidelines_stored            versions of all cohorts
growthlaw_guideline_cohorts            cohorts that have an active guideline
growthlaw_guideline_age_seconds        of the active version; the LARGEST_NUMBER_OF_COHORTS newest
=====================================  ====================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from app.store import counts
from app.store.database import Database
from app.store.jobs import STATES

log = structlog.get_logger()

# A label a cohort: users name cohorts, and a thousand of them must not become a thousand series.
LARGEST_NUMBER_OF_COHORTS = 100


class StoredCollector(Collector):
    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[Metric]:
        try:
            families = self._families()
        except SQLAlchemyError as error:
            log.warning("metrics_without_the_database", error=str(getattr(error, "orig", error)))
            families = []
        yield GaugeMetricFamily(
            "growthlaw_database_up", "Whether the database answered this scrape.", value=bool(families)
        )
        yield from families

    def _families(self) -> list[Metric]:
        with self._database.read() as session:
            job_counts = counts.jobs(session)
            run_counts = counts.runs(session)
            num_versions, num_active = counts.guidelines(session)
            actives = counts.newest_active_guidelines(session, LARGEST_NUMBER_OF_COHORTS)
        jobs = GaugeMetricFamily("growthlaw_jobs", "Jobs by engine and state.", labels=("engine", "state"))
        queue = GaugeMetricFamily("growthlaw_queue_length", "Queued jobs.", labels=("engine",))
        # The engine that every service has is told of before its first job, so that an alert has something to read.
        for engine in sorted({"local"} | {engine for engine, _ in job_counts}):
            for state in STATES:
                jobs.add_metric((engine, state), job_counts.get((engine, state), 0))
            queue.add_metric((engine,), job_counts.get((engine, "queued"), 0))
        runs = GaugeMetricFamily("growthlaw_runs", "Runs stored, by source and status.", labels=("source", "status"))
        for key, count in sorted(run_counts.items()):
            runs.add_metric(key, count)
        age = GaugeMetricFamily(
            "growthlaw_guideline_age_seconds", "Since the active guideline of a cohort was stored.", labels=("cohort",)
        )
        now = datetime.now(UTC)
        for cohort, created_at in actives:
            age.add_metric((cohort,), (now - datetime.fromisoformat(created_at)).total_seconds())
        return [
            jobs,
            queue,
            runs,
            GaugeMetricFamily("growthlaw_guidelines_stored", "Guideline versions stored.", value=num_versions),
            GaugeMetricFamily("growthlaw_guideline_cohorts", "Cohorts with an active guideline.", value=num_active),
            age,
        ]
