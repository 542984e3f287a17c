"""Choosing runs one after the other: each time the cheapest step of those that lower the expected regret the most.

    value(S) = sum over decisions of weight x (regret(nothing) - regret(S))
    fall(e)  = value(S + e) - value(S)                                        of step e, once S are seen
    next     = argmin over steps e of cost(e)   where fall(e) >= 3/4 max fall

Not the largest fall per FLOP: that takes the cheap runs first, which tell of the cheap decisions, and the laws, fitted to
them alone, then miss the dear ones by more. In the replay on the first public grid plans per FLOP did worse than chance.

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
from fitting.planning.misfit import Place, misfit_of, place_of, places_of_arms
from fitting.planning.value import Seen, Simulation
from fitting.recommendation.losses import Losses
from fitting.recommendation.outcomes import PAIRS_FOR_A_CHANCE
from fitting.rules.base import quantity

Array = NDArray[np.float64]

_RESULTS_TO_CHOOSE, _RESULTS_TO_REPORT = 2, 8
_MOST_DRAWS = 240
# A fall below this share of today's regret is the simulation's noise, not a reason to train.
_LEAST_SHARE = 0.01
# Falls closer than this are told apart by the simulation's noise more than by what the runs tell.
_ALIKE = 0.75
# So many steps are valued afresh before none is taken: the first may have been but lucky where they were chosen.
_MOST_TRIES = 5


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
        regret_now_nats: expected, summed over the decisions by weight; ``regrets_now_nats`` of each decision.
        saved_flops: the fall that all steps together are expected to bring, priced in scratch training; its 80% interval
            is that of the simulation's mean, not of what one plan will save.
        net_flops: ``saved_flops`` less what the steps cost.
        note: a sentence, also where no run pays.
    """

    steps: tuple[PlannedStep, ...]
    regret_now_nats: float
    regrets_now_nats: tuple[float, ...]
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
    places: tuple[int, ...]
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
        guideline: fitted; its draws, and what their laws were seen to miss, are what is believed today.
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
    decisions = [_thinned(decision, kept) for decision in decisions]
    bundles = _bundles(candidates(guideline, targets) if offered is None else offered)
    believed = _Believed.of(guideline, kept, decisions, bundles)
    options = [believed.option(runs) for runs in bundles]
    costs = [sum(run.compute_flops for run in _needed(option, guideline, [])) for option in options]
    cheapest = min(costs, default=None)
    if cheapest is None or cheapest > flops_budget:
        raise InputError(
            "flops_budget", f"is {flops_budget:.3g}, which pays for no run inside the guideline's reach",
            "give at least " + (f"{cheapest:.3g} FLOPs" if cheapest is not None else "a target of the cohort's sizes"),
        )  # fmt: skip
    halves = np.arange(len(kept)) % 2
    choosing, reporting = (
        Simulation(
            decisions=decisions, truths=np.flatnonzero(halves == half), num_results=num_results, seed=seed + half,
            misfit=believed.covariance, arm_places=believed.arm_places,
        )
        for half, num_results in enumerate((_RESULTS_TO_CHOOSE, _RESULTS_TO_REPORT))
    )  # fmt: skip
    return _grow_plan(
        guideline, believed, decisions, options, choosing, reporting, flops_budget, must_pay, max_steps, progress
    )


def _grow_plan(
    guideline: Guideline, believed: _Believed, decisions: Sequence[Decision], options: Sequence[_Option],
    choosing: Simulation, reporting: Simulation, flops_budget: float, must_pay: bool, max_steps: int,
    progress: Callable[[int, int], None],
) -> NextRuns:  # fmt: skip
    chosen: list[Experiment] = []
    steps: list[PlannedStep] = []
    to_choose, to_report = choosing.start, reporting.start
    start = _total(reporting, to_report)
    now, left = start, flops_budget
    least = _LEAST_SHARE * start.nats
    while len(steps) < max_steps:
        for option in _ranked(
            choosing, to_choose, options, believed, guideline, chosen, left, least, must_pay=must_pay
        ):
            seen = _see(reporting, to_report, option)
            after = _total(reporting, seen)
            saves = not must_pay or (now.flops - after.flops).mean() > option.cost_flops
            if now.nats - after.nats >= least and saves:
                break
        else:
            break
        steps.append(
            PlannedStep(
                runs=option.runs, cost_flops=option.cost_flops, regret_before_nats=now.nats,
                regret_after_nats=after.nats, change_chance=after.change_chance,
                why=_why(option, believed, decisions, after.change_chance),
            )
        )  # fmt: skip
        chosen += option.runs
        to_choose = _see(choosing, to_choose, option)
        to_report, now, left = seen, after, left - option.cost_flops
        progress(len(steps), max_steps)
    saved = start.flops - now.flops
    spread = float(scipy.special.ndtri((1 + INTERVAL_LEVEL) / 2) * saved.std(ddof=1) / np.sqrt(len(saved)))
    mean = float(saved.mean())
    return NextRuns(
        steps=tuple(steps), regret_now_nats=start.nats,
        regrets_now_nats=tuple(one.mean for one in reporting.regrets(reporting.start)), regret_after_nats=now.nats,
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


def _see(simulation: Simulation, seen: Seen, option: _Option) -> Seen:
    return simulation.see(seen, option.losses, option.noise_nats, option.places)


def _ranked(
    simulation: Simulation, seen: Seen, options: Sequence[_Option], believed: _Believed, guideline: Guideline,
    chosen: Sequence[Experiment], left: float, least_nats: float, *, must_pay: bool,
) -> list[_Option]:  # fmt: skip
    """Steps that lower the regret, the first to take first, each with the controls it needs.

    One that would hardly be seen to lower it, however cheap, does not stand before those that would.
    """
    now = _total(simulation, seen)
    found: list[tuple[float, float, _Option]] = []
    for option in options:
        cost = sum(run.compute_flops for run in _needed(option, guideline, chosen))
        if cost > left:
            continue
        after = _total(simulation, _see(simulation, seen, option))
        fall = float((now.flops - after.flops).mean()) - cost if must_pay else now.nats - after.nats
        if fall > 0 and now.nats - after.nats >= least_nats:
            found.append((fall, cost, option))
    alike = _ALIKE * max((fall for fall, _, _ in found), default=0.0)
    # The cheapest of those that are about as good as the best, then the others.
    found.sort(key=lambda one: (one[0] < alike, one[1] if one[0] >= alike else -one[0]))
    return [believed.option(_needed(option, guideline, chosen)) for _, _, option in found[:_MOST_TRIES]]


def _bundles(experiments: Sequence[Experiment]) -> list[tuple[Experiment, ...]]:
    """Each run by itself, and the earliest, a middle and the latest timing of one valley together."""
    bundles: list[tuple[Experiment, ...]] = [(one,) for one in experiments]
    grown = [one for one in experiments if one.base is not None]
    for _, group in itertools.groupby(grown, key=lambda one: (one.target.params, one.token_budget, one.base)):
        valley = list(group)
        if len(valley) >= 3:
            bundles.append((valley[0], valley[len(valley) // 2], valley[-1]))
    return bundles


@dataclass(frozen=True, kw_only=True)
class _Believed:
    """What is believed of every run that may be made and every arm: losses by draw, and what laws may miss there.

    ``places`` numbers the runs, by key, in the ``covariance`` (P, P) nats^2; ``arm_places`` the arms of each decision.
    """

    losses: Losses
    kept: NDArray[np.int64]
    seed_nats: float
    places: dict[tuple[object, ...], int]
    arm_places: list[NDArray[np.int64]]
    covariance: Array

    @classmethod
    def of(
        cls, guideline: Guideline, kept: NDArray[np.int64], decisions: Sequence[Decision],
        bundles: Sequence[tuple[Experiment, ...]],
    ) -> _Believed:  # fmt: skip
        found: list[Place] = []
        arm_places = []
        for decision in decisions:
            own = places_of_arms(decision)
            arm_places.append(np.arange(len(found), len(found) + len(own)))
            found += own
        places: dict[tuple[object, ...], int] = {}
        for run in itertools.chain.from_iterable(bundles):
            for one in (run,) if run.base is None else (run, control_of(run)):
                if one.key not in places:
                    places[one.key] = len(found)
                    found.append(place_of(one))
        misfit = misfit_of(guideline, decisions)
        return cls(
            losses=guideline.losses, kept=kept, seed_nats=misfit.seed_nats, places=places, arm_places=arm_places,
            covariance=misfit.after(guideline, found),
        )  # fmt: skip

    def option(self, runs: tuple[Experiment, ...]) -> _Option:
        return _Option(
            runs=runs,
            losses=np.stack([run.losses(self.losses)[self.kept] for run in runs], axis=1),
            places=tuple(self.places[run.key] for run in runs),
            noise_nats=np.full(len(runs), self.seed_nats),
            cost_flops=sum(run.compute_flops for run in runs),
        )

    def missed_nats(self, option: _Option) -> Array:
        """(E,) standard deviation of what the laws may miss of each run."""
        return np.sqrt(np.maximum(0.0, np.diag(self.covariance)[list(option.places)]))


def _needed(option: _Option, guideline: Guideline, chosen: Sequence[Experiment]) -> tuple[Experiment, ...]:
    """The option's runs after the control they need, if none stands or was chosen."""
    if option.runs[0].base is None:
        return option.runs
    control = control_of(option.runs[0])
    if stands(control, guideline) or any(run.key == control.key for run in chosen):
        return option.runs
    return control, *option.runs


def _every(num_draws: int) -> NDArray[np.int64]:
    every = max(1, num_draws // _MOST_DRAWS)
    return np.arange(0, num_draws, every)


def _thinned(decision: Decision, kept: NDArray[np.int64]) -> Decision:
    return Decision(
        request=decision.request, arms=decision.arms, losses=decision.losses[kept],
        worth_flops=decision.worth_flops[kept], weight=decision.weight,
    )  # fmt: skip


def _why(option: _Option, believed: _Believed, decisions: Sequence[Decision], change_chance: float) -> str:
    spread, missed = option.losses.std(axis=0), believed.missed_nats(option)
    which = int(np.argmax(np.hypot(spread, missed)))
    run = option.runs[which]
    what = f"{quantity(run.params)} parameters on {quantity(run.tokens)} tokens"
    if run.base is not None:
        assert run.growth_timing_tokens is not None
        what = f"growth x{run.base.growth_factor:.3g} after {quantity(run.growth_timing_tokens)} tokens, then {what}"
    about = "the decision" if len(decisions) == 1 else f"one of the {len(decisions)} decisions"
    return (
        f"What the draws say of {what} spreads by {spread[which]:.4f} nats, their laws may miss {missed[which]:.4f}, a run's "
        f"noise is {option.noise_nats[which]:.4f}; with this and the steps before, {about} would change in "
        f"{change_chance:.0%} of cases."
    )


def _note(steps: Sequence[PlannedStep], start: _Total, *, must_pay: bool) -> str:
    if steps:
        return f"Expected regret falls from {start.nats:.4f} to {steps[-1].regret_after_nats:.4f} nats."
    if start.nats == 0.0:
        return "No run pays: in every draw, and however the laws may miss, the arm chosen today is the best one."
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
