"""What a job must be after any fault: every point once, every event once, and the curve of an undisturbed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from app.client import Growthlaw

# What the clock decides, not the spec.
TIMED_METRICS = ("tokens_per_second", "growth_seconds", "peak_memory", "mfu")
Job = dict[str, Any]


def story_of(client: Growthlaw, job_id: str) -> list[str]:
    """The events of a job that has ended, in order."""
    return [event.data["event"] for event in client.events(job_id) if event.event == "story"]


def stored_curve(client: Growthlaw, run_id: str) -> list[tuple[Any, ...]]:
    """The run's points without what the clock decides."""
    return [
        (p["seq"], p["phase"], p["tokens"], p["compute_flops"], p["metric"], p["value"])
        for p in client.points(run_id)
        if p["metric"] not in TIMED_METRICS
    ]


def check_taken_in_once(client: Growthlaw, job: Job, run_dir: Path) -> None:
    """Every line of an ended run's files is stored once: points as they stand there, events in their order."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    points = client.points(job["run_id"])
    assert [(point["seq"], point["value"]) for point in points] == [(line["seq"], line["value"]) for line in lines]
    assert [point["seq"] for point in points] == list(range(1, len(points) + 1))
    written = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    told = [event.data for event in client.events(job["id"]) if event.event == "story"]
    by_process = {(entry["time"], entry["event"]) for entry in written}
    assert [key for entry in told if (key := (entry["time"], entry["event"])) in by_process] == [
        (entry["time"], entry["event"]) for entry in written
    ]


def check_one_refit(client: Growthlaw, cohort: str, num_runs: int, until: Any) -> None:
    """The cohort has been fitted once, on that many runs."""
    (guideline,) = until(lambda: client.guidelines(cohort=cohort)["data"], "the refit")
    assert (guideline["version"], guideline["num_runs"]) == (1, num_runs)
