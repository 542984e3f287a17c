"""The gate before every route: is the request meant for this service, does it come from a page that may send it, and whose
key is it. A request is refused here before its body is read.

Keys. On loopback none is needed, and whoever needs none may do everything: the machine's own users are the service's. A key
is needed beyond loopback, with `--require-key`, with `--allowed-host` (whoever names other hosts lets other machines in), and
for every request that a proxy says it forwarded: behind a proxy on this machine all the world comes from 127.0.0.1. A proxy
that adds no such header (nginx by itself) cannot be told from a local user: that takes `--require-key`. A key that is sent is
always checked.

Browsers. A page of another site can make a visitor's browser send requests to a loopback service: through a name that points
here (refused by its Host), or as a form without asking first (refused by its Origin, and by a content type no form has).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

import structlog
from fastapi import Depends, FastAPI, Request
from sqlalchemy.exc import InterfaceError, OperationalError
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from app.api.bodies import check_repeats
from app.api.problems import Problem, database_problem, problem_response, responses
from app.api.scopes import SCOPE_OF_ROUTE, Need, needed_for
from app.settings import LOOPBACK_HOSTS, Settings
from app.store import keys as key_store
from app.store.database import Database
from app.store.keys import Scope
from app.store.tables import LOCAL

log = structlog.get_logger()

# What proxies add to what they forward.
FORWARDED_HEADERS = (
    "forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip",
)  # fmt: skip
_CHANGING_METHODS = ("POST", "PUT", "PATCH", "DELETE")
_REALM = 'Bearer realm="growthlaw"'


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks: `id` is a key's, or `LOCAL` without one."""

    id: str
    name: str
    scope: Scope

    def check_may_touch(self, owner: str, what: str) -> None:
        """What one key launched is touched by that key and by admins.

        Raises:
            Problem: it is another's.
        """
        if owner != self.id and not key_store.includes(self.scope, "admin"):
            launched = "without a key" if owner == LOCAL else f"with another key ({owner})"
            raise Problem(
                403,
                f"{what} was launched {launched}, so it takes that key or scope admin; "
                f"key {self.name!r} has scope {self.scope}",
                headers={"WWW-Authenticate": f'{_REALM}, error="insufficient_scope", scope="admin"'},
            )

    def own(self, idempotency_key: str) -> str:
        """An Idempotency-Key as it is stored: two callers may choose the same one."""
        return idempotency_key if self.id == LOCAL else f"{self.id}:{idempotency_key}"


_LOCAL_CALLER = Caller(id=LOCAL, name=LOCAL, scope="admin")
_ANYONE = Caller(id="", name="", scope="read")


def get_caller(request: Request) -> Caller:
    caller = request.state.caller
    assert isinstance(caller, Caller)
    return caller


CallerDep = Annotated[Caller, Depends(get_caller)]


class Gate:
    """ASGI middleware: puts the `Caller` into the request's state, or answers with a problem."""

    def __init__(self, app: ASGIApp, *, settings: Settings, database: Database) -> None:
        self.app, self._database = app, database
        self._needs_key = settings.needs_key
        self._hosts = (*LOOPBACK_HOSTS, settings.host, *settings.allowed_hosts)
        self._origins = settings.cors_origins

    async def __call__(self, connection: Connection, receive: Receive, send: Send) -> None:
        if connection["type"] == "lifespan":
            await self.app(connection, receive, send)
            return
        if connection["type"] != "http":  # there are no websockets here, and none gets past
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(connection)
        try:
            self._check_host(request)
            if request.method in _CHANGING_METHODS:
                self._check_origin(request)
                _check_content_type(request)
            caller = await self._caller(request)
            check_repeats(request)
        except Problem as problem:
            log.warning("refused", status=problem.status, method=request.method, path=request.url.path)
            await problem_response(problem)(connection, receive, send)
            return
        connection.setdefault("state", {})["caller"] = caller
        await self.app(connection, receive, send)

    def _check_host(self, request: Request) -> None:
        given = request.headers.get("host", "")
        try:
            host = urlsplit(f"//{given}").hostname or ""
        except ValueError:
            host = ""
        for allowed in self._hosts:
            if allowed in ("*", host) or (allowed.startswith("*.") and host.endswith(allowed[1:])):
                return
        raise Problem(
            400,
            f"the request names the host {given[:100]!r}, and this service answers to {', '.join(dict.fromkeys(self._hosts))}; "
            "use one of these, or start it with --allowed-host for the name that others know it by",
        )

    def _check_origin(self, request: Request) -> None:
        # Browsers send an Origin with every request of this kind, programs send none; the newer header is a second witness.
        origin = request.headers.get("origin")
        if origin is None:
            if request.headers.get("sec-fetch-site") in (None, "same-origin", "none"):
                return
        elif origin in self._origins or origin.partition("://")[2] == request.headers.get("host"):
            return
        raise Problem(
            403,
            f"a page of {(origin or 'another site')[:100]!r} may not change anything here; for a dashboard of your own start "
            "the service with --cors-origin and that origin, and have a proxy hand on the Host it was asked for",
        )

    async def _caller(self, request: Request) -> Caller:
        # The path as the router takes it: decoded.
        need = needed_for(request.method, request.scope["path"])
        sent = request.headers.get("authorization")
        if need == "open":
            return _ANYONE
        if sent is None:
            if self._needs_key:
                raise _unauthorized("this service needs a key; send it as `Authorization: Bearer glk_...`")
            if forwarded := [name for name in FORWARDED_HEADERS if name in request.headers]:
                raise _unauthorized(
                    f"a proxy forwarded this request (header {forwarded[0]}), so it needs a key; send it as "
                    "`Authorization: Bearer glk_...`"
                )
            return _LOCAL_CALLER
        caller = await run_in_threadpool(self._caller_with, sent)
        if need is not None and not key_store.includes(caller.scope, need):
            raise Problem(
                403,
                f"{request.method} {request.url.path} takes scope {need}, and key {caller.name!r} has scope {caller.scope}; "
                "use another key, or have an admin make one",
                headers={"WWW-Authenticate": f'{_REALM}, error="insufficient_scope", scope="{need}"'},
            )
        return caller

    def _caller_with(self, sent: str) -> Caller:
        kind, _, token = sent.partition(" ")
        try:
            with self._database.read() as session:
                key = key_store.key_of_token(session, token.strip()) if kind.lower() == "bearer" else None
        except (OperationalError, InterfaceError) as error:
            raise database_problem(error) from None
        if key is None:
            raise _unauthorized(
                "the key that was sent is none, or was revoked; ask an admin for one", ', error="invalid_token"'
            )
        return Caller(id=key.id, name=key.name, scope=key.scope)  # type: ignore[arg-type]


def _check_content_type(request: Request) -> None:
    """JSON must say so: a form that a page sends without asking may hold any text, but not under this name."""
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    if has_body and not is_json and kind != "multipart/form-data":
        raise Problem(
            415,
            f"the body's Content-Type is {kind[:100]!r}; send JSON as application/json, files as multipart/form-data",
        )


def _unauthorized(detail: str, error: str = "") -> Problem:
    return Problem(401, detail, headers={"WWW-Authenticate": _REALM + error})


def install(app: FastAPI, settings: Settings, database: Database) -> None:
    """Put the gate before `app`, let the listed origins read its answers, and say in its OpenAPI what each route needs."""
    app.add_middleware(Gate, settings=settings, database=database)
    if settings.cors_origins:
        # Keys travel in a header that pages set themselves: no browser credentials are let through.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
            expose_headers=["Retry-After", "WWW-Authenticate", "X-Request-ID"],
        )
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _describe(described(), needs_key=settings.needs_key)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _describe(schema: dict[str, Any], *, needs_key: bool) -> None:
    schema.setdefault("components", {})["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "glk_...",
            "description": "made by `growthlaw keys create`; scopes read, plan, grow, admin, each including those before it; "
            "on loopback none is needed unless the service says so",
        }
    }
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            need: Need = SCOPE_OF_ROUTE[f"{method.upper()} {path}"]
            operation["description"] = f"{operation.get('description', '')}\n\n{_told(need)}".strip()
            operation["security"] = [] if need == "open" else [{"key": [need]}] + ([] if needs_key else [{}])
            refusals = responses(*((400,) if need == "open" else (400, 401, 403)))
            if method in ("post", "put", "patch"):
                refusals |= responses(415)
            operation["responses"] |= {str(status): entry for status, entry in refusals.items()}


def _told(need: Need) -> str:
    return "Open: no key is needed." if need == "open" else f"Scope: `{need}`."
