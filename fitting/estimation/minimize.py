"""Many small minimisations at once: BFGS over a leading axis of independent problems.

    p_k = -H_k g_k        x_k <- box(x_k + t_k p_k)        H_k <- BFGS(H_k, step, change of gradient)

========  =======================================================  ========
symbol    meaning                                                  shape
========  =======================================================  ========
K, P      problems (cold starts or bootstrap draws); coordinates   -
x, g      points and gradients                                     (K, P)
H         inverse Hessian estimates                                (K, P, P)
t         step lengths, by bisection to the weak Wolfe conditions  (K,)
========  =======================================================  ========

A fit of a scaling law has 5 to 9 coordinates and a few hundred rows: the arithmetic is nothing, the interpreter everything.
So every evaluation handles all problems that are still open, each at its own place of its own line search. Weak Wolfe by
bisection also copes with the kinks of nearly absolute losses (Lewis and Overton 2013, algorithm 2.6). The box is kept
by projection; coordinates held at a bound by the gradient leave the quasi-Newton step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fitting.laws.base import Array

# (points (M, P), which problems they belong to (M,)) -> values (M,), gradients (M, P)
Objective = Callable[[Array, np.ndarray], tuple[Array, Array]]

_SUFFICIENT_DECREASE = 1e-4
_CURVATURE = 0.9
_MAX_LINE_STEPS = 45
_CALM_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Minima:
    """Where each problem ended: points (K, P), values (K,), inverse Hessians (K, P, P), converged (K,)."""

    points: Array
    values: Array
    inverse_hessians: Array
    converged: np.ndarray
    num_evaluations: int


def minimise(
    objective: Objective,
    starts: Array,
    lower: Array,
    upper: Array,
    *,
    inverse_hessian: Array | None = None,
    max_evaluations: int = 600,
    tolerance: float = 1e-11,
) -> Minima:
    """Minimise K problems from ``starts`` (K, P) inside the box ``lower`` <= x <= ``upper`` (P,).

    Args:
        objective: exact values and gradients; a non-finite value marks a point as forbidden.
        inverse_hessian: (P, P) or (K, P, P) first guess, as from a fit nearby; None starts from the gradient's size.
        tolerance: stop once the expected further gain falls below this share of the value.

    Returns:
        :class:`Minima`; ``converged`` is False where evaluations ran out or no finite start was given.
    """
    num_problems, num_coordinates = starts.shape
    x = np.clip(starts, lower, upper)
    identity = np.eye(num_coordinates)
    H = np.broadcast_to(
        identity if inverse_hessian is None else inverse_hessian, (num_problems, *identity.shape)
    ).copy()
    scaled = np.full(num_problems, inverse_hessian is not None)
    f, g = objective(x, np.arange(num_problems))
    evaluations = 1
    open_ = np.isfinite(f) & np.isfinite(g).all(axis=1)
    f = np.where(open_, f, np.inf)
    g = np.where(open_[:, None], g, 0.0)
    converged = np.zeros(num_problems, dtype=bool)
    calm = np.zeros(num_problems, dtype=int)
    direction = np.zeros_like(x)
    t, t_low, t_high = np.ones(num_problems), np.zeros(num_problems), np.full(num_problems, np.inf)
    line_steps = np.zeros(num_problems, dtype=int)
    reset = np.zeros(num_problems, dtype=bool)

    def aim(which: np.ndarray) -> None:
        """New directions for the problems ``which``; those with nothing left to gain are closed."""
        held = ((x[which] <= lower) & (g[which] > 0)) | ((x[which] >= upper) & (g[which] < 0)) | (lower == upper)
        free_gradient = np.where(held, 0.0, g[which])
        step = -np.matmul(H[which], free_gradient[..., None])[..., 0]
        step = np.where(held, 0.0, step)
        slope = np.sum(step * free_gradient, axis=1)
        uphill = slope >= 0
        step = np.where(uphill[:, None], -free_gradient, step)
        slope = np.where(uphill, -np.sum(free_gradient**2, axis=1), slope)
        done = -slope <= tolerance * (np.abs(f[which]) + 1e-300)
        done &= scaled[which] | (slope == 0)
        direction[which] = step
        converged[which[done]] = True
        open_[which[done]] = False
        # Before the first update H knows no scale: move by at most about a tenth of a log unit.
        size = np.sqrt(np.sum(step**2, axis=1))
        t[which] = np.where(scaled[which], 1.0, 0.1 / np.maximum(size, 0.1))
        t_low[which], t_high[which], line_steps[which] = 0.0, np.inf, 0

    aim(np.flatnonzero(open_))
    while open_.any() and evaluations < max_evaluations:
        which = np.flatnonzero(open_)
        wanted = x[which] + t[which, None] * direction[which]
        trial = np.clip(wanted, lower, upper)
        value, gradient = objective(trial, which)
        evaluations += 1
        step = trial - x[which]
        slope = np.sum(g[which] * step, axis=1)
        usable = np.isfinite(value) & np.isfinite(gradient).all(axis=1)
        falls = usable & (value <= f[which] + _SUFFICIENT_DECREASE * np.minimum(slope, 0.0)) & (slope < 0)
        flat = falls & (np.sum(np.where(usable[:, None], gradient, 0.0) * step, axis=1) >= _CURVATURE * slope)
        # A step that the box cut short cannot be asked to reach a flat place.
        clipped = np.any(trial != wanted, axis=1)
        accept = falls & (flat | clipped)
        too_long, too_short = ~falls, falls & ~accept
        t_high[which[too_long]] = t[which[too_long]]
        t_low[which[too_short]] = t[which[too_short]]
        undecided = which[~accept]
        bracketed = np.isfinite(t_high[undecided])
        t[undecided] = np.where(
            bracketed, 0.5 * (t_low[undecided] + np.minimum(t_high[undecided], 1e300)), 2.0 * t[undecided]
        )
        line_steps[undecided] += 1

        taken = which[accept]
        if taken.size:
            # A coordinate that did not move teaches nothing: its change of gradient would spoil H for the others.
            change = np.where(step[accept] == 0, 0.0, gradient[accept] - g[taken])
            _update(H, scaled, taken, step[accept], change)
            gain = f[taken] - value[accept]
            small = gain <= 10 * tolerance * np.abs(value[accept])
            calm[taken] = np.where(small, calm[taken] + 1, 0)
            x[taken], f[taken], g[taken] = trial[accept], value[accept], gradient[accept]
            reset[taken] = False
            settled = taken[calm[taken] >= _CALM_STEPS]
            converged[settled], open_[settled] = True, False
            aim(taken[open_[taken]])

        stuck = undecided[line_steps[undecided] >= _MAX_LINE_STEPS]
        if stuck.size:
            # One more try along the plain gradient; where that fails too, rounding is all that is left.
            finished = stuck[reset[stuck]]
            converged[finished], open_[finished] = True, False
            again = stuck[~reset[stuck]]
            H[again], scaled[again], reset[again] = identity, False, True
            aim(again)
    return Minima(points=x, values=f, inverse_hessians=H, converged=converged, num_evaluations=evaluations)


def _update(H: Array, scaled: np.ndarray, taken: np.ndarray, step: Array, change: Array) -> None:
    """BFGS update in place of ``H[taken]`` by steps and gradient changes (M, P); skipped without positive curvature."""
    curvature = np.sum(step * change, axis=1)
    good = curvature > 1e-14 * np.sqrt(np.sum(step**2, axis=1) * np.sum(change**2, axis=1))
    which, s, y, sy = taken[good], step[good], change[good], curvature[good]
    if not which.size:
        return
    first = which[~scaled[which]]
    if first.size:
        scale = (sy / np.sum(y**2, axis=1))[~scaled[which]]
        H[first] = scale[:, None, None] * np.eye(H.shape[1])
        scaled[first] = True
    Hy = np.matmul(H[which], y[..., None])[..., 0]
    factor = (1.0 + np.sum(y * Hy, axis=1) / sy) / sy
    outer = s[:, :, None] * Hy[:, None, :] / sy[:, None, None]
    H[which] += factor[:, None, None] * s[:, :, None] * s[:, None, :] - outer - outer.transpose(0, 2, 1)
