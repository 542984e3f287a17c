"""The OpenAPI document: what every route shares, and examples that are real answers.

`examples.json` holds answers of a real service, long lists cut short; `tests/api/record_examples.py` writes it anew.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from fastapi import FastAPI

from app.api.problems import responses

_METHODS = ("get", "post", "patch", "delete", "put")


def install(app: FastAPI) -> None:
    """Complete the document that FastAPI makes of the routes, once, when it is first asked for."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            completed(plain())
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def completed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the problems that every route may answer, and with examples."""
    examples = read_examples()
    for path, item in document["paths"].items():
        for method in _METHODS:
            if (operation := item.get(method)) is not None:
                _add_problems(operation)
                _add_examples(operation, examples.get(f"{method.upper()} {path}", {}))
    return document


def read_examples() -> dict[str, dict[str, Any]]:
    """ "METHOD /path" -> {"request": a body, "response": an answer, "problem": a problem}, each where there is one."""
    found: dict[str, dict[str, Any]] = json.loads((files("app.api") / "examples.json").read_text(encoding="utf-8"))
    return found


def _add_problems(operation: dict[str, Any]) -> None:
    statuses = [503]
    if "requestBody" in operation:
        statuses += [400, 413, 415, 422]
    elif operation.get("parameters"):
        statuses.append(422)
    for status, entry in responses(*statuses).items():
        operation["responses"][str(status)] = entry
    operation["responses"] = dict(sorted(operation["responses"].items()))


def _add_examples(operation: dict[str, Any], known: dict[str, Any]) -> None:
    if "request" in known:
        operation["requestBody"]["content"]["application/json"]["example"] = known["request"]
    for status, entry in operation["responses"].items():
        content = entry.get("content", {})
        if "response" in known and status.startswith("2") and "application/json" in content:
            content["application/json"]["example"] = known["response"]
        if "problem" in known and str(known["problem"]["status"]) == status:
            content["application/problem+json"] = {
                **content["application/problem+json"], "example": known["problem"],
            }  # fmt: skip
