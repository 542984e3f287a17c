"""nanochat's ``results.csv`` of a scaling sweep: a row a finished run, its last loss in bits per byte.

Columns used: ``flops_budget, depth, num_iterations, tokens_trained, val_bpb`` and the size without embeddings
(``params_transformer``, of older files ``num_scaling_params``). The blocks are not gated, so only the size is taken from
a row, and FLOPs are 6 N D, which the import says.
"""

from __future__ import annotations

from collections.abc import Iterable

from app.ingest.logs.rows import BITS_PER_BYTE, ColumnMap, Log, LogFile, LogRow, number, whole_step
from app.ingest.logs.tables import csv_rows
from fitting.errors import InputError

FORMAT = "nanochat"
TOKENS = "tokens_trained"
_LOSS = "val_bpb"
_SIZES = ("params_transformer", "num_scaling_params")
_COLUMN = ColumnMap(column=_LOSS, metric="validation_loss", dataset="validation", unit=BITS_PER_BYTE)


def is_mine(header: Iterable[str]) -> bool:
    """Whether a CSV's columns are those of a sweep's results."""
    return {"flops_budget", "depth", TOKENS, _LOSS} <= set(header)


def read(file: LogFile) -> tuple[Log, ...]:
    """A log a row.

    Raises:
        InputError: a row lacks its size, tokens or steps.
    """
    logs = []
    for place, row in enumerate(csv_rows(file)):
        size = next((found for name in _SIZES if (found := number(row.get(name))) is not None), None)
        tokens, loss = number(row.get(TOKENS)), number(row.get(_LOSS))
        if size is None or tokens is None or loss is None:
            raise InputError(
                file.name, f"lacks {' or '.join(_SIZES)}, {TOKENS} or {_LOSS} in row {place + 1}", "leave the row out"
            )
        step = whole_step(number(row.get("num_iterations") or "0"), f"row {place + 1}")
        logs.append(
            Log(
                format=FORMAT,
                rows=(LogRow(step=step, values={TOKENS: tokens, _LOSS: loss}),),
                columns=(_COLUMN,),
                tokens_column=TOKENS,
                name=f"d{row.get('depth', place)}-{row.get('flops_budget', '')}"[:64],
                target_params=size,
            )
        )
    if not logs:
        raise InputError(file.name, "holds no row", "give the results of runs that have ended")
    return tuple(logs)
