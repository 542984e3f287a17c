"""What a scratch law is: the loss S(N, D) of a model trained from random weights, with slopes and its inverse in D.

    S(N, D) > floor(N) >= E        dS/dN < 0        dS/dD < 0

========  =========================================================  ======================
symbol    meaning                                                    unit
========  =========================================================  ======================
N         model parameters (non-embedding unless the data say else)  parameters
D         training tokens                                            tokens
S         final loss                                                 nats per token
theta     the law's parameters, in the order of ``parameter_names``  natural units
K, R      leading axis of parameter draws; rows of (N, D)            -
P         number of parameters of the law                            -
========  =========================================================  ======================

Shapes are the same in every method. ``params`` is (..., P), ``num_params`` and ``tokens`` are (R,) (or broadcast to
it), results are (..., R), and gradients with respect to theta (..., R, P). One draw is simply ``params`` of shape (P,).

A new law is one file that fills in the abstract methods and one line in ``fitting/laws/__init__.py``; the conformance
suite (``tests/fitting/test_laws_conformance.py``) then runs over it. Fits happen in *centred units*: N and D are divided
by :meth:`ScratchLaw.centre`, which removes the 0.999 correlation of ln A with alpha, and
:meth:`ScratchLaw.rescaled` carries the parameters back to plain units.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Tokens the inverse looks between: less than one token and more than any corpus will hold.
_LOWEST_TOKENS, _HIGHEST_TOKENS = 1e-3, 1e24


def split(params: ArrayLike) -> list[Array]:
    """The parameters of ``params`` (..., P) one by one, each (..., 1), ready to broadcast against rows (R,)."""
    values = np.asarray(params, dtype=np.float64)
    return [values[..., index, None] for index in range(values.shape[-1])]


class ScratchLaw(abc.ABC):
    """Loss of a from-scratch run of N parameters on D tokens; stateless, so one instance serves every fit."""

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    parameter_names: ClassVar[tuple[str, ...]]
    # Parameters known to be positive are estimated through their logarithms.
    positive: ClassVar[tuple[bool, ...]]
    # Parameters whose value does not depend on the units of N and D; only these can be fixed or borrowed.
    scale_free: ClassVar[tuple[str, ...]]
    # Distinct sizes and distinct token counts without which the parameters cannot be told apart.
    min_sizes: ClassVar[int] = 3
    min_token_counts: ClassVar[int] = 3

    @property
    def num_parameters(self) -> int:
        return len(self.parameter_names)

    def params_of(self, values: Mapping[str, float]) -> Array:
        """(P,) from a mapping of parameter names; ValueError names what is missing or unknown."""
        missing = [name for name in self.parameter_names if name not in values]
        unknown = [name for name in values if name not in self.parameter_names]
        if missing or unknown:
            raise ValueError(
                f"parameters of law '{self.name}' are {', '.join(self.parameter_names)}; "
                f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
            )
        return np.array([values[name] for name in self.parameter_names], dtype=np.float64)

    @abc.abstractmethod
    def loss(self, params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> Array:
        """S(N, D) in nats, (..., R)."""

    @abc.abstractmethod
    def loss_and_gradient(self, params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array]:
        """S (..., R) and dS/dtheta (..., R, P), exact; they share their exponentials, hence one call."""

    @abc.abstractmethod
    def slopes(self, params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array]:
        """(dS/dlnN, dS/dlnD) in nats per unit of natural logarithm, each (..., R)."""

    @abc.abstractmethod
    def floor(self, params: ArrayLike, num_params: ArrayLike) -> Array:
        """The limit of S(N, D) as D grows without bound, in nats, (..., R): no tokens reach a loss below it."""

    @abc.abstractmethod
    def rescaled(self, params: ArrayLike, size_factor: float, token_factor: float) -> Array:
        """Parameters (..., P) for plain (N, D) of the function that ``params`` give in (N / size_factor, D / token_factor)."""

    @abc.abstractmethod
    def bounds(self, lowest_loss: float, highest_loss: float) -> tuple[Array, Array]:
        """Lowest and highest parameters (P,) the fit may take, in centred units; an optimum there is reported as such."""

    @abc.abstractmethod
    def starts(self, num_params: Array, tokens: Array, loss_nats: Array) -> Array:
        """Cold starts (S, P) in centred units, from the data alone."""

    def gradient(self, params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> Array:
        """dS/dtheta, (..., R, P)."""
        return self.loss_and_gradient(params, num_params, tokens)[1]

    def d_loss_d_log_params(self, params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> Array:
        """dS/dlnN (..., R); negative on the domain."""
        return self.slopes(params, num_params, tokens)[0]

    def d_loss_d_log_tokens(self, params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> Array:
        """dS/dlnD (..., R); negative on the domain."""
        return self.slopes(params, num_params, tokens)[1]

    def centre(self, num_params: Array, tokens: Array) -> tuple[float, float]:
        """The (N, D) the fit measures in: geometric means of the rows."""
        return float(np.exp(np.mean(np.log(num_params)))), float(np.exp(np.mean(np.log(tokens))))

    def tokens_for_loss(self, params: ArrayLike, num_params: ArrayLike, loss_nats: ArrayLike) -> Array:
        """D with S(N, D) = loss, (..., R): inf at or under the floor, 0 where less than any token would do.

        Bisection in ln D to machine precision; laws with a closed form override it.
        """
        sizes = np.asarray(num_params, dtype=np.float64)
        goal = np.asarray(loss_nats, dtype=np.float64)
        shape = np.broadcast_shapes(self.floor(params, sizes).shape, goal.shape)
        low = np.full(shape, np.log(_LOWEST_TOKENS))
        high = np.full(shape, np.log(_HIGHEST_TOKENS))
        too_easy = self.loss(params, sizes, np.exp(low)) <= goal
        too_hard = self.loss(params, sizes, np.exp(high)) > goal
        for _ in range(60):
            middle = 0.5 * (low + high)
            above = self.loss(params, sizes, np.exp(middle)) > goal
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return np.where(too_hard, np.inf, np.where(too_easy, 0.0, np.exp(0.5 * (low + high))))


def linear_start(columns: Array, loss_nats: Array, smallest: float) -> Array:
    """Variable projection: given exponents the coefficients are linear, so solve for them, relative residuals.

    Args:
        columns: (S, R, Q) basis functions of S guesses of the exponents.
        loss_nats: (R,) observed losses.
        smallest: a coefficient that comes out lower is raised to this.

    Returns:
        (S, Q) positive coefficients.
    """
    weighted = columns / loss_nats[None, :, None]
    normal = np.einsum("srp,srq->spq", weighted, weighted)
    size = np.trace(normal, axis1=1, axis2=2)[:, None, None] / columns.shape[2]
    # A grain of ridge keeps tables with fewer rows than coefficients solvable.
    ridge = 1e-8 * size * np.eye(columns.shape[2])
    coefficients = np.linalg.solve(normal + ridge, weighted.sum(axis=1)[..., None])[..., 0]
    return np.maximum(coefficients, smallest)
