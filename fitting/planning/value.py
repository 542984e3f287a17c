"""What the results of experiments would be worth: expected regret before and after they are seen.

    y_e     = f_e(theta_j) + m_e + s z                                     a result, were draw j and misfit m the truth
    u_jk    = L^-1 (y - f(theta_k)),   L L^T = S_EE + s^2 I                 what draw k misses of the results, whitened
    w_jk    ~ exp(-1/2 |u_jk|^2),   k != j
    a_j     = argmin over a of sum_k w_jk (L_k(a) + S_aE L^-T u_jk)         what would then be done
    regret  = mean over j, m, z of (L_j(a_j) + m(a_j) - min over a of (L_j(a) + m(a)))

The fall of the regret is the expected value of sample information (Raiffa and Schlaifer, Applied Statistical Decision
Theory, 1961), by simulation over the guideline's own draws and what their laws may miss (:mod:`fitting.planning.misfit`). A
draw never stands among those that judge it: else with a few hundred draws a result would seem to name the truth itself.

========  ====================================================================  =========
symbol    meaning                                                               shape
========  ====================================================================  =========
theta_k   a draw of the laws                                                    K
f_e       final loss of experiment e in a draw                                  (K,)
s         standard deviation of one run's final loss over seeds                 nats
L_k(a)    loss of arm a of a decision in draw k                                 (K, A)
m, S      what the laws miss, and its covariance (0: the laws are taken as      (P,), (P, P)
          true) at every arm and experiment
J, Z      draws that play the truth; misfits and results simulated for each     -
========  ====================================================================  =========
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy  # its parts load when they are first used: a service starts sooner
from numpy.typing import NDArray

from fitting.conventions import TIE_NATS
from fitting.planning.decisions import Decision

Array = NDArray[np.float64]
Places = NDArray[np.int64]

# Of the largest: axes of less variance are rounding, of runs that are nearly the same.
_LEAST_VARIANCE = 1e-9


@dataclass(frozen=True)
class Seen:
    """What is believed about the draws once some experiments have a result.

    Attributes:
        log_weights: (J Z, K).
        whitened: u of each experiment, (J Z, K).
        shares: L^-1 S of each experiment with every place, (P,): what a whitened miss tells of the misfit there.
    """

    log_weights: Array
    whitened: tuple[Array, ...] = ()
    shares: tuple[Array, ...] = ()

    @property
    def num_experiments(self) -> int:
        return len(self.whitened)


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
        seed: of the misfits, and of the order in which noise is dealt.
        misfit: S (P, P) in nats^2.
        arm_places: for each decision where its arms stand in the misfit, (A,).
    """

    decisions: Sequence[Decision]
    truths: NDArray[np.int64]
    num_results: int
    seed: int
    misfit: Array = field(default_factory=lambda: np.zeros((0, 0)))
    arm_places: Sequence[Places] = ()
    _rows: NDArray[np.int64] = field(init=False)
    _missed: Array = field(init=False)
    _regrets: list[Array] = field(init=False)

    def __post_init__(self) -> None:
        self._rows = np.repeat(self.truths, self.num_results)
        self._missed = self._misfits()
        self._regrets = []
        for number, decision in enumerate(self.decisions):
            true = decision.losses[self._rows]
            if self.arm_places:
                true = true + self._missed[:, self.arm_places[number]]
            excess = true - true.min(axis=1, keepdims=True)
            self._regrets.append(np.where(excess <= TIE_NATS, 0.0, excess))

    @property
    def start(self) -> Seen:
        """Nothing seen: all draws but the truth are equally likely."""
        num_draws = len(self.decisions[0].losses)
        weights = np.full((len(self._rows), num_draws), -np.log(num_draws - 1.0))
        weights[np.arange(len(self._rows)), self._rows] = -np.inf
        return Seen(weights)

    def see(self, seen: Seen, losses: Array, noise_nats: Array, places: Sequence[int] | None = None) -> Seen:
        """Beliefs after further experiments.

        Args:
            losses: (K, E) final losses of the experiments.
            noise_nats: (E,) standard deviations of one run's loss.
            places: (E,) where they stand in the misfit; None where the laws are taken as true of them.
        """
        log_weights, whitened, shares = seen.log_weights, seen.whitened, seen.shares
        for column, (values, noise) in enumerate(zip(losses.T, noise_nats, strict=True)):
            results = values[self._rows] + noise * self._noise(len(whitened))
            variance, own, row = float(noise**2), np.zeros(len(self.misfit)), np.zeros(len(whitened))
            if places is not None:
                place = places[column]
                results = results + self._missed[:, place]
                row = np.array([share[place] for share in shares])
                variance += float(self.misfit[place, place] - row @ row)
                own = self.misfit[place].copy()
            miss = results[:, None] - values
            for factor, earlier, share in zip(row, whitened, shares, strict=True):
                miss -= factor * earlier
                own -= factor * share
            miss /= np.sqrt(variance)
            log_weights = log_weights - 0.5 * miss**2
            whitened, shares = (*whitened, miss), (*shares, own / np.sqrt(variance))
        # A result far from every draw would leave no weight at all: the nearest draws share it.
        log_weights = log_weights - scipy.special.logsumexp(log_weights, axis=1, keepdims=True)
        return Seen(log_weights, whitened, shares)

    def regrets(self, seen: Seen) -> list[Regret]:
        """The expected regret of every decision, in nats."""
        weights = np.exp(seen.log_weights)
        missed = None
        if self.arm_places and seen.num_experiments:
            # (J Z, P): what the whitened misses of all draws, by weight, tell of the misfit at every place.
            mean = np.stack([np.einsum("rk,rk->r", weights, one) for one in seen.whitened], axis=1)
            missed = mean @ np.stack(seen.shares)
        found = []
        for number, decision in enumerate(self.decisions):
            if seen.num_experiments:
                expected = weights @ decision.losses
                if missed is not None:
                    expected = expected + missed[:, self.arm_places[number]]
                chosen = np.argmin(expected, axis=1)
            else:
                # Today's choice is a fact. Without the truth itself the mean leans away from it, by a K-th.
                chosen = np.full(len(self._rows), decision.chosen)
            values = self._regrets[number][np.arange(len(self._rows)), chosen]
            found.append(
                Regret(
                    by_truth=values.reshape(len(self.truths), self.num_results).mean(axis=1),
                    change_chance=float((chosen != decision.chosen).mean()),
                )
            )
        return found

    def _misfits(self) -> Array:
        """(J Z, P) nats: one misfit for every truth and result."""
        rng = np.random.default_rng([self.seed, 1 << 20])
        variance, axes = np.linalg.eigh(self.misfit)
        kept = variance > _LEAST_VARIANCE * variance.max(initial=0.0)
        return np.asarray(
            rng.standard_normal((len(self._rows), kept.sum())) @ (axes[:, kept] * np.sqrt(variance[kept])).T
        )

    def _noise(self, number: int) -> Array:
        """(J Z,) normal scores, each truth's evenly over the distribution; another deal for every experiment."""
        rng = np.random.default_rng([self.seed, number])
        ranks = rng.permuted(np.tile(np.arange(self.num_results), (len(self.truths), 1)), axis=1)
        # Never quite 0 or 1, whose scores are infinite.
        jitter = rng.uniform(0.01, 0.99, ranks.shape)
        return np.asarray(scipy.special.ndtri((ranks + jitter) / self.num_results)).ravel()
