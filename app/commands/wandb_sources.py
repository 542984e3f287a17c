"""`growthlaw runs import wandb:ENTITY/PROJECT[/RUN]`: which runs of a W&B project, each with its options, and their histories.

The key stays on this machine: histories are fetched here and sent to the service as files (`app.ingest.logs.wandb`).
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.ingest.arithmetic import Expression
from app.ingest.imported import STATED_COLUMNS
from app.ingest.logs import wandb as fetched
from app.ingest.logs.rows import MAX_BYTES, MAX_ROWS, identifier
from fitting.errors import InputError

if TYPE_CHECKING:
    from app.wandb_api import WandbApi, WandbRun

SCHEME = "wandb:"
STATES = ("finished", "crashed", "failed", "killed", "preempted", "preempting", "running", "pending")
JOINS = ("name", "group")
# Fields of an import that a run's configuration may give; `base` names the run that was grown into this one.
_WHOLE = ("base_layers", "context_length", "growth_timing_tokens")
_NUMBERS = ("target_params", "base_params", *_WHOLE)
_OBJECTS = ("config", "base_config")
CONFIG_FIELDS = ("base", "name", "corpus", "tokenizer", *_NUMBERS, *_OBJECTS, *STATED_COLUMNS)
# Histories with more columns than this are sent with those alone that mean something or are mapped.
_FEW_COLUMNS = 50


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which runs of a project, and what their configurations say.

    Attributes:
        filters: W&B's own.
        runs: patterns of names or ids (``*`` and ``?``); all where empty.
        states: all but those of runs that go on where empty.
        join: runs of one ``name`` or ``group`` are one run that was started again; each its own where None.
        from_config: field of the import -> key of the configuration; ``.`` is all of it, ``summary:KEY`` of the summary.
    """

    filters: Mapping[str, Any]
    runs: Sequence[str] = ()
    states: Sequence[str] = ()
    join: str | None = None
    from_config: Mapping[str, str]


def place_of(source: str) -> tuple[str, str, str | None]:
    """Entity, project and run (None: the whole project) of a source.

    Raises:
        InputError: it names no project.
    """
    parts = [part for part in source.removeprefix(SCHEME).strip("/").split("/") if part]
    if len(parts) == 4 and parts[2] == "runs":  # as in the address of a run's page
        del parts[2]
    if len(parts) not in (2, 3):
        raise InputError(
            "SOURCE", f"{source!r} names no W&B project", "write wandb:ENTITY/PROJECT or wandb:ENTITY/PROJECT/RUN"
        )
    return parts[0], parts[1], parts[2] if len(parts) == 3 else None


def filters_of(texts: Iterable[str]) -> dict[str, Any]:
    """Filters as W&B takes them: JSON objects, or ``FIELD=VALUE`` as ``state=finished`` and ``config.lr=0.001``; all hold.

    Raises:
        InputError: a text is neither.
    """
    found: list[dict[str, Any]] = []
    for text in texts:
        field, equals, value = text.partition("=")
        if text.lstrip().startswith("{"):
            try:
                found.append(json.loads(text))
            except ValueError as error:
                raise InputError(
                    "filter", f"{text[:80]!r} is not JSON ({error})", 'write {"config.lr": 0.001}'
                ) from None
        elif equals and field:
            # W&B keeps a configuration's values under `.value`.
            name = field + ".value" if field.startswith("config.") and not field.endswith(".value") else field
            try:
                found.append({name: json.loads(value)})
            except ValueError:
                found.append({name: value})
        else:
            raise InputError("filter", f"{text[:80]!r} is none", "write FIELD=VALUE, as state=finished, or W&B's JSON")
    return found[0] if len(found) == 1 else ({"$and": found} if found else {})


def select(api: WandbApi, entity: str, project: str, chosen: Selection) -> tuple[list[list[WandbRun]], int]:
    """The runs to be imported, each as its W&B runs in the order they were started; and how many still go on.

    Raises:
        InputError: none is left, or two have one name and nothing says what that means.
    """
    runs = list(api.runs(entity, project, chosen.filters))
    named = [run for run in runs if not chosen.runs or any(_matches(run, pattern) for pattern in chosen.runs)]
    wanted = [run for run in named if _in_state(run, chosen.states)]
    num_going_on = 0 if chosen.states else len(named) - len(wanted)
    if not wanted:
        raise InputError(
            "wandb", f"has no run in {entity}/{project} that is asked for ({len(runs)} pass the filter, {num_going_on} still "
            "go on)", "ask for others, or for --state running",
        )  # fmt: skip
    groups: dict[str, list[WandbRun]] = {}
    for run in sorted(wanted, key=lambda run: (run.created_at, run.id)):
        key = {"name": run.name, "group": run.group or run.id}.get(chosen.join or "", run.id)
        groups.setdefault(key, []).append(run)
    return list(groups.values()), num_going_on


def options_of_run(
    runs: Sequence[WandbRun], common: Mapping[str, Any], from_config: Mapping[str, str]
) -> dict[str, Any]:
    """The import's options of one run (its W&B runs in order): the common ones, and what the last one's configuration says.

    Raises:
        InputError: a value is none of its field.
    """
    run = runs[-1]
    options = {"name": (run.group if len({r.name for r in runs}) > 1 else run.name)[:64], **common}
    for name, key in from_config.items():
        value = _looked_up(run, key)
        if value is None:
            continue
        if name in _NUMBERS or (name in STATED_COLUMNS and isinstance(value, (int, float))):
            value = _as_number(value, run, name, key)
        elif name in _OBJECTS:
            if not isinstance(value, dict):
                raise InputError(
                    name, f"is no object under {key!r} of {run.path}", "name the key of the model's config"
                )
            # transformers logs values that JSON has no word for; the service reads a handful of numbers.
            value = json.loads(json.dumps(value, default=str))
        else:
            value = str(value)
        if name in STATED_COLUMNS:
            options["stated"] = {**options.get("stated", {}), name: value}
        else:
            options[name] = value
    return options


def history_file(
    api: WandbApi, run: WandbRun, options: Mapping[str, Any], on_rows: Callable[[int], None]
) -> tuple[str, bytes]:
    """The run with its history, as the service reads it: (name, content).

    Args:
        on_rows: told how many rows have come, now and then.

    Raises:
        InputError: the history is longer than an import takes.
    """
    rows: list[dict[str, Any]] = []
    for row in api.history(run):
        rows.append(row)
        if len(rows) % 1_000 == 0:
            on_rows(len(rows))
        if len(rows) > MAX_ROWS:
            raise InputError("wandb", f"has over {MAX_ROWS:,} rows in {run.path}", "export every tenth row as CSV")
    on_rows(len(rows))
    names = {name: None for row in rows for name in row}
    kept = names.keys() if len(names) <= _FEW_COLUMNS else _meaningful(names, options)
    header = {
        "id": run.path, "name": run.name, "state": run.state, "group": run.group, "created_at": run.created_at,
        "num_history_lines": run.num_history_lines, "config": run.config,
    }  # fmt: skip
    lines = [{fetched.HEADER: header}, *({name: row[name] for name in row if name in kept} for row in rows)]
    content = "".join(json.dumps(line, default=str) + "\n" for line in lines).encode("utf-8", errors="replace")
    if len(content) > MAX_BYTES:
        raise InputError(
            "wandb", f"gives {len(content):,} bytes for {run.path} (limit {MAX_BYTES:,})", "map fewer columns"
        )
    return f"{run.entity}-{run.project}-{run.id}.wandb.jsonl", content


def num_missing(run: WandbRun, content: bytes) -> int:
    """Rows that the server counts but its history did not give."""
    return max(0, (run.num_history_lines or 0) - (content.count(b"\n") - 1))


def _meaningful(names: Mapping[str, Any], options: Mapping[str, Any]) -> set[str]:
    asked = {column["column"] for column in options.get("columns", ())} | {options.get("step"), "_step", "_timestamp"}
    in_tokens: set[str] = set()
    for field in ("tokens", "base_tokens"):
        if (text := options.get(field)) and text not in names:
            in_tokens |= Expression(text, field).names
        asked.add(text)
    known = fetched.known_columns(names)
    return {name for name in names if name in asked or name in known or identifier(name) in in_tokens}


def _matches(run: WandbRun, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(text, pattern) for text in (run.name, run.id))


def _in_state(run: WandbRun, states: Sequence[str]) -> bool:
    return run.state in states if states else run.state not in fetched.RUNNING


def _looked_up(run: WandbRun, key: str) -> Any:
    """What a run's configuration has under a key: as it stands, else as a path of names parted by dots."""
    values: Any = run.config
    if key.startswith("summary:"):
        values, key = run.summary, key.removeprefix("summary:")
    if key == ".":
        return dict(values)
    if key in values:
        return values[key]
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return None
        values = values[part]
    return values


def _as_number(value: Any, run: WandbRun, name: str, key: str) -> float | int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(
            name, f"is {str(value)[:40]!r} under {key!r} of {run.path}", "name a key that holds a number"
        ) from None
    return int(number) if number.is_integer() else number
