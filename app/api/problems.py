"""Errors as `application/problem+json` (RFC 9457): what was wrong, where (a JSON pointer), what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import InterfaceError, OperationalError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.contract import NO_SPACE_ERRNOS
from app.observe.requests import REQUEST_ID_HEADER, current_request_id
from fitting.errors import InputError
from fitting.recommendation.request import NOT_YET

log = structlog.get_logger()

# Characters of a wrong value that an error repeats.
LONGEST_ECHO = 100
MEDIA_TYPE = "application/problem+json"


class FieldError(BaseModel):
    """One wrong field: `pointer` is its place in the body (RFC 6901) or `query:name`, `path:name`."""

    pointer: str
    detail: str


class ProblemBody(BaseModel):
    """The body of every error; `request_id` finds it in the service's log."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldError] = []
    request_id: str | None = None


class Problem(Exception):
    """Raised by routes; becomes the response."""

    def __init__(
        self, status: int, detail: str, errors: Sequence[FieldError] = (), *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, list(errors), dict(headers or {})

    @classmethod
    def field(cls, pointer: str, detail: str, status: int = 422) -> Problem:
        return cls(status, detail, [FieldError(pointer=pointer, detail=detail)])

    @classmethod
    def not_found(cls, what: str, name: str) -> Problem:
        return cls(404, f"there is no {what} {name!r}; list them to see which there are")


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of the problems that are a route's own; `app.api.document` adds those that every route has."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def _body(status: int, detail: str, errors: Sequence[FieldError] = ()) -> ProblemBody:
    return ProblemBody(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        errors=list(errors),
        request_id=current_request_id(),
    )


def _response(status: int, detail: str, errors: Sequence[FieldError] = ()) -> JSONResponse:
    return _answer(_body(status, detail, errors))


def _answer(body: ProblemBody) -> JSONResponse:
    # A bug is answered outside of the middleware that gives every other answer its id.
    headers = {REQUEST_ID_HEADER: body.request_id} if body.request_id else None
    return JSONResponse(body.model_dump(), status_code=body.status, media_type=MEDIA_TYPE, headers=headers)


def problem_of(error: InputError | RequestValidationError, *, in_query: bool = False) -> ProblemBody:
    """What a request's own mistake is told as; `in_query` where its fields came as query parameters."""
    if isinstance(error, InputError):
        pointer = f"query:{error.field}" if in_query else "/" + error.field.replace(".", "/")
        return _body(422, str(error), [FieldError(pointer=pointer, detail=str(error))])
    errors = _validation_errors(error)
    return _body(422, "; ".join(f"{e.pointer or 'body'}: {e.detail}" for e in errors), errors)


def problem_response(problem: Problem) -> JSONResponse:
    """The answer to a request that a problem ended."""
    response = _response(problem.status, problem.detail, problem.errors)
    response.headers.update(problem.headers)
    return response


def database_problem(error: OperationalError | InterfaceError) -> Problem:
    log.error("database_trouble", error=str(error.orig))
    return Problem(503, f"the database did not answer ({error.orig}); nothing was changed, try again")


def _pointer(location: Sequence[str | int]) -> str:
    where, *parts = location
    if where == "body":
        return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in parts)
    return f"{where}:{'.'.join(map(str, parts))}"


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _validation_errors(error: RequestValidationError) -> list[FieldError]:
    found = []
    for entry in error.errors():
        name = entry["loc"][-1]
        if entry["type"] == "json_invalid":
            found.append(
                FieldError(pointer="", detail=f"the body is not JSON: {entry['ctx']['error']}; send a JSON object")
            )
        elif entry["type"] == "missing" and tuple(entry["loc"]) == ("body",):
            found.append(FieldError(pointer="", detail="the body is missing; send a JSON object"))
        elif entry["type"] == "extra_forbidden":
            detail = "this field is not known; remove it or mend its name (the fields are in /openapi.json)"
            if name in NOT_YET:
                detail = f"{name} asks for {NOT_YET[str(name)]}, which no guideline can honour yet; leave it out"
            found.append(FieldError(pointer=_pointer(entry["loc"]), detail=detail))
        elif entry["type"] == "missing":
            found.append(FieldError(pointer=_pointer(entry["loc"]), detail=f"{name} is required; give it"))
        else:
            given = repr(entry["input"])
            given = given if len(given) <= LONGEST_ECHO else given[:LONGEST_ECHO] + "..."
            limit = entry["msg"].removeprefix("Value error, ")
            found.append(FieldError(pointer=_pointer(entry["loc"]), detail=f"{name} is {given}: {limit}"))
    return found


# What the framework answers by itself, before any route or handler is asked.
_PLAIN_DETAILS = {
    400: "the Host header names no host of this service; use the address that it listens on",
    413: "the body is larger than this route takes; send less at a time",
}


class PlainErrorsAsProblems:
    """ASGI middleware: errors that come as plain text, from layers around the routes, leave as problems."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        replaced = False

        async def send_problem(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and message["status"] >= 400:
                headers = dict(message["headers"])
                if headers.get(b"content-type", b"text/plain").startswith(b"text/plain"):
                    replaced = True
                    detail = _PLAIN_DETAILS.get(message["status"], "the service's log says why")
                    await _response(message["status"], detail)(scope, receive, send)
            if not replaced:
                await send(message)

        await self._app(scope, receive, send_problem if scope["type"] == "http" else send)


def install(app: FastAPI) -> None:
    """Answer every error of `app` as a problem."""
    app.add_middleware(PlainErrorsAsProblems)

    @app.exception_handler(Problem)
    def on_problem(request: Request, error: Problem) -> JSONResponse:
        return problem_response(error)

    @app.exception_handler(InputError)
    def on_input_error(request: Request, error: InputError) -> JSONResponse:
        return _answer(problem_of(error, in_query=request.method == "GET"))

    @app.exception_handler(RequestValidationError)
    def on_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        kind = request.headers.get("content-type", "")
        of_body = [entry for entry in error.errors() if tuple(entry["loc"]) == ("body",)]
        if not _is_json(kind) and any(entry["type"] != "missing" for entry in of_body):
            came = f"came as {kind[:LONGEST_ECHO]!r}" if kind else "has no content type"
            return _response(415, f"the body {came}; send JSON, as application/json")
        return _answer(problem_of(error))

    @app.exception_handler(HTTPException)
    def on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
        detail, path = error.detail, request.url.path[:LONGEST_ECHO]
        if error.status_code == 404:
            detail = f"there is nothing at {path}; see /openapi.json for what there is"
        if error.status_code == 405:
            detail = f"{request.method[:LONGEST_ECHO]} is not offered at {path}; see /openapi.json for what is"
        if error.status_code == 413:
            detail = "the body is larger than this route takes; send less at a time"
        if error.status_code == 400:
            # Only a body that no JSON reader takes gets here: bytes that are no text, or thousands of brackets.
            detail = "the body cannot be read as JSON (no UTF-8, or nested too deeply); send a plain JSON object"
        response = _response(error.status_code, detail)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(InterfaceError)
    @app.exception_handler(OperationalError)
    def on_database_trouble(request: Request, error: OperationalError | InterfaceError) -> JSONResponse:
        return problem_response(database_problem(error))

    @app.exception_handler(OSError)
    def on_disk_trouble(request: Request, error: OSError) -> JSONResponse:
        log.error("disk_trouble", path=request.url.path, error=str(error))
        if error.errno in NO_SPACE_ERRNOS:
            return _response(507, "no space is left in the data directory; free some and try again")
        return _response(500, "a file could not be read or written; the service's log says which")

    @app.exception_handler(Exception)
    def on_bug(request: Request, error: Exception) -> JSONResponse:
        # The traceback is logged by the server, which raises the error again behind this answer.
        return _response(500, "the service failed to answer; its log says why")
