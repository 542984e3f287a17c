"""The Chinchilla law: an irreducible loss and one power law each in size and in data.

    S(N, D) = E + A N^-alpha + B D^-beta

========  ===================================  ==================
symbol    meaning                              unit
========  ===================================  ==================
E         irreducible loss                     nats
A, alpha  scale and exponent of finite size    nats N^alpha, -
B, beta   scale and exponent of finite data    nats D^beta, -
========  ===================================  ==================

Source: Hoffmann et al. 2022 (arXiv 2203.15556), approach 3, equation 2; refitted by Besiroglu et al. 2024
(arXiv 2404.10102).
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike

from fitting.laws.base import Array, ScratchLaw, linear_start, split

_EXPONENT_GUESSES = (0.15, 0.35, 0.6, 1.0)


class Chinchilla(ScratchLaw):
    name = "chinchilla"
    formula = "E + A N^-alpha + B D^-beta"
    source = "Hoffmann et al. 2022, arXiv 2203.15556, equation 2"
    parameter_names = ("E", "A", "B", "alpha", "beta")
    positive = (True, True, True, True, True)
    scale_free = ("E", "alpha", "beta")

    def loss(self, params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> Array:
        E, A, B, alpha, beta = split(params)
        return E + A * np.exp(-alpha * np.log(num_params)) + B * np.exp(-beta * np.log(tokens))

    def loss_and_gradient(self, params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array]:
        E, A, B, alpha, beta = split(params)
        log_size, log_tokens = np.log(num_params), np.log(tokens)
        size_power = np.exp(-alpha * log_size)
        token_power = np.exp(-beta * log_tokens)
        size_term, token_term = A * size_power, B * token_power
        loss = E + size_term + token_term
        gradient = np.empty((*loss.shape, 5))
        gradient[..., 0] = 1.0
        gradient[..., 1] = size_power
        gradient[..., 2] = token_power
        gradient[..., 3] = -size_term * log_size
        gradient[..., 4] = -token_term * log_tokens
        return loss, gradient

    def slopes(self, params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array]:
        _, A, B, alpha, beta = split(params)
        size_slope = -alpha * A * np.exp(-alpha * np.log(num_params))
        token_slope = -beta * B * np.exp(-beta * np.log(tokens))
        size_slope, token_slope = np.broadcast_arrays(size_slope, token_slope)
        return size_slope, token_slope

    def floor(self, params: ArrayLike, num_params: ArrayLike) -> Array:
        E, A, _, alpha, _ = split(params)
        return E + A * np.exp(-alpha * np.log(num_params))

    def tokens_for_loss(self, params: ArrayLike, num_params: ArrayLike, loss_nats: ArrayLike) -> Array:
        _, _, B, _, beta = split(params)
        excess = np.asarray(loss_nats, dtype=np.float64) - self.floor(params, num_params)
        reachable = excess > 0
        # (B / excess)^(1 / beta), by logarithms so that extreme draws overflow to inf and not to an error.
        exponent = np.log(B / np.where(reachable, excess, 1.0)) / beta
        return np.where(reachable, np.exp(np.minimum(exponent, 700.0)), np.inf)

    def rescaled(self, params: ArrayLike, size_factor: float, token_factor: float) -> Array:
        plain = np.array(params, dtype=np.float64)
        plain[..., 1] *= size_factor ** plain[..., 3]
        plain[..., 2] *= token_factor ** plain[..., 4]
        return plain

    def bounds(self, lowest_loss: float, highest_loss: float) -> tuple[Array, Array]:
        lowest = np.array([1e-3 * lowest_loss, 1e-6 * lowest_loss, 1e-6 * lowest_loss, 0.01, 0.01])
        highest = np.array([highest_loss, 10 * highest_loss, 10 * highest_loss, 3.0, 3.0])
        return lowest, highest

    def starts(self, num_params: Array, tokens: Array, loss_nats: Array) -> Array:
        exponents = np.array(list(itertools.product(_EXPONENT_GUESSES, repeat=2)))
        columns = np.ones((len(exponents), len(loss_nats), 3))
        columns[..., 1] = np.exp(-exponents[:, :1] * np.log(num_params))
        columns[..., 2] = np.exp(-exponents[:, 1:] * np.log(tokens))
        return np.hstack([linear_start(columns, loss_nats, 1e-3 * float(loss_nats.min())), exponents])
