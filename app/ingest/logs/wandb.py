"""The history of a Weights & Biases run, as `growthlaw runs import wandb:ENTITY/PROJECT` fetches it: JSON lines.

    {"wandb_run": {"id": "3k2x", "name": "8-layers", "state": "finished", "config": {"batch": 512}, ...}}
    {"_step": 0, "_timestamp": 1714550400.5, "train/loss": 6.9, "train/global_step": 10}

The first line is the run, every other one a row of its full history in the order it was written. W&B's own ``_step`` counts
calls of ``log`` and goes on through a restart; where transformers logged, ``train/global_step`` is the trainer's, and another
trainer's is named by the import. Numbers of the run's configuration can stand in an expression of tokens:
``step * config_batch * config_seq_len``.

Columns that mean something by themselves: those of transformers' W&B callback (5.23; ``train/loss``, ``eval/loss``,
``eval/NAME_loss``, ``train/num_input_tokens_seen``), and the tags of torchtitan and Megatron-LM, which log the same names to
W&B as to TensorBoard. A run that W&B calls crashed, failed or killed has stopped, unless its loss ended as no number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from app.ingest.logs.rows import (
    MAX_COLUMNS,
    MAX_ROWS,
    NATS,
    ColumnMap,
    Ended,
    Log,
    LogFile,
    LogRow,
    check_rows,
    identifier,
    load_json,
    number,
    utc_time,
    whole_step,
)
from app.ingest.logs.tensorboard import TOKEN_TAG, tag_column
from fitting.errors import InputError

FORMAT = "wandb"
HEADER = "wandb_run"
TRAINER_STEP = "train/global_step"
TRAINER_TOKENS = "train/num_input_tokens_seen"
CONSTANT_PREFIX = "config_"
_EVALUATION = re.compile(r"eval/(?:(?P<dataset>.+)_)?loss")
_TRAINER_COLUMNS = {
    "train/loss": ColumnMap(column="train/loss", metric="train_loss", unit=NATS),
    "train/learning_rate": ColumnMap(column="train/learning_rate", metric="learning_rate"),
    "train/grad_norm": ColumnMap(column="train/grad_norm", metric="grad_norm"),
}
_OWN_COLUMNS = ("_step", "_runtime", "_timestamp", "_wandb")
# W&B's states of a run that ended without saying that it was done.
STOPPED = ("crashed", "failed", "killed", "preempted", "preempting")
RUNNING = ("running", "pending")


def is_mine(first_line: str) -> bool:
    """Whether a file that begins so is a fetched run."""
    return re.match(r'\s*\{\s*"wandb_run"\s*:', first_line) is not None


def read(file: LogFile, step: str | None = None) -> Log:
    """
    Args:
        step: the column that counts the trainer's steps; ``train/global_step`` where there is one, else ``_step``.

    Raises:
        InputError: the file is no fetched run, or its rows have no such column.
    """
    lines = _objects(file)
    run = next(lines, {}).get(HEADER)
    if not isinstance(run, dict):
        raise InputError(file.name, f"has no {HEADER} in its first line", "give the file as the import fetched it")
    rows = list(lines)
    if len(rows) > MAX_ROWS:
        raise InputError(file.name, f"holds {len(rows):,} rows (limit {MAX_ROWS:,})", "map fewer columns")
    column = step or (TRAINER_STEP if any(TRAINER_STEP in row for row in rows) else "_step")
    placed: list[LogRow] = []
    for place, cells in enumerate(rows):
        counted = number(cells.get(column))
        if counted is None:
            continue
        values = {
            name: found
            for name, value in cells.items()
            if name != column and name not in _OWN_COLUMNS and (found := number(value)) is not None
        }
        placed.append(
            LogRow(
                step=whole_step(counted, f"history row {place + 1} of {file.name}"),
                values=values,
                time=utc_time(number(cells.get("_timestamp")) or float("nan")),
            )
        )
    if rows and not placed:
        raise InputError("step", f"is the column {column!r}, which no row of {file.name} has", "name another column")
    names = sorted({name for row in placed for name in row.values})
    given = run.get("config")
    config: dict[str, Any] = given if isinstance(given, dict) else {}
    tokens = next((name for name in (TRAINER_TOKENS, TOKEN_TAG) if name in names), None)
    planned = config.get("max_steps") if column == TRAINER_STEP else None
    return Log(
        format=FORMAT,
        rows=check_rows(placed, file.name),
        columns=tuple(known for name in names if (known := _column(name)) is not None),
        tokens_column=tokens if tokens and any(row.values.get(tokens, 0.0) > 0 for row in placed) else None,
        tokens_hint="step * config_batch_size * config_seq_len",
        planned_steps=planned if isinstance(planned, int) and planned > 0 else None,
        constants=constants(config),
        ended=_ended(run.get("state")),
        num_stepless=len(rows) - len(placed),
    )


def known_columns(names: Mapping[str, Any]) -> set[str]:
    """Of these columns the ones that mean something without a map."""
    return {name for name in names if _column(name) is not None or name in (TRAINER_STEP, TRAINER_TOKENS, TOKEN_TAG)}


def constants(config: Mapping[str, Any], prefix: str = CONSTANT_PREFIX) -> dict[str, float]:
    """Numbers of a configuration by the names they have in an expression; nested ones as ``config_train_batch``."""
    found: dict[str, float] = {}
    for key, value in config.items():
        name = prefix + identifier(str(key))
        if isinstance(value, dict):
            # Configurations of Hydra nest a few deep; what nests deeper is no number of a run.
            found |= constants(value, name + "_") if name.count("_") < 16 else {}
        elif not isinstance(value, str) and (plain := number(value)) is not None:
            found[name] = plain
        if len(found) > MAX_COLUMNS:
            break
    return found


def _objects(file: LogFile) -> Iterator[dict[str, Any]]:
    for place, line in enumerate(file.text().split("\n")):
        if line.strip():
            row = load_json(line, f"{file.name}, line {place + 1},")
            if not isinstance(row, dict):
                raise InputError(file.name, f"has no JSON object in line {place + 1}", "give it as it was fetched")
            yield row


def _column(name: str) -> ColumnMap | None:
    if found := _EVALUATION.fullmatch(name):
        return ColumnMap(column=name, metric="validation_loss", dataset=found["dataset"] or "validation", unit=NATS)
    return _TRAINER_COLUMNS.get(name) or tag_column(name)


def _ended(state: Any) -> Ended | None:
    if state in RUNNING:
        return Ended(status="running", reason="")
    return Ended(status="stopped", reason=f"W&B says that it {_SAYS.get(state, state)}") if state in STOPPED else None


_SAYS = {"killed": "was killed", "preempted": "was preempted", "preempting": "was preempted"}
