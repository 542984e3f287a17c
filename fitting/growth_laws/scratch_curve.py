"""The scratch loss that growth laws are built on: one law for all sizes, bent to what each target's own runs showed.

    S(N, D) = S_law(N, D) exp(o_N(ln D))

========  ==============================================================  ======
symbol    meaning                                                         unit
========  ==============================================================  ======
S_law     a scratch law with its parameters (or draws of them)            nats
o_N       piecewise linear offset of target N, constant beyond its data;  -
          zero for sizes without scratch runs
========  ==============================================================  ======

delta is a difference of two readings of nearly the same curve, an order of magnitude smaller than the misfit of a law that is
shared by all sizes: the offset keeps that misfit out of it. d_eq compares two sizes and is read on the smooth law alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fitting.conventions import SAME_SIZE
from fitting.laws.base import Array, ScratchLaw

_MAX_KNOTS = 9
_ROWS_PER_KNOT = 3
# A target's mean residual counts as this many rows fewer than it has: one run alone moves its curve half-way.
_PRIOR_ROWS = 1.0
# Second differences of the offset are held down by this, in rows.
_STIFFNESS = 0.3


@dataclass(frozen=True, kw_only=True)
class TargetOffset:
    """o_N of one target: knots (Q,) in ln D, and values (..., Q)."""

    params: float
    knots: Array
    values: Array

    def at(self, tokens: ArrayLike) -> tuple[Array, Array]:
        """(o, do/dlnD) at ``tokens`` (..., R)."""
        x = np.log(tokens)
        if len(self.knots) == 1:
            level = np.broadcast_to(self.values[..., :1], np.broadcast_shapes(x.shape, (*self.values.shape[:-1], 1)))
            return level, np.zeros_like(level)
        index = np.clip(np.searchsorted(self.knots, x) - 1, 0, len(self.knots) - 2)
        left, right = self.knots[index], self.knots[index + 1]
        share = np.clip((x - left) / (right - left), 0.0, 1.0)
        if self.values.ndim == 1:
            low, high = self.values[index], self.values[index + 1]
        else:
            index = np.broadcast_to(index, (len(self.values), x.shape[-1]))
            low = np.take_along_axis(self.values, index, axis=1)
            high = np.take_along_axis(self.values, index + 1, axis=1)
        inside = (share > 0) & (share < 1)
        return low + share * (high - low), np.where(inside, (high - low) / (right - left), 0.0)


@dataclass(frozen=True, kw_only=True)
class ScratchCurve:
    """A scratch law with parameters (P,) or draws (K, P), and the offsets of the targets that have scratch runs."""

    law: ScratchLaw
    params: Array
    offsets: tuple[TargetOffset, ...] = ()

    def smooth_loss(self, num_params: ArrayLike, tokens: ArrayLike) -> Array:
        """S_law (..., R) in nats."""
        return self.law.loss(self.params, num_params, tokens)

    def smooth_tokens_for_loss(self, num_params: ArrayLike, loss_nats: ArrayLike) -> Array:
        """Tokens (..., R) at which S_law reaches the loss; inf if it never does."""
        return self.law.tokens_for_loss(self.params, num_params, loss_nats)

    def loss(self, num_params: ArrayLike, tokens: ArrayLike) -> Array:
        """S (..., R) in nats."""
        sizes = np.asarray(num_params, dtype=np.float64)
        if sizes.size > 1 and (sizes == sizes.flat[0]).all():
            # One size: what depends on it alone is computed once, not for every row.
            sizes = sizes.reshape(-1)[:1]
        counts = np.asarray(tokens, dtype=np.float64)
        loss = self.law.loss(self.params, sizes, counts)
        for offset in self.offsets:
            rows = np.flatnonzero(np.broadcast_to(np.abs(sizes / offset.params - 1) < SAME_SIZE, loss.shape[-1:]))
            if rows.size:
                # A view where the offset holds for every row, which is the common case.
                which = slice(None) if rows.size == loss.shape[-1] else rows
                shift = offset.at(np.broadcast_to(counts, loss.shape)[..., which])[0]
                loss[..., which] *= np.exp(shift)
        return loss

    def loss_and_slope(self, num_params: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array]:
        """(S, dS/dlnD), each (..., R)."""
        sizes, counts = np.asarray(num_params, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
        loss, slope = self.law.loss(self.params, sizes, counts), self.law.slopes(self.params, sizes, counts)[1]
        if not self.offsets:
            return loss, slope
        loss, slope = loss.copy(), slope.copy()
        sizes = np.broadcast_to(sizes, loss.shape[-1:])
        counts = np.broadcast_to(counts, loss.shape)
        for offset in self.offsets:
            rows = np.flatnonzero(np.abs(sizes / offset.params - 1) < SAME_SIZE)
            if rows.size:
                shift, bend = offset.at(counts[..., rows])
                factor = np.exp(shift)
                slope[..., rows] = factor * (slope[..., rows] + loss[..., rows] * bend)
                loss[..., rows] *= factor
        return loss, slope

    def take(self, which: np.ndarray) -> ScratchCurve:
        """The draws ``which``."""
        offsets = tuple(
            TargetOffset(params=offset.params, knots=offset.knots, values=offset.values[which])
            for offset in self.offsets
        )
        return ScratchCurve(law=self.law, params=self.params[which], offsets=offsets)


def with_offsets(law: ScratchLaw, params: Array, num_params: Array, tokens: Array, loss_nats: Array) -> ScratchCurve:
    """The law bent to scratch runs: one offset per distinct size of the rows (R,), for each draw of ``params`` (..., P)."""
    residuals = np.log(loss_nats) - np.log(law.loss(params, num_params, tokens))
    offsets = []
    for size in _distinct(num_params):
        rows = np.flatnonzero(np.abs(num_params / size - 1) < SAME_SIZE)
        knots, operator = _smoother(np.log(tokens[rows]))
        offsets.append(TargetOffset(params=size, knots=knots, values=residuals[..., rows] @ operator.T))
    return ScratchCurve(law=law, params=np.asarray(params), offsets=tuple(offsets))


def _distinct(sizes: Array) -> Sequence[float]:
    found: list[float] = []
    for size in np.sort(sizes):
        if not found or abs(size / found[-1] - 1) >= SAME_SIZE:
            found.append(float(size))
    return found


def _smoother(log_tokens: Array) -> tuple[Array, Array]:
    """Knots (Q,) and the linear map (Q, R) from residuals to the offset's values there."""
    num_knots = min(_MAX_KNOTS, 1 + len(log_tokens) // _ROWS_PER_KNOT, len(np.unique(log_tokens)))
    shrink = len(log_tokens) / (len(log_tokens) + _PRIOR_ROWS)
    if num_knots < 3:
        return np.array([log_tokens.mean()]), np.full((1, len(log_tokens)), shrink / len(log_tokens))
    knots = np.linspace(log_tokens.min(), log_tokens.max(), num_knots)
    # Linear interpolation between knots is a matrix of hat functions.
    hats = np.array([np.interp(log_tokens, knots, row) for row in np.eye(num_knots)]).T
    bends = np.diff(np.eye(num_knots), n=2, axis=0)
    normal = hats.T @ hats + _STIFFNESS * bends.T @ bends + 1e-9 * np.eye(num_knots)
    return knots, np.linalg.solve(normal, hats.T)
