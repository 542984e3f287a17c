"""The losses that a run is judged by: which data set decides, when a loss is final, and in which unit it is compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from app.ingest.imported import ImportedPoint, Phase
from app.ingest.logs.rows import BITS_PER_BYTE, NATS
from fitting.errors import InputError

# A decision loss measured before this share of a stage's tokens is a mid-schedule one.
LATEST_SHARE = 0.99


def final_loss(
    points: Sequence[ImportedPoint],
    metric: str,
    dataset: str,
    target_tokens: float,
    bytes_per_token: Mapping[str, float],
) -> tuple[float, str]:
    """The last decision loss of the last phase, in nats, and a sentence where it is a mid-schedule one ('' where not).

    Raises:
        InputError: it was never measured there, or cannot be given in nats.
    """
    judged = [point for point in points if (point.metric, point.dataset) == (metric, dataset) and point.phase != "base"]
    if not judged:
        raise InputError("decision_dataset", f"{dataset!r} was not measured in the last phase", "give the whole log")
    last = judged[-1]
    late = ""
    if last.tokens < LATEST_SHARE * target_tokens:
        late = (
            f"the last {metric} was measured after {last.tokens:,} of {target_tokens:,.0f} tokens, so it is "
            "a mid-schedule loss and counts as not final"
        )
    return nats(last, bytes_per_token), late


def nats(point: ImportedPoint, bytes_per_token: Mapping[str, float]) -> float:
    """A loss in nats a token.

    Raises:
        InputError: it is in bits per byte and nobody said how many bytes a token has, or in an unknown unit.
    """
    if point.unit == NATS:
        return point.value
    if point.unit != BITS_PER_BYTE:
        raise InputError(
            "map", f"gives {point.metric} the unit {point.unit!r}, but losses are compared in nats",
            f"map it in {NATS} or {BITS_PER_BYTE}",
        )  # fmt: skip
    size = bytes_per_token.get(point.dataset)
    if size is None or not 0 < size < 1_000 or not math.isfinite(size):
        raise InputError(
            "bytes_per_token", f"of {point.dataset!r} is {size}, and bits per byte are no nats without it",
            "give the mean bytes of a token of that set, as in --bytes-per-token 4.3",
        )  # fmt: skip
    return point.value * math.log(2.0) * size


def peak_rate(points: Sequence[ImportedPoint], phases: Sequence[Phase]) -> float | None:
    rates = [
        point.value for point in points if point.metric == "learning_rate" and point.phase in phases and point.value > 0
    ]
    return max(rates) if rates else None
