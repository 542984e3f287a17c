"""The Python client of a Growthlaw service: every call is one route, every answer the route's JSON with typed attributes.

    client = Growthlaw()                    # GROWTHLAW_URL and GROWTHLAW_API_KEY, else the loopback service without a key
    client.recommend(target_params=7e9, token_budget=2e12).decision
    job = client.grow(design).arms[0].job
    for event in job.events(): ...          # goes on over dropped connections and a restarted service
    job.wait().state

A request that was not answered is sent again where that cannot do anything twice (:mod:`app.transport`): what starts something
bears an Idempotency-Key, made here where none is given, so one call starts one thing however often it travels.

ServiceError
├── NoService          nothing answers at the URL
└── Refused            the service answered with a problem: `.status`, `.problem` (RFC 9457)
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from app.answers import (
    Cohort,
    Deed,
    Growth,
    Guideline,
    GuidelineDetail,
    Job,
    JobDetail,
    KeptRecommendation,
    KeptSummary,
    Key,
    ListedJob,
    NewKey,
    Page,
    Point,
    Recommendation,
    Refit,
    Run,
    StartedJob,
)
from app.event_stream import Event, events_of
from app.sending import Sent, Told
from app.transport import Json, NoService, Refused, ServiceError, Transport

__all__ = ["Event", "Growthlaw", "NoService", "Refused", "ServiceError"]

DEFAULT_URL = "http://127.0.0.1:8000"
# Behind every event there can be: what then still comes is the end.
_BEHIND_ALL = f"{2**63 - 1}-{2**63 - 1}"


class Growthlaw:
    """A connection to one service.

    Args:
        url: where it listens; `GROWTHLAW_URL` or the loopback default where left out.
        api_key: the token of a key; `GROWTHLAW_API_KEY` where left out, none where empty.
        timeout_seconds: of one attempt at a call; event streams have none.
        retry_seconds: how long after its first attempt a call may be tried again; 0 tries once.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 30.0,
        retry_seconds: float = 10.0,
    ) -> None:
        self.url = (url or os.environ.get("GROWTHLAW_URL") or DEFAULT_URL).rstrip("/")
        key = os.environ.get("GROWTHLAW_API_KEY", "") if api_key is None else api_key
        self._transport = Transport(self.url, key.strip(), timeout_seconds=timeout_seconds, retry_seconds=retry_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._transport.http.close()

    # --- routes ----------------------------------------------------------------------------------------------

    def health(self) -> Json:
        return self._call("GET", "/healthz")

    def recommend(self, **question: Any) -> Recommendation:
        """`POST /recommend`; keywords are the body's fields (`target_params`, `token_budget`, ...)."""
        return Recommendation(self._call("POST", "/recommend", body=question, repeatable=True), self)

    def recommend_batch(self, questions: Sequence[Mapping[str, Any]]) -> Json:
        """`POST /recommend/batch`: a result for each question, an answer or a problem."""
        return self._call("POST", "/recommend/batch", body={"questions": list(questions)})

    def plan(self, **body: Any) -> Json:
        """`POST /plan`: the runs to make next; keywords are the body's fields (`cohort`, `flops_budget`, `decision`, ...)."""
        return self._call("POST", "/plan", body=body, repeatable=True)

    def surface(self, **query: Any) -> Json:
        """`GET /surface`: losses over growth timing and factor; keywords are its query parameters."""
        return self._call("GET", "/surface", query=query)

    def recommendations(self, **query: Any) -> Page[KeptSummary]:
        """`GET /recommendations`: kept answers, newest first; iterate over it for all of them."""
        return Page("/recommendations", query, KeptSummary, self)

    def recommendation(self, recommendation_id: str) -> KeptRecommendation:
        return KeptRecommendation(self._call("GET", self._item("recommendations", recommendation_id)), self)

    def grow(self, design: Mapping[str, Any], *, idempotency_key: str | None = None) -> Growth:
        """`POST /grow`: the group of jobs that was started."""
        return Growth(self._call("POST", "/grow", body=design, headers=self._once(idempotency_key)), self)

    def train(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> StartedJob:
        """`POST /jobs`: the job of the one run that was started."""
        return StartedJob(self._call("POST", "/jobs", body=body, headers=self._once(idempotency_key)), self)

    def jobs(self, **query: Any) -> Page[ListedJob]:
        """`GET /jobs`, newest first; iterate over it for all of them."""
        return Page("/jobs", query, ListedJob, self)

    def job(self, job_id: str) -> JobDetail:
        return JobDetail(self._call("GET", self._item("jobs", job_id)), self)

    def cancel(self, job_id: str) -> JobDetail:
        return JobDetail(self._call("POST", self._item("jobs", job_id) + "/cancel"), self)

    def pause(self, job_id: str) -> JobDetail:
        return JobDetail(self._call("POST", self._item("jobs", job_id) + "/pause"), self)

    def resume(self, job_id: str) -> JobDetail:
        return JobDetail(self._call("POST", self._item("jobs", job_id) + "/resume"), self)

    def retry(self, job_id: str) -> JobDetail:
        return JobDetail(self._call("POST", self._item("jobs", job_id) + "/retry"), self)

    def logs(self, job_id: str, *, max_bytes: int | None = None) -> Json:
        """`GET /jobs/{id}/logs`: the end of what the job printed, as `text`."""
        query = {} if max_bytes is None else {"max_bytes": max_bytes}
        return self._call("GET", self._item("jobs", job_id) + "/logs", query=query)

    def checkpoints(self, job_id: str) -> list[Json]:
        """`GET /jobs/{id}/checkpoints`, oldest first."""
        return self._all(self._item("jobs", job_id) + "/checkpoints")

    def prediction(self, job_id: str) -> Json:
        """`GET /jobs/{id}/prediction`: the final loss that the cohort's guideline expects of the job's run."""
        return self._call("GET", self._item("jobs", job_id) + "/prediction")

    def export(self, job_id: str, url: str, *, source: str = "final") -> Job:
        """`POST /jobs/{id}/export`: the job that sends `final`, `base` or a checkpoint of that name to the URL."""
        body = {"url": url, "source": source}
        return Job(self._call("POST", self._item("jobs", job_id) + "/export", body=body), self)

    def workers(self) -> list[Json]:
        """`GET /workers`: the machines that jobs run on, with their devices."""
        return self._all("/workers")

    def runs(self, **query: Any) -> Page[Run]:
        """`GET /runs`, newest first; iterate over it for all of them."""
        return Page("/runs", query, Run, self)

    def run(self, run_id: str) -> Run:
        return Run(self._call("GET", self._item("runs", run_id)), self)

    def points(self, run_id: str, metric: str | None = None) -> list[Point]:
        """All points of a run, page after page."""
        query = {"limit": 10_000, "metric": metric}
        return list(Page(self._item("runs", run_id) + "/points", query, Point, self))

    def curve(self, run_id: str, **query: Any) -> Json:
        """`GET /runs/{id}/curve`; keywords are `metric`, `dataset`, `against`, `max_points`."""
        return self._call("GET", self._item("runs", run_id) + "/curve", query=query)

    def correct_run(self, run_id: str, **changes: Any) -> Json:
        """`PATCH /runs/{id}`; keywords are the columns to correct, and `why`."""
        return self._call("PATCH", self._item("runs", run_id), body=changes)

    def remove_run(self, run_id: str, *, why: str = "") -> Json:
        """`DELETE /runs/{id}`: the run with its points."""
        return self._call("DELETE", self._item("runs", run_id), query={"why": why})

    def import_bundled_runs(self, *, dry_run: bool = False, restore: bool = False) -> Json:
        """`POST /runs/import`: the grid of growth runs that ships with Growthlaw."""
        body = {"bundled": True} | ({"restore": True} if restore else {})
        return self._call("POST", "/runs/import", body=body, query={"dry_run": dry_run})

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
            sent = Sent(total, on_progress)
            parts = [(part, (name, Told(content, sent), kind)) for part, (name, content, kind) in parts]
        return self._call(
            "POST", "/runs/import", form={"options": json.dumps(options)}, files=parts, query={"dry_run": dry_run},
            repeatable=True,  # the same content twice is stored once
        )  # fmt: skip

    def mappings(self) -> list[Json]:
        """`GET /mappings`: saved options of imports, by name."""
        return self._all("/mappings")

    def mapping(self, name: str) -> Json:
        return self._call("GET", self._item("mappings", name))

    def save_mapping(self, name: str, options: Mapping[str, Any]) -> Json:
        """`PUT /mappings/{name}`: options of `import_runs` for the next run of a project."""
        return self._call("PUT", self._item("mappings", name), body=options, repeatable=True)

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
        return self._call("POST", self._item("runs", run_id) + "/points", body=body, repeatable=True)

    def guidelines(self, **query: Any) -> Page[Guideline]:
        """`GET /guidelines`, newest first; iterate over it for all of them."""
        return Page("/guidelines", query, Guideline, self)

    def guideline(self, guideline_id: str) -> GuidelineDetail:
        return GuidelineDetail(self._call("GET", self._item("guidelines", guideline_id)), self)

    def evidence(self, guideline_id: str) -> Json:
        """`GET /guidelines/{id}/evidence`: valleys, predictions against what was seen, coverage, laws."""
        return self._call("GET", self._item("guidelines", guideline_id) + "/evidence")

    def guideline_diff(self, guideline_id: str, other_id: str) -> Json:
        """`GET /guidelines/{id}/diff/{other}`: what changed from the first to the other, and what both answer."""
        other = quote(other_id, safe="")
        return self._call("GET", f"{self._item('guidelines', guideline_id)}/diff/{other}")

    def activate_guideline(self, guideline_id: str, *, pinned: bool = True) -> Guideline:
        """`POST /guidelines/{id}/activate`; pinned, no promotion replaces it."""
        body = {"pinned": pinned}
        path = self._item("guidelines", guideline_id) + "/activate"
        return Guideline(self._call("POST", path, body=body, repeatable=True), self)

    def refit(self, cohort: str, *, idempotency_key: str | None = None) -> Refit:
        """`POST /guidelines/refit`: the refit that was asked for; `refit_state` tells how it stands."""
        headers = self._once(idempotency_key)
        return Refit(self._call("POST", "/guidelines/refit", body={"cohort": cohort}, headers=headers), self)

    def refits(self, **query: Any) -> Page[Refit]:
        """`GET /guidelines/refits`, newest first; iterate over it for all of them."""
        return Page("/guidelines/refits", query, Refit, self)

    def refit_state(self, refit_id: str) -> Refit:
        return Refit(self._call("GET", self._item("guidelines/refits", refit_id)), self)

    def cohorts(self, **query: Any) -> Page[Cohort]:
        """`GET /cohorts`, by name; iterate over it for all of them."""
        return Page("/cohorts", query, Cohort, self)

    def corpora(self) -> list[Json]:
        return self._all("/corpora")

    def prepare_corpus(self, name: str, *, vocab_size: int = 1024) -> Job:
        """`POST /corpora`: the job that prepares the bundled corpus."""
        return Job(self._call("POST", "/corpora", body={"name": name, "vocab_size": vocab_size}), self)

    def keys(self, **query: Any) -> Page[Key]:
        """`GET /keys`, newest first; iterate over it for all of them."""
        return Page("/keys", query, Key, self)

    def create_key(self, name: str, scope: str) -> NewKey:
        """`POST /keys`: a key and its `token`, which is shown this once."""
        return NewKey(self._call("POST", "/keys", body={"name": name, "scope": scope}), self)

    def revoke_key(self, name_or_id: str) -> Key:
        """`DELETE /keys/{name or id}`."""
        return Key(self._call("DELETE", self._item("keys", name_or_id)), self)

    def audit(self, **query: Any) -> Page[Deed]:
        """`GET /audit`, newest first; iterate over it for all of it."""
        return Page("/audit", query, Deed, self)

    def events(
        self, job_id: str, last_event_id: str | None = None, *, timeout_seconds: float | None = None
    ) -> Iterator[Event]:
        """A job's events until it has ended; a broken stream is taken up where it broke.

        Raises:
            TimeoutError: it has not ended within `timeout_seconds`, if any are given.
            NoService: the stream broke again and again.
        """
        path = self._item("jobs", job_id) + "/events"
        return events_of(self._transport, path, job_id, last_event_id, timeout_seconds=timeout_seconds)

    def wait(self, job_id: str, *, timeout_seconds: float | None = None) -> JobDetail:
        """The job once it has succeeded, failed or been cancelled; a paused one has not ended.

        Raises:
            TimeoutError, NoService: as of `events`.
        """
        for _ in self.events(job_id, _BEHIND_ALL, timeout_seconds=timeout_seconds):
            pass
        return self.job(job_id)

    @staticmethod
    def _once(idempotency_key: str | None) -> dict[str, str]:
        """The header with which a request, sent again, starts nothing twice."""
        return {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}

    @staticmethod
    def _item(collection: str, item_id: str) -> str:
        """The path of one item; an id cannot lead elsewhere."""
        if not item_id:
            raise ValueError(f"the id of one of {collection} is empty; list them to see which there are")
        quoted = quote(item_id, safe="")
        # Of dots alone it would be taken for a way up.
        return f"/{collection}/{quoted.replace('.', '%2E') if set(item_id) == {'.'} else quoted}"

    def _all(self, path: str, **query: Any) -> list[Json]:
        """Everything that a listing holds, page after page."""
        rows: list[Json] = []
        while True:
            page = self._call("GET", path, query={"limit": 1000} | query)
            rows += page["data"]
            if not page["has_more"]:
                return rows
            query["after"] = page["next"]

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
        repeatable: bool | None = None,
    ) -> Json:
        """One route's answer. `repeatable`: whether a second sending does nothing new; where left out, GET and what bears an
        Idempotency-Key."""
        if repeatable is None:
            repeatable = method == "GET" or "Idempotency-Key" in (headers or {})
        query = {name: value for name, value in (query or {}).items() if value is not None}
        answer: Json = self._transport.call(
            method, path, repeatable=repeatable, json=body, params=query, headers=headers, data=form, files=files
        )
        return answer
