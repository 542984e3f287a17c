"""The Farseer law, bounded: floor, scale and exponent of the data term each bend with size on their own.

    S(N, D) = exp(S0 - s h(N, q)) + exp(Q - r h(N, b)) (D / D_ref)^(-exp(T + t h(N, a))),    h(N, q) = (N^q - 1) / q

==========  ==========================================================  =====================
symbol      meaning                                                     unit
==========  ==========================================================  =====================
S0, s, q    logarithm of the floor at N = 1, its fall, its curvature    ln nats, -, -
Q, r, b     the same of the data term at D_ref                          ln nats, -, -
T, t, a     logarithm of the data exponent, its rise, its curvature     -, -, -
h           Box-Cox transform: ln N at q = 0                            -
D_ref       1e5, a fixed unit: the law is not closed under others       tokens
==========  ==========================================================  =====================

The paper's exp(s N^q + S) and so on are the same nine-parameter family; h removes the degeneracy at exponents near
0, where s and S cancel. On 12 public extrapolation splits the free form won 8 and exploded on 3: here s, r, t > 0, so the loss
falls with size and data wherever D > D_ref, fewer tokens than any run has, and every slope and curvature is bounded.

Source: Li et al. 2025 (arXiv 2506.10972).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fitting.laws.base import Array, ScratchLaw, split
from fitting.laws.chinchilla import Chinchilla

REFERENCE_TOKENS = 1e5
# Below this |q| the series of h is exact to machine precision where the quotient is not.
_SERIES = 1e-4


class Farseer(ScratchLaw):
    name = "farseer"
    formula = "exp(S0 - s h(N,q)) + exp(Q - r h(N,b)) (D/1e5)^-exp(T + t h(N,a)), h(N,q) = (N^q - 1)/q"
    source = "Li et al. 2025, arXiv 2506.10972, with bounded exponents"
    parameter_names = ("S0", "s", "q", "Q", "r", "b", "T", "t", "a")
    positive = (False, True, False, False, True, False, False, True, False)
    scale_free = ()
    min_sizes = 5
    min_token_counts = 5

    def loss(self, params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> Array:
        floor, data, _ = _terms(params, num_params, tokens)
        return floor + data

    def loss_and_gradient(self, params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array]:
        _, s, q, _, r, b, _, t, a = split(params)
        log_size, log_tokens = np.log(num_params), np.log(np.asarray(tokens) / REFERENCE_TOKENS)
        floor, data, exponent = _terms(params, num_params, tokens)
        loss = floor + data
        # d data / d ln exponent
        bend = -data * exponent * log_tokens
        gradient = np.empty((*loss.shape, 9))
        gradient[..., 0] = floor
        gradient[..., 1] = -floor * _transform(log_size, q)
        gradient[..., 2] = -floor * s * _transform_by_power(log_size, q)
        gradient[..., 3] = data
        gradient[..., 4] = -data * _transform(log_size, b)
        gradient[..., 5] = -data * r * _transform_by_power(log_size, b)
        gradient[..., 6] = bend
        gradient[..., 7] = bend * _transform(log_size, a)
        gradient[..., 8] = bend * t * _transform_by_power(log_size, a)
        return loss, gradient

    def slopes(self, params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array]:
        _, s, q, _, r, b, _, t, a = split(params)
        log_size, log_tokens = np.log(num_params), np.log(np.asarray(tokens) / REFERENCE_TOKENS)
        floor, data, exponent = _terms(params, num_params, tokens)
        by_size = -floor * s * np.exp(q * log_size) - data * (
            r * np.exp(b * log_size) + exponent * t * np.exp(a * log_size) * log_tokens
        )
        return by_size, -data * exponent

    def floor(self, params: ArrayLike, num_params: ArrayLike) -> Array:
        S0, s, q, *_ = split(params)
        return np.exp(S0 - s * _transform(np.log(num_params), q))

    def tokens_for_loss(self, params: ArrayLike, num_params: ArrayLike, loss_nats: ArrayLike) -> Array:
        _, _, _, Q, r, b, T, t, a = split(params)
        log_size = np.log(num_params)
        excess = np.asarray(loss_nats, dtype=np.float64) - self.floor(params, num_params)
        reachable = excess > 0
        log_scale = Q - r * _transform(log_size, b)
        exponent = np.exp(T + t * _transform(log_size, a))
        log_tokens = (log_scale - np.log(np.where(reachable, excess, 1.0))) / exponent
        return np.where(reachable, REFERENCE_TOKENS * np.exp(np.minimum(log_tokens, 650.0)), np.inf)

    def centre(self, num_params: Array, tokens: Array) -> tuple[float, float]:
        return float(np.exp(np.mean(np.log(num_params)))), 1.0

    def rescaled(self, params: ArrayLike, size_factor: float, token_factor: float) -> Array:
        assert token_factor == 1.0, "the unit of tokens is part of this law"
        plain = np.array(params, dtype=np.float64)
        shift = -np.log(size_factor)
        # h(N / f, q) = f^-q h(N, q) + h(1 / f, q)
        for level, slope, power, sign in ((0, 1, 2, -1.0), (3, 4, 5, -1.0), (6, 7, 8, 1.0)):
            plain[..., level] += sign * plain[..., slope] * _transform(shift, plain[..., power])
            plain[..., slope] *= np.exp(shift * plain[..., power])
        return plain

    def bounds(self, lowest_loss: float, highest_loss: float) -> tuple[Array, Array]:
        low, high = np.log(1e-2 * lowest_loss), np.log(highest_loss)
        lowest = np.array([low, 1e-5, -0.6, low - 12, 1e-6, -0.4, np.log(0.02), 1e-6, -0.4])
        highest = np.array([high, 1.0, 0.6, high + 15, 1.0, 0.4, np.log(2.0), 0.3, 0.4])
        return lowest, highest

    def starts(self, num_params: Array, tokens: Array, loss_nats: Array) -> Array:
        middle = float(np.exp(np.mean(np.log(tokens))))
        E, A, B, alpha, beta = Chinchilla().starts(num_params, tokens / middle, loss_nats).T
        floor = E + A
        starts = np.zeros((len(E), 9))
        # The level, slope and curvature of Chinchilla's own floor E + A N^-alpha at the centre.
        starts[:, 0] = np.log(floor)
        starts[:, 1] = alpha * A / floor
        starts[:, 2] = -alpha * E / floor
        starts[:, 3] = np.log(B) + beta * np.log(middle / REFERENCE_TOKENS)
        starts[:, 4] = 0.02
        starts[:, 6] = np.log(beta)
        starts[:, 7] = 0.01
        return starts


def _transform(log_size: ArrayLike, power: Array) -> Array:
    """h = (N^q - 1) / q, by its series near q = 0."""
    log_size = np.asarray(log_size, dtype=np.float64)
    small = np.abs(power) < _SERIES
    safe = np.where(small, 1.0, power)
    series = log_size * (1 + power * log_size / 2 * (1 + power * log_size / 3))
    return np.where(small, series, np.expm1(safe * log_size) / safe)


def _transform_by_power(log_size: ArrayLike, power: Array) -> Array:
    """dh/dq."""
    log_size = np.asarray(log_size, dtype=np.float64)
    small = np.abs(power) < _SERIES
    safe = np.where(small, 1.0, power)
    series = log_size**2 * (0.5 + power * log_size / 3)
    exact = (log_size * np.exp(safe * log_size) - np.expm1(safe * log_size) / safe) / safe
    return np.where(small, series, exact)


def _terms(params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array, Array]:
    """(floor, data term, data exponent); the last has the shape of N's rows."""
    S0, s, q, Q, r, b, T, t, a = split(params)
    log_size = np.log(num_params)
    exponent = np.exp(T + t * _transform(log_size, a))
    log_tokens = np.log(np.asarray(tokens) / REFERENCE_TOKENS)
    data = np.exp(Q - r * _transform(log_size, b) - exponent * log_tokens)
    return np.exp(S0 - s * _transform(log_size, q)), data, exponent
