"""The regression of a scratch law: working coordinates, objective over many draws, best of several cold starts.

    minimise over theta   sum_i w_i rho( ln S_theta(N_i, D_i) - ln L_i )

The minimiser works in centred units (N / N0, D / D0) and in logarithms of the positive parameters; values go in and come out
in plain units. See :mod:`fitting.estimation.losses` for rho and :mod:`fitting.laws.base` for the shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import scipy  # its parts load when they are first used: a service starts sooner

from fitting.estimation.losses import LossFunction, huber, robust_sd, scale_aware_knee
from fitting.estimation.minimize import Minima, minimise
from fitting.laws.base import Array, ScratchLaw

# Draws handled at once: their arrays of (draws, rows, parameters) should stay inside the cache.
_NUMBERS_PER_CHUNK = 150_000
# Starts whose objective is this close (relative) to the best count as having reached it.
_SAME_OPTIMUM = 1e-6
# The first pass, at a wide knee, only has to come near.
_ROUGH = 1e-5
# Starts that end this many times above the best of that pass are given up (and count as not having reached it).
_HOPELESS = 1.5
# The knee from which least absolute deviations are approached, in robust standard deviations.
_NEARLY_ABSOLUTE = 0.02


@dataclass(frozen=True, kw_only=True)
class Regression:
    """One law on one set of rows; every array (R,). ``fixed`` pins scale-free parameters by name."""

    law: ScratchLaw
    num_params: Array
    tokens: Array
    loss_nats: Array
    fixed: dict[str, float] = field(default_factory=dict)

    @cached_property
    def centre(self) -> tuple[float, float]:
        return self.law.centre(self.num_params, self.tokens)

    @cached_property
    def _rows(self) -> tuple[Array, Array, Array]:
        size, tokens = self.centre
        return self.num_params / size, self.tokens / tokens, np.log(self.loss_nats)

    @cached_property
    def _positive(self) -> np.ndarray:
        return np.array(self.law.positive)

    @cached_property
    def box(self) -> tuple[Array, Array]:
        """Bounds of the working coordinates, each (P,); a fixed parameter has equal ones."""
        lower, upper = self.law.bounds(float(self.loss_nats.min()), float(self.loss_nats.max()))
        for name, value in self.fixed.items():
            if name not in self.law.scale_free:
                raise ValueError(
                    f"'{name}' of law '{self.law.name}' cannot be fixed; only {', '.join(self.law.scale_free)} can"
                )
            index = self.law.parameter_names.index(name)
            if self.law.positive[index] and not value > 0:
                raise ValueError(f"fixed {name} is {value:g}; it must be positive")
            lower[index] = upper[index] = value
        return self._to_coordinates_centred(lower), self._to_coordinates_centred(upper)

    def _to_coordinates_centred(self, centred: Array) -> Array:
        coordinates = np.array(centred, dtype=np.float64)
        coordinates[..., self._positive] = np.log(coordinates[..., self._positive])
        return coordinates

    def _centred(self, coordinates: Array) -> Array:
        centred = np.array(coordinates, dtype=np.float64)
        centred[..., self._positive] = np.exp(centred[..., self._positive])
        return centred

    def params(self, coordinates: Array) -> Array:
        """Parameters in plain units (..., P) from working coordinates (..., P)."""
        return self.law.rescaled(self._centred(coordinates), *self.centre)

    def coordinates(self, params: Array) -> Array:
        """Working coordinates (..., P) from parameters in plain units (..., P)."""
        size, tokens = self.centre
        return self._to_coordinates_centred(self.law.rescaled(np.asarray(params), 1.0 / size, 1.0 / tokens))

    def cold_starts(self) -> Array:
        """Working coordinates (S, P) of the law's own cold starts."""
        sizes, tokens, _ = self._rows
        lower, upper = self.box
        return np.clip(self._to_coordinates_centred(self.law.starts(sizes, tokens, self.loss_nats)), lower, upper)

    def residuals(self, coordinates: Array) -> Array:
        """Log residuals ln S - ln L, (..., R)."""
        sizes, tokens, log_loss = self._rows
        return np.log(self.law.loss(self._centred(coordinates), sizes, tokens)) - log_loss

    def jacobian(self, coordinates: Array) -> Array:
        """d residual / d coordinate, (..., R, P)."""
        sizes, tokens, _ = self._rows
        centred = self._centred(coordinates)
        loss, gradient = self.law.loss_and_gradient(centred, sizes, tokens)
        chain = np.where(self._positive, centred, 1.0)
        return gradient * chain[..., None, :] / loss[..., None]

    def value_and_gradient(self, coordinates: Array, knee: float, weights: Array | None) -> tuple[Array, Array]:
        """Sum-Huber over the squared knee and its gradient for K points (K, P); ``weights`` is (K, R) or None."""
        num_points, num_coordinates = coordinates.shape
        sizes, tokens, log_loss = self._rows
        values, gradients = np.empty(num_points), np.empty((num_points, num_coordinates))
        centred = self._centred(coordinates)
        chunk = max(1, _NUMBERS_PER_CHUNK // (len(log_loss) * num_coordinates))
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for first in range(0, num_points, chunk):
                part = slice(first, first + chunk)
                loss, gradient = self.law.loss_and_gradient(centred[part], sizes, tokens)
                rho, psi = huber(np.log(loss) - log_loss, knee)
                if weights is not None:
                    rho, psi = rho * weights[part], psi * weights[part]
                values[part] = rho.sum(axis=1)
                gradients[part] = np.matmul((psi / loss)[:, None, :], gradient)[:, 0, :]
        gradients[:, self._positive] *= centred[:, self._positive]
        return values / knee**2, gradients / knee**2

    def minimise(
        self,
        starts: Array,
        knee: float,
        *,
        weights: Array | None = None,
        inverse_hessian: Array | None = None,
        tolerance: float = 1e-10,
    ) -> Minima:
        """Best coordinates from each start (K, P); ``weights`` (K, R) resample the rows of each."""
        lower, upper = self.box

        def objective(points: Array, which: np.ndarray) -> tuple[Array, Array]:
            return self.value_and_gradient(points, knee, None if weights is None else weights[which])

        return minimise(objective, starts, lower, upper, inverse_hessian=inverse_hessian, tolerance=tolerance)


@dataclass(frozen=True, kw_only=True)
class PointFit:
    """The best optimum found: working coordinates (P,), its objective, and how many of the cold starts came to it."""

    coordinates: Array
    objective: float
    knee: float
    loss_function: LossFunction
    inverse_hessian: Array
    residuals: Array
    num_starts: int
    share_of_starts_at_best: float


def fit_point(regression: Regression, loss_function: LossFunction = "huber", knee: float | None = None) -> PointFit:
    """Fit by sum-Huber (``knee`` None: 1.345 robust sd of the residuals) or by least absolute deviations.

    The objective is sum_i rho(r_i) for ``huber`` and sum_i |r_i| for ``lad``. The cold starts settle at a knee wide
    enough for the
    objective to be smooth; the knee then shrinks to the one asked for with every hopeful start warm, so the share that
    reached the best is a statement about the whole path.

    Raises:
        ValueError: no start gave a finite objective.
    """
    starts = regression.cold_starts()
    rough = regression.minimise(starts, knee=0.05, tolerance=_ROUGH)
    if not np.isfinite(rough.values).any():
        raise ValueError(f"law '{regression.law.name}' has no finite fit on these {len(regression.loss_nats)} rows")
    residuals = regression.residuals(rough.points[np.argmin(rough.values)])
    path = _knee_path(regression, residuals, loss_function, knee)
    hopeful = rough.values <= _HOPELESS * rough.values.min() + 1e-12
    minima = regression.minimise(rough.points[hopeful], knee=path[0])
    for step in path[1:]:
        minima = regression.minimise(minima.points, knee=step, inverse_hessian=minima.inverse_hessians)
    last = path[-1]
    best = int(np.argmin(minima.values))
    at_best = minima.values <= minima.values[best] * (1 + _SAME_OPTIMUM) + 1e-12
    winner, value, inverse_hessian = minima.points[best], minima.values[best], minima.inverse_hessians[best]
    if loss_function == "huber" and knee is None:
        settled, last = _settle_knee(regression, winner, inverse_hessian, last)
        winner, value, inverse_hessian = settled.points[0], settled.values[0], settled.inverse_hessians[0]
    coordinates, objective = winner, float(value) * last**2
    if loss_function == "lad":
        coordinates = _polish_absolute(regression, coordinates)
        objective = float(np.abs(regression.residuals(coordinates)).sum())
    return PointFit(
        coordinates=coordinates,
        objective=objective,
        knee=last,
        loss_function=loss_function,
        inverse_hessian=inverse_hessian,
        residuals=regression.residuals(coordinates),
        num_starts=len(starts),
        share_of_starts_at_best=float(at_best.sum()) / len(starts),
    )


def _knee_path(
    regression: Regression, residuals: Array, loss_function: LossFunction, knee: float | None
) -> list[float]:
    auto = scale_aware_knee(residuals, regression.law.num_parameters)
    if loss_function == "lad":
        last = max(_NEARLY_ABSOLUTE * robust_sd(residuals), 1e-9)
    elif knee is None:
        return [auto]
    else:
        last = knee
    if last >= auto:
        return [last]
    middle = float(np.sqrt(auto * last))
    return [middle, last] if auto / last > 5 else [last]


def _settle_knee(regression: Regression, point: Array, inverse_hessian: Array, knee: float) -> tuple[Minima, float]:
    """Knee and fit depend on each other: alternate until the knee moves by less than 0.1%."""
    minima = regression.minimise(point[None], knee=knee, inverse_hessian=inverse_hessian)
    for _ in range(12):
        fresh = scale_aware_knee(regression.residuals(minima.points[0]), regression.law.num_parameters)
        if abs(fresh / knee - 1) < 1e-3:
            break
        knee = fresh
        minima = regression.minimise(minima.points, knee=knee, inverse_hessian=minima.inverse_hessians)
    return minima, knee


def _polish_absolute(regression: Regression, coordinates: Array) -> Array:
    """Least absolute deviations to machine precision: linearise, solve the linear programme in a trust box, repeat.

    A least-absolute optimum passes exactly through as many rows as it has parameters; linear programmes find that vertex, on
    which no smoothing of the kink can settle.
    """
    lower, upper = regression.box
    num_rows, num_coordinates = len(regression.loss_nats), len(coordinates)
    best = float(np.abs(regression.residuals(coordinates)).sum())
    radius = 0.05
    cost = np.concatenate([np.zeros(num_coordinates), np.ones(2 * num_rows)])
    identity = np.eye(num_rows)
    for _ in range(60):
        residuals, jacobian = regression.residuals(coordinates), regression.jacobian(coordinates)
        box = [
            (max(-radius, low - here), min(radius, high - here))
            for low, high, here in zip(lower, upper, coordinates, strict=True)
        ]
        # residual + J step = over - under, minimising sum(over + under)
        solution = scipy.optimize.linprog(
            cost,
            A_eq=np.hstack([jacobian, -identity, identity]),
            b_eq=-residuals,
            bounds=box + [(0, None)] * (2 * num_rows),
        )
        if solution.status != 0:
            break
        step = solution.x[:num_coordinates]
        value = float(np.abs(regression.residuals(coordinates + step)).sum())
        if value < best:
            gain, best, coordinates = best - value, value, coordinates + step
            radius *= 2
            if gain <= 1e-14 * best:
                break
        else:
            radius /= 4
            if radius < 1e-12:
                break
    return coordinates
