"""The canonical run table: one row a run, checked before anything is fitted.

A scratch or base-alone run has ``growth_factor = 1``, ``growth_timing_tokens = 0``, its own size as
``target_params`` and its tokens in ``grown_tokens`` (what the last phase sees). Tokens and sizes are counts, not
billions; losses are nats per token.

What is checked: columns (missing, duplicate), empty required fields, signs, finite numbers, units (a count off by 1e9,
bits per byte among nats), the growth columns agreeing with each other, one tokenizer and corpus a cohort.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fitting.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["text", "number", "flag"]

# The header of DESIGN.md, in its order.
COLUMNS: dict[str, Kind] = {
    "run_id": "text",
    "cohort": "text",
    "source": "text",
    "name": "text",
    "status": "text",
    "target_params": "number",
    "num_target_layers": "number",
    "hidden_size": "number",
    "num_heads": "number",
    "num_kv_heads": "number",
    "intermediate_size": "number",
    "vocab_size": "number",
    "context_length": "number",
    "base_params": "number",
    "num_base_layers": "number",
    "growth_factor": "number",
    "growth_timing_tokens": "number",
    "grown_tokens": "number",
    "operator": "text",
    "order": "text",
    "optimizer": "text",
    "optimizer_state_policy": "text",
    "peak_lr": "number",
    "base_peak_lr": "number",
    "lr_selection": "text",
    "schedule": "text",
    "warmup_tokens": "number",
    "planned_tokens": "number",
    "decay_tokens": "number",
    "is_final": "flag",
    "batch_tokens": "number",
    "tokenizer": "text",
    "corpus": "text",
    "unique_tokens": "number",
    "init_seed": "number",
    "data_seed": "number",
    "trunk_id": "text",
    "control_id": "text",
    "parent_run_id": "text",
    "base_flops_per_token": "number",
    "target_flops_per_token": "number",
    "compute_flops": "number",
    "final_loss": "number",
    "created_at": "text",
    "engine_numerics_version": "number",
}
# Not in the header, read where a table has them.
EXTRA_COLUMNS: dict[str, Kind] = {"control_loss": "number", "unit": "text"}

REQUIRED_COLUMNS = (
    "cohort", "target_params", "base_params", "growth_factor", "growth_timing_tokens", "grown_tokens", "final_loss",
)  # fmt: skip
SHAPE_COLUMNS = (
    "num_target_layers", "hidden_size", "num_heads", "num_kv_heads", "intermediate_size", "vocab_size",
    "context_length",
)  # fmt: skip
STATUSES = ("finished", "diverged", "stopped", "running")

_MUST_BE_POSITIVE = (
    "target_params", "base_params", *SHAPE_COLUMNS, "num_base_layers", "grown_tokens", "base_flops_per_token",
    "target_flops_per_token", "compute_flops", "final_loss", "control_loss", "peak_lr", "base_peak_lr", "batch_tokens",
)  # fmt: skip
_MUST_NOT_BE_NEGATIVE = ("growth_timing_tokens", "warmup_tokens", "planned_tokens", "decay_tokens", "unique_tokens")
# Below these a count is a number of billions: no language model has fewer parameters, no run fewer tokens.
_SMALLEST_COUNT = 1_000
_LARGEST_COUNT = 1e17
# Every training run that has been published lies well inside these tokens per parameter.
_TOKENS_PER_PARAMETER = (1e-3, 1e7)
# compute_flops against 6 N D: heads and attention raise it several times at small sizes, never 30 times.
_COMPUTE_RATIO = (1 / 3, 30.0)
# Bits per byte is about a quarter of nats per token for byte-pair tokens; a drop to below half is not a better model.
_MIXED_UNITS_RATIO = 0.5
_ROWS_NAMED = 5


def read_runs(
    source: str | Path | pd.DataFrame, *, cohort: str | None = None, one_cohort: bool = False
) -> pd.DataFrame:
    """The run table, checked, with every canonical column in the canonical order.

    Args:
        source: a CSV file or a frame; needs :data:`REQUIRED_COLUMNS`. ``base_params`` may be empty (or
            left out) where ``growth_factor`` is 1, ``final_loss`` where the run did not finish.
        cohort: keep the rows of this cohort only.
        one_cohort: refuse a table (after ``cohort`` was applied) that holds more than one.

    Returns:
        A new frame: numbers as float64, texts as str (missing: None), ``is_final`` as bool. Columns that are not
        canonical are dropped, except ``control_loss``. Defaults: ``run_id`` row-1, row-2, ..., ``status`` finished,
        ``is_final`` true.

    Raises:
        InputError: names the column, the row(s) (1 is the first below the header) and the mend.
    """
    frame = _load(source)
    _check_header(frame)
    frame = _typed(frame)
    frame = _select_cohort(frame, cohort, one_cohort)
    _check_signs(frame)
    _check_required(frame)
    _check_growth_columns(frame)
    _check_counts(frame)
    _check_losses(frame)
    _check_cohorts(frame)
    return frame.drop(columns="unit").reset_index(drop=True)


def is_grown(frame: pd.DataFrame) -> pd.Series[bool]:
    """True for rows of runs that were grown."""
    return (frame["growth_factor"] > 1) & (frame["growth_timing_tokens"] > 0)


def data_hash(frame: pd.DataFrame) -> str:
    """SHA-256 of the rows, whatever their order; names and dates of creation do not count."""
    columns = [column for column in frame.columns if column not in ("name", "created_at")]
    rows = sorted(repr([plain(value) for value in row]) for row in frame[columns].itertuples(index=False, name=None))
    return hashlib.sha256("\n".join([repr(columns), *rows]).encode()).hexdigest()


def plain(value: Any) -> Any:
    """A cell of a frame as a plain Python value; missing: None."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _load(source: str | Path | pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        frame = source.reset_index(drop=True)
    else:
        path = Path(source)
        if not path.is_file():
            raise InputError("table", f"{path} does not exist", "give the path of a CSV file with a header line")
        # header=None keeps a duplicate column visible: read_csv would rename it silently.
        try:
            raw = pd.read_csv(path, header=None, dtype=str, keep_default_na=False)
        except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
            raise InputError(
                "table", f"{path} is not a CSV table ({error})", "write a header line and a row a run"
            ) from None
        frame = raw.iloc[1:].reset_index(drop=True)
        frame.columns = pd.Index([str(name).strip() for name in raw.iloc[0]])
    if frame.empty:
        raise InputError("table", "has no rows", "give a row a run")
    return frame


def _check_header(frame: pd.DataFrame) -> None:
    names = [str(name) for name in frame.columns]
    for name in names:
        if names.count(name) > 1:
            raise InputError(name, f"stands {names.count(name)} times in the header", "keep one column of this name")
    for name in REQUIRED_COLUMNS:
        if name == "base_params" and name not in names and _none_grown(frame):
            continue
        if name not in names:
            close = difflib.get_close_matches(name, [other for other in names if other not in COLUMNS], n=1)
            hint = f" (is {close[0]!r} meant?)" if close else ""
            raise InputError(
                name, f"is missing from the table{hint}", f"add the column; required are {', '.join(REQUIRED_COLUMNS)}"
            )


def _none_grown(frame: pd.DataFrame) -> bool:
    import pandas as pd

    if "growth_factor" not in frame.columns:
        return False
    return bool((pd.to_numeric(frame["growth_factor"], errors="coerce") == 1).all())


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    typed: dict[str, Any] = {}
    for name, kind in (COLUMNS | EXTRA_COLUMNS).items():
        if name not in frame.columns:
            values: list[Any] = [None] * len(frame)
        else:
            column = frame[name]
            values = [
                None if missing or _says_missing(value) else value
                for value, missing in zip(column.tolist(), column.isna(), strict=True)
            ]
        if kind == "text":
            typed[name] = pd.Series([None if value is None else str(value) for value in values], dtype=object)
        elif kind == "number":
            typed[name] = pd.Series([_number(name, row, value) for row, value in enumerate(values)], dtype=float)
        else:
            typed[name] = pd.Series([_flag(name, row, value) for row, value in enumerate(values)], dtype=bool)
    result = pd.DataFrame(typed)
    result["status"] = [value or "finished" for value in result["status"]]
    result["run_id"] = [value or f"row-{row + 1}" for row, value in enumerate(result["run_id"])]
    return result


def _says_missing(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in ("", "nan", "na", "none", "null")


def _number(column: str, row: int, value: Any) -> float:
    if value is None:
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(
            column, f"is {value!r} in row {row + 1}, but it must be a number", "write a plain number"
        ) from None
    if math.isinf(number):
        raise InputError(column, f"is {number} in row {row + 1}, but it must be finite", "leave it empty or mend it")
    return number


def _flag(column: str, row: int, value: Any) -> bool:
    if value is None:
        return True
    word = str(value).strip().lower()
    if word in ("true", "1", "1.0", "yes"):
        return True
    if word in ("false", "0", "0.0", "no"):
        return False
    raise InputError(column, f"is {value!r} in row {row + 1}, but it must be true or false", "write true or false")


def _select_cohort(frame: pd.DataFrame, cohort: str | None, one_cohort: bool) -> pd.DataFrame:
    names = sorted({name for name in frame["cohort"] if name is not None})
    if cohort is not None:
        if cohort not in names:
            raise InputError(
                "cohort", f"{cohort!r} is not in the table", f"choose one of: {', '.join(names) or 'none'}"
            )
        return frame[frame["cohort"] == cohort]
    if one_cohort and len(names) > 1:
        raise InputError(
            "cohort",
            f"holds {len(names)} cohorts ({', '.join(names)}), whose losses may not be compared",
            "name the one to fit",
        )
    return frame


def _rows(mask: pd.Series[bool]) -> str:
    rows = [int(index) + 1 for index in mask.index[mask]]
    shown = ", ".join(map(str, rows[:_ROWS_NAMED])) + (
        f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else ""
    )
    return f"row{'s' if len(rows) > 1 else ''} {shown}"


def _refuse(mask: pd.Series[bool], column: str, problem: str, mend: str) -> None:
    if mask.any():
        raise InputError(column, f"{problem} in {_rows(mask)}", mend)


def _check_required(frame: pd.DataFrame) -> None:
    unknown = ~frame["status"].isin(STATUSES)
    _refuse(unknown, "status", "is not a known status", f"use one of {', '.join(STATUSES)}")
    _refuse(frame["run_id"].duplicated(keep=False) & frame["is_final"], "run_id", "is used by several final rows",
            "give each run its own id, or mark the points of one curve is_final = false")  # fmt: skip
    finished = frame["status"] == "finished"
    for name in REQUIRED_COLUMNS:
        missing = frame[name].isna()
        if name == "base_params":
            missing &= frame["growth_factor"] != 1
        elif name == "final_loss":
            missing &= finished
        _refuse(missing, name, "is empty", "fill it in, or drop the row")


def _check_signs(frame: pd.DataFrame) -> None:
    for name in _MUST_BE_POSITIVE:
        needs_positive = frame["status"].isin(("finished",)) if name == "grown_tokens" else True
        _refuse((frame[name] <= 0) & needs_positive, name, "is not above 0", "give a positive number")
    for name in _MUST_NOT_BE_NEGATIVE:
        _refuse(frame[name] < 0, name, "is negative", "give 0 or a positive number")
    _refuse(frame["growth_factor"] < 1, "growth_factor", "is below 1", "write 1 for runs that were not grown")


def _check_growth_columns(frame: pd.DataFrame) -> None:
    not_grown = frame["growth_factor"] == 1
    _refuse(not_grown & (frame["growth_timing_tokens"] > 0), "growth_timing_tokens",
            "is above 0 where growth_factor is 1", "a run that was not grown has growth_timing_tokens 0")  # fmt: skip
    _refuse(~not_grown & (frame["base_params"] >= frame["target_params"]), "base_params",
            "is not below target_params where growth_factor is above 1", "give the base's own size")  # fmt: skip
    # For depth g is a ratio of layers, for others of parameters; both are close, so only a gross mismatch is an error.
    ratio = frame["target_params"] / frame["base_params"] / frame["growth_factor"]
    _refuse(~not_grown & ((ratio > 2) | (ratio < 0.5)), "growth_factor",
            "differs more than twofold from target_params / base_params", "mend the factor or the sizes")  # fmt: skip


def _check_counts(frame: pd.DataFrame) -> None:
    for name in ("target_params", "base_params", "growth_timing_tokens", "grown_tokens"):
        value = frame[name]
        _refuse((value > 0) & (value < _SMALLEST_COUNT), name, f"is below {_SMALLEST_COUNT}, which looks like billions",
                "write plain counts (multiply by 1e9)")  # fmt: skip
        _refuse(value > _LARGEST_COUNT, name, f"is above {_LARGEST_COUNT:g}", "write plain counts (divide by 1e9?)")
    finished = frame["status"] == "finished"
    per_parameter = frame["grown_tokens"] / frame["target_params"]
    low, high = _TOKENS_PER_PARAMETER
    _refuse(finished & ((per_parameter < low) | (per_parameter > high)) & frame["is_final"], "grown_tokens",
            f"is not within {low:g} to {high:g} tokens per parameter, so one of the counts is off (by 1e9?)",
            "write target_params and grown_tokens as plain counts")  # fmt: skip
    by_6nd = 6 * (frame["target_params"] * frame["grown_tokens"]
                  + frame["base_params"].fillna(0) * frame["growth_timing_tokens"])  # fmt: skip
    ratio = frame["compute_flops"] / by_6nd
    low, high = _COMPUTE_RATIO
    _refuse(finished & ((ratio < low) | (ratio > high)), "compute_flops",
            f"is not within {low:.2g} to {high:g} times 6 N D of the row's own sizes and tokens (units off by 1e9?)",
            "give FLOPs as a plain number, or leave the column empty")  # fmt: skip


def _check_losses(frame: pd.DataFrame) -> None:
    known_unit = frame["unit"].notna()
    _refuse(known_unit & ~frame["unit"].isin(("nats", "nats per token")), "unit", "is not nats",
            "convert to nats per token (bits per byte x bytes per token x ln 2), or drop the rows")  # fmt: skip
    guess = np.log(frame["vocab_size"])
    _refuse((frame["status"] == "finished") & (frame["final_loss"] > 1.5 * guess), "final_loss",
            "is above 1.5 ln(vocab_size), worse than guessing", "mark the run diverged, or mend the unit")  # fmt: skip
    finished = frame[(frame["status"] == "finished") & frame["final_loss"].notna()]
    for name, rows in finished.groupby("cohort"):
        median = float(rows["final_loss"].median())
        low = (frame["cohort"] == name) & (frame["final_loss"] < _MIXED_UNITS_RATIO * median)
        high = (frame["cohort"] == name) & (frame["final_loss"] > median / _MIXED_UNITS_RATIO) & (median < 1.5)
        mend = "store nats per token for every run of a cohort"
        whose = f"cohort {name!r}'s median {median:.3f}"
        _refuse(low, "final_loss", f"is below half of {whose}, which looks like bits per byte", mend)
        _refuse(high, "final_loss", f"is over twice {whose}, whose other rows look like bits per byte", mend)


def _check_cohorts(frame: pd.DataFrame) -> None:
    for name, rows in frame.groupby("cohort"):
        for column in ("tokenizer", "corpus", "vocab_size"):
            values = sorted({str(value) for value in rows[column].dropna()})
            if len(values) > 1:
                raise InputError(
                    column,
                    f"differs inside cohort {name!r} ({', '.join(values)}), so its losses cannot be compared",
                    "give the runs cohorts of their own",
                )


def column_values(frame: pd.DataFrame, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The named columns as plain Python values, one dict a row (missing: None)."""
    return [{name: plain(row[name]) for name in columns} for row in frame[list(columns)].to_dict("records")]
