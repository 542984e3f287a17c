"""A W&B server for tests: real HTTP, recorded projects, answers in the shapes that W&B's own client reads.

The shapes are those that W&B's client 0.21 and 0.31 ask for (`apis/public/runs.py`, `HistoryPage`), and
`tests/ingest/test_wandb_client.py` reads this server with that client. Like W&B's, it keeps a run's history whole but gives no
more rows of a range of steps than were asked for: the rest is sampled away.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class RecordedRun:
    """One run of a project as W&B holds it; every row has its `_step`."""

    id: str
    name: str
    rows: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    state: str = "finished"
    group: str | None = None
    created_at: str = "2026-05-01T10:00:00Z"

    def node(self) -> dict[str, Any]:
        """As GraphQL gives it: documents as JSON text, configurations under `value`."""
        config = {key: {"desc": None, "value": value} for key, value in self.config.items()}
        config["_wandb"] = {"desc": None, "value": {"python_version": "3.11.9", "t": {"1": [1]}}}
        keys = sorted({key for row in self.rows for key in row})
        return {
            "id": base64.b64encode(f"Run:v1:{self.id}".encode()).decode(),
            "projectId": "17",
            "tags": [],
            "name": self.id,
            "displayName": self.name,
            "sweepName": None,
            "state": self.state,
            "config": json.dumps(config),
            "group": self.group,
            "jobType": None,
            "commit": None,
            "readOnly": True,
            "createdAt": self.created_at,
            "heartbeatAt": self.created_at,
            "description": None,
            "notes": None,
            "systemMetrics": "{}",
            "summaryMetrics": json.dumps({**self.summary, "_wandb": {"runtime": 12}}),
            "historyLineCount": len(self.rows),
            "user": {"name": "A Person", "username": "person"},
            "historyKeys": {
                "sets": [],
                "keys": {key: {"typeCounts": [{"type": "number", "count": len(self.rows)}]} for key in keys},
                "lastStep": self.rows[-1]["_step"] if self.rows else -1,
            },
        }


@dataclass
class WandbServer:
    """A running server.

    Attributes:
        refusals: answers that come before the next real ones: (status, headers).
        asked: the name of every query, in order.
    """

    url: str = ""
    projects: dict[str, list[RecordedRun]] = field(default_factory=dict)
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def answer(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        found = re.search(r"query (\w+)", query)
        name = found[1] if found else ""
        self.asked.append(name)
        if name in ("Viewer", "GetDefaultEntity", "GetViewer"):
            return {"data": {"viewer": {"id": "1", "entity": "team", "username": "person", "flags": "{}"}}}
        if name == "ProbeRunInput":
            return {"data": {"RunType": {"fields": [{"name": "projectId"}]}}}
        if name in ("ServerFeaturesQuery", "ServerInfo"):
            return {"data": {"serverInfo": {"features": [], "cliVersionInfo": {"max_cli_version": "0.31.0"}}}}
        runs = self.projects.get(f"{variables['entity']}/{variables['project']}")
        if runs is None:
            return {"data": {"project": None}}
        if name == "Runs":
            return {"data": {"project": self._page(runs, variables)}}
        wanted = variables.get("name") or variables.get("run") or variables.get("runName")
        run = next((run for run in runs if run.id == wanted), None)
        return {"data": {"project": {"run": None if run is None else self._run(name, run, variables)}}}

    def _page(self, runs: Sequence[RecordedRun], variables: Mapping[str, Any]) -> dict[str, Any]:
        filters = json.loads(variables.get("filters") or "{}")
        passing = [run for run in sorted(runs, key=lambda run: run.created_at) if matches(run, filters)]
        start = int(variables.get("cursor") or 0)
        some = passing[start : start + variables["perPage"]]
        end = start + len(some)
        return {
            "internalId": "17",
            "runCount": len(passing),
            "readOnly": True,
            "runs": {
                "edges": [{"node": run.node(), "cursor": str(start + place + 1)} for place, run in enumerate(some)],
                "pageInfo": {"endCursor": str(end) if some else None, "hasNextPage": end < len(passing)},
            },
        }

    def _run(self, name: str, run: RecordedRun, variables: Mapping[str, Any]) -> dict[str, Any]:
        if name == "RunParquetHistory":
            return {"parquetHistory": {"parquetUrls": [], "liveData": []}}
        if name == "HistoryPage":
            low, high = variables["minStep"], variables["maxStep"]
            return {"history": sampled([r for r in run.rows if low <= r["_step"] < high], variables["pageSize"])}
        if name == "RunFullHistory":
            return {"history": sampled(run.rows, variables["samples"])}
        return run.node()


def sampled(rows: Sequence[Mapping[str, Any]], most: int) -> list[str]:
    if len(rows) > most:
        rows = [rows[place * len(rows) // most] for place in range(most)]
    return [json.dumps(row) for row in rows]


def matches(run: RecordedRun, filters: Mapping[str, Any]) -> bool:
    """MongoDB's words, as far as the tests use them."""
    for name, wanted in filters.items():
        if name in ("$and", "$or"):
            if not {"$and": all, "$or": any}[name](matches(run, part) for part in wanted):
                return False
            continue
        if name.startswith("config."):
            value = run.config.get(name.removeprefix("config.").removesuffix(".value"))
        else:
            value = {"state": run.state, "name": run.id, "displayName": run.name, "group": run.group}[name]
        if value != wanted:
            return False
    return True


@contextmanager
def wandb_server(**projects: list[RecordedRun]) -> Iterator[WandbServer]:
    """A server on a free port with the projects of entity `team`."""
    served = WandbServer(projects={f"team/{name}": runs for name, runs in projects.items()})
    wanted = "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if served.refusals:
                status, headers = served.refusals.pop(0)
                self._send(status, {"error": "not now"}, headers)
            elif self.headers.get("Authorization") != wanted:
                self._send(401, {"errors": [{"message": "user is not logged in"}]}, {})
            elif self.path != "/graphql":
                self._send(404, {"error": "not found"}, {})
            else:
                asked = json.loads(body)
                self._send(200, served.answer(asked["query"], asked.get("variables") or {}), {})

        def _send(self, status: int, answer: Any, headers: Mapping[str, str]) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(content)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
