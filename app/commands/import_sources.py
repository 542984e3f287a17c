"""What `growthlaw runs import` reads on this machine: a source's files, saved mappings, an exported plan."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from app.ingest.logs.recognise import OFFLINE_MEND
from app.ingest.logs.rows import MAX_BYTES
from fitting.errors import InputError

_UNITS = {"nats": "nats", "bits_per_byte": "bits per byte"}
# What a folder is searched for, the first that is found: (pattern, whether all of them are one log).
_FOLDER = (
    ("**/events.out.tfevents.*", True), ("trainer_state.json", False), ("checkpoint-*/trainer_state.json", False),
    ("**/metrics.csv", True),
)  # fmt: skip
_GENERIC = ("trainer_state", "metrics", "results", "log", "stdout", "history")


def files_of(source: Path) -> list[tuple[str, bytes]]:
    """The files of a source as (name, content), in the order they were written.

    Raises:
        InputError: a folder holds no log that is known, or the files are too large to be sent.
    """
    paths = [source] if source.is_file() else _log_files(source)
    size = sum(path.stat().st_size for path in paths)
    if size > MAX_BYTES:
        raise InputError(
            str(source), f"holds {size:,} bytes (limit {MAX_BYTES:,})", "give the log without what is not wanted"
        )
    return [(path.name, path.read_bytes()) for path in paths]


def _log_files(folder: Path) -> list[Path]:
    for pattern, all_of_them in _FOLDER:
        # checkpoint-900 comes before checkpoint-1000.
        found = sorted(
            folder.glob(pattern), key=lambda path: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", str(path))]
        )
        if found:
            return found if all_of_them else found[-1:]
    if next(folder.glob("**/run-*.wandb"), None) is not None:
        raise InputError(str(folder), "holds a run in W&B's own file, which only its client reads", OFFLINE_MEND)
    raise InputError(
        str(folder), "holds no TensorBoard events, trainer_state.json or metrics.csv", "name the log itself"
    )


def name_of(source: Path) -> str:
    """What to call a run whose log lies there."""
    source = source.resolve()
    name = source.parent.name if source.is_file() and source.stem in _GENERIC else source.stem
    return name[:64] or "run"


def options_of(given: Mapping[str, Any], plain: Iterable[str], saved: Mapping[str, Any]) -> dict[str, Any]:
    """The service's options: a saved mapping, then a plan, then what was given on the command line."""
    options = dict(saved)
    if given["plan"] is not None:
        options |= plan_options(given["plan"])
    options |= {name: given[name] for name in plain if given[name] is not None}
    for name in ("config", "base_config"):
        if given[name] is not None:
            options[name] = _object(given[name])
    if given["maps"]:
        options["columns"] = [_column(text) for text in given["maps"]]
    if given["batch_ramp"] is not None:
        options["batch_ramp"] = _ramp(given["batch_ramp"])
    if given["bytes_per_token"]:
        options["bytes_per_token"] = dict(_bytes(text) for text in given["bytes_per_token"])
    for name, texts in (("stated", given["stated"]), ("recipe", given["recipe"])):
        if texts:
            options[name] = {**options.get(name, {}), **dict(_pair(text, name) for text in texts)}
    if given["not_final"]:
        options["is_final"] = False
    options |= {name: True for name in ("replace", "restore") if given[name]}
    return options


def plan_options(path: Path) -> dict[str, Any]:
    """What an exported plan says of its two logs: models, tokens a step, and where the base ends."""
    from app.export.hf_config import hf_config
    from app.export.plan import plan_from_json

    plan = plan_from_json(path.read_text(encoding="utf-8"))
    return {
        "config": hf_config(plan.grown.model),
        "base_config": hf_config(plan.base.model),
        "tokens": f"step * {plan.grown.batch_tokens}",
        "base_tokens": f"step * {plan.base.batch_tokens}",
        "growth_timing_tokens": plan.base.num_tokens,
        "grown_counts": "phase",
        "stated": {
            "operator": plan.growth.operator if plan.growth.direction == "depth" else f"width-{plan.growth.operator}",
            "order": plan.growth.order if plan.growth.direction == "depth" else None,
            "optimizer": "adamw",
            "optimizer_state_policy": plan.growth.optimizer_state,
            "schedule": plan.grown.schedule.kind,
            "peak_lr": plan.grown.schedule.peak_lr,
            "base_peak_lr": plan.base.schedule.peak_lr,
            "batch_tokens": plan.grown.batch_tokens,
            "planned_tokens": plan.grown.num_tokens,
            "warmup_tokens": plan.grown.schedule.warmup_tokens,
            "decay_tokens": plan.grown.schedule.decay_tokens,
        },
    }


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(str(path), f"is not JSON ({error})", "give a transformers config.json") from None
    if not isinstance(found, dict):
        raise InputError(str(path), "is no JSON object", "give a transformers config.json")
    return found


def _column(text: str) -> dict[str, Any]:
    metric, equals, column = text.partition("=")
    if not equals or not metric or not column:
        raise click.UsageError(f"--map {text!r} is not METRIC[:SET]=COLUMN[:UNIT], as validation_loss:web=val_web")
    metric, _, dataset = metric.partition(":")
    found: dict[str, Any] = {"metric": metric, "dataset": dataset, "column": column}
    name, _, unit = column.rpartition(":")
    if name and unit in _UNITS:
        found |= {"column": name, "unit": _UNITS[unit]}
    return found


def _ramp(text: str) -> list[list[int]]:
    try:
        entries = [[int(float(number)) for number in entry.split(":")] for entry in text.split(",")]
    except (ValueError, OverflowError):
        entries = [[]]
    if any(len(entry) != 2 for entry in entries):
        raise click.UsageError(f"--batch-ramp {text!r} is not STEP:TOKENS,..., as 1:1048576,10000:2097152")
    return entries


def _bytes(text: str) -> tuple[str, float]:
    name, equals, number = text.rpartition("=")
    try:
        return (name if equals else "validation"), float(number)
    except ValueError:
        raise click.UsageError(f"--bytes-per-token {text!r} is not [SET=]BYTES, as 4.3 or web=4.3") from None


def _pair(text: str, option: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--{'set' if option == 'stated' else option} {text!r} is not NAME=VALUE")
    try:
        number = float(value)
    except ValueError:
        return name, value
    return name, int(number) if number.is_integer() else number
