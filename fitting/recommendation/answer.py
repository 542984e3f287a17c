"""The answer: every field of the ``POST /recommend`` contract, None where a rule or a grade cannot give it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fitting.budget import Budget
from fitting.layers import BaseOption, Target
from fitting.recommendation.support import Pilot, Support

Decision = Literal["grow", "scratch", "smaller", "infeasible"]
ArmName = Literal["scratch", "best_fixed_size", "grown", "grown_sunk_base"]
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of the answer; layers and what follows from them are None where only a size is known."""

    params: float
    num_layers: int | None
    flops_per_token: float
    hidden_size: int | None = None
    connection_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class Flops:
    """``total`` counts of the base what is charged; ``scratch`` is the compute budget C."""

    convention: str
    base: float | None
    grown: float | None
    total: float | None
    scratch: float


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Grown against scratch at equal FLOPs; intervals at :data:`fitting.conventions.INTERVAL_LEVEL`.

    ``basis`` says what it rests on.
    """

    basis: str
    delta_nats: float | None = None
    delta_interval: Interval | None = None
    speedup: float | None = None
    speedup_interval: Interval | None = None
    saved_target_tokens: float | None = None
    chance_growth_helps: float | None = None


@dataclass(frozen=True, kw_only=True)
class FixedSize:
    params: float
    num_layers: int | None
    expected_loss_nats: float | None


@dataclass(frozen=True, kw_only=True)
class Accounting:
    """The answer under one accounting of the base's compute. ``decision`` is None where it cannot be told."""

    decision: Decision | None
    reason: str
    growth_factor: float | None = None
    growth_timing_tokens: float | None = None
    grown_tokens: float | None = None
    delta_nats: float | None = None
    delta_interval: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One growth factor on offer; ``decision`` is what this factor alone would give.

    With ``guideline`` (id, name, cohort, num_runs) it is what another cohort's guideline would do, at its own best factor.
    """

    growth_factor: float
    num_base_layers: int | None
    base_params: float
    order: str
    connection_rate: float | None
    growth_timing_tokens: float | None = None
    growth_timing_range: Interval | None = None
    grown_tokens: float | None = None
    decision: Decision | None = None
    delta_nats: float | None = None
    delta_interval: Interval | None = None
    grade: str | None = None
    guideline: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Fade:
    """What growth gains with the same base at another token budget, each at its own best timing."""

    token_budget: float
    tokens_per_parameter: float
    growth_timing_tokens: float
    delta_nats: float
    speedup: float | None
    saved_target_tokens: float | None
    grade: str


@dataclass(frozen=True, kw_only=True)
class DecisionPoint:
    """Where to look after growth: losses of a run whose schedule ends there, at :data:`fitting.conventions.INTERVAL_LEVEL`."""

    tokens_after_growth: float
    compute_flops: float
    expected_loss_nats: float
    expected_band: Interval
    stop_above_nats: float
    fallback: str


@dataclass(frozen=True, kw_only=True)
class Stake:
    """One amount as a loss, as the FLOPs that scratch would need for it, and as GPU-hours where hardware is given."""

    nats: float
    flops: float | None
    gpu_hours: float | None


@dataclass(frozen=True, kw_only=True)
class Stakes:
    """Mean gain over the draws in which the decision to grow is right, mean regret over those in which it is wrong.

    None where no draw says so.
    """

    gain_if_right: Stake | None
    regret_if_wrong: Stake | None


@dataclass(frozen=True, kw_only=True)
class LossQuantiles:
    """One run's final loss in nats: its 10th, 50th and 90th percentile."""

    p10: float
    p50: float
    p90: float


@dataclass(frozen=True, kw_only=True)
class Regret:
    """The largest regret of a choice in any of ``num_draws`` draws of the laws, against the best choice there.

    ``flops`` is what scratch training would need to make up for it; None where scratch never gets there in some draw.
    """

    nats: float
    flops: float | None
    gpu_hours: float | None
    num_draws: int


@dataclass(frozen=True, kw_only=True)
class ArmOutcome:
    """One arm of the decision, at the same compute as the others: what it costs and where it may end.

    Sizes and costs are None where the arm cannot be run or its size is not known; ``no_loss_reason`` and
    ``no_chance_reason`` say why no loss or no chance is given. ``tokens`` are those of the last phase. ``base_flops`` is all
    of the base's compute, ``paid_base_gpu_hours`` the part that the budget pays for before growth.
    """

    arm: ArmName
    params: float | None = None
    num_layers: int | None = None
    growth_factor: float | None = None
    growth_timing_tokens: float | None = None
    tokens: float | None = None
    base_flops: float | None = None
    compute_flops: float | None = None
    gpu_hours: float | None = None
    paid_base_gpu_hours: float | None = None
    loss_nats: LossQuantiles | None = None
    no_loss_reason: str | None = None
    chance_to_beat_scratch: float | None = None
    no_chance_reason: str | None = None
    worst_regret: Regret | None = None


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What one arm needs to reach a loss. Numbers are None where it is not expected to get there within what the guideline
    knows; ``reason`` then says so.

    ``compute_flops`` is where the expected loss crosses the goal. The interval at
    :data:`fitting.conventions.INTERVAL_LEVEL` is that of a single run; its upper end is None where it lies beyond what the
    guideline knows. ``tokens`` are those of the last phase, ``token_budget`` what ``compute_flops`` buys of the target.
    """

    reason: str
    params: float
    num_layers: int | None = None
    compute_flops: float | None = None
    compute_flops_interval: tuple[float, float | None] | None = None
    gpu_hours: float | None = None
    token_budget: float | None = None
    tokens: float | None = None
    growth_factor: float | None = None
    growth_timing_tokens: float | None = None
    grade: str | None = None


@dataclass(frozen=True, kw_only=True)
class LossGoal:
    """What budget reaches a loss: from scratch, grown under both accountings of the base, and by a smaller fixed size
    (None where no smaller size needs less than scratch)."""

    loss_nats: float
    scratch: Reach
    grown: Mapping[str, Reach]
    smaller: Reach | None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of a recipe: its value, where it comes from, and a note."""

    value: Any
    origin: Literal["fitted", "published", "default", "given"]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Newer:
    """What a newer version of the guideline says to the same question.

    ``answered_by`` is the guideline whose words these are: the newer version's id, or the published rule's where it gives none.
    """

    guideline_id: str
    version: int
    answered_by: str
    decision: Decision
    growth_factor: float | None
    growth_timing_tokens: float | None
    delta_nats: float | None
    delta_interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What :func:`fitting.recommendation.recommend` returns; ``to_dict`` is the HTTP contract's body.

    The fields after ``warnings`` need fitted laws, but for ``recipe``, ``arms`` and ``pilot``; ``to_reach`` answers a question
    for a loss. ``pilot`` stands where the question is unsupported.
    ``growth_timing_range`` is near-optimal on the mean, ``growth_timing_interval`` where the draws' own best timings lie.
    ``newer`` is set by who holds a newer version than the one asked.
    """

    guideline: Mapping[str, Any]
    decision: Decision
    growth_factor: float | None
    growth_timing_tokens: float | None
    growth_timing_range: Interval | None
    order: str | None
    base_model: Model | None
    target_model: Model
    grown_tokens: float | None
    flops: Flops
    expected: Expected
    best_fixed_size: FixedSize | None
    target_oversized: bool | None
    by_accounting: Mapping[str, Accounting]
    support: Support
    alternatives: tuple[Alternative, ...]
    warnings: tuple[str, ...]
    growth_timing_interval: Interval | None = None
    fade: tuple[Fade, ...] = ()
    decision_points: tuple[DecisionPoint, ...] = ()
    stakes: Stakes | None = None
    arms: tuple[ArmOutcome, ...] = ()
    pilot: Pilot | None = None
    recipe: Mapping[str, Setting] = field(default_factory=dict)
    borrowed: tuple[str, ...] = ()
    to_reach: LossGoal | None = None
    newer: Newer | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; tuples become lists."""
        return _listed(asdict(self))


def target_model(target: Target) -> Model:
    return Model(
        params=target.params, num_layers=target.num_layers, flops_per_token=target.flops_per_token,
        hidden_size=None if target.shape is None else target.shape.hidden_size,
    )  # fmt: skip


def base_model(target: Target, base: BaseOption) -> Model:
    return Model(
        params=base.params, num_layers=base.num_layers, flops_per_token=base.flops_per_token,
        hidden_size=None if target.shape is None else target.shape.hidden_size,
        connection_rate=base.connection_rate,
    )  # fmt: skip


def flops_of(budget: Budget, base: BaseOption | None, timing_tokens: float | None) -> Flops:
    """FLOPs of growing from ``base`` at ``timing_tokens``; without a base only the budget is known."""
    grown = spent = total = None
    if base is not None and timing_tokens is not None:
        grown = float(budget.grown_tokens(base, timing_tokens)) * budget.target.flops_per_token
        spent = timing_tokens * base.flops_per_token
        total = grown + float(budget.paid_tokens(timing_tokens)) * base.flops_per_token
    return Flops(
        convention=budget.target.flops_convention, base=spent, grown=grown, total=total, scratch=budget.compute_flops
    )


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (tuple, list)) else value
