"""The Python client of a Growthlaw service: every call is one route, every answer the route's JSON.

    client = Growthlaw()
    client.recommend(target_params=7e9, token_budget=2e12)["decision"]

ServiceError
├── NoService          nothing answers at the URL
└── Refused            the service answered with a problem: `.status`, `.problem` (RFC 9457)
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
# Breaks of an event stream in a row, with nothing received between them, before the caller is told.
MAX_BREAKS = 8

Json = dict[str, Any]


class ServiceError(Exception):
    """A call to the service failed; the message is for people."""


class NoService(ServiceError):
    pass


class Refused(ServiceError):
    def __init__(self, status: int, problem: Json) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"HTTP {status}"))
        self.status, self.problem = status, problem


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event of a job's stream: `story`, `point` or `end`; `id` resumes behind it."""

    event: str
    id: str
    data: Json


class _Sent:
    """How many bytes of some files have been read for sending."""

    def __init__(self, total: int, tell: Callable[[str, int, int | None], None]) -> None:
        self._total, self._done, self._tell = total, 0, tell

    def add(self, count: int) -> None:
        self._done += count
        stage = "sending" if self._done < self._total else "the service reads and stores"
        self._tell(stage, self._done, self._total if self._done < self._total else None)


class _Told(io.BytesIO):
    """A file's bytes that say when they are read."""

    def __init__(self, content: bytes, sent: _Sent) -> None:
        super().__init__(content)
        self._sent = sent

    def read(self, size: int | None = -1) -> bytes:
        chunk = super().read(size)
        self._sent.add(len(chunk))
        return chunk


class Growthlaw:
    """A connection to one service.

    Args:
        url: where it listens; `GROWTHLAW_URL` or the loopback default where left out.
        timeout_seconds: of one call; event streams have none.
    """

    def __init__(self, url: str | None = None, *, timeout_seconds: float = 30.0) -> None:
        self.url = (url or os.environ.get("GROWTHLAW_URL") or DEFAULT_URL).rstrip("/")
        # A loopback service is never meant to be reached through a proxy of the environment.
        self._http = httpx.Client(base_url=self.url, timeout=timeout_seconds, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # --- routes ----------------------------------------------------------------------------------------------

    def health(self) -> Json:
        return self._call("GET", "/healthz")

    def recommend(self, **question: Any) -> Json:
        """`POST /recommend`; keywords are the body's fields (`target_params`, `token_budget`, ...)."""
        return self._call("POST", "/recommend", body=question)

    def grow(self, design: Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """`POST /grow`: the group of jobs that was started."""
        return self._call("POST", "/grow", body=design, headers=self._once(idempotency_key))

    def train(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """`POST /jobs`: the job of the one run that was started."""
        return self._call("POST", "/jobs", body=body, headers=self._once(idempotency_key))

    def jobs(self, **query: Any) -> Json:
        return self._call("GET", "/jobs", query=query)

    def job(self, job_id: str) -> Json:
        return self._call("GET", self._item("jobs", job_id))

    def cancel(self, job_id: str) -> Json:
        return self._call("POST", self._item("jobs", job_id) + "/cancel")

    def pause(self, job_id: str) -> Json:
        return self._call("POST", self._item("jobs", job_id) + "/pause")

    def resume(self, job_id: str) -> Json:
        return self._call("POST", self._item("jobs", job_id) + "/resume")

    def retry(self, job_id: str) -> Json:
        return self._call("POST", self._item("jobs", job_id) + "/retry")

    def logs(self, job_id: str, *, max_bytes: int | None = None) -> Json:
        """`GET /jobs/{id}/logs`: the end of what the job printed, as `text`."""
        query = {} if max_bytes is None else {"max_bytes": max_bytes}
        return self._call("GET", self._item("jobs", job_id) + "/logs", query=query)

    def checkpoints(self, job_id: str) -> list[Json]:
        """`GET /jobs/{id}/checkpoints`, oldest first."""
        found: list[Json] = self._call("GET", self._item("jobs", job_id) + "/checkpoints")  # type: ignore[assignment]
        return found

    def export(self, job_id: str, url: str, *, source: str = "final") -> Json:
        """`POST /jobs/{id}/export`: the job that sends `final`, `base` or a checkpoint of that name to the URL."""
        return self._call("POST", self._item("jobs", job_id) + "/export", body={"url": url, "source": source})

    def workers(self) -> list[Json]:
        """`GET /workers`: the machines that jobs run on, with their devices."""
        found: list[Json] = self._call("GET", "/workers")  # type: ignore[assignment]
        return found

    def runs(self, **query: Any) -> Json:
        return self._call("GET", "/runs", query=query)

    def run(self, run_id: str) -> Json:
        return self._call("GET", self._item("runs", run_id))

    def points(self, run_id: str, metric: str | None = None) -> list[Json]:
        """All points of a run, page after page."""
        points: list[Json] = []
        query: Json = {"limit": 10_000}
        if metric is not None:
            query["metric"] = metric
        while True:
            page = self._call("GET", self._item("runs", run_id) + "/points", query=query)
            points += page["data"]
            if not page["has_more"]:
                return points
            query["after"] = page["next"]

    def import_bundled_runs(self, *, dry_run: bool = False) -> Json:
        """`POST /runs/import`: the grid of growth runs that ships with Growthlaw."""
        return self._call("POST", "/runs/import", body={"bundled": True}, query={"dry_run": dry_run})

    def import_runs(
        self,
        options: Mapping[str, Any],
        files: Iterable[tuple[str, bytes]] = (),
        *,
        base: Iterable[tuple[str, bytes]] = (),
        grown: Iterable[tuple[str, bytes]] = (),
        dry_run: bool = False,
        on_progress: Callable[[str, int, int | None], None] | None = None,
    ) -> Json:
        """`POST /runs/import`: logs of other trainers, as (name, content), in the order they were written.

        Args:
            on_progress: told what is being done, how much of it is, and of how much (bytes), while the files are sent.
        """
        parts: list[tuple[str, tuple[str, Any, str]]] = [
            (part, (name, content, "application/octet-stream"))
            for part, given in (("files", files), ("base", base), ("grown", grown))
            for name, content in given
        ]
        if on_progress is not None:
            total = sum(len(content) for _, (_, content, _) in parts)
            sent = _Sent(total, on_progress)
            parts = [(part, (name, _Told(content, sent), kind)) for part, (name, content, kind) in parts]
        return self._call(
            "POST", "/runs/import", form={"options": json.dumps(options)}, files=parts, query={"dry_run": dry_run}
        )

    def mappings(self) -> list[Json]:
        """`GET /mappings`: saved options of imports, by name."""
        found: list[Json] = self._call("GET", "/mappings")  # type: ignore[assignment]
        return found

    def mapping(self, name: str) -> Json:
        return self._call("GET", self._item("mappings", name))

    def save_mapping(self, name: str, options: Mapping[str, Any]) -> Json:
        """`PUT /mappings/{name}`: options of `import_runs` for the next run of a project."""
        return self._call("PUT", self._item("mappings", name), body=options)

    def delete_mapping(self, name: str) -> None:
        self._call("DELETE", self._item("mappings", name))

    def open_run(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """`POST /runs`: a run that pushes its points while it trains, as `run`, and `next_seq` for its next point."""
        return self._call("POST", "/runs", body=body, headers=self._once(idempotency_key))

    def push_points(
        self, run_id: str, points: Sequence[Mapping[str, Any]], *, status: str | None = None, reason: str = ""
    ) -> Json:
        """`POST /runs/{id}/points`: points, each seq once; `status` ends the run."""
        body = {"points": list(points), "status": status, "reason": reason}
        return self._call("POST", self._item("runs", run_id) + "/points", body=body)

    def guidelines(self, **query: Any) -> Json:
        return self._call("GET", "/guidelines", query=query)

    def guideline(self, guideline_id: str) -> Json:
        return self._call("GET", self._item("guidelines", guideline_id))

    def corpora(self) -> list[Json]:
        corpora: list[Json] = self._call("GET", "/corpora")  # type: ignore[assignment]
        return corpora

    def prepare_corpus(self, name: str, *, vocab_size: int = 1024) -> Json:
        """`POST /corpora`: the job that prepares the bundled corpus."""
        return self._call("POST", "/corpora", body={"name": name, "vocab_size": vocab_size})

    def events(self, job_id: str, last_event_id: str | None = None) -> Iterator[Event]:
        """A job's events until it has ended; a broken stream is taken up where it broke."""
        breaks = 0
        while True:
            trouble = "it ended early"
            try:
                for event in self._stream(job_id, last_event_id):
                    breaks, last_event_id = 0, event.id
                    yield event
                    if event.event == "end":
                        return
            except httpx.TransportError as error:
                trouble = str(error)
            except Refused as error:
                if error.status != 503:
                    raise
                trouble = str(error)
            breaks += 1
            if breaks >= MAX_BREAKS:
                raise NoService(f"the event stream of {job_id} broke {breaks} times: {trouble}")
            # 0.2, 0.4, 0.8 ... s: long enough for a service that is being restarted.
            time.sleep(0.1 * 2**breaks)

    @staticmethod
    def _once(idempotency_key: str | None) -> dict[str, str] | None:
        return {"Idempotency-Key": idempotency_key} if idempotency_key else None

    @staticmethod
    def _item(collection: str, item_id: str) -> str:
        """The path of one item; an id cannot lead elsewhere."""
        if not item_id:
            raise ValueError(f"the id of one of {collection} is empty; list them to see which there are")
        return f"/{collection}/{quote(item_id, safe='')}"

    # --- transport -------------------------------------------------------------------------------------------

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        files: Sequence[tuple[str, tuple[str, Any, str]]] | None = None,
    ) -> Json:
        try:
            response = self._http.request(
                method, path, json=body, params=query, headers=headers, data=form, files=files
            )
        except httpx.TransportError as error:
            raise NoService(
                f"no Growthlaw service answers at {self.url} ({error}); start one with `growthlaw serve`, or set GROWTHLAW_URL"
            ) from None
        return self._read(response)

    def _stream(self, job_id: str, last_event_id: str | None) -> Iterator[Event]:
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        with self._http.stream(
            "GET", self._item("jobs", job_id) + "/events", headers=headers, timeout=None
        ) as response:
            if response.is_error:
                response.read()
                self._read(response)
            fields: dict[str, str] = {}
            for line in response.iter_lines():
                if line and not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif not line and "data" in fields:
                    yield Event(event=fields["event"], id=fields["id"], data=json.loads(fields["data"]))
                    fields = {}

    @staticmethod
    def _read(response: httpx.Response) -> Json:
        if response.status_code == 204:
            return {}
        try:
            answer: Json = response.json()
        except ValueError:
            raise ServiceError(f"the answer of {response.url} (HTTP {response.status_code}) is not JSON") from None
        if response.is_error:
            raise Refused(response.status_code, answer if isinstance(answer, dict) else {})
        return answer
