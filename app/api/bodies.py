"""What requests may hold: no field that is not known, each value of the JSON type that the schema names, each parameter once.

pydantic by itself takes true for 1 and "3.2" for 3.2. A trainer that pushes `"value": false` would have a loss of 0 nats.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from app.api.problems import Problem
from app.api.scopes import paths_for

Check = Callable[[Any], bool]

_JSON_TYPES: dict[Any, frozenset[type]] = {
    bool: frozenset({bool}), int: frozenset({int, float}), float: frozenset({int, float}), str: frozenset({str}),
    NoneType: frozenset({NoneType}),
}  # fmt: skip
_WRONG_TYPE = PydanticCustomError("json_type", "its JSON type is not the schema's; send it as GET /openapi.json says")


class RequestBody(BaseModel):
    """The base of request bodies and of their parts."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_json_types(cls, given: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        valid = validate(given)  # what pydantic refuses by itself, it says best
        if isinstance(given, dict):
            # A body that takes more than its fields judges the rest by itself.
            known = [(name, check) for name, check in cls._checks().items() if name in given]
            if wrong := [name for name, check in known if not check(given[name])]:
                raise ValidationError.from_exception_data(
                    cls.__name__, [{"type": _WRONG_TYPE, "loc": (name,), "input": given[name]} for name in wrong]
                )
        return valid

    @classmethod
    @cache
    def _checks(cls) -> dict[str, Check]:
        return {name: _check_of(field.annotation) for name, field in cls.model_fields.items()}


def _check_of(annotation: Any) -> Check:
    """Whether a JSON value is of a type that the annotation allows; what is no plain type is for pydantic to judge."""
    if annotation in _JSON_TYPES:
        types = _JSON_TYPES[annotation]
        return lambda value: type(value) in types
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return lambda value: any(value == one and type(value) is type(one) for one in arguments)
    if origin is Annotated:
        return _check_of(arguments[0])
    checks = [_check_of(one) for one in arguments]
    if origin in (Union, UnionType):
        return lambda value: any(check(value) for check in checks)
    if origin is list:
        return lambda value: not isinstance(value, list) or all(map(checks[0], value))
    if origin is tuple:
        return lambda value: (
            not isinstance(value, list) or all(check(item) for check, item in zip(checks, value, strict=False))
        )
    if origin is dict:
        return lambda value: not isinstance(value, dict) or all(map(checks[1], value.values()))
    return lambda value: True


def check_repeats(request: Request) -> None:
    """Refuse a query parameter that stands twice where one value is meant: which of them counts would be a guess.

    Raises:
        Problem: naming it.
    """
    if b"&" not in request.scope["query_string"]:
        return
    names = [name for name, _ in request.query_params.multi_items()]
    if len(names) == len(set(names)):
        return
    documented, method = request.app.openapi()["paths"], request.method.lower()
    paths = [path for path in paths_for(request.method, request.scope["path"]) if path in documented]
    if not paths:  # a page reads its own query
        return
    told = [one for path in paths for one in documented[path].get(method, {}).get("parameters", [])]
    lists = {one["name"] for one in told if "array" in {kind.get("type") for kind in _kinds(one["schema"])}}
    for name in names:
        if names.count(name) > 1 and name not in lists:
            raise Problem.field(f"query:{name}", f"{name} is given {names.count(name)} times; give it once")


def _kinds(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [schema, *schema.get("anyOf", [])]
