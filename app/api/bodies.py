"""What requests may hold: no field that is not known, each value of the JSON type that the schema names, each parameter once.

pydantic by itself takes true for 1 and "3.2" for 3.2. A trainer that pushes `"value": false` would have a loss of 0 nats.
"""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationInfo, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import PydanticCustomError

from app.api.problems import Problem

_JSON_TYPES: dict[Any, tuple[type, ...]] = {
    bool: (bool,), int: (int, float), float: (int, float), str: (str,), NoneType: (NoneType,),
}  # fmt: skip


class RequestBody(BaseModel):
    """The base of request bodies and of their parts."""

    model_config = ConfigDict(extra="forbid")

    @field_validator("*", mode="wrap")
    @classmethod
    def _of_its_json_type(cls, value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        valid = validate(value)  # what pydantic refuses by itself, it says best
        if not _fits(value, cls.model_fields[info.field_name].annotation):
            raise PydanticCustomError(
                "json_type", "its JSON type is not the schema's; send it as GET /openapi.json says"
            )
        return valid


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a JSON value is of a type that the annotation allows; what is no plain type is for pydantic to judge."""
    if annotation in _JSON_TYPES:
        is_number = annotation in (int, float)
        return isinstance(value, _JSON_TYPES[annotation]) and not (is_number and isinstance(value, bool))
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _fits(value, arguments[0])
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in arguments)
    if origin is list:
        return not isinstance(value, list) or all(_fits(item, arguments[0]) for item in value)
    if origin is tuple:
        return not isinstance(value, list) or all(_fits(item, one) for item, one in zip(value, arguments, strict=False))
    if origin is dict:
        return not isinstance(value, dict) or all(_fits(item, arguments[1]) for item in value.values())
    return True


async def refuse_repeats(request: Request) -> None:
    """Refuse a query parameter that stands twice where one value is meant: which of them counts would be a guess.

    Raises:
        Problem: naming it.
    """
    names = [name for name, _ in request.query_params.multi_items()]
    if len(names) == len(set(names)):
        return
    told = request.app.openapi()["paths"][request.scope["route"].path][request.method.lower()].get("parameters", [])
    lists = {one["name"] for one in told if "array" in {kind.get("type") for kind in _kinds(one["schema"])}}
    for name in names:
        if names.count(name) > 1 and name not in lists:
            raise Problem.field(f"query:{name}", f"{name} is given {names.count(name)} times; give it once")


def _kinds(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [schema, *schema.get("anyOf", [])]
