"""What `GET /metrics` tells in Prometheus' text format, on a registry of the service's own.

==================================================  =========  ===========================================
growthlaw_http_requests_total                       counter    by method, route template, status
growthlaw_http_request_duration_seconds             histogram  by method, route template; without streams
growthlaw_http_requests_in_flight, _streams_open    gauge      being answered; event streams among them
growthlaw_refits_total                              counter    by outcome
growthlaw_fit_duration_seconds                      histogram  of each refit, by outcome
growthlaw_launcher_tick_age_seconds                 gauge      since the launcher loop last went round whole
growthlaw_build_info                                gauge      1, with version and Python
growthlaw_slots, growthlaw_slots_busy               gauge      by engine and kind (gpu, cpu)
growthlaw_database_up, _jobs, _queue_length, ...    gauge      :mod:`app.observe.stored`
==================================================  =========  ===========================================

Counters begin at 0 with the process, as Prometheus expects; everything that outlives it is read from the database at each
scrape by a handful of grouped counts. Labels are templates, states and engines, and so are few whatever is asked.
"""

from __future__ import annotations

import platform
import threading
import time
from collections import Counter as CountOf
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.jobs.launchers.base import Node

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
UNMATCHED = "unmatched"
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_FIT_SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600)
# A launcher may have to ask its cluster or nvidia-smi: not for every scrape.
SECONDS_BETWEEN_LOOKS = 10.0


class Metrics:
    """The metrics of one service; every method may be called from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        build = Gauge("growthlaw_build_info", "The running version.", ["version", "python"], registry=self._registry)
        build.labels(version("growthlaw"), platform.python_version()).set(1)
        self._requests = Counter(
            "growthlaw_http_requests_total",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._request_seconds = Histogram(
            "growthlaw_http_request_duration_seconds", "From a request's head to its answer's end; event streams left out.",
            ["method", "route"], buckets=_REQUEST_SECONDS, registry=self._registry,
        )  # fmt: skip
        self._in_flight = Gauge(
            "growthlaw_http_requests_in_flight", "Requests being answered, streams included.", registry=self._registry
        )
        self._streams = Gauge("growthlaw_http_streams_open", "Event streams open.", registry=self._registry)
        self._refits = Counter(
            "growthlaw_refits_total", "Refits of guidelines that ended.", ["outcome"], registry=self._registry
        )
        self._fit_seconds = Histogram(
            "growthlaw_fit_duration_seconds", "Time a refit took.", ["outcome"], buckets=_FIT_SECONDS,
            registry=self._registry,
        )  # fmt: skip

    def watch(self, collector: Collector) -> None:
        """Ask `collector` at each scrape."""
        self._registry.register(collector)

    def page(self) -> bytes:
        return prometheus_client.generate_latest(self._registry)

    def request_begun(self) -> None:
        self._in_flight.inc()

    def stream_opened(self) -> None:
        self._streams.inc()

    def request_ended(self, method: str, route: str, status: int, seconds: float, *, is_stream: bool) -> None:
        """An answer has been sent whole, or its connection has gone."""
        method = method if method in _METHODS else "other"
        self._in_flight.dec()
        self._requests.labels(method, route, str(status)).inc()
        if is_stream:
            self._streams.dec()
        else:
            self._request_seconds.labels(method, route).observe(seconds)

    def refit_ended(self, outcome: str, seconds: float) -> None:
        """A refit ended so (`stored`, `unchanged`, `impossible`, `failed`) after `seconds`."""
        self._refits.labels(outcome).inc()
        self._fit_seconds.labels(outcome).observe(seconds)


class LauncherCollector(Collector):
    """How the launcher loop stands, and the slots of its engines."""

    def __init__(self, seconds_since_tick: Callable[[], float], nodes: Callable[[], Iterable[Node]]) -> None:
        self._seconds_since_tick, self._nodes = seconds_since_tick, nodes
        self._lock = threading.Lock()
        self._counted: tuple[CountOf[tuple[str, str]], CountOf[tuple[str, str]]] | None = None
        self._counted_at = 0.0

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "growthlaw_launcher_tick_age_seconds", "Since the launcher loop last went round without an error.",
            value=self._seconds_since_tick(),
        )  # fmt: skip
        slots = GaugeMetricFamily("growthlaw_slots", "GPUs and CPU slots.", labels=("engine", "kind"))
        busy = GaugeMetricFamily("growthlaw_slots_busy", "Of growthlaw_slots, with a job.", labels=("engine", "kind"))
        all_counts, busy_counts = self._slots()
        for (engine, kind), count in sorted(all_counts.items()):
            slots.add_metric((engine, kind), count)
            busy.add_metric((engine, kind), busy_counts[engine, kind])
        yield from (slots, busy)

    def _slots(self) -> tuple[CountOf[tuple[str, str]], CountOf[tuple[str, str]]]:
        with self._lock:
            if self._counted is None or time.monotonic() - self._counted_at > SECONDS_BETWEEN_LOOKS:
                devices = [
                    (node.engine, device.kind, device.job_id) for node in self._nodes() for device in node.devices
                ]
                self._counted = (
                    CountOf((engine, kind) for engine, kind, _ in devices),
                    CountOf((engine, kind) for engine, kind, job_id in devices if job_id is not None),
                )
                self._counted_at = time.monotonic()
            return self._counted
