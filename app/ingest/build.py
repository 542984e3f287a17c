"""From logs and what a user adds to runs of the canonical table.

    C(points of the base)  = f_base t          C(points of the grown) = f_base d + f_target t

f: training FLOPs a token (`fitting.flops`), t: tokens inside the phase, d: growth timing. What was rolled back stands in
``wasted_flops`` alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from app.ingest.imported import STATED_COLUMNS, ImportedPoint, ImportedRun, ImportFiles, ImportOptions, Phase
from app.ingest.logs.recognise import read_logs
from app.ingest.logs.rows import BITS_PER_BYTE, NATS, Log, LogFile
from app.ingest.shapes import Model, model_of
from app.ingest.stages import Stage, StagePoint, stage_of
from fitting.errors import InputError
from fitting.table import COLUMNS, SHAPE_COLUMNS

# A decision loss measured before this share of a stage's tokens is a mid-schedule one.
LATEST_SHARE = 0.99
_SHAPE_FIELDS = {"num_target_layers": "num_layers"} | {
    name: name for name in SHAPE_COLUMNS if name != "num_target_layers"
}


def build_runs(files: ImportFiles, options: ImportOptions) -> tuple[ImportedRun, ...]:
    """The runs that the files hold: one, or one a row of a sweep's results.

    Raises:
        InputError: a file, an option or the run that they make cannot be used; nothing is half done.
    """
    _check_stated(options)
    if files.base or files.grown:
        if files.single or not (files.base and files.grown):
            raise InputError(
                "files", "of a growth are its base's and its grown stage's", "give --base and --grown alone"
            )
        return (_growth(files, options),)
    logs = read_logs(files.single, options.format)
    if any(option is not None for option in (options.base_config, options.base_params, options.base_layers)):
        raise InputError("base_layers", "or a base's size is given, but no base", "give the base's log as --base")
    return tuple(_single(log, files.single, options) for log in logs)


def _single(log: Log, files: Sequence[LogFile], options: ImportOptions) -> ImportedRun:
    size = log.target_params if options.config is None and options.target_params is None else options.target_params
    model = _model(replace(options, target_params=size))
    if log.name:
        options = replace(options, name=f"{options.name}-{log.name}")
    stage = stage_of(log, options.columns, options.tokens, options.batch_ramp, options.decision_metric)
    points = _points(stage.points, "single", 0, 0.0, model)
    return _run(options, points, model, grown=stage, target_tokens=stage.end_tokens, files=files)


def _growth(files: ImportFiles, options: ImportOptions) -> ImportedRun:
    logs = []
    for given in (files.base, files.grown):
        found = read_logs(given, options.format)
        if len(found) != 1:
            raise InputError("files", "of a growth hold several runs", "give one log a stage")
        logs.append(found[0])
    model, base_model = _model(options), _base_model(options)
    base_tokens = options.tokens if options.base_tokens is None else options.base_tokens
    base = stage_of(logs[0], options.columns, base_tokens, options.batch_ramp, options.decision_metric)
    grown = stage_of(logs[1], options.columns, options.tokens, options.batch_ramp, options.decision_metric)
    timing = base.end_tokens if options.growth_timing_tokens is None else options.growth_timing_tokens
    if timing <= 0:
        raise InputError("growth_timing_tokens", "is 0: the base has seen no tokens", "give the base's own log")
    before = _counted_before(grown, base, timing, options)
    base_flops = timing * base_model.flops_per_token
    points = _points([point for point in base.points if point.tokens <= timing], "base", 0, 0.0, base_model)
    points += _points([point for point in grown.points if point.tokens >= before], "grown", before, base_flops, model)
    return _run(
        options, points, model, grown=grown, target_tokens=grown.end_tokens - before, files=(*files.base, *files.grown),
        base=base, base_model=base_model, timing=timing, before=before,
    )  # fmt: skip


def _counted_before(grown: Stage, base: Stage, timing: int, options: ImportOptions) -> int:
    """Tokens that the grown stage's count holds already when it begins."""
    if options.grown_counts is None and grown.points and grown.points[0].tokens > timing:
        raise InputError(
            "grown_counts", f"is needed: the grown log begins at {grown.points[0].tokens:,} tokens, behind the base's end "
            f"at {timing:,}, so its count may go on from the base's or be its own",
            "say 'run' (it goes on) or 'phase' (it began at 0)",
        )  # fmt: skip
    if options.grown_counts != "run":
        return 0
    if grown.end_tokens <= timing:
        raise InputError(
            "grown_counts", f"is 'run', but the grown log ends at {grown.end_tokens:,} tokens, before the growth at {timing:,}",
            "say 'phase', or give the growth timing",
        )  # fmt: skip
    return timing


def _model(options: ImportOptions) -> Model:
    model = model_of(options.config, options.target_params, context_length=options.context_length, field="config")
    if model is None:
        raise InputError(
            "config", "is missing, and no FLOPs are known without a model",
            "give the target's transformers config.json, or target_params (non-embedding parameters)",
        )  # fmt: skip
    return model


def _base_model(options: ImportOptions) -> Model:
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


def _points(
    stage: Sequence[StagePoint], phase: Phase, before: int, flops_before: float, model: Model
) -> list[ImportedPoint]:
    return [
        ImportedPoint(
            phase=phase,
            step=point.step,
            tokens=point.tokens - before,
            compute_flops=flops_before + (point.tokens - before) * model.flops_per_token,
            metric=point.column.metric,
            dataset=point.column.dataset,
            value=point.value,
            unit=point.column.unit,
            time=point.time,
        )
        for point in stage
    ]


def _run(
    options: ImportOptions, points: list[ImportedPoint], model: Model, *, grown: Stage, target_tokens: int,
    files: Sequence[LogFile], base: Stage | None = None, base_model: Model | None = None, timing: int = 0, before: int = 0,
) -> ImportedRun:  # fmt: skip
    if target_tokens <= 0 or not points:
        raise InputError("tokens", "are 0 at the log's end", "give the log of a run that has trained")
    warnings: list[str] = []
    status, reason = _status(options, grown)
    dataset = _decision_dataset(options, points)
    final_loss, is_final = None, False
    if status == "finished":
        final_loss, is_final = _final_loss(options, points, dataset, target_tokens, warnings)
    wasted = (grown.wasted_tokens - grown.num_from_start * before) * model.flops_per_token
    header: dict[str, Any] = {name: None for name in COLUMNS if name not in ("run_id", "source", "created_at")}
    header |= {
        "cohort": options.cohort,
        "name": options.name,
        "status": status,
        "target_params": float(model.params),
        "growth_factor": 1.0,
        "growth_timing_tokens": float(timing),
        "grown_tokens": float(target_tokens),
        "is_final": is_final,
        "tokenizer": options.tokenizer,
        "corpus": options.corpus,
        "target_flops_per_token": None if model.shape is None else model.flops_per_token,
        "compute_flops": timing * (base_model.flops_per_token if base_model else 0.0)
        + target_tokens * model.flops_per_token,
        "final_loss": final_loss,
        "peak_lr": _peak(points, ("single", "grown")),
        "base_peak_lr": _peak(points, ("base",)),
    }
    if model.shape is not None:
        header |= {ours: getattr(model.shape, theirs) for ours, theirs in _SHAPE_FIELDS.items()}
    if base is not None and base_model is not None:
        header |= _base_columns(model, base_model)
        wasted += base.wasted_tokens * base_model.flops_per_token
    if model.shape is None or (base_model is not None and base_model.shape is None):
        warnings.append(
            "FLOPs are 6 N D: a model is known by its size alone; a config.json counts head and attention too"
        )
    for name, stage in (("base", base), ("run", grown)):
        if stage is not None and stage.num_unplaced:
            warnings.append(
                f"{stage.num_unplaced} values of the {name}'s log stand at steps without tokens and are left out"
            )
        if stage is not None and stage.num_rollbacks:
            warnings.append(
                f"the {name}'s log was rolled back {stage.num_rollbacks} times ({stage.wasted_tokens:,} tokens)"
            )
    header |= {name: value for name, value in options.stated.items() if value is not None}
    return ImportedRun(
        header=header,
        reason=reason,
        points=tuple(points),
        wasted_flops=wasted,
        recipe=_recipe(options, model),
        decision_metric=options.decision_metric,
        decision_dataset=dataset,
        provenance=_provenance(files, grown, base, options),
        warnings=tuple(warnings),
    )


def _base_columns(model: Model, base: Model) -> dict[str, Any]:
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


def _status(options: ImportOptions, stage: Stage) -> tuple[str, str]:
    if options.status is not None:
        return options.status, "" if options.status in ("finished", "running") else "as the import said"
    if stage.diverged_at is not None:
        return "diverged", f"the loss was no number at step {stage.diverged_at:,}, where its log ends"
    if stage.ended_early_at is not None:
        return "stopped", f"the log ends at step {stage.ended_early_at:,}, before the trainer's planned end"
    return "finished", ""


def _decision_dataset(options: ImportOptions, points: Sequence[ImportedPoint]) -> str:
    found = sorted({point.dataset for point in points if point.metric == options.decision_metric})
    if options.decision_dataset is not None:
        if options.decision_dataset not in found:
            raise InputError(
                "decision_dataset", f"is {options.decision_dataset!r}, of which the log has no {options.decision_metric}",
                f"it has {', '.join(map(repr, found)) or 'none'}; map a column, or import into another cohort",
            )  # fmt: skip
        return options.decision_dataset
    if len(found) > 1:
        raise InputError(
            "decision_dataset", f"is needed: the log has {options.decision_metric} of {', '.join(found)}",
            "name the one that the cohort's runs are judged by",
        )  # fmt: skip
    if not found:
        raise InputError(
            "decision_metric", f"is {options.decision_metric!r}, which the log does not have",
            "map a column to it, or judge the cohort by another metric, as train_loss",
        )  # fmt: skip
    return found[0]


def _final_loss(
    options: ImportOptions, points: Sequence[ImportedPoint], dataset: str, target_tokens: int, warnings: list[str]
) -> tuple[float, bool]:
    judged = [
        point for point in points
        if point.metric == options.decision_metric and point.dataset == dataset and point.phase != "base"
    ]  # fmt: skip
    if not judged:
        raise InputError(
            "decision_dataset", f"{dataset!r} was not measured behind the growth", "give the whole grown log"
        )
    last = judged[-1]
    is_final = options.is_final
    if last.tokens < LATEST_SHARE * target_tokens:
        is_final = False
        warnings.append(
            f"the last {options.decision_metric} was measured after {last.tokens:,} of {target_tokens:,} tokens, so it is "
            "a mid-schedule loss and counts as not final"
        )
    return nats(last, options), is_final


def nats(point: ImportedPoint, options: ImportOptions) -> float:
    """A loss in nats a token.

    Raises:
        InputError: it is in bits per byte and nobody said how many bytes a token has, or in an unknown unit.
    """
    if point.unit == NATS:
        return point.value
    if point.unit != BITS_PER_BYTE:
        raise InputError(
            "map", f"gives {point.metric} the unit {point.unit!r}, but losses are compared in nats",
            f"map it in {NATS} or {BITS_PER_BYTE}",
        )  # fmt: skip
    size = options.bytes_per_token.get(point.dataset)
    if size is None or not 0 < size < 1_000 or not math.isfinite(size):
        raise InputError(
            "bytes_per_token", f"of {point.dataset!r} is {size}, and bits per byte are no nats without it",
            "give the mean bytes of a token of that set, as in --bytes-per-token 4.3",
        )  # fmt: skip
    return point.value * math.log(2.0) * size


def _peak(points: Sequence[ImportedPoint], phases: Sequence[Phase]) -> float | None:
    rates = [
        point.value for point in points if point.metric == "learning_rate" and point.phase in phases and point.value > 0
    ]
    return max(rates) if rates else None


def _recipe(options: ImportOptions, model: Model) -> dict[str, Any]:
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


def _provenance(files: Sequence[LogFile], grown: Stage, base: Stage | None, options: ImportOptions) -> dict[str, Any]:
    stages = {"base": base, "grown": grown} if base is not None else {"single": grown}
    return {
        "files": [{"name": file.name, "sha256": hashlib.sha256(file.content).hexdigest()} for file in files],
        "stages": {
            name: {
                "format": stage.format,
                "tokens": stage.tokens_described,
                "num_rollbacks": stage.num_rollbacks,
                "wasted_tokens": stage.wasted_tokens,
            }
            for name, stage in stages.items()
            if stage is not None
        },
        "bytes_per_token": dict(options.bytes_per_token),
    }


def _check_stated(options: ImportOptions) -> None:
    for name, value in options.stated.items():
        if name not in STATED_COLUMNS:
            raise InputError(name, "is no column that an import may state", f"use {', '.join(STATED_COLUMNS)}")
        if value is None:
            continue
        if COLUMNS[name] == "number":
            fine = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        else:
            fine = isinstance(value, str) and 0 < len(value) <= 200
        if not fine:
            raise InputError(
                name, f"is {str(value)[:40]!r}", "give a finite number" if COLUMNS[name] == "number" else "give a text"
            )
