"""What Megatron-LM prints: one line a logged iteration, one an evaluation; other lines are passed over.

    [time] iteration  100/ 5000 | consumed samples:  25600 | learning rate: 1.5E-04 | lm loss: 4.1E+00 | ...
    validation loss at iteration 1000 on validation set | lm loss value: 3.9E+00 | lm loss PPL: 5.1E+01 |

Fields are named by what stands before the colon, blanks as underscores (``consumed_samples``). ``consumed samples`` counts
whole sequences of the whole job, also while the batch ramps, so ``consumed_samples * CONTEXT`` are the tokens. A line's
time is the machine's own, in no named zone, and is left out.
"""

from __future__ import annotations

import re

from app.ingest.logs.rows import NATS, ColumnMap, Log, LogFile, LogRow, check_rows, identifier, number, whole_step
from fitting.errors import InputError

FORMAT = "megatron"
TOKENS_HINT = "consumed_samples * CONTEXT"
ITERATION = re.compile(r"\biteration\s+(\d{1,13})/\s*(\d{1,13})\s*\|(.*)")
_VALIDATION = re.compile(r"\bvalidation loss at (?P<place>[^|]{1,200})\|(?P<fields>.*)")
_STEP = re.compile(r"iteration\s+(\d{1,13})")
_SET = re.compile(r"\bon (?:the )?(?P<name>[\w.-]+)(?: set)?\s*$")


def read(file: LogFile) -> Log:
    """
    Raises:
        InputError: no line is one of Megatron's.
    """
    rows: list[LogRow] = []
    datasets: set[str] = set()
    planned = None
    for place, line in enumerate(file.text().splitlines()):
        if found := ITERATION.search(line):
            values = _fields(found[3], suffix="")
            planned = int(found[2])
            rows.append(LogRow(step=whole_step(found[1], f"line {place + 1}"), values=values))
        elif found := _VALIDATION.search(line):
            # "the end of training for val data" repeats the last iteration's set without its number.
            step = _STEP.search(found["place"])
            at = int(step[1]) if step else (rows[-1].step if rows else 0)
            named = _SET.search(found["place"])
            dataset = "test" if "test" in found["place"] else (named["name"] if named else "validation")
            loss = _fields(found["fields"], suffix="_value").get("lm_loss_value")
            if loss is not None:
                datasets.add(dataset)
                rows.append(LogRow(step=at, values={f"validation_loss_{dataset}": loss}))
    if not rows:
        raise InputError(file.name, "holds no line 'iteration N/ M | ...'", "give what Megatron-LM's last rank printed")
    columns = [
        ColumnMap(column="lm_loss", metric="train_loss", unit=NATS),
        ColumnMap(column="learning_rate", metric="learning_rate"),
        ColumnMap(column="grad_norm", metric="grad_norm"),
        *(
            ColumnMap(column=f"validation_loss_{name}", metric="validation_loss", dataset=name, unit=NATS)
            for name in sorted(datasets)
        ),
    ]
    return Log(
        format=FORMAT,
        rows=check_rows(rows, file.name),
        columns=tuple(columns),
        tokens_hint=TOKENS_HINT,
        planned_steps=planned or None,
    )


def _fields(text: str, *, suffix: str) -> dict[str, float]:
    """`name: number | name: number |` as numbers; only names with the suffix."""
    values: dict[str, float] = {}
    for part in text.split("|"):
        name, colon, value = part.rpartition(":")
        found = number(value.strip()) if colon else None
        if found is not None and identifier(name).endswith(suffix):
            values[identifier(name)] = found
    return values
