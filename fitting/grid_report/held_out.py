"""What a guideline fitted on the smaller sizes says of the largest: errors, signs, regret of its picks, coverage.

    train on every size but the largest -> predicted delta of its grown cells -> pick = lowest predicted, scratch if that > 0

The largest target's scratch runs are known when it is predicted (:mod:`fitting.validation.folds`): the question is what growth
does to a model whose scratch curve one has. Pairs share noise in two ways, by their trunk and by their control run, so errors
and coverage are resampled by either and the wider interval stands; coverage also has its Clopper-Pearson interval, which takes
pairs for independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fitting.conventions import INTERVAL_LEVEL, SAME_SIZE, TIE_NATS
from fitting.estimation.bootstrap import resample_weights
from fitting.grid_report.arms import Grid
from fitting.grid_report.gains import Verdict
from fitting.grid_report.rule_regret import Case, Pick, RuleScore, score
from fitting.grid_report.spread import CALL_LEVEL, NUM_RESAMPLES, Interval, interval_of
from fitting.growth_data import GrowthData, growth_data
from fitting.laws.base import Array
from fitting.validation.folds import LeaveOut
from fitting.validation.nested import validate
from fitting.validation.scores import HeldOut, binomial_interval

GUIDELINE = "fitted guideline"
# Predictors that stand beside the guideline: no effect at all, and scratch's own curve read at a constant multiple.
NEVER_GROW, CONSTANT_SPEEDUP = "never grow", "constant speedup"
_FEWEST_PAIRS = 10


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Errors of predicted deltas in nats and signs hit (ties apart), with the interval of the error.

    ``guideline_is`` says whether the guideline's squared error is lower, by the 95% interval of the paired difference.
    """

    name: str
    rmse_nats: float
    rmse_interval: Interval
    sign_hits: int
    sign_cases: int
    guideline_is: Verdict


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How often 80% intervals of held-out predictions held what was measured."""

    left_out: str
    num_pairs: int
    num_families: int
    share: float
    binomial_interval: Interval
    family_interval: Interval


@dataclass(frozen=True, kw_only=True)
class LargestLeftOut:
    """Scores on the largest target after training on the smaller; ``picks`` hold the guideline's regret among the rules'."""

    label: str
    num_train_pairs: int
    num_test_pairs: int
    num_train_sizes: int
    num_families: int
    errors: tuple[Errors, ...]
    picks: tuple[RuleScore, ...]
    coverage: tuple[Coverage, ...]
    weights: dict[str, float]
    run_ids: tuple[str, ...]


def largest_left_out(grid: Grid, found: Sequence[Case], rules: Sequence[RuleScore], *, seed: int) -> LargestLeftOut:
    """Scores on the largest target.

    Raises:
        ValueError: too few sizes or pairs to hold one out; says what is missing.
    """
    data = growth_data(grid.main)
    sizes = sorted({target.params for target in grid.targets if any(case.target is target for case in found)})
    if len(sizes) < 2:
        raise ValueError(f"leaving out the largest size needs 2 sizes with grown and scratch runs, {len(sizes)} found")
    largest = sizes[-1]
    num_train = int((~_same(data, largest)).sum())
    if num_train < _FEWEST_PAIRS:
        raise ValueError(f"a guideline of its own needs {_FEWEST_PAIRS} pairs at the smaller sizes, {num_train} found")
    validations = {kind: validate(data, kind, seed=seed) for kind in _KINDS}
    by_size = validations["target_params"]
    assert by_size.tested is not None
    at = _same(by_size.tested, largest)
    tested = by_size.tested.where(at, np.arange(len(by_size.tested.scratch)))
    predicted = {GUIDELINE: by_size.held_out["averaged"].delta_nats[at], NEVER_GROW: np.zeros(len(tested))}
    if "constant_speedup" in by_size.held_out:
        predicted[CONSTANT_SPEEDUP] = by_size.held_out["constant_speedup"].delta_nats[at]
    own_cases = [case for case in found if case.target.params == largest]
    picks = [
        score(name, [_pick(case, tested, predicted[name]) for case in own_cases])
        for name in (GUIDELINE, CONSTANT_SPEEDUP)
        if name in predicted
    ]
    picks += [score(rule.rule, [pick for pick in rule.picks if pick.case.target.params == largest]) for rule in rules]
    name = next(name for name in by_size.inner_weights if abs(float(name) / largest - 1) < 1e-3)
    return LargestLeftOut(
        label=own_cases[0].target.label,
        num_train_pairs=num_train,
        num_test_pairs=len(tested),
        num_train_sizes=len(sizes) - 1,
        num_families=len(np.unique(tested.clusters)),
        errors=tuple(_errors(name, tested, values, predicted[GUIDELINE]) for name, values in predicted.items()),
        picks=tuple(sorted(picks, key=lambda one: one.excess_nats)),
        coverage=(
            _coverage(
                f"the largest size ({own_cases[0].target.label})", tested, _where(by_size.held_out["averaged"], at)
            ),
            *(
                _coverage(_NAMES[kind], validation.tested, validation.held_out["averaged"])
                for kind, validation in validations.items()
                if validation.tested is not None
            ),
        ),
        weights={law: weight for law, weight in by_size.inner_weights[name].items() if weight > 0},
        run_ids=data.run_ids,
    )


_KINDS: tuple[LeaveOut, ...] = ("target_params", "compute")
_NAMES = {"target_params": "each size in turn", "compute": "each budget above a rolling origin"}


def _same(data: GrowthData, size: float) -> np.ndarray:
    return np.asarray(np.abs(data.points.target_params / size - 1) < SAME_SIZE)


def _where(held_out: HeldOut, rows: np.ndarray) -> HeldOut:
    return HeldOut(
        delta_nats=held_out.delta_nats[rows], low_nats=held_out.low_nats[rows], high_nats=held_out.high_nats[rows]
    )


def _pick(case: Case, tested: GrowthData, predicted: Array) -> Pick:
    """The cell of the lowest mean predicted delta, scratch where none is below 0."""
    points = tested.points
    budget = np.abs(tested.compute_flops / case.target.compute_flops(case.budget) - 1) < 0.02
    means = [0.0]
    for arm in case.cells[1:]:
        rows = budget & np.isclose(points.growth_factor, arm.growth_factor, rtol=1e-3)
        rows &= np.isclose(points.timing_tokens, arm.timing_tokens, rtol=1e-6)
        means.append(float(predicted[rows].mean()) if rows.any() else np.inf)
    cell = int(np.argmin(means))
    arm = case.cells[cell]
    return Pick(
        case=case, cell=cell, decision="grow" if cell else "scratch",
        asked_timing_tokens=arm.timing_tokens if cell else None,
    )  # fmt: skip


def _errors(name: str, tested: GrowthData, predicted: Array, by_guideline: Array) -> Errors:
    missed = predicted - tested.delta_nats
    low, high = _interval((by_guideline - tested.delta_nats) ** 2 - missed**2, tested, level=CALL_LEVEL)
    lowest, highest = _interval(missed**2, tested)
    counted = np.abs(tested.delta_nats) > TIE_NATS
    return Errors(
        name=name,
        rmse_nats=float(np.sqrt(np.mean(missed**2))),
        rmse_interval=(float(np.sqrt(lowest)), float(np.sqrt(highest))),
        # No predicted effect says "do not grow", which is right where growing did not help.
        sign_hits=int(np.sum(counted & ((predicted < 0) == (tested.delta_nats < 0)))),
        sign_cases=int(counted.sum()),
        guideline_is="lower" if high < 0 else "higher" if low > 0 else "not told apart",
    )


def _coverage(left_out: str, tested: GrowthData, held_out: HeldOut) -> Coverage:
    held = (held_out.low_nats <= tested.delta_nats) & (tested.delta_nats <= held_out.high_nats)
    binomial = binomial_interval(int(held.sum()), len(held))
    assert binomial is not None
    return Coverage(
        left_out=left_out,
        num_pairs=len(held),
        num_families=len(np.unique(tested.clusters)),
        share=float(held.mean()),
        binomial_interval=binomial,
        family_interval=_interval(held.astype(float), tested),
    )


def _interval(values: Array, tested: GrowthData, *, level: float = INTERVAL_LEVEL) -> Interval:
    """The interval of the mean of ``values`` (R,) over trunk families or over controls, whichever is wider."""
    found = []
    for families in (tested.clusters, tested.controls):
        weights = resample_weights(families, NUM_RESAMPLES, seed=0)
        found.append(interval_of((weights @ values) / weights.sum(axis=1), level=level))
    return max(found, key=lambda ends: ends[1] - ends[0])
