"""The rows a scratch law is fitted to, read from any table and checked before work starts.

    C = 6 N D, so D = C / 6 N where a table gives FLOPs instead of tokens

========  ======================  ==========
symbol    meaning                 unit
========  ======================  ==========
N         model parameters        parameters
D         training tokens         tokens
C         training compute        FLOPs
L         final loss              nats/token
========  ======================  ==========

Every limit here is one that no real run crosses and a wrong unit does: sizes in billions, perplexities for losses.
What could be either (one loss in bits per byte among nats) is found after the fit, by rows far from the law.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fitting.laws.base import Array

if TYPE_CHECKING:
    import pandas as pd

_MAX_LOSS_NATS = 20.0  # ln of the largest vocabulary in use is 13.8
_LIMITS = {
    "params": (1e3, 1e15, "parameters", "a table in millions or billions must be multiplied out"),
    "tokens": (1e3, 1e18, "tokens", "a table in millions or billions must be multiplied out"),
    "flops": (1e6, 1e32, "FLOPs", "a table in units of 1e18 or in petaFLOP-days must be multiplied out"),
}
_TOKENS_PER_PARAM = (1e-4, 1e6)
_FAR_LOG_RESIDUAL = 0.25


@dataclass(frozen=True, kw_only=True)
class ScratchRows:
    """Runs from scratch, arrays (R,), ordered by compute; ``clusters`` says which rows share a run."""

    num_params: Array
    tokens: Array
    loss_nats: Array
    clusters: np.ndarray

    def __post_init__(self) -> None:
        lengths = {len(self.num_params), len(self.tokens), len(self.loss_nats), len(self.clusters)}
        if len(lengths) != 1:
            raise ValueError(f"rows of a scratch table must have one length; found lengths {sorted(lengths)}")
        for name, values in (("params", self.num_params), ("tokens", self.tokens), ("loss", self.loss_nats)):
            if not (np.isfinite(values) & (values > 0)).all():
                raise ValueError(f"{name} must be finite and positive in every row")

    def __len__(self) -> int:
        return len(self.loss_nats)

    @property
    def flops(self) -> Array:
        """Compute by 6ND, (R,)."""
        return 6.0 * self.num_params * self.tokens

    def where(self, keep: np.ndarray) -> ScratchRows:
        """The rows that ``keep`` (a mask or indices) selects."""
        return ScratchRows(
            num_params=self.num_params[keep],
            tokens=self.tokens[keep],
            loss_nats=self.loss_nats[keep],
            clusters=self.clusters[keep],
        )


def read_table(path: Path | str) -> pd.DataFrame:
    """A CSV file as a table; ValueError if it is missing, empty or names a column twice."""
    import pandas as pd

    file = Path(path)
    if not file.is_file():
        raise ValueError(f"table '{file}' is not a file")
    with file.open(newline="", encoding="utf-8-sig") as handle:
        header = next(csv.reader(handle), [])
    names = [name.strip() for name in header]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not any(names):
        raise ValueError(f"table '{file}' is empty; its first line must name the columns")
    if twice:
        raise ValueError(
            f"table '{file}' names these columns more than once: {', '.join(twice)}; rename or remove one of each"
        )
    try:
        table = pd.read_csv(file, encoding="utf-8-sig")
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"table '{file}' is not a well-formed CSV file: {error}") from error
    table.columns = pd.Index(names)
    if table.empty:
        raise ValueError(f"table '{file}' has a header and no rows")
    return table


def scratch_rows(
    table: pd.DataFrame,
    *,
    params: str,
    loss: str,
    tokens: str | None = None,
    flops: str | None = None,
    cluster: str | None = None,
    drop_highest: int = 0,
) -> ScratchRows:
    """Rows from the named columns of ``table``; with ``flops`` instead of ``tokens``, D = C / 6N.

    Args:
        cluster: column whose equal values mark rows of one run; None makes each row its own.
        drop_highest: that many rows with the highest losses are left out.

    Raises:
        ValueError: a column is missing or twice there, a value is absent, not a number, not positive or in the wrong unit.
    """
    if (tokens is None) == (flops is None):
        raise ValueError("give either a tokens column or a flops column, and not both")
    size = _numbers(table, params, "params")
    losses = _numbers(table, loss, None)
    if losses.max() > _MAX_LOSS_NATS:
        row = int(np.argmax(losses)) + 1
        raise ValueError(
            f"column '{loss}' holds {losses.max():g} in row {row}; losses must be nats per token, at most {_MAX_LOSS_NATS:g}: "
            "take the logarithm of perplexities"
        )
    if tokens is not None:
        counts = _numbers(table, tokens, "tokens")
    else:
        assert flops is not None
        counts = _numbers(table, flops, "flops") / (6.0 * size)
    ratio = counts / size
    outside = np.flatnonzero((ratio < _TOKENS_PER_PARAM[0]) | (ratio > _TOKENS_PER_PARAM[1]))
    if outside.size:
        row = int(outside[0])
        raise ValueError(
            f"row {row + 1} has {ratio[row]:.3g} tokens per parameter; "
            f"between {_TOKENS_PER_PARAM[0]:g} and {_TOKENS_PER_PARAM[1]:g} "
            f"are possible: check the units of '{params}' and '{tokens or flops}'"
        )
    labels = np.arange(len(size)).astype(str) if cluster is None else np.asarray(_column(table, cluster).astype(str))
    rows = ScratchRows(num_params=size, tokens=counts, loss_nats=losses, clusters=labels)
    if drop_highest < 0 or drop_highest >= len(rows):
        raise ValueError(
            f"drop_highest is {drop_highest}; with {len(rows)} rows it must lie between 0 and {len(rows) - 1}"
        )
    keep = np.sort(np.argsort(rows.loss_nats, kind="stable")[: len(rows) - drop_highest])
    rows = rows.where(keep)
    # One order for one set of rows: a shuffled file gives the same answer to the last bit, resampling included.
    rows = rows.where(np.lexsort((rows.loss_nats, rows.tokens, rows.num_params, rows.flops)))
    return rows if cluster is not None else replace(rows, clusters=np.arange(len(rows)).astype(str))


def split_by_flops(rows: ScratchRows, above_flops: float | None) -> tuple[ScratchRows, ScratchRows | None]:
    """(rows to fit, rows held out): those of more than ``above_flops`` FLOPs by 6ND are held out; None holds out none."""
    if above_flops is None:
        return rows, None
    if not np.isfinite(above_flops):
        raise ValueError(f"test_above_flops is {above_flops:g}; it must be a finite number of FLOPs")
    held_out = rows.flops > above_flops
    if not held_out.any() or held_out.all():
        kind = "no" if held_out.all() else "every"
        raise ValueError(
            f"test_above_flops is {above_flops:g} and leaves {kind} row to fit; "
            f"the rows span {rows.flops.min():.3g} to {rows.flops.max():.3g} FLOPs"
        )
    return rows.where(~held_out), rows.where(held_out)


def far_rows(rows: ScratchRows, residuals: Array, sd: float) -> list[str]:
    """A warning for rows so far from the law that another unit or data set is likelier than noise."""
    far = np.flatnonzero((np.abs(residuals) > _FAR_LOG_RESIDUAL) & (np.abs(residuals) > 8 * sd))
    if not far.size:
        return []
    listed = ", ".join(
        f"(N {rows.num_params[i]:.3g}, D {rows.tokens[i]:.3g}, loss {rows.loss_nats[i]:.3g})" for i in far[:3]
    )
    more = "" if far.size <= 3 else f" and {far.size - 3} more"
    return [
        f"{far.size} row(s) lie far from the law: {listed}{more}; "
        "another unit (bits per byte), another data set or a diverged run among them?"
    ]


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    if list(table.columns).count(name) > 1:
        raise ValueError(f"column '{name}' stands in the table more than once; rename or remove one")
    if name not in table.columns:
        raise ValueError(f"column '{name}' is not in the table; it has {', '.join(map(str, table.columns))}")
    return table[name]


def _numbers(table: pd.DataFrame, name: str, limits: str | None) -> Array:
    """Column ``name`` as positive finite numbers within the limits of its kind."""
    import pandas as pd

    column = _column(table, name)
    values = np.asarray(pd.to_numeric(column, errors="coerce"), dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        rows = ", ".join(str(i + 1) for i in bad[:5])
        raise ValueError(
            f"column '{name}' has no finite number in {bad.size} row(s) (rows {rows}); fill or remove them"
        )
    bad = np.flatnonzero(values <= 0)
    if bad.size:
        raise ValueError(f"column '{name}' is {values[bad[0]]:g} in row {bad[0] + 1}; it must be positive in every row")
    if limits is not None:
        lowest, highest, unit, mend = _LIMITS[limits]
        for extreme in (values.min(), values.max()):
            if not lowest <= extreme <= highest:
                raise ValueError(
                    f"column '{name}' holds {extreme:g}; plain {unit} between {lowest:g} and {highest:g} are expected: {mend}"
                )
    return values
