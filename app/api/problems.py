"""Errors as `application/problem+json` (RFC 9457): what was wrong, where (a JSON pointer), what to do."""

from __future__ import annotations

import errno
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
    """The body of every error."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldError] = []


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
    """OpenAPI entries of the errors a route may answer."""
    content = {MEDIA_TYPE: {"schema": ProblemBody.model_json_schema()}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def _response(status: int, detail: str, errors: Sequence[FieldError] = ()) -> JSONResponse:
    body = ProblemBody(title=HTTPStatus(status).phrase, status=status, detail=detail, errors=list(errors))
    return JSONResponse(body.model_dump(), status_code=status, media_type=MEDIA_TYPE)


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


def _validation_errors(error: RequestValidationError) -> list[FieldError]:
    found = []
    for entry in error.errors():
        name = entry["loc"][-1]
        if entry["type"] == "json_invalid":
            found.append(
                FieldError(pointer="", detail=f"the body is not JSON: {entry['ctx']['error']}; send a JSON object")
            )
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


def install(app: FastAPI) -> None:
    """Answer every error of `app` as a problem."""

    @app.exception_handler(Problem)
    def on_problem(request: Request, error: Problem) -> JSONResponse:
        return problem_response(error)

    @app.exception_handler(InputError)
    def on_input_error(request: Request, error: InputError) -> JSONResponse:
        return _response(422, str(error), [FieldError(pointer="/" + error.field.replace(".", "/"), detail=str(error))])

    @app.exception_handler(RequestValidationError)
    def on_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = _validation_errors(error)
        return _response(422, "; ".join(f"{e.pointer or 'body'}: {e.detail}" for e in errors), errors)

    @app.exception_handler(HTTPException)
    def on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
        detail = error.detail
        if error.status_code == 404:
            detail = f"there is nothing at {request.url.path}; see /openapi.json for what there is"
        if error.status_code == 405:
            detail = f"{request.method} is not offered at {request.url.path}; see /openapi.json for what is"
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
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _response(507, "no space is left in the data directory; free some and try again")
        return _response(500, "a file could not be read or written; the service's log says which")

    @app.exception_handler(Exception)
    def on_bug(request: Request, error: Exception) -> JSONResponse:
        # The traceback is logged by the server, which raises the error again behind this answer.
        return _response(500, "the service failed to answer; its log says why")
