"""The coupled law: Chinchilla with a term in which size and data act together.

    S(N, D) = E + A N^-alpha + B D^-beta + K N^-u D^-v

========  ===================================  ===============
symbol    meaning                              unit
========  ===================================  ===============
E         irreducible loss                     nats
A, alpha  scale and exponent of finite size    nats N^alpha, -
B, beta   scale and exponent of finite data    nats D^beta, -
K, u, v   scale and exponents of their tie     nats N^u D^v, -
========  ===================================  ===============

K >= 0 keeps both slopes negative everywhere. The eight parameters need a table that is more than a ray; where it is not,
the identifiability report says which of them hang loose.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fitting.laws.base import Array, ScratchLaw, linear_start, split
from fitting.laws.chinchilla import Chinchilla

_TIE_GUESSES = ((0.1, 0.3), (0.3, 0.1), (0.4, 0.4))


class Coupled(ScratchLaw):
    name = "coupled"
    formula = "E + A N^-alpha + B D^-beta + K N^-u D^-v"
    source = "Chinchilla (arXiv 2203.15556) with an interaction term"
    parameter_names = ("E", "A", "B", "K", "alpha", "beta", "u", "v")
    positive = (True,) * 8
    scale_free = ("E", "alpha", "beta", "u", "v")
    min_sizes = 4
    min_token_counts = 4

    def loss(self, params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> Array:
        E, size_term, token_term, tie = _terms(params, num_params, tokens)
        return E + size_term + token_term + tie

    def loss_and_gradient(self, params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array]:
        _, A, B, K, *_ = split(params)
        log_size, log_tokens = np.log(num_params), np.log(tokens)
        E, size_term, token_term, tie = _terms(params, num_params, tokens)
        loss = E + size_term + token_term + tie
        gradient = np.empty((*loss.shape, 8))
        gradient[..., 0] = 1.0
        gradient[..., 1] = size_term / A
        gradient[..., 2] = token_term / B
        gradient[..., 3] = tie / K
        gradient[..., 4] = -size_term * log_size
        gradient[..., 5] = -token_term * log_tokens
        gradient[..., 6] = -tie * log_size
        gradient[..., 7] = -tie * log_tokens
        return loss, gradient

    def slopes(self, params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array]:
        _, _, _, _, alpha, beta, u, v = split(params)
        _, size_term, token_term, tie = _terms(params, num_params, tokens)
        return -alpha * size_term - u * tie, -beta * token_term - v * tie

    def floor(self, params: ArrayLike, num_params: ArrayLike) -> Array:
        E, A, _, _, alpha, *_ = split(params)
        return E + A * np.exp(-alpha * np.log(num_params))

    def rescaled(self, params: ArrayLike, size_factor: float, token_factor: float) -> Array:
        plain = np.array(params, dtype=np.float64)
        plain[..., 1] *= size_factor ** plain[..., 4]
        plain[..., 2] *= token_factor ** plain[..., 5]
        plain[..., 3] *= size_factor ** plain[..., 6] * token_factor ** plain[..., 7]
        return plain

    def bounds(self, lowest_loss: float, highest_loss: float) -> tuple[Array, Array]:
        small, large = 1e-6 * lowest_loss, 10 * highest_loss
        lowest = np.array([1e-3 * lowest_loss, small, small, small, 0.01, 0.01, 0.01, 0.01])
        highest = np.array([highest_loss, large, large, large, 3.0, 3.0, 3.0, 3.0])
        return lowest, highest

    def starts(self, num_params: Array, tokens: Array, loss_nats: Array) -> Array:
        plain = Chinchilla().starts(num_params, tokens, loss_nats)[::3]
        guesses = np.array([[*row[3:], *tie] for row in plain for tie in _TIE_GUESSES])
        log_size, log_tokens = np.log(num_params), np.log(tokens)
        alpha, beta, u, v = (guesses[:, i, None] for i in range(4))
        columns = np.stack(
            [
                np.ones((len(guesses), len(loss_nats))),
                np.exp(-alpha * log_size),
                np.exp(-beta * log_tokens),
                np.exp(-u * log_size - v * log_tokens),
            ],
            axis=-1,
        )
        return np.hstack([linear_start(columns, loss_nats, 1e-3 * float(loss_nats.min())), guesses])


def _terms(params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array, Array, Array]:
    """(E, A N^-alpha, B D^-beta, K N^-u D^-v)."""
    E, A, B, K, alpha, beta, u, v = split(params)
    log_size, log_tokens = np.log(num_params), np.log(tokens)
    tie = K * np.exp(-u * log_size - v * log_tokens)
    return E, A * np.exp(-alpha * log_size), B * np.exp(-beta * log_tokens), tie
