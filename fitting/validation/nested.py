"""Nested validation: inner folds give the weights of laws, outer folds the scores of laws and of their average.

    w_l ~ 1 / mse_l^2  over inner folds of both kinds;  0 for a law that explodes, does worse than predicting no
    effect, or has fewer
                       right signs than the null rule (grow iff g < 3)

========  ===============================================================  ======
symbol    meaning                                                          unit
========  ===============================================================  ======
mse_l     mean squared error of delta on inner held-out pairs: the         nats^2
          geometric mean over leaving out a target and rolling compute
w_l       weight of law l in the average                                   -
========  ===============================================================  ======

Intervals of a held-out prediction join the draws of law and scratch curve with a residual whose size is the law's error in the
inner folds: errors of extrapolation, not of fit, and of as few as there are folds (:mod:`fitting.noisy_draws`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fitting.conventions import TIE_NATS
from fitting.growth_data import GrowthData
from fitting.growth_fit import ALL_LAWS, GrowthFit, ScratchBasis, fit_growth_law, fit_scratch_basis
from fitting.growth_laws import GrowthLaw, GrowthPoints, Prepared
from fitting.laws.base import Array
from fitting.noisy_draws import central_interval, noise_of_errors
from fitting.validation.folds import Fold, LeaveOut, folds
from fitting.validation.scores import HeldOut, Scores, score

_KINDS: tuple[LeaveOut, ...] = ("target_params", "compute")
_EXPLODED_NATS = 0.5
_WORTHLESS_RATIO = 3.0
_NULL_RULE_FACTOR = 3.0
# Without inner folds the error of a law is not known: at least this large, as between published targets.
_UNKNOWN_ERROR_NATS = 0.03


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights by law, the error (nats) each made in the folds that gave them, and sentences on laws without weight."""

    by_law: Mapping[str, float]
    errors_nats: Mapping[str, float]
    num_folds: int
    verdicts: Mapping[str, str]

    def noise_nats(self, name: str) -> float:
        """Sd of the noise that stands for the law's next error, one of a new fold."""
        if name not in self.errors_nats:
            return _UNKNOWN_ERROR_NATS
        return noise_of_errors(self.errors_nats[name], self.num_folds)


@dataclass(frozen=True, kw_only=True)
class HeldOutPair:
    """One pair and what the average of laws said of it when neither it nor its fold was fitted; nats, 80% interval."""

    left_out: LeaveOut
    run_id: str
    target_params: float
    growth_factor: float
    growth_timing_tokens: float
    compute_flops: float
    observed_nats: float
    predicted_nats: float
    low_nats: float
    high_nats: float


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Scores over all outer folds and by the value left out, for each law and for the average (``averaged``)."""

    leave_out: LeaveOut
    scores: Mapping[str, Scores]
    averaged: Scores | None
    by_left_out: Mapping[str, Mapping[str, Scores]]
    averaged_by_left_out: Mapping[str, Scores]
    held_out: Mapping[str, HeldOut]
    tested: GrowthData | None
    inner_weights: Mapping[str, Mapping[str, float]]
    warnings: tuple[str, ...]

    def averaged_pairs(self) -> tuple[HeldOutPair, ...]:
        """The predictions behind ``averaged``, pair by pair; none where nothing could be left out."""
        if self.tested is None:
            return ()
        points, said = self.tested.points, self.held_out["averaged"]
        return tuple(
            HeldOutPair(
                left_out=self.leave_out,
                run_id=str(self.tested.grown_run_ids[row]),
                target_params=float(points.target_params[row]),
                growth_factor=float(points.growth_factor[row]),
                growth_timing_tokens=float(points.timing_tokens[row]),
                compute_flops=float(self.tested.compute_flops[row]),
                observed_nats=float(self.tested.delta_nats[row]),
                predicted_nats=float(said.delta_nats[row]),
                low_nats=float(said.low_nats[row]),
                high_nats=float(said.high_nats[row]),
            )
            for row in range(len(self.tested))
        )


def law_weights(data: GrowthData, laws: Mapping[str, GrowthLaw] = ALL_LAWS) -> Weights:
    """Weights from the folds inside ``data``, by target and by compute; equal ones on the simplest laws where it has none."""
    residuals, observed, factors, num_folds = _inner_residuals(data, laws)
    tested = {name: parts for name, parts in residuals.items() if parts}
    if not tested:
        simple = [name for name, law in laws.items() if law.num_parameters <= 1 and law.min_pairs <= len(data)]
        why = "too few pairs to hold any out: the simplest laws share the weight"
        return Weights(
            by_law={name: (1.0 / len(simple) if name in simple else 0.0) for name in laws},
            errors_nats={},
            num_folds=0,
            verdicts={name: why if name in simple else "no weight: too few pairs" for name in laws},
        )
    # The geometric mean over the kinds: a term must help against a new budget and against a new size.
    mse = {
        name: float(np.exp(np.mean([np.log(np.mean(part**2) + 1e-12) for part in parts])))
        for name, parts in tested.items()
    }
    seen = np.concatenate(observed)
    no_effect = float(np.exp(np.mean([np.log(np.mean(part**2) + 1e-12) for part in observed])))
    null_hits = _sign_hits(np.where(np.concatenate(factors) < _NULL_RULE_FACTOR, -1.0, 1.0), seen)
    verdicts = {}
    for name, parts in tested.items():
        missed = np.concatenate(parts)
        if not np.isfinite(missed).all() or np.abs(missed).max() > _EXPLODED_NATS:
            verdicts[name] = f"no weight: explodes, off by {np.abs(missed).max():.2f} nats on inner held-out pairs"
        elif mse[name] > no_effect:
            verdicts[name] = "no weight: does worse than predicting no effect"
        elif _sign_hits(missed + seen, seen) < null_hits:
            verdicts[name] = f"no weight: fewer right signs than the null rule ({null_hits})"
    sound = {name: value for name, value in mse.items() if name not in verdicts}
    if not sound:
        least = min(mse, key=lambda name: mse[name])
        verdicts[least] += "; used all the same, as no law passes"
        sound = {least: mse[least]}
    best = min(sound.values())
    raw = {}
    for name, value in sound.items():
        if value > _WORTHLESS_RATIO**2 * best:
            verdicts[name] = f"no weight: its error is {np.sqrt(value / best):.1f} times the best law's"
        else:
            raw[name] = (best / value) ** 2
    total = sum(raw.values())
    for name in laws:
        if name not in tested:
            verdicts[name] = f"no weight: needs {laws[name].min_pairs} pairs in every training fold"
        elif name in raw:
            verdicts.setdefault(name, f"weight {raw[name] / total:.2f}")
    return Weights(
        by_law={name: raw.get(name, 0.0) / total for name in laws},
        errors_nats={name: float(np.sqrt(value)) for name, value in mse.items()},
        num_folds=num_folds,
        verdicts=verdicts,
    )


def _inner_residuals(
    data: GrowthData, laws: Mapping[str, GrowthLaw]
) -> tuple[dict[str, list[Array]], list[Array], list[Array], int]:
    """By law its residuals in each kind of inner folds; the deltas and factors those were about, kind by kind; how many folds.

    A law is judged by all kinds of folds or by none: where one training set is too small for it, it has no residuals.
    """
    residuals: dict[str, list[Array]] = {name: [] for name in laws}
    observed, factors, num_folds = [], [], 0
    short = {name for name, law in laws.items() if law.min_pairs > len(data)}
    for kind in _KINDS:
        known = _with_bases(data, folds(data, kind), num_draws=0, seed=0)
        if not known:
            continue
        num_folds += len(known)
        observed.append(np.concatenate([data.delta_nats[fold.test] for fold, _ in known]))
        factors.append(np.concatenate([data.points.growth_factor[fold.test] for fold, _ in known]))
        for name, law in laws.items():
            found = _errors(law, data, known)
            if found is None:
                short.add(name)
            else:
                residuals[name].append(found)
    kept = {name: [] if name in short else parts for name, parts in residuals.items()}
    return kept, observed, factors, num_folds


def _sign_hits(predicted: Array, observed: Array) -> int:
    return int(np.sum((np.abs(observed) > TIE_NATS) & (np.sign(predicted) == np.sign(observed))))


def _errors(law: GrowthLaw, data: GrowthData, known: list[tuple[Fold, ScratchBasis]]) -> Array | None:
    """Residuals on all held-out pairs of the folds; None where a fold has too few pairs for the law."""
    if not known or any(int(fold.train.sum()) < law.min_pairs for fold, _ in known):
        return None
    residuals = []
    for fold, basis in known:
        train = data.where(fold.train, fold.scratch)
        fit = fit_growth_law(law, train.points, train.delta_nats, basis)
        test = data.points.where(fold.test)
        residuals.append(law.delta(fit.params, Prepared.of(test, basis.curve)) - data.delta_nats[fold.test])
    return np.concatenate(residuals)


def _with_bases(
    data: GrowthData, splits: tuple[Fold, ...], num_draws: int, seed: int
) -> list[tuple[Fold, ScratchBasis]]:
    """The folds whose scratch runs can carry a scratch curve, each with it."""
    known = []
    for fold in splits:
        try:
            known.append((fold, fit_scratch_basis(data.scratch.where(fold.scratch), num_draws, seed)))
        except ValueError:
            continue
    return known


def validate(
    data: GrowthData,
    leave_out: LeaveOut,
    *,
    num_draws: int = 60,
    seed: int = 0,
    laws: Mapping[str, GrowthLaw] = ALL_LAWS,
) -> Validation:
    """Score every law and their weighted average on outer folds; weights come from inside each training set."""
    outer = _with_bases(data, folds(data, leave_out), num_draws, seed)
    if not outer:
        kind = "target sizes" if leave_out == "target_params" else "budgets"
        return Validation(
            leave_out=leave_out, scores={}, averaged=None, by_left_out={}, averaged_by_left_out={}, held_out={}, tested=None,
            inner_weights={}, warnings=(f"too few {kind} to leave one out: nothing here is validated",),
        )  # fmt: skip
    # A law is scored only where every outer training set can carry it, so that all scores are over the same pairs.
    usable = {
        name: law for name, law in laws.items() if all(int(fold.train.sum()) >= law.min_pairs for fold, _ in outer)
    }
    pieces: dict[str, list[HeldOut]] = {name: [] for name in [*usable, "averaged"]}
    by_left_out: dict[str, dict[str, Scores]] = {name: {} for name in usable}
    averaged_by: dict[str, Scores] = {}
    inner_weights = {}
    for fold, basis in outer:
        train = data.where(fold.train, fold.scratch)
        weights = law_weights(train, usable)
        inner_weights[fold.name] = dict(weights.by_law)
        test = data.where(fold.test, fold.scratch)
        drawn = {}
        for name, law in usable.items():
            fit = fit_growth_law(
                law, train.points, train.delta_nats, basis, clusters=train.clusters, controls=train.controls, seed=seed
            )
            drawn[name] = _predicted(fit, basis, test.points, weights.noise_nats(name))
            pieces[name].append(drawn[name].held_out())
            by_left_out[name][fold.name] = score(test, pieces[name][-1])
        pieces["averaged"].append(_mixture(drawn, weights.by_law).held_out())
        averaged_by[fold.name] = score(test, pieces["averaged"][-1])
    tested = _joined(data, [fold for fold, _ in outer])
    held_out = {name: _concatenated(parts) for name, parts in pieces.items()}
    left = [name for name in laws if name not in usable]
    return Validation(
        leave_out=leave_out,
        scores={name: score(tested, held_out[name]) for name in usable},
        averaged=score(tested, held_out["averaged"]),
        by_left_out=by_left_out,
        averaged_by_left_out=averaged_by,
        held_out=held_out,
        tested=tested,
        inner_weights=inner_weights,
        warnings=tuple(
            f"law '{name}' is not scored: it needs {laws[name].min_pairs} pairs in every training fold" for name in left
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Predicted:
    """Delta (R,) of the point fit, (K, R) of the draws, and the sd (K,) of the noise around each draw, in nats."""

    point: Array
    draws: Array
    noise_nats: Array

    def held_out(self) -> HeldOut:
        low, high = central_interval(self.draws, self.noise_nats)
        return HeldOut(delta_nats=self.point, low_nats=low, high_nats=high)


def _predicted(fit: GrowthFit, basis: ScratchBasis, points: GrowthPoints, noise_nats: float) -> _Predicted:
    assert fit.draws is not None
    assert basis.draws is not None
    draws = fit.law.delta(fit.draws, Prepared.of(points, basis.draws))
    return _Predicted(
        point=fit.law.delta(fit.params, Prepared.of(points, basis.curve)),
        draws=draws,
        noise_nats=np.full(len(draws), noise_nats),
    )


def _mixture(drawn: Mapping[str, _Predicted], weights: Mapping[str, float]) -> _Predicted:
    """The weighted mean of the laws' predictions, and draws that come from the laws by weight."""
    used = {name: weight for name, weight in weights.items() if weight > 0 and name in drawn}
    shares = np.array(list(used.values())) / sum(used.values())
    laws = [drawn[name] for name in used]
    # Draws are dealt out at random so that no law meets only the first resamples, but each gets its share to one draw.
    num_draws = len(laws[0].draws)
    places = np.random.default_rng(0).permutation((np.arange(num_draws) + 0.5) / num_draws)
    owner = np.searchsorted(np.cumsum(shares)[:-1], places)
    return _Predicted(
        point=np.sum([share * law.point for share, law in zip(shares, laws, strict=True)], axis=0),
        draws=np.array([laws[law].draws[k] for k, law in enumerate(owner)]),
        noise_nats=np.array([laws[law].noise_nats[k] for k, law in enumerate(owner)]),
    )


def _concatenated(parts: list[HeldOut]) -> HeldOut:
    return HeldOut(
        delta_nats=np.concatenate([part.delta_nats for part in parts]),
        low_nats=np.concatenate([part.low_nats for part in parts]),
        high_nats=np.concatenate([part.high_nats for part in parts]),
    )


def _joined(data: GrowthData, splits: list[Fold]) -> GrowthData:
    """The pairs that some fold tested, in the order of the folds."""
    rows = np.concatenate([np.flatnonzero(fold.test) for fold in splits])
    return data.where(rows, np.arange(len(data.scratch)))
