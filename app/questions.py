"""A question as JSON, the body of `POST /recommend`, into the fields that `fitting.recommendation.question_of` takes.

The service and the command without a service read the same fields here: a transformers configuration stands for a shape,
and a base that exists is known by its configuration, its checkpoint's, or its size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from app.ingest.shapes import shape_of
from fitting.errors import InputError
from fitting.flops import Shape
from fitting.recommendation import ExistingBase
from fitting.recommendation.request import NOT_YET

# What a config.json of a mixture of experts holds, whatever its family calls them.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_BASES = ("config", "checkpoint", "params")

ReadConfig = Callable[[str], Mapping[str, Any]]


def no_checkpoints(checkpoint: str) -> Mapping[str, Any]:
    """Where no checkpoint can be named."""
    raise InputError("existing_base.checkpoint", f"is {checkpoint!r}, but none can be read here", "give its config")


def question_fields(given: Mapping[str, Any], read_config: ReadConfig = no_checkpoints) -> dict[str, Any]:
    """Fields of a question, shapes and bases made of them.

    Args:
        given: plain JSON values; what is None counts as left out.
        read_config: the config.json of a checkpoint that a question names.

    Raises:
        InputError: names the field, the limit and the mend.
    """
    fields = {name: value for name, value in given.items() if value is not None}
    context_length = fields.pop("context_length", None)
    config, shape, base = (fields.pop(name, None) for name in ("target_config", "target_shape", "existing_base"))
    if config is not None and shape is not None:
        raise InputError("target_config", "stands beside target_shape", "give one of them")
    if config is not None:
        fields["target_shape"] = config_shape(config, context_length, "target_config")
    elif shape is not None:
        fields["target_shape"] = _shape(shape)
    if base is not None:
        fields["existing_base"] = _existing_base(base, context_length, read_config)
        _target_of_the_base(fields)
    elif context_length is not None and config is None:
        raise InputError("context_length", "is given without target_config, which it goes with", "leave it out")
    if "growth_factors" in fields:
        fields["growth_factors"] = tuple(fields["growth_factors"])
    return fields


def config_shape(config: Mapping[str, Any], context_length: int | None, field: str) -> Shape:
    """The shape that a transformers configuration describes.

    Raises:
        InputError: it is of no dense decoder that is known, or lacks a size.
    """
    if any(name in config for name in _EXPERTS):
        raise InputError(
            field, f"has model_type {str(config.get('model_type'))[:40]!r} with experts: {NOT_YET['num_experts']}, which no "
            "guideline can honour yet", "ask about a dense target",
        )  # fmt: skip
    shape = shape_of(config, context_length, field)
    _check_heads(shape, field)
    return shape


def _shape(given: Mapping[str, Any]) -> Shape:
    values = {name: value for name, value in given.items() if value is not None}
    shape = Shape(**{"num_kv_heads": values["num_heads"], **values})
    _check_heads(shape, "target_shape")
    return shape


def _check_heads(shape: Shape, field: str) -> None:
    checks = [("num_heads", shape.num_kv_heads, shape.num_heads, "num_kv_heads")]
    if shape.own_head_size is None:
        checks.append(("hidden_size", shape.num_heads, shape.hidden_size, "num_heads"))
    for name, divisor, whole, other in checks:
        if whole % divisor:
            raise InputError(
                field if field.endswith("config") else f"{field}.{name}",
                f"has {name} {whole}, but its {other} need a multiple of {divisor}", "use one",
            )  # fmt: skip


def _existing_base(given: Mapping[str, Any], context_length: int | None, read_config: ReadConfig) -> ExistingBase:
    named = [name for name in _BASES if given.get(name) is not None]
    if len(named) != 1:
        raise InputError(
            "existing_base." + (named[1] if named else "config"),
            f"stands beside {named[0]}" if named else "is missing", f"give exactly one of {', '.join(_BASES)}",
        )  # fmt: skip
    if named == ["params"]:
        return ExistingBase(tokens=given["tokens"], params=given["params"], num_layers=given.get("num_layers"))
    if given.get("num_layers") is not None:
        raise InputError("existing_base.num_layers", "goes with params", f"leave it out: {named[0]} says it")
    field = f"existing_base.{named[0]}"
    config = given["config"] if named == ["config"] else read_config(given["checkpoint"])
    return ExistingBase(tokens=given["tokens"], shape=config_shape(config, context_length, field))


def _target_of_the_base(fields: dict[str, Any]) -> None:
    """A target that is the existing base with more layers, where only those were named."""
    shape, layers = fields["existing_base"].shape, fields.get("num_target_layers")
    if shape is not None and layers is not None and not fields.keys() & {"target_shape", "target_params"}:
        fields["target_shape"] = shape.with_layers(layers)
