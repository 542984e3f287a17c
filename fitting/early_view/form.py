"""The curve's form: the multi-power law with a head start, told by its end instead of by its limit.

    L(t) = F + D (p(t) - p(T)) / (p(T / 10) - p(T)) - B (a(t) - a(T)),        p(t) = (s(t) + h)^-alpha
    a(t) = sum_k (r_{k-1} - r_k) (1 - (1 + C r_k^-gamma s_k(t))^-beta)

========  ===========================================================================  ==========================
symbol    meaning                                                                      unit
========  ===========================================================================  ==========================
T         the run's planned tokens                                                     tokens
s(t)      progress S(t) of the run (:mod:`fitting.early_view.curves`)                  cohort rate x cohort tokens
h         head start: what warm-up, or the base before growth, is worth in progress    the same
r_k       learning rate of piece k of the schedule                                     cohort rate
s_k(t)    progress since piece k                                                       as s
F         the final loss                                                               nats
D         fall of the power part over the last nine tenths of the tokens               nats
alpha     exponent of that fall                                                        -
B         what a fall of the rate from 1 to 0 is worth in the end                      nats
C         how soon it takes hold                                                       -
========  ===========================================================================  ==========================

F and D stand for the usual L0 and A: L0, A and alpha of one curve trade against each other along a bent valley, which no normal
prior follows, while finished runs of a cohort say directly how F and D spread. beta and gamma are held at the middle of what
was fitted for three sizes (0.58-0.60 and 0.64-0.66, 25M to 400M parameters): one curve cannot tell them from C.

Source: Luo et al. 2025 (arXiv 2503.12811), equation 1; what starts S at the warm-up's sum there is h here and free,
because a grown model also brings the progress of its base.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fitting.early_view.curves import LossCurve, Units
from fitting.laws.base import Array
from fitting.laws.multi_power import curve_loss_and_gradient

# F as it is, the others by their logarithms.
PARAMETER_NAMES = ("F", "log_D", "log_alpha", "log_B", "log_C", "log_h")
BETA, GAMMA = 0.59, 0.65
# Pieces of the schedule in the annealing sum; four times as many move a loss by less than 0.003 nats, its end by nothing.
NUM_PIECES = 160
_REFERENCE_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where on a run's schedule losses are wanted, prepared once.

    Attributes:
        progress: (R + 2,) s at the places, at T / 10 and at T.
        pieces: (R + 1,) piece of the schedule at the places and at T.
        rates: (pieces + 1,) r_k; before the first piece the rate is 0.
        piece_tokens: width of a piece in cohort tokens.
    """

    progress: Array
    pieces: np.ndarray
    rates: Array
    piece_tokens: float


def places(curve: LossCurve, tokens: ArrayLike, units: Units) -> Places:
    """``tokens`` (R,) on the schedule of ``curve``."""
    at = np.concatenate([np.atleast_1d(np.asarray(tokens, dtype=np.float64)), [curve.planned_tokens]])
    edges = np.linspace(0.0, curve.planned_tokens, NUM_PIECES + 1)
    # The mean rate over each piece keeps the sum of the rate exact.
    means = np.diff(curve.progress(edges)) / np.diff(edges)
    marks = np.insert(at, -1, _REFERENCE_SHARE * curve.planned_tokens)
    return Places(
        progress=curve.progress(marks) / (units.rate * units.tokens),
        pieces=np.clip(np.ceil(at / curve.planned_tokens * NUM_PIECES), 1, NUM_PIECES).astype(int),
        rates=np.concatenate([[0.0], means / units.rate]),
        piece_tokens=curve.planned_tokens / NUM_PIECES / units.tokens,
    )


def loss_and_gradient(point: Array, where: Places) -> tuple[Array, Array]:
    """L (R,) in nats and its derivatives (R, 6) with respect to ``point`` (6,) in the order of :data:`PARAMETER_NAMES`."""
    D, alpha, B, C, h = np.exp(point[1:])
    shifted = where.progress + h
    power = shifted**-alpha
    by_alpha, by_h = -alpha * np.log(shifted) * power, -alpha * h / shifted * power
    share, share_by_alpha = _share(power, by_alpha)
    _, share_by_h = _share(power, by_h)
    # With L0 = A = 0 the multi-power law is its annealing sum alone.
    annealing, slopes = curve_loss_and_gradient(
        (0.0, 0.0, 1.0, B, C * where.piece_tokens, BETA, GAMMA), where.rates, where.pieces
    )
    annealing, slopes = annealing[:-1] - annealing[-1], slopes[:-1] - slopes[-1]
    gradient = np.stack(
        [
            np.ones(len(share)),
            D * share,
            D * share_by_alpha,
            B * slopes[:, 3],
            C * where.piece_tokens * slopes[:, 4],
            D * share_by_h,
        ],
        axis=1,
    )
    return point[0] + D * share + annealing, gradient


def _share(power: Array, slope: Array) -> tuple[Array, Array]:
    """(p(t) - p(T)) / (p(T / 10) - p(T)) and its derivative where p has the derivative ``slope``."""
    span, span_slope = power[-2] - power[-1], slope[-2] - slope[-1]
    share = (power[:-2] - power[-1]) / span
    return share, (slope[:-2] - slope[-1] - share * span_slope) / span
