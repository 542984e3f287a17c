"""What the results of experiments would be worth: expected regret before and after they are seen.

    y_e     = f_e(theta_j) + s_e z                         a result, were draw j the truth
    w_jk    ~ exp(-1/2 sum_e ((y_e - f_e(theta_k)) / s_e)^2),   k != j
    a_j     = argmin over a of sum_k w_jk L_k(a)           what would then be done
    regret  = mean over j, z of (L_j(a_j) - min over a of L_j(a))

The fall of the regret is the expected value of sample information (Raiffa and Schlaifer, Applied Statistical Decision
Theory, 1961), by simulation over the guideline's own draws. A draw never stands among those that judge it: else with a few
hundred draws a result would seem to name the truth itself.

========  ====================================================================  =========
symbol    meaning                                                               shape
========  ====================================================================  =========
theta_k   a draw of the laws                                                    K
f_e       final loss of experiment e in a draw                                  (K,)
s_e       standard deviation of one run's final loss around its law             nats
L_k(a)    loss of arm a of a decision in draw k                                 (K, A)
J, Z      draws that play the truth; results simulated for each                 -
========  ====================================================================  =========
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy  # its parts load when they are first used: a service starts sooner
from numpy.typing import NDArray

from fitting.planning.decisions import Decision

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """What is believed about the draws once some experiments have a result; ``log_weights`` (J Z, K)."""

    log_weights: Array
    num_experiments: int = 0


@dataclass(frozen=True, kw_only=True)
class Regret:
    """Expected regret of one decision; ``by_truth`` (J,) are its values in the draws that played the truth.

    Attributes:
        change_chance: share of simulated results after which another arm is chosen than today.
    """

    by_truth: Array
    change_chance: float

    @property
    def mean(self) -> float:
        return float(self.by_truth.mean())


@dataclass(kw_only=True)
class Simulation:
    """Truths drawn from the guideline's draws, and results simulated under them.

    Args:
        decisions: what will be decided; all from the same K draws.
        truths: indices of the draws that play the truth, (J,).
        num_results: Z, at stratified noise.
        seed: of the order in which noise is dealt.
    """

    decisions: Sequence[Decision]
    truths: NDArray[np.int64]
    num_results: int
    seed: int
    _rows: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self._rows = np.repeat(self.truths, self.num_results)

    @property
    def start(self) -> Seen:
        """Nothing seen: all draws but the truth are equally likely."""
        num_draws = len(self.decisions[0].losses)
        weights = np.full((len(self._rows), num_draws), -np.log(num_draws - 1.0))
        weights[np.arange(len(self._rows)), self._rows] = -np.inf
        return Seen(weights)

    def see(self, seen: Seen, losses: Array, noise_nats: Array) -> Seen:
        """Beliefs after further experiments.

        Args:
            losses: (K, E) final losses of the experiments.
            noise_nats: (E,) standard deviations of one run's loss.
        """
        log_weights = seen.log_weights
        for column, (values, noise) in enumerate(zip(losses.T, noise_nats, strict=True)):
            results = values[self._rows] + noise * self._noise(seen.num_experiments + column)
            log_weights = log_weights - 0.5 * ((results[:, None] - values) / noise) ** 2
        # A result far from every draw would leave no weight at all: the nearest draws share it.
        log_weights = log_weights - scipy.special.logsumexp(log_weights, axis=1, keepdims=True)
        return Seen(log_weights, seen.num_experiments + losses.shape[1])

    def regrets(self, seen: Seen) -> list[Regret]:
        """The expected regret of every decision, in nats."""
        weights = np.exp(seen.log_weights)
        found = []
        for decision in self.decisions:
            if seen.num_experiments:
                chosen = np.argmin(weights @ decision.losses, axis=1)
            else:
                # Today's choice is a fact. Without the truth itself the mean leans away from it, by a K-th.
                chosen = np.full(len(self._rows), decision.chosen)
            values = decision.regrets[self._rows, chosen]
            found.append(
                Regret(
                    by_truth=values.reshape(len(self.truths), self.num_results).mean(axis=1),
                    change_chance=float((chosen != decision.chosen).mean()),
                )
            )
        return found

    def _noise(self, number: int) -> Array:
        """(J Z,) normal scores, each truth's evenly over the distribution; another deal for every experiment."""
        rng = np.random.default_rng([self.seed, number])
        ranks = rng.permuted(np.tile(np.arange(self.num_results), (len(self.truths), 1)), axis=1)
        # Never quite 0 or 1, whose scores are infinite.
        jitter = rng.uniform(0.01, 0.99, ranks.shape)
        return np.asarray(scipy.special.ndtri((ranks + jitter) / self.num_results)).ravel()
