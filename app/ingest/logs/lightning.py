"""litgpt's ``metrics.csv``, written by Lightning's CSVLogger: sparse rows, training and validation at the same ``step``.

``total_tokens`` counts the tokens of all processes; ``tokens`` those of one and is not used. litgpt's final validation stands
at a step of its own without tokens: give an expression in ``step`` to place it.
"""

from __future__ import annotations

from collections.abc import Iterable

from app.ingest.logs.rows import NATS, ColumnMap, Log, LogFile
from app.ingest.logs.tables import csv_rows, table_log

FORMAT = "lightning"
TOKENS = "total_tokens"
_COLUMNS = (
    ColumnMap(column="loss", metric="train_loss", unit=NATS),
    ColumnMap(column="val_loss", metric="validation_loss", dataset="validation", unit=NATS),
    ColumnMap(column="learning_rate", metric="learning_rate"),
)


def is_mine(header: Iterable[str]) -> bool:
    """Whether a CSV's columns are litgpt's."""
    return {"step", "loss", TOKENS} <= set(header)


def read(file: LogFile) -> Log:
    """
    Raises:
        InputError: the file is no table with a header line.
    """
    return table_log(FORMAT, file.name, csv_rows(file), columns=_COLUMNS, tokens_column=TOKENS)
