"""transformers' ``trainer_state.json``: ``log_history`` is a list of rows with a step; losses are nats a token.

Training rows hold ``loss``, ``learning_rate``, ``grad_norm``; evaluation rows ``eval_loss``, or ``eval_NAME_loss`` for each of
several sets. ``num_input_tokens_seen`` counts the tokens of all processes where ``include_num_input_tokens_seen`` was set, and
is 0 or absent otherwise. A last row sums up (``train_loss`` is a mean over the run, no loss at a step). The history is
that of the checkpoint a run resumed from, so the trainer has joined restarts itself.
"""

from __future__ import annotations

import re
from typing import Any

from app.ingest.logs.rows import NATS, ColumnMap, Log, LogFile, LogRow, check_rows, load_json, number, whole_step
from fitting.errors import InputError

FORMAT = "transformers"
TOKENS = "num_input_tokens_seen"
_EVALUATION = re.compile(r"eval_(?:(?P<dataset>.+)_)?loss")


def read(file: LogFile) -> Log:
    """
    Raises:
        InputError: the file is no trainer state.
    """
    state: Any = load_json(file.text(), file.name)
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        raise InputError(
            file.name, "has no log_history", "give the trainer_state.json that transformers' Trainer wrote"
        )
    rows: list[LogRow] = []
    for place, entry in enumerate(history):
        if not isinstance(entry, dict):
            raise InputError(file.name, f"has no row at log_history[{place}]", "give the file as the Trainer wrote it")
        values = {
            name: found for name, value in entry.items() if name != "step" and (found := number(value)) is not None
        }
        rows.append(LogRow(step=whole_step(entry.get("step"), f"log_history[{place}]"), values=values))
    last = whole_step(state.get("global_step", 0), "global_step")
    seen = number(state.get(TOKENS)) or 0.0
    tracked = seen > 0 or any(row.values.get(TOKENS, 0.0) > 0 for row in rows)
    if rows and last >= max(row.step for row in rows):
        # Where the run ended, though it may have logged last some steps before.
        rows.append(LogRow(step=last, values={TOKENS: seen} if seen > 0 else {}))
    columns = [
        ColumnMap(column="loss", metric="train_loss", unit=NATS),
        ColumnMap(column="learning_rate", metric="learning_rate"),
        ColumnMap(column="grad_norm", metric="grad_norm"),
    ]
    for name in sorted({name for row in rows for name in row.values}):
        if evaluation := _EVALUATION.fullmatch(name):
            dataset = evaluation["dataset"] or "validation"
            columns.append(ColumnMap(column=name, metric="validation_loss", dataset=dataset, unit=NATS))
    planned = state.get("max_steps")
    return Log(
        format=FORMAT,
        rows=check_rows(rows, file.name),
        columns=tuple(columns),
        tokens_column=TOKENS if tracked else None,
        planned_steps=planned if isinstance(planned, int) and planned > 0 else None,
    )
