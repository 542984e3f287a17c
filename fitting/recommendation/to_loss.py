"""The answer to "what budget reaches this loss": growing, scratch and a smaller fixed size, each with its uncertainty.

    C_arm   = min { C : E_k L_arm,k(C) <= L }                       over the budgets that the guideline may speak of
    C_arm,k = min { C : L_arm,k(C) <= L - s z },   z ~ N(0, 1)      what the interval is made of

========  ==========================================================================  ==========
symbol    meaning                                                                     unit
========  ==========================================================================  ==========
L         loss to match                                                               nats
C         compute budget, the base's cost in it as the accounting says               FLOPs
L_arm,k   loss of draw k: scratch, the best smaller size, or grown at the timing      nats
          that is best on the mean at that budget
s         noise of one run's final loss around its law                                nats
========  ==========================================================================  ==========

Scratch and the smaller size are inverted by their laws; growing, whose timing moves with the budget, by root-finding on
the mean and by interpolation between 33 budgets for the draws. A guideline speaks of budgets less than 30x from its own
(:mod:`fitting.recommendation.support`); a loss that no arm is expected to reach there is refused, never extrapolated to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy  # its parts load when they are first used: a service starts sooner

from fitting.budget import Budget
from fitting.errors import InputError
from fitting.guideline import Guideline
from fitting.layers import BaseOption, single_size_flops_per_token
from fitting.noisy_draws import NUM_NOISE_SCORES, TAILS, noise_scores
from fitting.recommendation.answer import LossGoal, Reach, Recommendation
from fitting.recommendation.arms import Arms, Single, arms
from fitting.recommendation.from_laws import answer_from_laws, budget_of, smallest_run, tried_factors
from fitting.recommendation.losses import Array, Losses
from fitting.recommendation.optimum import Optimum, best_timings
from fitting.recommendation.questions import LossRequest
from fitting.recommendation.request import TOKENS_LIMITS, BaseCompute
from fitting.recommendation.support import FAR_LIMIT, distances, grade_at, grade_of

_BUDGETS = 33
# How far from the crossing on the mean the draws' crossings are looked for.
_DRAWS_WITHIN = 16.0
_ACCOUNTINGS: tuple[BaseCompute, BaseCompute] = ("charged", "sunk")
_ROOT_TOLERANCE = 1e-6


def answer_for_loss(question: LossRequest, guideline: Guideline) -> Recommendation:
    """The answer at the least budget of the three arms, and in ``to_reach`` what each of them needs.

    Raises:
        InputError: the guideline predicts no losses, or none of its arms is expected to reach the loss at a budget that it
            may speak of.
    """
    if not guideline.laws:
        raise InputError(
            "loss_to_match_nats", f"asks for a loss, but {guideline.name} predicts none",
            "ask a fitted guideline of the cohort that the loss is from, or give a budget",
        )  # fmt: skip
    search = _Search.of(question, guideline)
    accounting = question.probe.base_compute
    goal = question.loss_to_match_nats
    found: dict[str, Reach] = {name: search.grown(name) for name in _ACCOUNTINGS}
    scratch, smaller = search.single("scratch"), search.single("smaller")
    needs = [reach.compute_flops for reach in (scratch, smaller, found[accounting])]
    least = min((need for need in needs if need is not None), default=None)
    if least is None:
        raise InputError("loss_to_match_nats", *search.out_of_reach())
    to_reach = LossGoal(
        loss_nats=goal, scratch=scratch, grown=found,
        smaller=smaller if _is_less(smaller.compute_flops, scratch.compute_flops) else None,
    )  # fmt: skip
    request = question.at(least / search.flops_per_token)
    answer = answer_from_laws(request, guideline, guideline.losses)
    if answer.support.grade == "unsupported":
        raise InputError("loss_to_match_nats", "cannot be answered: " + answer.support.reason, "change the target")
    first = [_headline(to_reach, accounting)]
    if answer.support.grade != "interpolation":
        first.append(
            "Losses themselves extrapolate several times worse than differences between runs do: a budget for a loss is the "
            "first thing to doubt outside the runs."
        )
    return replace(answer, to_reach=to_reach, warnings=(*first, *answer.warnings))


def _is_less(one: float | None, other: float | None) -> bool:
    return one is not None and (other is None or one < 0.99 * other)


def _headline(goal: LossGoal, accounting: str) -> str:
    grown, scratch = goal.grown[accounting], goal.scratch
    if grown.compute_flops is None or scratch.compute_flops is None:
        told = grown.reason if grown.compute_flops is None else scratch.reason
        return f"{goal.loss_nats:.3f} nats: {told}"
    saved = 1 - grown.compute_flops / scratch.compute_flops
    return (
        f"{goal.loss_nats:.3f} nats are expected from scratch at {scratch.compute_flops:.3g} FLOPs and grown at "
        f"{grown.compute_flops:.3g}: {abs(saved):.0%} {'fewer' if saved >= 0 else 'more'}, base compute {accounting}."
    )


@dataclass(frozen=True, kw_only=True)
class _Search:
    """The arms at ``log_tokens`` (B,), evenly spaced token budgets in ln, under each accounting."""

    question: LossRequest
    guideline: Guideline
    losses: Losses
    log_tokens: Array
    weighed: dict[str, list[Arms]]

    @classmethod
    def of(cls, question: LossRequest, guideline: Guideline) -> _Search:
        low, high = _budgets_known(question, guideline)
        grid = np.linspace(math.log(low), math.log(high), _BUDGETS)
        budgets = [
            budget_of(question.probe, guideline, base_is_sunk=name == "sunk", token_budget=float(tokens))
            for name in _ACCOUNTINGS
            for tokens in np.exp(grid)
        ]
        losses = guideline.losses
        everything = arms(losses, budgets, question.probe.bases, smallest_run(guideline), tried_factors(guideline))
        return cls(
            question=question, guideline=guideline, losses=losses, log_tokens=grid,
            weighed={name: everything[i * _BUDGETS : (i + 1) * _BUDGETS] for i, name in enumerate(_ACCOUNTINGS)},
        )  # fmt: skip

    @property
    def flops_per_token(self) -> float:
        return self.question.probe.target.flops_per_token

    @property
    def goal(self) -> float:
        return self.question.loss_to_match_nats

    def out_of_reach(self) -> tuple[str, str]:
        """What is wrong with the goal, and the mend."""
        accounting = self.question.probe.base_compute
        lowest = min(_lowest(found) for found in self.weighed[accounting])
        most = math.exp(self.log_tokens[-1]) * self.flops_per_token
        return (
            f"is {self.goal:g}, but up to {most:.3g} FLOPs, as far as {self.guideline.name} may speak, nothing is expected "
            f"below {lowest:.3f} nats",
            "give a higher loss, or store runs nearer to it first",
        )

    # --- one size --------------------------------------------------------------------------------------------

    def single(self, arm: Literal["scratch", "smaller"]) -> Reach:
        """The target from scratch, or the best fixed size up to it."""

        def of(found: Arms) -> Single:
            return found.scratch if arm == "scratch" else found.best_single

        # Singles do not depend on the base's accounting.
        rows = self.weighed["charged"]
        place = self._crossing([of(found).loss_nats for found in rows])
        whose = "the target from scratch" if arm == "scratch" else "a smaller fixed size"
        if place is None:
            return self._not_reached(whose, of(rows[-1]).params, of(rows[-1]).num_layers)
        log_tokens = self._root(lambda point: of(self._at(point, "charged")).loss_nats, place)
        size = of(self._at(log_tokens, "charged"))
        target = self.question.probe.target
        rate = self.flops_per_token
        if size.params < target.params:
            rate = (
                6.0 * size.params if size.num_layers is None else single_size_flops_per_token(target, size.num_layers)
            )
        goals = self.goal - self.losses.run_noise_nats * np.broadcast_to(
            noise_scores(), (self.losses.num_draws, NUM_NOISE_SCORES)
        )
        needs = self.losses.scratch_tokens(size.params, goals) * rate
        compute = math.exp(log_tokens) * self.flops_per_token
        return self._reach(
            compute,
            self._interval(needs, None),
            None,
            params=size.params,
            num_layers=size.num_layers,
            tokens=compute / rate,
        )

    # --- growing ---------------------------------------------------------------------------------------------

    def grown(self, accounting: BaseCompute) -> Reach:
        """The base and timing of the lowest expected loss at each budget."""
        rows = self.weighed[accounting]
        smallest = self.question.probe.bases[-1]
        place = self._crossing([_grown_loss(found) for found in rows])
        if place is None:
            best = rows[-1].best
            base = smallest if best is None else best.base
            return self._not_reached(f"growing (base compute {accounting})", base.params, base.num_layers)
        log_tokens = self._root(lambda point: _grown_loss(self._at(point, accounting)), place)
        best = self._at(log_tokens, accounting).best
        assert best is not None
        needs = self._grown_needs(best.base, accounting, log_tokens)
        return self._reach(
            math.exp(log_tokens) * self.flops_per_token,
            self._interval(needs, best.base.growth_factor),
            best.base.growth_factor,
            params=best.base.params,
            num_layers=best.base.num_layers,
            tokens=best.grown_tokens,
            timing_tokens=best.timing_tokens,
        )

    def _grown_needs(self, base: BaseOption, accounting: BaseCompute, log_tokens: float) -> Array:
        """Compute (K, Z) at which every draw, with every noise, reaches the goal; inf where it does not."""
        span = math.log(_DRAWS_WITHIN)
        low, high = max(self.log_tokens[0], log_tokens - span), min(self.log_tokens[-1], log_tokens + span)
        grid = np.linspace(low, high, _BUDGETS)
        cases = [(self._budget(accounting, float(tokens)), base) for tokens in np.exp(grid)]
        paid = [(place, found) for place, found in zip(grid, best_timings(self.losses, cases), strict=True) if found]
        places = np.array([place for place, _ in paid])
        curves = np.stack([found.losses for _, found in paid], axis=1)  # (K, budgets)
        # More compute never harms: a plan for less could be followed and the rest left unspent.
        falling = -np.minimum.accumulate(curves, axis=1)
        goals = self.goal - self.losses.run_noise_nats * noise_scores()
        return np.stack(
            [np.exp(np.interp(-goals, curve, places, right=np.inf)) * self.flops_per_token for curve in falling]
        )

    # --- shared ----------------------------------------------------------------------------------------------

    def _budget(self, accounting: BaseCompute, tokens: float) -> Budget:
        sunk = accounting == "sunk"
        return budget_of(self.question.probe, self.guideline, base_is_sunk=sunk, token_budget=tokens)

    def _at(self, log_tokens: float, accounting: BaseCompute) -> Arms:
        budget = self._budget(accounting, math.exp(log_tokens))
        bases = self.question.probe.bases
        (found,) = arms(self.losses, [budget], bases, smallest_run(self.guideline), tried_factors(self.guideline))
        return found

    def _crossing(self, means: list[float]) -> int | None:
        """The first budget at which the expected loss is not above the goal; None where there is none.

        Raises:
            InputError: the smallest budget gets there already.
        """
        below = np.flatnonzero(np.array(means) <= self.goal)
        if not below.size:
            return None
        if below[0] == 0:
            least = math.exp(self.log_tokens[0]) * self.flops_per_token
            raise InputError(
                "loss_to_match_nats",
                f"is {self.goal:g}, which {least:.3g} FLOPs, the least that {self.guideline.name} may speak of, already reach",
                "give a lower loss",
            )
        return int(below[0])

    def _root(self, mean: Callable[[float], float], place: int) -> float:
        """ln of the token budget between grid points ``place - 1`` and ``place`` at which the mean crosses the goal."""

        def excess(log_tokens: float) -> float:
            # Below some budget the base cannot be paid at all: an infinite loss, which no root-finder takes.
            return min(mean(log_tokens), 2 * self.goal + 1) - self.goal

        low, high = self.log_tokens[place - 1 : place + 1]
        root = float(scipy.optimize.brentq(excess, low, high, xtol=_ROOT_TOLERANCE))
        return root if math.isfinite(mean(root)) else root + _ROOT_TOLERANCE

    def _interval(self, needs: Array, growth_factor: float | None) -> tuple[float, float | None] | None:
        """Central interval of ``needs`` (K, Z); beyond what the guideline knows they count as never."""
        most = math.exp(self.log_tokens[-1]) * self.flops_per_token
        known = np.where(needs <= most, needs, np.inf)
        middle = np.exp(np.median(np.log(needs)))
        tokens = float(min(middle, most)) / self.flops_per_token
        groups = [known]
        if grade_at(self.question.probe, self.guideline, growth_factor, tokens) == "far":
            law = self.losses.law_of_draw
            groups = [known[law == one] for one in np.unique(law)]
        ends = []
        for group in groups:
            ordered = np.sort(group, axis=None)
            ends.append([float(ordered[round(tail * (ordered.size - 1))]) for tail in TAILS])
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        return (low, high if math.isfinite(high) else None) if math.isfinite(low) else None

    def _reach(
        self,
        compute_flops: float,
        interval: tuple[float, float | None] | None,
        growth_factor: float | None,
        *,
        params: float,
        num_layers: int | None,
        tokens: float,
        timing_tokens: float | None = None,
    ) -> Reach:
        hardware = self.question.probe.hardware
        budget_tokens = compute_flops / self.flops_per_token
        return Reach(
            reason=f"The expected loss crosses {self.goal:.3f} nats at {compute_flops:.3g} FLOPs.",
            params=params,
            num_layers=num_layers,
            compute_flops=compute_flops,
            compute_flops_interval=interval,
            gpu_hours=None if hardware is None else hardware.gpu_hours(compute_flops),
            token_budget=budget_tokens,
            tokens=tokens,
            growth_factor=growth_factor,
            growth_timing_tokens=timing_tokens,
            grade=grade_at(self.question.probe, self.guideline, growth_factor, budget_tokens),
        )

    def _not_reached(self, whose: str, params: float, num_layers: int | None) -> Reach:
        most = math.exp(self.log_tokens[-1]) * self.flops_per_token
        return Reach(
            reason=f"{whose} is not expected to get there with {most:.3g} FLOPs, as far as {self.guideline.name} may speak.",
            params=params,
            num_layers=num_layers,
        )


def _grown_loss(found: Arms) -> float:
    best: Optimum | None = found.best
    return math.inf if best is None else best.loss_nats


def _lowest(found: Arms) -> float:
    return min(_grown_loss(found), found.best_single.loss_nats)


def _budgets_known(question: LossRequest, guideline: Guideline) -> tuple[float, float]:
    """The least and the most tokens of the target that the guideline may speak of.

    Raises:
        InputError: there are none, as the target itself is too far out.
    """
    target, known = question.probe.target, guideline.known
    low, high = TOKENS_LIMITS
    for span, per_token in (
        (known.compute_flops, target.flops_per_token),
        (known.tokens_per_parameter, 1.0 / target.params),
    ):
        if span is not None:
            low, high = max(low, span[0] / FAR_LIMIT / per_token), min(high, span[1] * FAR_LIMIT / per_token)
    # The limit itself is beyond.
    low, high = low * 1.001, high / 1.001
    apart = distances(question.probe, guideline, None, math.sqrt(low * high))
    worst = max((value for value in apart.values() if value is not None), default=math.inf)
    if known.target_params is None or low >= high or grade_of(worst) == "unsupported":
        raise InputError(
            "loss_to_match_nats", f"cannot be answered: {guideline.name} does not speak of this target",
            "ask about a target nearer to its runs, or store runs nearer to this one",
        )  # fmt: skip
    return low, high
