"""Which scope a request needs: the one place that says it, for every route.

| scope | may |
|---|---|
| `read` | see jobs, runs, guidelines, corpora, workers, logs |
| `plan` | also ask what costs the service a calculation: recommendations, surfaces, next runs |
| `grow` | also start jobs and touch its own, bring runs in, have guidelines fitted |
| `admin` | also touch others' jobs, change what answers everybody (activate, correct, delete), keys, the audit log |

A higher scope includes the lower ones, so a key has one scope and nobody has to reason about sets of them. `open` routes need
no key: what probes ask, and pages that hold no data.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal

from starlette.routing import BaseRoute, Mount, compile_path

from app.store.keys import SCOPES, Scope

Need = Scope | Literal["open"]

SCOPE_OF_ROUTE: dict[str, Need] = {
    "GET /": "open",
    "GET /ui": "open",
    "GET /ui/{file:path}": "open",
    "GET /openapi.json": "open",
    "GET /docs": "open",
    "GET /docs/oauth2-redirect": "open",
    "GET /redoc": "open",
    "GET /healthz": "open",
    "GET /readyz": "open",
    "GET /metrics": "read",
    "POST /recommend": "plan",
    "POST /recommend/batch": "plan",
    "GET /surface": "plan",
    "POST /plan": "plan",
    "GET /recommendations": "read",
    "GET /recommendations/{recommendation_id}": "read",
    "POST /grow": "grow",
    "GET /jobs": "read",
    "POST /jobs": "grow",
    "GET /jobs/{job_id}": "read",
    "GET /jobs/{job_id}/events": "read",
    "GET /jobs/{job_id}/logs": "read",
    "GET /jobs/{job_id}/checkpoints": "read",
    "GET /jobs/{job_id}/prediction": "read",
    "POST /jobs/{job_id}/cancel": "grow",
    "POST /jobs/{job_id}/pause": "grow",
    "POST /jobs/{job_id}/resume": "grow",
    "POST /jobs/{job_id}/retry": "grow",
    "POST /jobs/{job_id}/export": "grow",
    "GET /workers": "read",
    "GET /runs": "read",
    "POST /runs": "grow",
    "POST /runs/import": "grow",
    "GET /runs/{run_id}": "read",
    "PATCH /runs/{run_id}": "admin",
    "DELETE /runs/{run_id}": "admin",
    "GET /runs/{run_id}/points": "read",
    "POST /runs/{run_id}/points": "grow",
    "GET /runs/{run_id}/metrics": "read",
    "GET /runs/{run_id}/curve": "read",
    "GET /cohorts": "read",
    "GET /cohorts/{cohort}/refinement": "read",
    "GET /mappings": "read",
    "GET /mappings/{name}": "read",
    "PUT /mappings/{name}": "grow",
    "DELETE /mappings/{name}": "grow",
    "GET /guidelines": "read",
    "POST /guidelines/refit": "grow",
    "GET /guidelines/refits": "read",
    "GET /guidelines/refits/{refit_id}": "read",
    "GET /guidelines/{guideline_id}": "read",
    "GET /guidelines/{guideline_id}/evidence": "plan",
    "GET /guidelines/{guideline_id}/diff/{other_id}": "plan",
    "POST /guidelines/{guideline_id}/activate": "admin",
    "GET /corpora": "read",
    "GET /corpora/{name}": "read",
    "POST /corpora": "grow",
    "GET /keys": "admin",
    "POST /keys": "admin",
    "DELETE /keys/{name_or_id}": "admin",
    "GET /audit": "admin",
}


_COMPILED = [(route.partition(" ")[0], compile_path(route.partition(" ")[2])[0], route) for route in SCOPE_OF_ROUTE]
_RISING: tuple[Need, ...] = ("open", *SCOPES)


@lru_cache(maxsize=4096)
def _routes_for(method: str, path: str) -> tuple[str, ...]:
    """The routes that a request may be for; of several that match, one will answer."""
    method = "GET" if method == "HEAD" else method
    return tuple(route for of, pattern, route in _COMPILED if of == method and pattern.match(path))


def needed_for(method: str, path: str) -> Need | None:
    """What a request needs; None where there is no such route. Of several that match, the most."""
    return max((SCOPE_OF_ROUTE[route] for route in _routes_for(method, path)), key=_RISING.index, default=None)


def paths_for(method: str, path: str) -> list[str]:
    """The path templates that a request may be for."""
    return [route.partition(" ")[2] for route in _routes_for(method, path)]


def check_scopes(routes: Iterable[BaseRoute]) -> None:
    """A route that nobody gave a scope must not be served.

    Raises:
        AssertionError: naming it.
    """
    for method, path in walk(routes):
        route = f"{method} {path}"
        assert route in SCOPE_OF_ROUTE, f"{route} has no scope: give it one in {__name__}"


def walk(routes: Iterable[BaseRoute]) -> Iterable[tuple[str, str]]:
    """(method, path) of routes; a mounted folder or app counts as read, whole."""
    for route in routes:
        path: Any = getattr(route, "path", None)
        if path is not None:
            for method in sorted((getattr(route, "methods", None) or {"GET"}) - {"HEAD"}):
                yield method, path
            if isinstance(route, Mount):
                yield "GET", f"{path}/{{file:path}}"
