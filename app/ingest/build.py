"""From logs and what a user adds to runs of the canonical table.

    C(points of the base)  = f_base t          C(points of the grown) = f_base d + f_target t

f: training FLOPs a token (`fitting.flops`), t: tokens inside the phase, d: growth timing. What was rolled back stands in
``wasted_flops`` alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from app.ingest.headers import base_model_of, check_stated, header_of, recipe_of, target_model
from app.ingest.imported import ImportedPoint, ImportedRun, ImportFiles, ImportOptions, Phase
from app.ingest.judging import final_loss, peak_rate
from app.ingest.logs.recognise import read_logs
from app.ingest.logs.rows import Log, LogFile
from app.ingest.shapes import Model
from app.ingest.stages import Stage, StagePoint, stage_of
from fitting.errors import InputError


def build_runs(files: ImportFiles, options: ImportOptions) -> tuple[ImportedRun, ...]:
    """The runs that the files hold: one, or one a row of a sweep's results.

    Raises:
        InputError: a file, an option or the run that they make cannot be used; nothing is half done.
    """
    check_stated(options)
    if files.base or files.grown:
        if files.single or not (files.base and files.grown):
            raise InputError(
                "files", "of a growth are its base's and its grown stage's", "give --base and --grown alone"
            )
        return (_growth(files, options),)
    logs = read_logs(files.single, options.format, options.step)
    if any(option is not None for option in (options.base_config, options.base_params, options.base_layers)):
        raise InputError("base_layers", "or a base's size is given, but no base", "give the base's log as --base")
    return tuple(_single(log, files.single, options) for log in logs)


def _single(log: Log, files: Sequence[LogFile], options: ImportOptions) -> ImportedRun:
    size = log.target_params if options.config is None and options.target_params is None else options.target_params
    model = target_model(replace(options, target_params=size))
    if log.name:
        options = replace(options, name=f"{options.name}-{log.name}")
    stage = stage_of(log, options.columns, options.tokens, options.batch_ramp, options.decision_metric)
    points = _points(stage.points, "single", 0, 0.0, model)
    return _run(options, points, model, grown=stage, target_tokens=stage.end_tokens, files=files)


def _growth(files: ImportFiles, options: ImportOptions) -> ImportedRun:
    logs = []
    for given in (files.base, files.grown):
        found = read_logs(given, options.format, options.step)
        if len(found) != 1:
            raise InputError("files", "of a growth hold several runs", "give one log a stage")
        logs.append(found[0])
    model, base_model = target_model(options), base_model_of(options)
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


def _points(
    stage: Sequence[StagePoint], phase: Phase, before: int, flops_before: float, model: Model
) -> list[ImportedPoint]:
    points = []
    for step, tokens, column, value, time in stage:
        seen = tokens - before
        flops = flops_before + seen * model.flops_per_token
        points.append(ImportedPoint(phase, step, seen, flops, column.metric, column.dataset, value, column.unit, time))
    return points


def _run(
    options: ImportOptions, points: list[ImportedPoint], model: Model, *, grown: Stage, target_tokens: int,
    files: Sequence[LogFile], base: Stage | None = None, base_model: Model | None = None, timing: int = 0, before: int = 0,
) -> ImportedRun:  # fmt: skip
    if target_tokens <= 0 or not points:
        raise InputError("tokens", "are 0 at the log's end", "give the log of a run that has trained")
    warnings: list[str] = []
    status, reason = _status(options, grown)
    dataset = _decision_dataset(options, points)
    loss, is_final = None, False
    if status == "finished":
        loss, late = final_loss(points, options.decision_metric, dataset, target_tokens, options.bytes_per_token)
        is_final = options.is_final and not late
        warnings += [late] if late else []
    wasted = (grown.wasted_tokens - grown.num_from_start * before) * model.flops_per_token
    header = header_of(options, model, base_model)
    measured: dict[str, Any] = {
        "status": status,
        "growth_timing_tokens": float(timing),
        "grown_tokens": float(target_tokens),
        "is_final": is_final,
        "compute_flops": timing * (base_model.flops_per_token if base_model else 0.0)
        + target_tokens * model.flops_per_token,
        "final_loss": loss,
    }
    measured["peak_lr"] = options.stated.get("peak_lr") or peak_rate(points, ("single", "grown"))
    measured["base_peak_lr"] = options.stated.get("base_peak_lr") or peak_rate(points, ("base",))
    if base is not None and base_model is not None:
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
        if stage is not None and stage.num_stepless:
            warnings.append(f"{stage.num_stepless} rows of the {name}'s log hold no step and are left out")
        if stage is not None and stage.num_rollbacks:
            warnings.append(
                f"the {name}'s log was rolled back {stage.num_rollbacks} times ({stage.wasted_tokens:,} tokens)"
            )
    return ImportedRun(
        header=header | measured,
        reason=reason,
        points=tuple(points),
        wasted_flops=wasted,
        recipe=recipe_of(options, model),
        decision_metric=options.decision_metric,
        decision_dataset=dataset,
        provenance=_provenance(files, grown, base, options),
        warnings=tuple(warnings),
    )


def _status(options: ImportOptions, stage: Stage) -> tuple[str, str]:
    if options.status is not None:
        return options.status, "" if options.status in ("finished", "running") else "as the import said"
    if stage.diverged_at is not None:
        return "diverged", f"the loss was no number at step {stage.diverged_at:,}, where its log ends"
    if stage.ended is not None and stage.ended.status == "running":
        return "running", ""
    if stage.ended is not None:
        return stage.ended.status, stage.ended.reason
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
