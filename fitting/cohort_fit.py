"""Fit a cohort's losses, by its own growth laws where it has the pairs for them, else with borrowed growth terms.

    own       L_grown from the growth laws that may choose a timing, weighted by nested validation
    borrowed  draw k: theta_k from the bootstrap of the scratch law, (ln kappa, c, ln p)_k given theta_k and the pairs

With ten pairs or more the first is used: weights come from inner folds, and the scores kept are those of outer folds, so
they are scores of the very average that answers. With fewer the second: its scratch laws share the draws by their
extrapolation weight, and with too few rows to compare them Chinchilla's stands alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from fitting.conventions import PAIRS_TO_STAND_ALONE
from fitting.drawn_losses import DrawnLosses, Group
from fitting.growth_data import growth_data
from fitting.growth_fit import fit_growth_law, fit_scratch_basis
from fitting.growth_laws import GROWTH_LAWS, with_offsets
from fitting.growth_terms import BORROWING_LAW, SOURCES, borrowed_prior, draw_terms, evidence
from fitting.guideline import Noise, ObservedPair, ObservedSingle
from fitting.scratch import AveragedScratchFit, ScratchFit, fit_scratch_law
from fitting.scratch_rows import ScratchRows
from fitting.validation.folds import LeaveOut
from fitting.validation.nested import HeldOutPair, law_weights, validate

NUM_DRAWS = 120
_KINDS_OF_FOLDS: tuple[LeaveOut, ...] = ("target_params", "compute")
# A bootstrap of fewer cells is mostly degenerate resamples, and weights need rows on both sides of a cut.
ROWS_FOR_A_LAW = 6
ROWS_TO_COMPARE_LAWS = 12
_FEWEST_DRAWS_A_LAW = 12
# So a law of less weight than this is left out, however many draws there are.
_LEAST_WEIGHT = _FEWEST_DRAWS_A_LAW / NUM_DRAWS
# Draws of the scratch law that miss the observed cells by more than this many times the median miss are resamples
# that lost what held them, such as every run of a size.
_LOST_RATIO = 5.0


@dataclass(frozen=True, kw_only=True)
class CohortFit:
    """The fitted losses, the names and weights of their scratch laws, what was borrowed, and sentences of caution."""

    losses: DrawnLosses
    law: str
    borrowed: tuple[str, ...]
    warnings: tuple[str, ...]
    held_out: dict[str, Any] | None = None
    held_out_pairs: tuple[HeldOutPair, ...] = ()
    law_verdicts: Mapping[str, str] = field(default_factory=dict)


def fit_own(
    table: pd.DataFrame, noise: Noise, *, seed: int, num_draws: int = NUM_DRAWS, outer_scores: bool = True
) -> CohortFit | None:
    """Growth laws weighted and scored by nested validation, None where the table has too few pairs for that.

    Args:
        table: a checked run table of one cohort.
        outer_scores: score the average on outer folds as well. They cost most of the time and change no prediction.

    Raises:
        ValueError: no pair, or the scratch runs cannot carry a scratch law.
    """
    data = growth_data(table)
    if len(data) < PAIRS_TO_STAND_ALONE:
        return None
    choosers = {name: law for name, law in GROWTH_LAWS.items() if law.may_choose_timing}
    weights = law_weights(data, choosers)
    kept = {name: weight for name, weight in weights.by_law.items() if weight >= _LEAST_WEIGHT}
    basis = fit_scratch_basis(data.scratch, num_draws, seed)
    assert basis.draws is not None
    order = np.random.default_rng(seed).permutation(num_draws)
    edges = np.rint(np.cumsum([0.0, *kept.values()]) / sum(kept.values()) * num_draws).astype(int)
    groups = []
    for i, name in enumerate(kept):
        own = np.sort(order[edges[i] : edges[i + 1]])
        fit = fit_growth_law(choosers[name], data.points, data.delta_nats, basis, clusters=data.clusters, seed=seed)
        assert fit.draws is not None
        groups.append(Group(curve=basis.draws.take(own), growth=fit.law, growth_draws=fit.draws[own]))
    spread = float(np.sqrt(2) * noise.sd_nats)
    if weights.errors_nats:
        # Errors on held-out pairs hold the noise of the pairs as well, so they replace an assumed one.
        squares = sum(weight * weights.noise_nats(name) ** 2 for name, weight in kept.items())
        seen = float(np.sqrt(squares / sum(kept.values())))
        spread = max(spread, seen) if noise.measured else seen
    kinds = _KINDS_OF_FOLDS if outer_scores else ()
    tests = {kind: validate(data, kind, seed=seed, laws=choosers) for kind in kinds}
    scores: dict[str, Any] = {
        kind: test.averaged.to_dict() for kind, test in tests.items() if test.averaged is not None
    }
    most = max((test.averaged.num_pairs for test in tests.values() if test.averaged is not None), default=0)
    return CohortFit(
        losses=DrawnLosses(groups=tuple(groups), run_noise_nats=min(noise.sd_nats, spread), delta_noise_nats=spread),
        law=" + ".join(f"{weight / sum(kept.values()):.0%} {name}" for name, weight in kept.items()),
        borrowed=tuple(f"{sentence[0].upper()}{sentence[1:]}." for sentence in basis.borrowed),
        warnings=tuple(f"{sentence[0].upper()}{sentence[1:]}." for sentence in data.warnings),
        held_out={"num_pairs": most, **scores} if scores else None,
        held_out_pairs=tuple(pair for test in tests.values() for pair in test.averaged_pairs()),
        law_verdicts={
            name: verdict if name in kept or not weights.by_law[name] else f"{verdict}: too little for draws of its own"
            for name, verdict in weights.verdicts.items()
        },
    )


def fit_cohort(
    pairs: Sequence[ObservedPair],
    singles: Sequence[ObservedSingle],
    noise: Noise,
    *,
    seed: int,
    num_draws: int = NUM_DRAWS,
) -> CohortFit:
    """Fit scratch law and growth terms.

    Raises:
        ValueError: the controls cannot identify a scratch law; the message counts what is missing.
    """
    rows = _scratch_rows(singles)
    if len(rows) < ROWS_FOR_A_LAW:
        raise ValueError(
            f"a scratch law needs {ROWS_FOR_A_LAW} controls of different size or tokens, {len(rows)} found"
        )
    fits, weights, warnings = _scratch_fits(rows, seed, num_draws)
    run_noise = max(noise.sd_nats, _residual_sd(fits, weights, rows))
    seen = evidence(pairs, run_noise) if pairs else None
    groups = []
    for name, fit in fits.items():
        draws = _sound(fit, rows)
        share = max(1, round(weights[name] * num_draws))
        curve = with_offsets(
            fit.law, draws[np.arange(share) % len(draws)], rows.num_params, rows.tokens, rows.loss_nats
        )
        terms = draw_terms(curve, seen, borrowed_prior(), seed)
        groups.append(Group(curve=curve, growth=BORROWING_LAW, growth_draws=terms))
    named = " + ".join(f"{weights[name]:.0%} {name}" if len(fits) > 1 else name for name in fits)
    return CohortFit(
        losses=DrawnLosses(
            groups=tuple(groups), run_noise_nats=run_noise, delta_noise_nats=float(np.sqrt(2) * run_noise)
        ),
        law=f"{BORROWING_LAW.name} on {named}",
        borrowed=_borrowed(len(pairs)),
        warnings=tuple(warnings),
    )


def _scratch_rows(singles: Sequence[ObservedSingle]) -> ScratchRows:
    ordered = sorted(singles, key=lambda single: single.compute_flops)
    return ScratchRows(
        num_params=np.array([single.params for single in ordered], dtype=np.float64),
        tokens=np.array([single.tokens for single in ordered], dtype=np.float64),
        loss_nats=np.array([single.loss_nats for single in ordered], dtype=np.float64),
        clusters=np.array([" ".join(single.run_ids) for single in ordered]),
    )


def _scratch_fits(
    rows: ScratchRows, seed: int, num_draws: int
) -> tuple[dict[str, ScratchFit], dict[str, float], list[str]]:
    """The scratch laws with weight, bootstrapped, their weights, and their warnings."""
    weights = {"chinchilla": 1.0}
    warnings: list[str] = []
    if len(rows) >= ROWS_TO_COMPARE_LAWS:
        averaged = fit_scratch_law(rows, "auto")
        assert isinstance(averaged, AveragedScratchFit)
        # A law with a sliver of weight would get a handful of draws, too few for an interval of its own.
        kept = {name: weight for name, weight in averaged.weights.items() if weight >= _LEAST_WEIGHT}
        weights = {name: weight / sum(kept.values()) for name, weight in kept.items()}
    fits = {}
    for name, weight in weights.items():
        count = max(_FEWEST_DRAWS_A_LAW, round(1.3 * weight * num_draws))
        fit = fit_scratch_law(rows, name, bootstrap=count, seed=seed)
        assert isinstance(fit, ScratchFit)
        fits[name] = fit
        warnings += fit.warnings
    return fits, weights, [f"Scratch law: {sentence}." for sentence in dict.fromkeys(warnings)]


def _sound(fit: ScratchFit, rows: ScratchRows) -> np.ndarray:
    """The bootstrap draws that still describe the cells."""
    assert fit.draws is not None
    draws = fit.draws.params
    miss = np.median(np.abs(fit.law.loss(draws, rows.num_params, rows.tokens) - rows.loss_nats), axis=1)
    return np.asarray(draws[miss <= _LOST_RATIO * np.median(miss)])


def _residual_sd(fits: dict[str, ScratchFit], weights: dict[str, float], rows: ScratchRows) -> float:
    """Residual standard deviation of a run around the laws in nats, from the median absolute residual."""
    predicted = sum(weights[name] * fit.predict(rows.num_params, rows.tokens) for name, fit in fits.items())
    freedom = max(1, len(rows) - max(fit.law.num_parameters for fit in fits.values()))
    return float(1.4826 * np.median(np.abs(predicted - rows.loss_nats)) * np.sqrt(len(rows) / freedom))


def _borrowed(num_pairs: int) -> tuple[str, ...]:
    sources = ", ".join(SOURCES)
    if num_pairs == 0:
        return (f"Growth terms (kappa, c, p) are borrowed from: {sources}; widened, as this cohort has no grown run.",)
    return (
        f"Growth terms (kappa, c, p) start from a prior borrowed from: {sources}; {num_pairs} pair(s) of this cohort "
        "moved them.",
    )
