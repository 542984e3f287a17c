"""The Kaplan law: size and data as two resistances in one power mean, with no irreducible loss.

    S(N, D) = [ (Nc / N)^(alpha/beta) + Dc / D ]^beta = (u^(1/beta) + v^(1/beta))^beta,   u = A N^-alpha,  v = B D^-beta

========  =================================================================  ============
symbol    meaning                                                            unit
========  =================================================================  ============
u, v      loss when data, or size, is without limit                          nats
A, alpha  scale and exponent of finite size; Nc = A^(1/alpha)                nats N^alpha
B, beta   scale and exponent of finite data; Dc = B^(1/beta)                 nats D^beta
w         share of size in the sum, u^(1/beta) / (u^(1/beta) + v^(1/beta))   -
========  =================================================================  ============

A and B stand in for the paper's Nc and Dc: ln Nc = ln A / alpha with alpha near 0.08 makes Nc vary over dozens of decades.
Source: Kaplan et al. 2020 (arXiv 2001.08361), equation 1.5.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike

from fitting.laws.base import Array, ScratchLaw, linear_start, split

_SIZE_GUESSES = (0.03, 0.08, 0.2, 0.4)
_TOKEN_GUESSES = (0.05, 0.1, 0.25, 0.5)


class Kaplan(ScratchLaw):
    name = "kaplan"
    formula = "((A N^-alpha)^(1/beta) + (B D^-beta)^(1/beta))^beta"
    source = "Kaplan et al. 2020, arXiv 2001.08361, equation 1.5"
    parameter_names = ("A", "B", "alpha", "beta")
    positive = (True, True, True, True)
    scale_free = ("alpha", "beta")

    def loss(self, params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> Array:
        log_u, log_v, _, beta = _terms(params, num_params, tokens)
        return np.exp(beta * np.logaddexp(log_u / beta, log_v / beta))

    def loss_and_gradient(self, params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array]:
        A, B, _, _ = split(params)
        log_u, log_v, _, beta = _terms(params, num_params, tokens)
        log_sum = np.logaddexp(log_u / beta, log_v / beta)
        loss = np.exp(beta * log_sum)
        share = np.exp(log_u / beta - log_sum)
        gradient = np.empty((*loss.shape, 4))
        gradient[..., 0] = loss * share / A
        gradient[..., 1] = loss * (1 - share) / B
        gradient[..., 2] = -loss * share * np.log(num_params)
        by_power = log_sum - (share * log_u + (1 - share) * log_v) / beta
        gradient[..., 3] = loss * (by_power - (1 - share) * np.log(tokens))
        return loss, gradient

    def slopes(self, params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array]:
        log_u, log_v, alpha, beta = _terms(params, num_params, tokens)
        loss = np.exp(beta * np.logaddexp(log_u / beta, log_v / beta))
        # Each share from its own side: 1 - w would round to 0 where size is almost all of the loss.
        size_share = 1 / (1 + np.exp(np.minimum((log_v - log_u) / beta, 700.0)))
        token_share = 1 / (1 + np.exp(np.minimum((log_u - log_v) / beta, 700.0)))
        return -alpha * size_share * loss, -beta * token_share * loss

    def floor(self, params: ArrayLike, num_params: ArrayLike) -> Array:
        A, _, alpha, _ = split(params)
        return A * np.exp(-alpha * np.log(num_params))

    def tokens_for_loss(self, params: ArrayLike, num_params: ArrayLike, loss_nats: ArrayLike) -> Array:
        _, B, _, beta = split(params)
        goal = np.log(loss_nats)
        log_u = np.log(self.floor(params, num_params))
        reachable = goal > log_u
        gap = np.where(reachable, log_u - goal, -1.0)
        # v = loss (1 - (u / loss)^(1/beta))^beta
        log_v = goal + beta * np.log(-np.expm1(gap / beta))
        return np.where(reachable, np.exp(np.minimum((np.log(B) - log_v) / beta, 700.0)), np.inf)

    def rescaled(self, params: ArrayLike, size_factor: float, token_factor: float) -> Array:
        plain = np.array(params, dtype=np.float64)
        plain[..., 0] *= size_factor ** plain[..., 2]
        plain[..., 1] *= token_factor ** plain[..., 3]
        return plain

    def bounds(self, lowest_loss: float, highest_loss: float) -> tuple[Array, Array]:
        lowest = np.array([1e-2 * lowest_loss, 1e-2 * lowest_loss, 0.005, 0.005])
        highest = np.array([10 * highest_loss, 10 * highest_loss, 2.0, 2.0])
        return lowest, highest

    def starts(self, num_params: Array, tokens: Array, loss_nats: Array) -> Array:
        exponents = np.array(list(itertools.product(_SIZE_GUESSES, _TOKEN_GUESSES)))
        alpha, beta = exponents[:, :1], exponents[:, 1:]
        # loss^(1/beta) is linear in A^(1/beta) and B^(1/beta); scaled by the median loss so that no power overflows.
        middle = float(np.median(loss_nats))
        powers = np.exp(np.log(loss_nats / middle) / beta)
        columns = np.stack(
            [np.exp(-alpha / beta * np.log(num_params)), np.broadcast_to(1 / tokens, powers.shape)], axis=-1
        )
        coefficients = np.array([linear_start(columns[i : i + 1], powers[i], 1e-6)[0] for i in range(len(exponents))])
        return np.hstack([middle * coefficients**beta, exponents])


def _terms(params: ArrayLike, num_params: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array, Array, Array]:
    """(ln u, ln v, alpha, beta), broadcast to (..., R)."""
    A, B, alpha, beta = split(params)
    log_u = np.log(A) - alpha * np.log(num_params)
    log_v = np.log(B) - beta * np.log(tokens)
    log_u, log_v = np.broadcast_arrays(log_u, log_v)
    return log_u, log_v, alpha, beta
