"""Frozen dataclasses as JSON files: read strictly, written whole.

Reading names the field that is unknown, missing or of the wrong type. Writing goes beside, is synced and renamed, so that a
reader sees the old file or the whole new one. Standard library only: service and engine share it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def to_dict(record: Any) -> dict[str, Any]:
    """A contract dataclass as plain JSON values."""
    return dataclasses.asdict(record)


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """A contract dataclass from JSON values.

    Raises:
        ValueError: a field is unknown, missing or of the wrong type; the message names it.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where or cls.__name__} is {values!r}, but it must be an object with named fields")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    for name in values:
        if name not in fields:
            raise ValueError(f"{prefix}{name} is not a field of {cls.__name__}; known: {', '.join(fields)}")
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise ValueError(f"{prefix}{name} is missing; give a value of type {field.type}")
    return cls(**{name: _convert(hints[name], value, prefix + name) for name, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None and type(None) in hint.__args__:
            return None
        (hint,) = [arg for arg in hint.__args__ if arg is not type(None)]
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where} is {value!r}, but it must be a list")
        return tuple(_convert(hint.__args__[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if typing.get_origin(hint) is Literal:
        if not isinstance(value, str) or value not in hint.__args__:
            raise ValueError(f"{where} is {value!r}, but it must be one of {', '.join(map(repr, hint.__args__))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ValueError(f"{where} is {value!r}, but it must be of type {hint.__name__}")
    return value


def write_json_atomically(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON as :func:`write_text_atomically` does."""
    write_text_atomically(path, json.dumps(values, indent=1, allow_nan=False) + "\n")


def write_text_atomically(path: Path, text: str) -> None:
    """Write beside, fsync, rename: a reader sees the old file or the whole new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def fsync_dir(path: Path) -> None:
    """Make a rename inside ``path`` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; the service writes it before it starts the engine") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); write it again") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold one JSON object")
    return typing.cast(Mapping[str, Any], values)
