"""Choosing runs one after the other: each time the step with the largest fall of expected regret per FLOP.

    value(S) = sum over decisions of weight x (regret(nothing) - regret(S))
    next     = argmax over steps e of (value(S + e) - value(S)) / cost(e)

A step is one run, or the few that only teach together: both sides of a valley at one size, budget and factor. What is told
of the chosen is not what chose them: steps are chosen under truths of one half of the draws and valued under the other, so
the luck of the best of several hundred is not reported as value. Costs count every run in full; legs off one trunk come
cheaper.

The fall is in nats. Where all decisions have hardware or not does not matter: ``saved_flops`` prices the regret of each in
FLOPs of its own scratch training (:mod:`fitting.planning.decisions`), and ``net_flops`` takes off what the runs cost.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its parts load when they are first used: a service starts sooner
from numpy.typing import NDArray

from fitting.conventions import INTERVAL_LEVEL
from fitting.errors import InputError
from fitting.guideline import Guideline
from fitting.layers import Target
from fitting.planning.decisions import Decision
from fitting.planning.experiments import Experiment, candidates, control_of, stands
from fitting.planning.value import Seen, Simulation
from fitting.recommendation.losses import Losses
from fitting.recommendation.outcomes import PAIRS_FOR_A_CHANCE
from fitting.rules.base import quantity

Array = NDArray[np.float64]

_RESULTS_TO_CHOOSE, _RESULTS_TO_REPORT = 2, 8
_MOST_DRAWS = 240
# A fall below this share of today's regret is the simulation's noise, not a reason to train.
_LEAST_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """Runs to make together.

    Attributes:
        runs: what to train; a control that was missing stands among them.
        cost_flops: of all of them.
        regret_before_nats, regret_after_nats: expected, summed over the decisions by weight, with all earlier steps seen.
        change_chance: share of possible results (of all steps so far) after which some decision is taken differently.
        why: a sentence.
    """

    runs: tuple[Experiment, ...]
    cost_flops: float
    regret_before_nats: float
    regret_after_nats: float
    change_chance: float
    why: str

    @property
    def fall_nats(self) -> float:
        return self.regret_before_nats - self.regret_after_nats


@dataclass(frozen=True, kw_only=True)
class NextRuns:
    """What to run next.

    Attributes:
        steps: in the order in which to make them; empty where nothing pays.
        regret_now_nats: expected, summed over the decisions by weight.
        saved_flops: the fall that all steps together are expected to bring, priced in scratch training; its 80% interval
            is that of the simulation's mean, not of what one plan will save.
        net_flops: ``saved_flops`` less what the steps cost.
        note: a sentence, also where no run pays.
    """

    steps: tuple[PlannedStep, ...]
    regret_now_nats: float
    regret_after_nats: float
    cost_flops: float
    saved_flops: float
    saved_flops_interval: tuple[float, float]
    num_weighed: int
    note: str

    @property
    def net_flops(self) -> float:
        return self.saved_flops - self.cost_flops


@dataclass(frozen=True, kw_only=True)
class _Option:
    runs: tuple[Experiment, ...]
    losses: Array
    noise_nats: Array
    cost_flops: float


def next_runs(
    guideline: Guideline,
    decisions: Sequence[Decision],
    *,
    targets: Sequence[Target],
    flops_budget: float,
    offered: Sequence[Experiment] | None = None,
    must_pay: bool = False,
    max_steps: int = 10,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> NextRuns:
    """Choose runs for at most ``flops_budget`` FLOPs.

    Args:
        guideline: fitted; its draws are what is believed today.
        decisions: what the runs are for, of the same guideline (:func:`fitting.planning.decisions.decision_of`).
        targets: sizes that may be trained.
        offered: the runs to choose among, timings of a base side by side; by default the
            :func:`fitting.planning.experiments.candidates` of the targets.
        must_pay: choose only steps that save more FLOPs than they cost; for the worth of a pilot.
        max_steps: at most so many.
        progress: told (steps chosen, most possible).

    Raises:
        InputError: no budget, no decision, or no run inside the guideline's reach fits the budget.
    """
    if not flops_budget > 0:
        raise InputError("flops_budget", f"is {flops_budget!r}, but it must be above 0", "give a number of FLOPs")
    if not decisions:
        raise InputError("decisions", "is empty", "name at least one question")
    kept = _every(len(decisions[0].losses))
    losses = guideline.losses
    decisions = [_thinned(decision, kept) for decision in decisions]
    options = [
        _option(runs, losses, kept) for runs in _bundles(candidates(guideline, targets) if offered is None else offered)
    ]
    if not any(_priced(option, guideline, [])[1] <= flops_budget for option in options):
        cheapest = min((_priced(option, guideline, [])[1] for option in options), default=None)
        raise InputError(
            "flops_budget", f"is {flops_budget:.3g}, which pays for no run inside the guideline's reach",
            "give at least " + (f"{cheapest:.3g} FLOPs" if cheapest is not None else "a target of the cohort's sizes"),
        )  # fmt: skip
    halves = np.arange(len(kept)) % 2
    choosing = Simulation(
        decisions=decisions, truths=np.flatnonzero(halves == 0), num_results=_RESULTS_TO_CHOOSE, seed=seed
    )
    reporting = Simulation(
        decisions=decisions, truths=np.flatnonzero(halves == 1), num_results=_RESULTS_TO_REPORT, seed=seed + 1
    )
    return _grow_plan(
        guideline, losses, kept, decisions, options, choosing, reporting, flops_budget, must_pay, max_steps, progress
    )


def _grow_plan(
    guideline: Guideline, losses: Losses, kept: NDArray[np.int64], decisions: Sequence[Decision],
    options: Sequence[_Option], choosing: Simulation, reporting: Simulation, flops_budget: float, must_pay: bool,
    max_steps: int, progress: Callable[[int, int], None],
) -> NextRuns:  # fmt: skip
    chosen: list[Experiment] = []
    steps: list[PlannedStep] = []
    to_choose, to_report = choosing.start, reporting.start
    start = _total(reporting, to_report)
    now, left = start, flops_budget
    while len(steps) < max_steps:
        best = _best(choosing, to_choose, options, guideline, chosen, left, must_pay=must_pay)
        if best is None:
            break
        option, runs, cost = best
        extra = _option(runs, losses, kept)
        to_choose = choosing.see(to_choose, extra.losses, extra.noise_nats)
        seen = reporting.see(to_report, extra.losses, extra.noise_nats)
        after = _total(reporting, seen)
        fall = now.nats - after.nats
        if fall < _LEAST_SHARE * start.nats or (must_pay and (now.flops - after.flops).mean() <= cost):
            break
        steps.append(
            PlannedStep(
                runs=runs, cost_flops=cost, regret_before_nats=now.nats, regret_after_nats=after.nats,
                change_chance=after.change_chance, why=_why(option, decisions, after.change_chance),
            )
        )  # fmt: skip
        chosen += runs
        to_report, now, left = seen, after, left - cost
        progress(len(steps), max_steps)
    saved = start.flops - now.flops
    spread = float(scipy.special.ndtri((1 + INTERVAL_LEVEL) / 2) * saved.std(ddof=1) / np.sqrt(len(saved)))
    mean = float(saved.mean())
    return NextRuns(
        steps=tuple(steps), regret_now_nats=start.nats, regret_after_nats=now.nats,
        cost_flops=sum(step.cost_flops for step in steps), saved_flops=mean,
        saved_flops_interval=(mean - spread, mean + spread), num_weighed=len(options),
        note=_note(steps, start, must_pay=must_pay) + _caution(guideline),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Total:
    """Over all decisions by weight: nats, and FLOPs (J,) by truth."""

    nats: float
    flops: Array
    change_chance: float


def _total(simulation: Simulation, seen: Seen) -> _Total:
    regrets = simulation.regrets(seen)
    pairs = list(zip(simulation.decisions, regrets, strict=True))
    return _Total(
        nats=sum(decision.weight * regret.mean for decision, regret in pairs),
        flops=np.sum(
            [decision.weight * regret.by_truth * decision.worth_flops[simulation.truths] for decision, regret in pairs],
            axis=0,
        ),
        change_chance=max(regret.change_chance for regret in regrets),
    )


def _best(
    simulation: Simulation, seen: Seen, options: Sequence[_Option], guideline: Guideline, chosen: list[Experiment],
    left: float, *, must_pay: bool,
) -> tuple[_Option, tuple[Experiment, ...], float] | None:  # fmt: skip
    """The step with the largest fall per FLOP, its runs with missing controls, and its cost."""
    now = _total(simulation, seen)
    best, best_rate = None, 0.0
    for option in options:
        runs, cost = _priced(option, guideline, chosen)
        if cost > left:
            continue
        after = _total(simulation, simulation.see(seen, option.losses, option.noise_nats))
        fall = float((now.flops - after.flops).mean()) - cost if must_pay else now.nats - after.nats
        if fall / cost > best_rate:
            best, best_rate = (option, runs, cost), fall / cost
    return best


def _bundles(experiments: Sequence[Experiment]) -> list[tuple[Experiment, ...]]:
    """Each run by itself, and the earliest, a middle and the latest timing of one valley together."""
    bundles: list[tuple[Experiment, ...]] = [(one,) for one in experiments]
    grown = [one for one in experiments if one.base is not None]
    for _, group in itertools.groupby(grown, key=lambda one: (one.target.params, one.token_budget, one.base)):
        valley = list(group)
        if len(valley) >= 3:
            bundles.append((valley[0], valley[len(valley) // 2], valley[-1]))
    return bundles


def _option(runs: tuple[Experiment, ...], losses: Losses, kept: NDArray[np.int64]) -> _Option:
    # A grown run misses its law by what pairs miss theirs, which holds the noise of two runs.
    grown_noise = max(losses.run_noise_nats, losses.delta_noise_nats / np.sqrt(2))
    return _Option(
        runs=runs,
        losses=np.stack([run.losses(losses)[kept] for run in runs], axis=1),
        noise_nats=np.array([losses.run_noise_nats if run.base is None else grown_noise for run in runs]),
        cost_flops=sum(run.compute_flops for run in runs),
    )


def _priced(
    option: _Option, guideline: Guideline, chosen: Sequence[Experiment]
) -> tuple[tuple[Experiment, ...], float]:
    """The option's runs and the control they need, if none stands or was chosen; and what all cost."""
    if option.runs[0].base is None:
        return option.runs, option.cost_flops
    control = control_of(option.runs[0])
    if stands(control, guideline) or any(run.key == control.key for run in chosen):
        return option.runs, option.cost_flops
    return (control, *option.runs), option.cost_flops + control.compute_flops


def _every(num_draws: int) -> NDArray[np.int64]:
    every = max(1, num_draws // _MOST_DRAWS)
    return np.arange(0, num_draws, every)


def _thinned(decision: Decision, kept: NDArray[np.int64]) -> Decision:
    return Decision(
        request=decision.request, arms=decision.arms, losses=decision.losses[kept],
        worth_flops=decision.worth_flops[kept], weight=decision.weight,
    )  # fmt: skip


def _why(option: _Option, decisions: Sequence[Decision], change_chance: float) -> str:
    spread = option.losses.std(axis=0)
    which = int(np.argmax(spread / option.noise_nats))
    run = option.runs[which]
    what = f"{quantity(run.params)} parameters on {quantity(run.tokens)} tokens"
    if run.base is not None:
        assert run.growth_timing_tokens is not None
        what = f"growth x{run.base.growth_factor:.3g} after {quantity(run.growth_timing_tokens)} tokens, then {what}"
    about = "the decision" if len(decisions) == 1 else f"one of the {len(decisions)} decisions"
    return (
        f"What the draws say of {what} spreads by {spread[which]:.4f} nats, a run's noise is "
        f"{option.noise_nats[which]:.4f}; with this and the steps before, {about} would change in {change_chance:.0%} of cases."
    )


def _note(steps: Sequence[PlannedStep], start: _Total, *, must_pay: bool) -> str:
    if steps:
        return f"Expected regret falls from {start.nats:.4f} to {steps[-1].regret_after_nats:.4f} nats."
    if start.nats == 0.0:
        return "No run pays: in every draw the arm chosen today is the best one."
    if must_pay:
        return (
            f"No pilot pays: what is expected to be lost today ({start.nats:.4f} nats) is worth less than the runs that "
            "would tell more."
        )
    return (
        f"No run in reach lowers the expected regret of {start.nats:.4f} nats by more than the simulation's own noise."
    )


def _caution(guideline: Guideline) -> str:
    """Draws that little was held against: in the replay on the first public grid they called an end to planning too soon."""
    tested = guideline.num_held_out_pairs
    if tested >= PAIRS_FOR_A_CHANCE:
        return ""
    return (
        f" These draws were tested on {tested} held-out pairs, fewer than {PAIRS_FOR_A_CHANCE}: that nothing more pays they "
        "may say too soon."
    )
