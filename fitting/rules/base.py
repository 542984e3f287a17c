"""What a rule is: a plan in, (d, g) or "scratch" or "infeasible" out, with its reason.

    feasible  <=>  d f_base < C,   C = D f_target

========  ==================================================  ======
symbol    meaning                                             unit
========  ==================================================  ======
d         growth timing                                       tokens
D         token budget: tokens a scratch run would get        tokens
f         training FLOPs per token (base, target)             FLOPs
C         compute budget                                      FLOPs
========  ==================================================  ======
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from fitting.budget import Budget
from fitting.layers import BaseOption, Target


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a rule decides on.

    ``base_loss(params, tokens)`` in nats is a scratch law for rules that watch the base's curve; None where none is
    known. The last three fields are those of :class:`fitting.budget.Budget`.
    """

    target: Target
    token_budget: float
    bases: tuple[BaseOption, ...]
    base_loss: Callable[[float, float], float] | None = None
    base_is_sunk: bool = False
    existing_base_tokens: float | None = None
    base_cost_factor: float = 1.0

    @property
    def compute_flops(self) -> float:
        return self.token_budget * self.target.flops_per_token

    @property
    def budget(self) -> Budget:
        return Budget(
            target=self.target, compute_flops=self.compute_flops, base_is_sunk=self.base_is_sunk,
            existing_base_tokens=self.existing_base_tokens, base_cost_factor=self.base_cost_factor,
        )  # fmt: skip

    def grown_tokens(self, base: BaseOption, growth_timing_tokens: float) -> float:
        """Tokens left for the target once the base is paid; not above 0 where the base costs the whole budget."""
        return float(self.budget.grown_tokens(base, growth_timing_tokens))


@dataclass(frozen=True, kw_only=True)
class RuleDecision:
    """A rule's answer. ``base`` and ``growth_timing_tokens`` are set for "grow", and for "infeasible" say what the rule
    asked for; ``growth_timing_range`` is the rule's own uncertainty where it has one."""

    decision: Literal["grow", "scratch", "infeasible"]
    reason: str
    base: BaseOption | None = None
    growth_timing_tokens: float | None = None
    growth_timing_range: tuple[float, float] | None = None
    needed_token_budget: float | None = None

    @property
    def growth_factor(self) -> float | None:
        return None if self.base is None else self.base.growth_factor

    @property
    def order(self) -> str | None:
        return None if self.base is None else self.base.order

    @property
    def scored_as(self) -> Literal["grow", "scratch"]:
        """An infeasible rule scores as "scratch": that is what its user would have to do."""
        return "grow" if self.decision == "grow" else "scratch"


class Rule(Protocol):
    """A rule: ``name`` as in ``published:NAME``, ``source`` to cite, ``decide``."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    def decide(self, plan: Plan) -> RuleDecision: ...


def checked(
    plan: Plan,
    base: BaseOption,
    growth_timing_tokens: float,
    reason: str,
    *,
    growth_timing_range: tuple[float, float] | None = None,
    needed_token_budget: float | None = None,
) -> RuleDecision:
    """Grow at ``growth_timing_tokens`` from ``base``, or "infeasible" where the budget cannot pay for that."""
    have = plan.existing_base_tokens
    if have is not None and have > growth_timing_tokens:
        reason += f" The base already has {quantity(have)} tokens, so growth can come no earlier than that."
        growth_timing_tokens, growth_timing_range = have, None
    if plan.grown_tokens(base, growth_timing_tokens) > 0:
        return RuleDecision(
            decision="grow", reason=reason, base=base, growth_timing_tokens=growth_timing_tokens,
            growth_timing_range=growth_timing_range,
        )  # fmt: skip
    affordable = plan.compute_flops / (plan.base_cost_factor * base.flops_per_token)
    need = (
        "" if needed_token_budget is None
        else f" It becomes feasible from a token budget of {quantity(needed_token_budget)} tokens."
    )  # fmt: skip
    return RuleDecision(
        decision="infeasible",
        reason=(
            f"{reason} The base would need d = {quantity(growth_timing_tokens)} tokens, but the whole compute budget "
            f"of {plan.compute_flops:.3g} FLOPs buys {quantity(affordable)} tokens of a base of "
            f"{quantity(base.params)} parameters: {_times(growth_timing_tokens / affordable)} too much.{need}"
        ),
        base=base,
        growth_timing_tokens=growth_timing_tokens,
        growth_timing_range=growth_timing_range,
        needed_token_budget=needed_token_budget,
    )


def _times(ratio: float) -> str:
    return f"{ratio:.3g} times" if ratio < 1000 else f"10^{math.log10(ratio):.1f} times"


def quantity(value: float) -> str:
    """A count for people: 1.16T, 6.58B, 2M, 410k."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:,.4g}{suffix}" if value < 1e15 else f"{value:.3g}"
    return f"{value:.3g}"
