"""Clients that keep writing to a service and remember every acknowledgement, through any number of its deaths."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from app.client import Growthlaw, ServiceError

COHORT = {"cohort": "written", "target_params": 4e5, "corpus": "web", "tokenizer": "bpe", "decision_dataset": "v"}
NUM_WRITERS = 8
BATCHES_A_RUN = 4
SECONDS_BEFORE_ANOTHER_TRY = 0.05


class Writers:
    """Threads that open runs and push points; what was not acknowledged is sent again, as a careful client does.

    Args:
        url: where the service is now; asked at each request, since it moves when it is started again.
        seed: decides everything that is sent.
    """

    def __init__(self, url: Callable[[], str], seed: int) -> None:
        self._url, self._seed = url, seed
        self._halt = threading.Event()
        self._changed = threading.Condition()
        self.num_acknowledged = 0
        self.num_failures = 0
        # Acknowledged: run's name -> id, id -> seq -> value. Sent at least once: the same.
        self.runs: dict[str, str] = {}
        self.points: dict[str, dict[int, float]] = defaultdict(dict)
        self.sent_runs: set[str] = set()
        self.sent_points: dict[str, dict[int, float]] = defaultdict(dict)
        self._threads = [threading.Thread(target=self._write, args=(place,)) for place in range(NUM_WRITERS)]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._halt.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, num_acknowledged: int, timeout_seconds: float = 300) -> None:
        """Until that many requests were acknowledged, since the beginning."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.num_acknowledged >= num_acknowledged, timeout_seconds), (
                "no progress"
            )

    def _write(self, writer: int) -> None:
        chance = random.Random(f"{self._seed} {writer}")
        for place in range(10_000):
            name = f"w{writer}-{place}"
            self.sent_runs.add(name)
            opened = self._until_acknowledged(
                lambda client, name=name: client.open_run(COHORT | {"name": name}, idempotency_key=name)
            )
            if opened is None:
                return
            run_id = self.runs[name] = opened["run"]["run_id"]
            seq = 0
            for _ in range(BATCHES_A_RUN):
                batch = {seq + one: chance.random() for one in range(chance.randint(1, 20))}
                seq += len(batch)
                self.sent_points[run_id] |= batch
                points = [
                    {
                        "seq": one,
                        "tokens": 4096 * (one + 1),
                        "metric": "validation_loss",
                        "dataset": "v",
                        "value": value,
                    }
                    for one, value in batch.items()
                ]
                if (
                    self._until_acknowledged(lambda client, to=run_id, points=points: client.push_points(to, points))
                    is None
                ):
                    return
                self.points[run_id] |= batch

    def _until_acknowledged(self, send: Callable[[Growthlaw], dict[str, Any]]) -> dict[str, Any] | None:
        """The answer; None where the writers were halted before it came."""
        while not self._halt.is_set():
            try:
                # The writers try again by themselves: what failed is counted here.
                with Growthlaw(self._url(), retry_seconds=0) as client:
                    answer = send(client)
            except ServiceError:
                self.num_failures += 1
                self._halt.wait(SECONDS_BEFORE_ANOTHER_TRY)
                continue
            with self._changed:
                self.num_acknowledged += 1
                self._changed.notify_all()
            return answer
        return None


def check_nothing_lost(client: Growthlaw, writers: Writers) -> None:
    """Every acknowledged row is there once with its value, and none that nobody sent."""
    stored: dict[str, str] = {}
    query: dict[str, Any] = {"limit": 1000}
    while True:
        page = client.runs(**query)
        for run in page["data"]:
            assert run["name"] not in stored, f"{run['name']} is stored twice"
            stored[run["name"]] = run["run_id"]
        if not page["has_more"]:
            break
        query["after"] = page["next"]
    assert writers.runs.items() <= stored.items()
    assert set(stored) <= writers.sent_runs
    for run_id in writers.runs.values():
        points = [(point["seq"], point["value"]) for point in client.points(run_id)]
        assert len(points) == len(dict(points)), "a point is stored twice"
        assert writers.points[run_id].items() <= dict(points).items(), "an acknowledged point is gone or another"
        assert dict(points).items() <= writers.sent_points[run_id].items(), "a point that nobody sent"
