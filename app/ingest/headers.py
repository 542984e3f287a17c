"""The header of a run from elsewhere: what its models say, what was stated, and what its cohort shares."""

from __future__ import annotations

import math
from typing import Any

from app.ingest.imported import STATED_COLUMNS, ImportOptions
from app.ingest.shapes import Model, model_of
from fitting.errors import InputError
from fitting.table import COLUMNS, SHAPE_COLUMNS

_SHAPE_FIELDS = {"num_target_layers": "num_layers"} | {
    name: name for name in SHAPE_COLUMNS if name != "num_target_layers"
}

_SEEDS = ("init_seed", "data_seed")


def target_model(options: ImportOptions) -> Model:
    """The target, or the only model of a run that was not grown."""
    model = model_of(options.config, options.target_params, context_length=options.context_length, field="config")
    if model is None:
        raise InputError(
            "config", "is missing, and no FLOPs are known without a model",
            "give the target's transformers config.json, or target_params (non-embedding parameters)",
        )  # fmt: skip
    return model


def base_model_of(options: ImportOptions) -> Model:
    """The base of a growth."""
    config = options.base_config
    if options.base_layers is not None:
        if config is not None or options.config is None:
            raise InputError("base_layers", "goes with the target's config alone", "leave it out")
        config = {**options.config, "num_hidden_layers": options.base_layers}
    model = model_of(config, options.base_params, context_length=options.context_length, field="base_config")
    if model is None:
        raise InputError(
            "base_config", "is missing, and the base's FLOPs are not known without it",
            "give the base's config.json, base_layers (the target with fewer layers), or base_params",
        )  # fmt: skip
    return model


def base_columns(model: Model, base: Model) -> dict[str, Any]:
    """The columns of the run table that a base fills."""
    if base.params >= model.params:
        raise InputError(
            "base_config", f"has {base.params:,.0f} parameters, the target {model.params:,.0f}", "give the smaller base"
        )
    factor = model.params / base.params
    layers = None
    if model.shape is not None and base.shape is not None:
        layers = base.shape.num_layers
        # Depth counts in layers, width in parameters.
        if model.shape.hidden_size == base.shape.hidden_size and layers < model.shape.num_layers:
            factor = model.shape.num_layers / layers
    return {
        "base_params": float(base.params),
        "num_base_layers": layers,
        "growth_factor": factor,
        "base_flops_per_token": None if base.shape is None else base.flops_per_token,
    }


def recipe_of(options: ImportOptions, model: Model) -> dict[str, Any]:
    """What all runs of the cohort share: what was stated, and of the model what a size leaves open."""
    recipe: dict[str, Any] = {
        "corpus": options.corpus,
        "tokenizer": options.tokenizer,
        "family": model.family,
        "vocab_size": None if model.shape is None else model.shape.vocab_size,
        "context_length": options.context_length if model.shape is None else model.shape.context_length,
        "optimizer": options.stated.get("optimizer"),
        "schedule": options.stated.get("schedule"),
    }
    return recipe | dict(options.recipe)


def check_stated(options: ImportOptions) -> None:
    for name, value in options.stated.items():
        if name not in STATED_COLUMNS:
            raise InputError(name, "is no column that an import may state", f"use {', '.join(STATED_COLUMNS)}")
        if value is None:
            continue
        if COLUMNS[name] == "number":
            fine = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            fine = fine and (name not in _SEEDS or (isinstance(value, int) and abs(value) < 2**31))
        else:
            fine = isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()
        if not fine:
            raise InputError(
                name, f"is {str(value)[:40]!r}", "give a finite number" if COLUMNS[name] == "number" else "give a text"
            )


def header_of(options: ImportOptions, model: Model, base: Model | None) -> dict[str, Any]:
    """Every column of the run table but id, source and date; what only points can tell is empty, and tokens are 0."""
    header: dict[str, Any] = {name: None for name in COLUMNS if name not in ("run_id", "source", "created_at")}
    header |= {
        "cohort": options.cohort,
        "name": options.name,
        "status": "running",
        "target_params": float(model.params),
        "growth_factor": 1.0,
        "growth_timing_tokens": 0.0,
        "grown_tokens": 0.0,
        "is_final": False,
        "tokenizer": options.tokenizer,
        "corpus": options.corpus,
        "target_flops_per_token": None if model.shape is None else model.flops_per_token,
    }
    if model.shape is not None:
        header |= {ours: getattr(model.shape, theirs) for ours, theirs in _SHAPE_FIELDS.items()}
    if base is not None:
        header |= base_columns(model, base)
    return header | {name: value for name, value in options.stated.items() if value is not None}
