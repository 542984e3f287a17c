"""Central intervals of what is predicted: draws of the laws with the noise of an observation on top.

    interval = quantiles of (x_k + s_k z),   z ~ N(0, 1)          s = e t_n(0.9) / Phi^-1(0.9)

========  ====================================================================  ======
symbol    meaning                                                               unit
========  ====================================================================  ======
x_k       what draw k predicts                                                  nats
s_k       noise of an observation around the law of draw k                      nats
e         root mean square of the errors seen on what was held out              nats
n         folds those errors come from; one fold errs alike on all its pairs    -
t_n       quantile of Student's t with n degrees of freedom                     -
========  ====================================================================  ======

An error that is known from n independent ones of mean 0 is normal with a variance that is not known: the next one is Student's
t (Gelman et al., Bayesian Data Analysis, 3rd edition, section 2.6: known mean, unknown variance). A normal with the same 80%
interval stands in for it.
"""

from __future__ import annotations

import functools

import numpy as np
import scipy  # its parts load when they are first used: a service starts sooner

from fitting.conventions import INTERVAL_LEVEL
from fitting.laws.base import Array

TAILS = ((1 - INTERVAL_LEVEL) / 2, (1 + INTERVAL_LEVEL) / 2)
NUM_NOISE_SCORES = 12


@functools.cache
def noise_scores(num: int = NUM_NOISE_SCORES) -> Array:
    """Stratified normal scores (num,), each for an equal share of the mass.

    They stand in for random noise, so that an interval is the same at every call.
    """
    scores = scipy.special.ndtri((np.arange(num) + 0.5) / num)
    scores.flags.writeable = False  # all callers share them
    return np.asarray(scores)


def central_interval(draws: Array, noise_sd: float | Array) -> Array:
    """Ends (2, R) of the central interval of every column of ``draws`` (K, R), with noise of one sd or of one a draw (K,)."""
    noise = np.broadcast_to(noise_sd, len(draws))[:, None] * noise_scores()  # (K, scores)
    noisy = (draws[:, None, :] + noise[:, :, None]).reshape(-1, draws.shape[1])
    noisy.sort(axis=0)
    places = np.rint(np.array(TAILS) * (len(noisy) - 1)).astype(int)
    return np.asarray(noisy[places])


def noise_of_errors(rms_nats: float, num_folds: int) -> float:
    """Sd in nats of normal noise that is as wide at 80% as the next error after ``num_folds`` of ``rms_nats``."""
    assert num_folds >= 1
    ratio = scipy.special.stdtrit(num_folds, TAILS[1]) / scipy.special.ndtri(TAILS[1])
    return float(rms_nats * ratio)
