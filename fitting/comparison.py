"""What changed between two versions of a guideline: runs, weights of laws, parameters with intervals, and their answers.

    weight of a law = its share of the draws        interval = central 80% of a parameter over its draws

Questions that both are asked: the smallest and the largest target that either has seen, at the most compute it was run with,
and the largest one at four times that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fitting.conventions import INTERVAL_LEVEL, SAME_SIZE
from fitting.guideline import Guideline
from fitting.laws import scratch_law
from fitting.recommendation import Request, recommend

FURTHER = 4.0


@dataclass(frozen=True, kw_only=True)
class Range:
    """A fitted parameter: its median and central 80% interval over the draws."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A value in both versions; None where a version has it not."""

    before: Any
    after: Any


@dataclass(frozen=True, kw_only=True)
class Parameter:
    law: str
    name: str
    before: Range | None
    after: Range | None


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a version answers; `answered_by` is the published rule where it gives no answer of its own."""

    answered_by: str
    decision: str
    growth_factor: float | None
    growth_timing_tokens: float | None
    delta_nats: float | None
    delta_interval: tuple[float, float] | None
    grade: str


@dataclass(frozen=True, kw_only=True)
class Question:
    target_params: float
    token_budget: float
    compute_flops: float
    before: Answered
    after: Answered


@dataclass(frozen=True, kw_only=True)
class VersionChanges:
    """``weights`` by law; ``deltas_nats`` of pairs whose observed delta moved, by design (None: not there)."""

    runs_added: tuple[str, ...]
    runs_removed: tuple[str, ...]
    kind: Moved
    noise_sd_nats: Moved
    weights: dict[str, Moved]
    parameters: tuple[Parameter, ...]
    deltas_nats: dict[str, Moved]
    questions: tuple[Question, ...]


def compare_versions(before: Guideline, after: Guideline) -> VersionChanges:
    """Everything that moved from one version to another of the same cohort.

    Raises:
        ValueError: they are of different cohorts, whose losses may not be compared.
    """
    if before.cohort != after.cohort:
        raise ValueError(
            f"{before.id} was fitted on {before.cohort!r} and {after.id} on {after.cohort!r}, whose losses may not be compared"
        )
    runs = set(before.run_ids), set(after.run_ids)
    weights = _weights(before), _weights(after)
    ranges = _ranges(before), _ranges(after)
    deltas = _deltas(before), _deltas(after)
    return VersionChanges(
        runs_added=tuple(sorted(runs[1] - runs[0])),
        runs_removed=tuple(sorted(runs[0] - runs[1])),
        kind=Moved(before=before.law, after=after.law),
        noise_sd_nats=Moved(
            before=None if before.noise is None else before.noise.sd_nats,
            after=None if after.noise is None else after.noise.sd_nats,
        ),
        weights={
            name: Moved(before=weights[0].get(name, 0.0), after=weights[1].get(name, 0.0))
            for name in sorted({*weights[0], *weights[1]})
        },
        parameters=tuple(
            Parameter(law=law, name=name, before=ranges[0].get((law, name)), after=ranges[1].get((law, name)))
            for law, name in sorted({*ranges[0], *ranges[1]})
        ),
        deltas_nats={
            key: Moved(before=deltas[0].get(key), after=deltas[1].get(key))
            for key in sorted({*deltas[0], *deltas[1]})
            if deltas[0].get(key) != deltas[1].get(key)
        },
        questions=tuple(_questions(before, after)),
    )


def _weights(guideline: Guideline) -> dict[str, float]:
    """Shares of the draws by growth law."""
    found: dict[str, float] = {}
    if guideline.laws:
        for group in guideline.losses.groups:
            found[group.growth.name] = found.get(group.growth.name, 0.0) + len(group) / guideline.losses.num_draws
    return found


def _ranges(guideline: Guideline) -> dict[tuple[str, str], Range]:
    """Parameters of scratch and growth laws over all draws of a law."""
    drawn: dict[tuple[str, str], list[np.ndarray]] = {}
    if guideline.laws:
        for group in guideline.losses.groups:
            scratch, growth = scratch_law(group.curve.law.name), group.growth
            for law, names, draws in (
                (scratch.name, scratch.parameter_names, group.curve.params),
                (growth.name, growth.parameter_names, group.growth_draws),
            ):
                for place, name in enumerate(names):
                    drawn.setdefault((law, name), []).append(draws[:, place])
    tail = (1 - INTERVAL_LEVEL) / 2
    result = {}
    for key, parts in drawn.items():
        low, middle, high = np.quantile(np.concatenate(parts), [tail, 0.5, 1 - tail])
        result[key] = Range(median=float(middle), low=float(low), high=float(high))
    return result


def _deltas(guideline: Guideline) -> dict[str, float]:
    return {
        f"N={pair.target_params:g} g={pair.growth_factor:g} d={pair.growth_timing_tokens:g} C={pair.compute_flops:.3g} "
        f"{pair.order or ''}".strip(): pair.delta_nats
        for pair in guideline.pairs
    }


def _questions(before: Guideline, after: Guideline) -> Iterable[Question]:
    seen: list[tuple[float, float]] = []
    for guideline in (before, after):
        seen += [(pair.target_params, pair.compute_flops) for pair in guideline.pairs]
    if not seen:
        seen = [(single.params, single.compute_flops) for single in (*before.controls, *after.controls)]
    if not seen:
        return
    smallest, largest = min(size for size, _ in seen), max(size for size, _ in seen)

    def most(size: float) -> float:
        return max(compute for other, compute in seen if abs(other / size - 1) < SAME_SIZE)

    asked = dict.fromkeys([(smallest, most(smallest)), (largest, most(largest)), (largest, FURTHER * most(largest))])
    for size, compute in asked:
        # By its size alone the target costs 6 N a token: the budget is what makes the compute the one that was run.
        request = Request(target_params=size, token_budget=compute / (6 * size))
        yield Question(
            target_params=size,
            token_budget=request.token_budget,
            compute_flops=compute,
            before=_answer(request, before),
            after=_answer(request, after),
        )


def _answer(request: Request, guideline: Guideline) -> Answered:
    answer = recommend(request, guideline)
    return Answered(
        answered_by=str(answer.guideline["id"]),
        decision=answer.decision,
        growth_factor=answer.growth_factor,
        growth_timing_tokens=answer.growth_timing_tokens,
        delta_nats=answer.expected.delta_nats,
        delta_interval=answer.expected.delta_interval,
        grade=answer.support.grade,
    )
