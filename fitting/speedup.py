"""Speedup of a grown run over scratch at equal loss, as far as one pair of curves can show it.

    speedup = FLOPs_scratch / FLOPs_grown - 1          (arXiv 2405.15319, section 3)

==============  ========================================================================  ======
symbol          meaning                                                                   unit
==============  ========================================================================  ======
FLOPs_scratch   compute of the whole scratch run, whose final loss is the mark            FLOPs
FLOPs_grown     compute, base included, from where the grown run stays at or under it     FLOPs
==============  ========================================================================  ======

Where the schedule ends in a decay, a mid-schedule loss of the grown run is held against a final loss of scratch: a
grown run stopped earlier, with its own decay, would get there sooner. The number is therefore a lower bound.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def smooth(values: ArrayLike, width: int = 3) -> NDArray[np.float64]:
    """Centred moving average over `width` (odd) values; shorter at both ends, so the last value stays its own."""
    assert width % 2 == 1, width
    array = np.asarray(values, dtype=float)
    half = width // 2
    reach = np.minimum(half, np.minimum(np.arange(array.size), np.arange(array.size)[::-1]))
    sums = np.concatenate([[0.0], np.cumsum(array)])
    index = np.arange(array.size)
    smoothed: NDArray[np.float64] = (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
    return smoothed


def speedup_lower_bound(
    *, scratch_final_loss_nats: float, scratch_flops: float, grown_flops: ArrayLike, grown_loss_nats: ArrayLike
) -> float | None:
    """Speedup of the grown run, from its first evaluation behind which its smoothed loss never rises above the mark.

    Args:
        scratch_final_loss_nats: final validation loss of the scratch run.
        scratch_flops: its training FLOPs.
        grown_flops: (n,) cumulative FLOPs of the grown run's evaluations, base included, ascending.
        grown_loss_nats: (n,) validation losses there.

    Returns:
        The bound (0.5 = half as much compute again for scratch); None if the loss never stays under the mark.
    """
    flops = np.asarray(grown_flops, dtype=float)
    above = smooth(grown_loss_nats) > scratch_final_loss_nats
    first = int(np.flatnonzero(above)[-1]) + 1 if above.any() else 0
    return float(scratch_flops / flops[first] - 1) if first < flops.size else None


def speedups_at_equal_loss(
    *, flops: ArrayLike, loss_nats: ArrayLike, reference_flops: ArrayLike, reference_loss_nats: ArrayLike
) -> NDArray[np.float64]:
    """Speedup over a reference curve at every point of another: FLOPs at which the reference first reached that loss, over the
    point's own, minus 1.

    The reference is read between its points, straight in log FLOPs, along the lowest loss it had reached so far: where it
    touched a loss by luck the speedup is the smaller for it.

    Args:
        flops, loss_nats: (n,) points asked about.
        reference_flops, reference_loss_nats: (m,) the reference's, ascending in FLOPs.

    Returns:
        (n,) speedups; nan where the reference's curve does not reach the loss, or begins below it.
    """
    at, wanted = np.asarray(flops, dtype=float), np.asarray(loss_nats, dtype=float)
    spent, reached = np.asarray(reference_flops, dtype=float), np.asarray(reference_loss_nats, dtype=float)
    result = np.full(at.shape, np.nan)
    if not spent.size:
        return result
    lowest = np.minimum.accumulate(reached)
    falls = np.concatenate([[True], np.diff(lowest) < 0])
    losses, spent = lowest[falls][::-1], spent[falls][::-1]  # losses ascending
    inside = (wanted >= losses[0]) & (wanted <= losses[-1]) & (at > 0)
    needed = np.exp(np.interp(wanted[inside], losses, np.log(spent)))
    result[inside] = needed / at[inside] - 1
    return result
