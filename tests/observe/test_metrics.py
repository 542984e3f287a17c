"""`GET /metrics`: what it says is so, follows Prometheus' rules, survives a restart, and stays small."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from observe.rows import HOUR_AGO, fill
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event

from app.jobs.launchers.base import Device, Node
from app.observe import metrics as metrics_module
from app.observe.metrics import LauncherCollector, Metrics
from app.observe.stored import LARGEST_NUMBER_OF_COHORTS

NewClient = Callable[[Path], TestClient]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(page: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def scrape(client: TestClient) -> Samples:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return samples_of(answer.text)


# --- the rules of `promtool check metrics`, and of https://prometheus.io/docs/practices/naming ---------------

_NOT_BASE_UNITS = (
    "milliseconds", "microseconds", "nanoseconds", "minutes", "hours", "days", "kilobytes", "megabytes", "gigabytes",
    "kibibytes", "mebibytes", "gibibytes", "bits", "percent", "ms", "us", "ns", "kb", "mb", "gb", "sec", "secs",
)  # fmt: skip
_TYPE_WORDS = ("gauge", "counter", "histogram", "summary")
_LABELS = {
    "method", "route", "status", "engine", "kind", "state", "source", "cohort", "outcome", "version", "python",
}  # fmt: skip


def broken_rules(page: str) -> list[str]:
    """What is wrong with a page, family by family."""
    lines = page.splitlines()
    helps = [line.split()[2] for line in lines if line.startswith("# HELP ") and len(line.split()) > 3]
    types = dict(line.split()[2:4] for line in lines if line.startswith("# TYPE "))
    wrong = [f"{name}: a second HELP" for name in helps if helps.count(name) > 1]
    for line in lines:
        if line.startswith("#"):
            continue
        name = re.split(r"[{ ]", line)[0]
        family = re.sub(r"_(bucket|count|sum)$", "", name)
        kind = types.get(name) or types.get(family)
        if kind is None:
            wrong.append(f"{name}: no TYPE")
            continue
        family = name if name in types else family
        words = family.split("_")
        checks = {
            "no HELP": family not in helps,
            "a counter must end in _total": kind == "counter" and not name.endswith("_total"),
            "only a counter ends in _total": kind != "counter" and name.endswith("_total"),
            "a suffix of histograms": kind not in ("histogram", "summary") and words[-1] in ("count", "sum", "bucket"),
            "its type in its name": any(word in _TYPE_WORDS for word in words),
            "no base unit": any(word in _NOT_BASE_UNITS for word in words),
            "not in small letters and underscores": re.fullmatch(r"[a-z][a-z0-9_]*", family) is None,
            "a time, an age or a duration without _seconds": bool({"age", "duration", "time"} & set(words))
            and not family.removesuffix("_created").endswith("_seconds"),
            "not in a namespace": words[0] not in ("growthlaw", "process"),
        }
        labels = set(re.findall(r'(\w+)="', line)) - ({"le"} if name.endswith("_bucket") else set())
        checks[f"labels {labels - _LABELS}"] = bool(labels - _LABELS)
        wrong += [f"{name}: {what}" for what, is_broken in checks.items() if is_broken]
    return sorted(set(wrong))


def test_the_page_keeps_the_rules(new_client: NewClient, tmp_path: Path) -> None:
    client = new_client(tmp_path)
    fill(client.app.state.service.database)
    client.app.state.service.metrics.refit_ended("stored", 2.5)
    client.post("/recommend", json={"target_params": 7e9, "token_budget": 2e12})
    client.get("/nowhere")
    page = client.get("/metrics").text
    assert broken_rules(page) == []
    told = {family.name for family in text_string_to_metric_families(page) if family.samples}
    assert told >= {
        "growthlaw_http_requests", "growthlaw_http_request_duration_seconds", "growthlaw_http_requests_in_flight",
        "growthlaw_http_streams_open", "growthlaw_jobs", "growthlaw_queue_length", "growthlaw_refits",
        "growthlaw_fit_duration_seconds", "growthlaw_guideline_age_seconds", "growthlaw_guidelines_stored", "growthlaw_runs",
        "growthlaw_guideline_cohorts", "growthlaw_slots", "growthlaw_slots_busy", "growthlaw_build_info",
        "growthlaw_launcher_tick_age_seconds", "growthlaw_database_up", "process_resident_memory_bytes",
        "process_start_time_seconds",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("growthlaw_x 1\n", "no TYPE"),
        ("# HELP growthlaw_x X.\n# TYPE growthlaw_x counter\ngrowthlaw_x 1\n", "must end in _total"),
        ("# HELP growthlaw_x_total X.\n# TYPE growthlaw_x_total gauge\ngrowthlaw_x_total 1\n", "only a counter"),
        ("# TYPE growthlaw_x gauge\ngrowthlaw_x 1\n", "no HELP"),
        ("# HELP growthlaw_x_ms X.\n# TYPE growthlaw_x_ms gauge\ngrowthlaw_x_ms 1\n", "no base unit"),
        ("# HELP growthlaw_age X.\n# TYPE growthlaw_age gauge\ngrowthlaw_age 1\n", "without _seconds"),
        ('# HELP growthlaw_x X.\n# TYPE growthlaw_x gauge\ngrowthlaw_x{job_id="j"} 1\n', "job_id"),
    ],
)
def test_the_check_finds_broken_rules(page: str, words: str) -> None:
    assert any(words in wrong for wrong in broken_rules(page))


# --- what it says ---------------------------------------------------------------------------------------------


def test_gauges_say_what_is_stored_after_a_restart_too(new_client: NewClient, tmp_path: Path) -> None:
    first = new_client(tmp_path)
    fill(first.app.state.service.database)
    for client in (first, new_client(tmp_path)):
        before = datetime.now(UTC)
        samples = scrape(client)
        after = datetime.now(UTC)
        jobs = {dict(labels)["state"]: count for (name, labels), count in samples.items()
                if name == "growthlaw_jobs" and dict(labels)["engine"] == "exec"}  # fmt: skip
        assert jobs == {"queued": 0, "running": 0, "paused": 2, "succeeded": 1, "failed": 1, "cancelled": 0}
        assert value(samples, "growthlaw_queue_length", engine="local") == 0
        assert value(samples, "growthlaw_runs", source="import", status="finished") == 1
        assert value(samples, "growthlaw_runs", source="import", status="running") == 1
        assert value(samples, "growthlaw_guidelines_stored") == 4
        assert value(samples, "growthlaw_guideline_cohorts") == 2
        age = value(samples, "growthlaw_guideline_age_seconds", cohort="c0")
        stored_at = datetime.fromisoformat(HOUR_AGO)
        assert (before - stored_at).total_seconds() <= age <= (after - stored_at).total_seconds()
        assert value(samples, "growthlaw_database_up") == 1
        slots = client.app.state.service.settings.num_slots
        assert value(samples, "growthlaw_slots", engine="local", kind="cpu") == slots


def test_requests_are_counted_by_template_and_not_by_what_was_asked_for(new_client: NewClient, tmp_path: Path) -> None:
    client = new_client(tmp_path)
    for place in range(20):
        client.get(f"/jobs/job_{place}")
        client.get(f"/made/up/{place}")
        client.request(f"VERB{place}", "/recommend")
    client.post("/recommend", json={"target_params": 7e9, "token_budget": 2e12})
    samples = scrape(client)
    requests = {labels: count for (name, labels), count in samples.items() if name == "growthlaw_http_requests_total"}
    assert {(dict(labels)["method"], dict(labels)["route"], dict(labels)["status"]): count
            for labels, count in requests.items()} == {
        ("GET", "/jobs/{job_id}", "404"): 20, ("GET", "unmatched", "404"): 20, ("other", "/recommend", "405"): 20,
        ("POST", "/recommend", "200"): 1,
    }  # fmt: skip
    assert value(samples, "growthlaw_http_request_duration_seconds_count", method="POST", route="/recommend") == 1
    assert value(samples, "growthlaw_http_requests_in_flight") == 1  # the scrape itself


def test_a_scrape_costs_the_same_few_queries_whatever_is_stored(new_client: NewClient, tmp_path: Path) -> None:
    client = new_client(tmp_path)
    database = client.app.state.service.database
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    client.app.state.service.supervisor.stop()  # its queries are not the scrape's
    counted = []
    for num_cohorts in (0, LARGEST_NUMBER_OF_COHORTS + 50):
        if num_cohorts:
            fill(database, num_cohorts=num_cohorts)
        statements.clear()
        samples = scrape(client)
        counted.append(sum(statement.startswith("SELECT") for statement in statements))
    assert counted[0] == counted[1] == 4
    ages = [labels for name, labels in samples if name == "growthlaw_guideline_age_seconds"]
    assert len(ages) == LARGEST_NUMBER_OF_COHORTS
    assert value(samples, "growthlaw_guideline_cohorts") == LARGEST_NUMBER_OF_COHORTS + 50


def test_busy_slots_are_counted_and_launchers_asked_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    held = ["job_1", None, None]
    asked = []

    def nodes() -> list[Node]:
        asked.append(1)
        devices = [Device(kind="gpu", index=place, name="H100", job_id=job) for place, job in enumerate(held)]
        devices.append(Device(kind="cpu", index=0, name="x86_64"))
        return [Node(name=name, engine="ray", heartbeat_at="", memory_bytes=None, memory_free_bytes=None, versions={},
                     devices=devices) for name in ("a", "b")]  # fmt: skip

    metrics = Metrics()
    metrics.watch(LauncherCollector(lambda: 1.5, nodes))
    assert asked == []  # watching asks nobody yet
    for _ in range(2):
        samples = samples_of(metrics.page().decode())
        assert value(samples, "growthlaw_slots", engine="ray", kind="gpu") == 6
        assert value(samples, "growthlaw_slots_busy", engine="ray", kind="gpu") == 2
        assert value(samples, "growthlaw_slots_busy", engine="ray", kind="cpu") == 0
        assert value(samples, "growthlaw_launcher_tick_age_seconds") == 1.5
    assert len(asked) == 1
    held[1] = "job_2"
    monkeypatch.setattr(metrics_module, "SECONDS_BETWEEN_LOOKS", 0.0)
    assert value(samples_of(metrics.page().decode()), "growthlaw_slots_busy", engine="ray", kind="gpu") == 4


def test_without_its_database_the_page_still_comes(
    new_client: Any, tmp_path: Path, postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROWTHLAW_DATABASE_URL", postgres.new_database())
    client = new_client(tmp_path)
    assert client.get("/readyz").status_code == 200
    postgres.stop()
    try:
        samples = scrape(client)
        refused = client.get("/readyz")
    finally:
        postgres.start()
    assert value(samples, "growthlaw_database_up") == 0
    assert value(samples, "growthlaw_http_requests_total", method="GET", route="/readyz", status="200") == 1
    assert not [name for name, _ in samples if name == "growthlaw_jobs"]
    assert refused.status_code == 503
    assert [error["pointer"] for error in refused.json()["errors"]] == ["check:database"]
    assert postgres.password not in refused.text
    assert value(scrape(client), "growthlaw_database_up") == 1
