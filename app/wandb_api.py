"""Runs of a Weights & Biases server through its public GraphQL API: which there are, their configurations, their full history.

    api = WandbApi()                                    # WANDB_API_KEY or ~/.netrc; WANDB_BASE_URL for a server of one's own
    for run in api.runs("entity", "project", {"state": "finished"}):
        rows = list(api.history(run))

The queries and the shapes of their answers are those of W&B's client 0.31 (``apis/public/runs.py``; ``HistoryPage`` of its
core). `history` asks for ranges of ``_step`` that are no wider than the number of rows asked for, so that nothing is left
for the server to sample: the client's own ``Run.history()`` gives 500 rows of any run. The key goes to the server in the
``Authorization`` header and nowhere else: no error, log or file of this module holds it.
"""

from __future__ import annotations

import email.utils
import json
import netrc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from app.ingest.logs.rows import number
from fitting.errors import InputError

DEFAULT_URL = "https://api.wandb.ai"
RUNS_A_PAGE = 50
# Steps of a history page: W&B's client begins with as many; pages widen while the server keeps up.
STEPS_A_PAGE, MAX_STEPS_A_PAGE, MIN_STEPS_A_PAGE = 1_000, 10_000, 100
MAX_TRIES = 8
LONGEST_WAIT_SECONDS = 120.0

# `name` is a run's id, `displayName` what people call it.
_FIELDS = """fragment Fields on Run {
    name displayName state group createdAt config summaryMetrics historyLineCount historyKeys }"""
_RUNS = (
    """query Runs($project: String!, $entity: String!, $cursor: String, $perPage: Int = 50, $order: String,
    $filters: JSONString) { project(name: $project, entityName: $entity) {
    runs(filters: $filters, after: $cursor, first: $perPage, order: $order) {
    edges { node { ...Fields } cursor } pageInfo { endCursor hasNextPage } } } } """
    + _FIELDS
)
_RUN = (
    """query Run($project: String!, $entity: String!, $name: String!) {
    project(name: $project, entityName: $entity) { run(name: $name) { ...Fields } } } """
    + _FIELDS
)
_HISTORY = """query HistoryPage($entity: String!, $project: String!, $run: String!, $minStep: Int64!, $maxStep: Int64!,
    $pageSize: Int!) { project(name: $project, entityName: $entity) {
    run(name: $run) { history(minStep: $minStep, maxStep: $maxStep, samples: $pageSize) } } }"""


@dataclass(frozen=True, kw_only=True)
class WandbRun:
    """One run as W&B lists it.

    Attributes:
        id, name: its own and what people call it.
        state: finished, crashed, failed, killed, preempted, running, pending.
        config, summary: as the run logged them, without W&B's own keys.
        num_history_lines: rows of its history, as the server counts them; None where it does not say.
        last_step: the largest ``_step``; -1 where nothing was logged.
    """

    entity: str
    project: str
    id: str
    name: str
    state: str
    group: str = ""
    created_at: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    num_history_lines: int | None = None
    last_step: int = -1

    @property
    def path(self) -> str:
        return f"{self.entity}/{self.project}/{self.id}"


class _TooMuchError(Exception):
    """A page of a run with thousands of columns, which the server did not manage."""


class WandbApi:
    """A connection to a W&B server.

    Args:
        base_url: of a server of one's own; ``WANDB_BASE_URL`` or W&B's where None.
        wait: how to wait some seconds before the next try.

    Raises:
        InputError: the URL is none, or no API key is known for it.
    """

    def __init__(self, base_url: str | None = None, *, wait: Callable[[float], None] = time.sleep) -> None:
        self.url = (base_url or os.environ.get("WANDB_BASE_URL") or DEFAULT_URL).rstrip("/")
        try:
            parsed = httpx.URL(self.url)
        except httpx.InvalidURL:
            parsed = httpx.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
            raise InputError(
                "wandb_url",
                "is no http(s)://HOST[:PORT] without a user",
                "give the server's address, as in WANDB_BASE_URL",
            )
        self._wait = wait
        # W&B takes the key as the password of the user "api". Redirects are not followed: the key stays with this server.
        self._http = httpx.Client(
            auth=httpx.BasicAuth("api", _api_key(parsed.host)), timeout=httpx.Timeout(60.0, connect=20.0)
        )

    def __enter__(self) -> WandbApi:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def runs(self, entity: str, project: str, filters: Mapping[str, Any] | None = None) -> Iterator[WandbRun]:
        """The project's runs, oldest first.

        Args:
            filters: W&B's own, in MongoDB's words: ``{"state": "finished", "config.lr": {"$lt": 0.01}}``.

        Raises:
            InputError: there is no such project, the filter is none, or the server refuses or stays away.
        """
        variables: dict[str, Any] = {
            "entity": entity, "project": project, "order": "+created_at", "perPage": RUNS_A_PAGE, "cursor": None,
            "filters": json.dumps(dict(filters or {})),
        }  # fmt: skip
        while True:
            page = self._project(_RUNS, variables).get("runs") or {}
            edges = page.get("edges") or []
            for edge in edges:
                yield _run(entity, project, edge["node"])
            if not edges or not (page.get("pageInfo") or {}).get("hasNextPage"):
                return
            variables["cursor"] = edges[-1]["cursor"]

    def run(self, entity: str, project: str, run_id: str) -> WandbRun:
        """One run by its id.

        Raises:
            InputError: as of `runs`, or there is no such run.
        """
        found = self._project(_RUN, {"entity": entity, "project": project, "name": run_id}).get("run")
        if found is None:
            raise InputError(
                "wandb", f"has no run {entity}/{project}/{run_id}", "give the id at the end of the run's URL"
            )
        return _run(entity, project, found)

    def history(self, run: WandbRun) -> Iterator[dict[str, Any]]:
        """Every row of the run's history in the order of ``_step``, none sampled away.

        Raises:
            InputError: the run is gone, or the server refuses or stays away.
        """
        low, width = 0, STEPS_A_PAGE
        while low <= run.last_step:
            high = min(low + width, run.last_step + 1)
            variables = {
                "entity": run.entity, "project": run.project, "run": run.id,
                "minStep": low, "maxStep": high, "pageSize": width,
            }  # fmt: skip
            try:
                answer = self._project(_HISTORY, variables, may_shrink=width > MIN_STEPS_A_PAGE)
            except _TooMuchError:
                width = max(MIN_STEPS_A_PAGE, width // 4)
                continue
            if answer.get("run") is None:
                raise InputError("wandb", f"has no run {run.path} any more", "list the project again")
            rows = [(number(row.get("_step")), row) for row in map(_object, answer["run"].get("history") or [])]
            placed = [(step, row) for step, row in rows if step is not None and low <= step < high]
            yield from (row for _, row in sorted(placed, key=lambda pair: pair[0]))
            low, width = high, min(2 * width, MAX_STEPS_A_PAGE)

    # --- transport -------------------------------------------------------------------------------------------

    def _project(self, query: str, variables: Mapping[str, Any], *, may_shrink: bool = False) -> dict[str, Any]:
        project = self._execute(query, variables, may_shrink=may_shrink).get("project")
        if project is None:
            raise InputError(
                "wandb", f"has no project {variables['entity']}/{variables['project']} that this key may read",
                "give ENTITY/PROJECT as in its URL, and the key of someone who may read it",
            )  # fmt: skip
        return dict(project)

    def _execute(self, query: str, variables: Mapping[str, Any], *, may_shrink: bool) -> dict[str, Any]:
        """The data of a query, asked again while the server is busy.

        Raises:
            _TooMuchError: the server does not manage the query, and a smaller one may be asked.
        """
        trouble = ""
        for attempt in range(MAX_TRIES):
            seconds = min(2.0**attempt, 60.0)
            try:
                response = self._http.post(f"{self.url}/graphql", json={"query": query, "variables": dict(variables)})
            except httpx.TransportError as error:
                trouble = f"did not answer ({type(error).__name__})"
                if may_shrink and isinstance(error, httpx.ReadTimeout):
                    raise _TooMuchError from None
            else:
                if response.status_code != 429 and response.status_code < 500:
                    return _data(response, self.url)
                trouble = f"answered HTTP {response.status_code}"
                if response.status_code == 429:
                    trouble = "refuses more requests for now (HTTP 429)"
                    seconds = _stated_wait(response.headers, seconds)
                elif may_shrink and response.status_code in (500, 502, 504) and attempt:
                    raise _TooMuchError
            if attempt < MAX_TRIES - 1:
                self._wait(seconds)
        raise InputError("wandb", f"at {self.url} {trouble}, {MAX_TRIES} times", "try again later")


def _api_key(host: str) -> str:
    key = os.environ.get("WANDB_API_KEY")
    if not key:
        path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
        try:
            found = netrc.netrc(path).authenticators(host) if path.is_file() else None
        except (OSError, netrc.NetrcParseError):
            # The parser's own words may repeat what it could not read.
            raise InputError(
                "WANDB_API_KEY", f"is not set, and {path} cannot be read", "set it, or mend the file"
            ) from None
        key = found[2] if found else None
    if not key:
        raise InputError(
            "WANDB_API_KEY", f"is not set, and ~/.netrc has no entry for {host}", "set it, or run `wandb login`"
        )
    return key


def _stated_wait(headers: httpx.Headers, otherwise: float) -> float:
    """Seconds that a busy server asks to wait: Retry-After in seconds or as a date, or W&B's RateLimit-Reset."""
    stated = headers.get("retry-after") or headers.get("ratelimit-reset") or ""
    try:
        seconds = float(stated)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(stated).timestamp() - time.time()
        except ValueError:
            return otherwise
    return min(max(seconds, 0.5), LONGEST_WAIT_SECONDS) if seconds == seconds else otherwise


def _data(response: httpx.Response, url: str) -> dict[str, Any]:
    if response.status_code in (401, 403):
        raise InputError(
            "WANDB_API_KEY", f"is refused by {url} (HTTP {response.status_code})", "set a key that may read there"
        )
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise InputError(
            "wandb",
            f"at {url} answered HTTP {response.status_code} without JSON",
            "see that this is a W&B server's API",
        )
    errors = answer.get("errors")
    if errors or not isinstance(answer.get("data"), dict):
        told = "; ".join(str(error.get("message", ""))[:200] for error in errors or [] if isinstance(error, dict))
        raise InputError(
            "wandb", f"refuses the query ({told or f'HTTP {response.status_code}'})", "see --filter and the path"
        )
    return dict(answer["data"])


def _run(entity: str, project: str, node: Mapping[str, Any]) -> WandbRun:
    config = {
        key: value["value"] if isinstance(value, dict) and "value" in value else value
        for key, value in _object(node.get("config")).items()
        if key not in ("_wandb", "wandb_version")
    }
    summary = {key: value for key, value in _object(node.get("summaryMetrics")).items() if key != "_wandb"}
    lines, last = node.get("historyLineCount"), (node.get("historyKeys") or {}).get("lastStep", -1)
    return WandbRun(
        entity=entity,
        project=project,
        id=str(node["name"]),
        name=str(node.get("displayName") or node["name"]),
        state=str(node.get("state") or ""),
        group=str(node.get("group") or ""),
        created_at=str(node.get("createdAt") or ""),
        config=config,
        summary=summary,
        num_history_lines=lines if isinstance(lines, int) and lines >= 0 else None,
        last_step=int(last) if isinstance(last, (int, float)) else -1,
    )


def _object(text: Any) -> dict[str, Any]:
    """A JSON object that the API gives as text; empty where it gives none."""
    try:
        found = json.loads(text, strict=False) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}
