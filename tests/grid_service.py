"""A service with this project's own grid runs, and the guideline that a service fitted to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import RunningService
from stored_guideline import store_guideline

from app.client import Growthlaw
from app.store.database import Database, sqlite_url
from fitting.guideline import Guideline

COHORT = "grid"
GUIDELINE = Path(__file__).parent / "data" / "grid_guideline" / "guideline.json"
# Inside the runs of the cohort; and what the page's URL says of it.
QUESTION: dict[str, Any] = {
    "target_shape": {
        "num_layers": 8, "hidden_size": 48, "num_heads": 3, "intermediate_size": 128, "vocab_size": 1024,
        "context_length": 128,
    },
    "token_budget": 2e6, "cohort": COHORT, "peak_flops_per_second": 1e11, "utilisation": 0.4,
}  # fmt: skip
QUERY = (
    "by=shape&layers=8&hidden=48&heads=3&ffn=128&vocab=1024&context=128&budget=2M&cohort=grid&peak=0.1"
    "&gpus=2&price=3&start=2026-12-01&pilot=0.5&retune=0.25"
)


def start_with_grid(service: RunningService) -> Growthlaw:
    """Start the service, import the bundled runs, and store their guideline; no refit of them starts meanwhile."""
    service.environment["GROWTHLAW_REFIT_AFTER_SECONDS"] = "86400"
    client = service.start()
    client.import_bundled_runs()
    guideline = Guideline.from_json(GUIDELINE.read_text(encoding="utf-8"))
    database = Database(sqlite_url(service.data_dir))
    store_guideline(database, guideline, COHORT)
    database.engine.dispose()
    return client
