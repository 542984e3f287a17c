"""TensorBoard event files, as torchtitan and Megatron-LM write them: scalars by tag, in the order they were written.

torchtitan 0.3.0 (``components/metrics.py``): ``loss_metrics/global_avg_loss``, ``validation_metrics/loss``, ``grad_norm``,
``n_tokens_seen``. Megatron-LM (``training_log``): ``lm loss``, ``lm loss validation``, ``learning-rate``, ``grad-norm``;
its tags ``... vs samples`` and ``... vs steps`` repeat the others over another axis and are left out. A file cut off by a
crash is read as far as it is whole.

Records are parsed by the package ``tensorboard`` (extra of that name), which is imported when a file comes.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.ingest.logs.rows import (
    MAX_ROWS,
    NATS,
    ColumnMap,
    Log,
    LogFile,
    LogRow,
    check_rows,
    number,
    utc_time,
    whole_step,
)
from fitting.errors import InputError

FORMAT = "tensorboard"
TOKEN_TAG = "n_tokens_seen"
_TRAIN_TAGS = ("loss_metrics/global_avg_loss", "lm loss")
_OTHER_TAGS = {
    "learning-rate": "learning_rate",
    "lr": "learning_rate",
    "grad_norm": "grad_norm",
    "grad-norm": "grad_norm",
}
_VALIDATION_TAGS = (
    re.compile(r"validation_metrics/(?:(?P<dataset>.+)/)?loss"),
    re.compile(r"lm loss (?P<dataset>validation|test)(?:-.*)?"),
)
_OTHER_AXES = (" vs samples", " vs steps")


def read(file: LogFile) -> Log:
    """
    Raises:
        InputError: the file holds no scalar, or the package is not installed.
    """
    rows: list[LogRow] = []
    step, seconds, values = 0, 0.0, dict[str, float]()
    for step_now, seconds_now, tag, value in _scalars(file):
        if values and (step_now != step or tag in values):
            rows.append(LogRow(step=step, values=values, time=utc_time(seconds)))
            values = {}
        step, seconds, values[tag] = step_now, seconds_now, value
        if len(rows) > MAX_ROWS:
            break
    if values:
        rows.append(LogRow(step=step, values=values, time=utc_time(seconds)))
    tags = sorted({tag for row in rows for tag in row.values})
    return Log(
        format=FORMAT,
        rows=check_rows(rows, file.name),
        columns=tuple(column for tag in tags if (column := tag_column(tag)) is not None),
        tokens_column=TOKEN_TAG if TOKEN_TAG in tags else None,
    )


def tag_column(tag: str) -> ColumnMap | None:
    """What a tag holds; None for one that means nothing by itself."""
    if tag in _TRAIN_TAGS:
        return ColumnMap(column=tag, metric="train_loss", unit=NATS)
    for pattern in _VALIDATION_TAGS:
        if found := pattern.fullmatch(tag):
            dataset = found["dataset"] or "validation"
            return ColumnMap(column=tag, metric="validation_loss", dataset=dataset, unit=NATS)
    return ColumnMap(column=tag, metric=_OTHER_TAGS[tag]) if tag in _OTHER_TAGS else None


def _scalars(file: LogFile) -> Iterator[tuple[int, float, str, float]]:
    """Step, seconds since 1970, tag and value of every scalar, as written."""
    try:
        from google.protobuf.message import DecodeError
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    except ImportError:
        raise InputError(
            file.name, "is a TensorBoard event file, and the package that reads them is not installed where it is read",
            "pip install 'growthlaw[tensorboard]' there, or give the scalars as CSV",
        ) from None  # fmt: skip
    # A file of a crashed run ends in the middle of a record; the package says so at every one.
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.out.tfevents.import"
        path.write_bytes(file.content)
        try:
            for event in LegacyEventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    found = _value(value)
                    if found is not None and not value.tag.endswith(_OTHER_AXES):
                        yield whole_step(event.step, value.tag[:40]), event.wall_time, value.tag, found
        except DecodeError:
            raise InputError(
                file.name, "is damaged: a record is no event", "give the event file as it was written"
            ) from None


def _value(value: Any) -> float | None:
    """A scalar as a number: `simple_value`, or a tensor of one float (TensorFlow 2)."""
    if value.HasField("simple_value"):
        return number(value.simple_value)
    if value.HasField("tensor") and len(value.tensor.float_val) == 1:
        return number(value.tensor.float_val[0])
    return None
