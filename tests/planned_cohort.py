"""A data directory with real runs of this project and their guideline, as if the service had trained one of them itself.

Planned runs then have a recipe, and are ready to be queued: on the corpus `tiny`, under the cohort's name.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd

from app.contract import EvaluationSpec, ModelSpec, Spec, TrainingSpec
from app.corpus.shards import read_manifest
from app.jobs.headers import DECISION_METRIC, decision_dataset, recipe_of
from app.records import to_dict
from app.store import guidelines as guideline_store
from app.store import jobs as job_store
from app.store import runs as run_store
from app.store.cohorts import join_cohort
from app.store.database import Database, sqlite_url
from app.store.tables import GuidelineRow, JobRow, RunRow
from fitting.refit import fit_guideline
from fitting.table import data_hash, read_runs

COHORT = "hidden64"
GUIDELINE_ID = "gl_01m7zq8es3xxraw5kwsd2qeh91"
TRAINED_HERE = "s8-4-0"
_RUNS = Path(__file__).parent / "data" / "hidden64" / "runs.csv"


def store_planned_cohort(data_dir: Path) -> None:
    """Into a directory that holds the corpus `tiny`, before a service runs over it."""
    manifest = read_manifest(data_dir / "corpora" / "tiny")
    table = pd.read_csv(_RUNS).astype(object)
    rows = [{k: v for k, v in row.items() if not pd.isna(v)} for row in table.to_dict("records")]
    model = ModelSpec(
        num_layers=8, hidden_size=64, num_heads=2, num_kv_heads=2, intermediate_size=176, context_length=128,
        vocab_size=manifest.vocab_size,
    )  # fmt: skip
    spec = Spec(
        run_id=TRAINED_HERE, name="l8", cohort=COHORT, corpus="tiny", corpus_dir=str(data_dir / "corpora" / "tiny"),
        model=model, training=TrainingSpec(tokens=4_000_000, peak_lr=4e-3, warmup_tokens=51_200),
        evaluation=EvaluationSpec(every_tokens=1_000_000, num_windows=16),
    )  # fmt: skip
    guideline = replace(fit_guideline(_RUNS, outer_scores=False, num_draws=80), id=GUIDELINE_ID)
    database = Database(sqlite_url(data_dir))
    try:
        database.migrate()
        with database.write() as session:
            join_cohort(
                session, COHORT, recipe_of(spec, manifest), decision_metric=DECISION_METRIC,
                decision_dataset=decision_dataset(manifest.name),
            )  # fmt: skip
            for row in rows:
                source = "job" if row["run_id"] == TRAINED_HERE else "import"
                run_store.add_run(
                    session, RunRow(**row, source=source, name=row["run_id"], status="finished", is_final=True)
                )
        with database.write() as session:
            job_store.add_job(
                session,
                JobRow(
                    id="job_trained_here", kind="growth", name="l8", role="single", run_id=TRAINED_HERE, cohort=COHORT,
                    state="succeeded", run_dir=str(data_dir / "runs" / "l8"), spec=json.dumps(to_dict(spec)),
                ),
            )  # fmt: skip
            stored = read_runs(run_store.cohort_frame(session, COHORT), cohort=COHORT)
            guideline_store.add_guideline(
                session,
                # The rows as they are stored, so that the service has nothing to refit when it starts.
                GuidelineRow(
                    id=guideline.id, cohort=COHORT, version=guideline.version, is_active=True,
                    num_runs=guideline.num_runs, data_hash=data_hash(stored), reason="fitted", body=guideline.to_json(),
                ),
            )  # fmt: skip
    finally:
        database.close()
