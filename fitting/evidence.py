"""What a guideline rests on, ready to be drawn: valleys over growth timing, laws with their weights, calibration.

    valley: delta over d at one target, factor, order and compute C          D(d) = (C - d f_base) / f_target

========  ==========================================================================  ==========
symbol    meaning                                                                     unit
========  ==========================================================================  ==========
d, D      growth timing, tokens after growth                                          tokens
f         training FLOPs per token, as the valley's own pairs spent them              FLOPs
========  ==========================================================================  ==========

Observed deltas have the interval of their seeds (:func:`fitting.recommendation.observed.delta_interval`), predicted ones
that of the laws' draws with the noise of one observed delta on top: about 80% of observations should lie inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fitting.cells import equal_compute
from fitting.conventions import INTERVAL_LEVEL, SAME_FACTOR, SAME_SIZE
from fitting.guideline import Guideline, ObservedPair
from fitting.laws import scratch_law
from fitting.recommendation.observed import delta_interval
from fitting.recommendation.summaries import intervals
from fitting.validation.scores import binomial_interval

_NUM_TIMINGS = 25
# The curve goes this much further than the timings that were run, and leaves the target this share of the compute.
_BEYOND = 1.5
_LEAST_LEFT = 0.03


@dataclass(frozen=True, kw_only=True)
class ObservedDelta:
    """One design that was run, seeds averaged; ``low_nats`` to ``high_nats`` is the 80% interval by the seed noise."""

    growth_timing_tokens: float
    grown_loss_nats: float
    scratch_loss_nats: float
    delta_nats: float
    low_nats: float
    high_nats: float
    num_grown_seeds: int
    num_scratch_seeds: int
    run_ids: tuple[str, ...]
    comparable: bool


@dataclass(frozen=True, kw_only=True)
class PredictedDelta:
    """What the fitted laws say of one timing; they have seen the valley's own pairs."""

    growth_timing_tokens: float
    delta_nats: float
    low_nats: float
    high_nats: float


@dataclass(frozen=True, kw_only=True)
class Valley:
    """Deltas over growth timing at one target, factor, order and compute; ``predicted`` is empty without laws."""

    target_params: float
    growth_factor: float
    order: str | None
    compute_flops: float
    observed: tuple[ObservedDelta, ...]
    predicted: tuple[PredictedDelta, ...]


@dataclass(frozen=True, kw_only=True)
class LawParameter:
    """Median and central 80% interval over the draws of a law."""

    name: str
    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class LawWeight:
    """A law with its share of the answers, why it has that, and its parameters (none where it has no share)."""

    law: str
    kind: str
    weight: float
    verdict: str
    parameters: tuple[LawParameter, ...]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How many of some predictions fell inside their 80% intervals; ``interval`` is the share's own, at 80%."""

    what: str
    hits: int
    cases: int
    share: float | None
    interval: tuple[float, float] | None


def valleys(guideline: Guideline) -> tuple[Valley, ...]:
    """All valleys of the guideline's pairs, the largest target and compute first."""
    groups: list[list[ObservedPair]] = []
    for pair in guideline.pairs:
        home = next((group for group in groups if _same_valley(group[0], pair)), None)
        if home is None:
            groups.append([pair])
        else:
            home.append(pair)
    groups.sort(key=lambda group: (-group[0].target_params, -group[0].compute_flops, group[0].growth_factor))
    return tuple(_valley(guideline, sorted(group, key=lambda pair: pair.growth_timing_tokens)) for group in groups)


def _same_valley(a: ObservedPair, b: ObservedPair) -> bool:
    return (
        abs(a.target_params / b.target_params - 1) < SAME_SIZE
        and abs(a.growth_factor / b.growth_factor - 1) < SAME_FACTOR
        and a.order == b.order
        and equal_compute(a.compute_flops, b.compute_flops)
    )


def _valley(guideline: Guideline, pairs: Sequence[ObservedPair]) -> Valley:
    first = pairs[0]
    return Valley(
        target_params=first.target_params,
        growth_factor=first.growth_factor,
        order=first.order,
        compute_flops=first.compute_flops,
        observed=tuple(_observed(guideline, pair) for pair in pairs),
        predicted=tuple(_predicted(guideline, pairs)) if guideline.laws else (),
    )


def _observed(guideline: Guideline, pair: ObservedPair) -> ObservedDelta:
    assert guideline.noise is not None
    low, high = delta_interval(pair, guideline.noise)
    return ObservedDelta(
        growth_timing_tokens=pair.growth_timing_tokens, grown_loss_nats=pair.grown_loss_nats,
        scratch_loss_nats=pair.scratch_loss_nats, delta_nats=pair.delta_nats, low_nats=low, high_nats=high,
        num_grown_seeds=pair.num_grown_seeds, num_scratch_seeds=pair.num_scratch_seeds, run_ids=pair.grown_run_ids,
        comparable=pair.comparable,
    )  # fmt: skip


def _predicted(guideline: Guideline, pairs: Sequence[ObservedPair]) -> Iterable[PredictedDelta]:
    first, losses = pairs[0], guideline.losses
    base_flops = first.base_flops / first.growth_timing_tokens
    target_flops = (first.compute_flops - first.base_flops) / first.grown_tokens
    lowest = pairs[0].growth_timing_tokens / _BEYOND
    most = (1 - _LEAST_LEFT) * first.compute_flops / base_flops
    timings = np.geomspace(lowest, max(lowest, min(most, pairs[-1].growth_timing_tokens * _BEYOND)), _NUM_TIMINGS)
    timings = np.unique(np.concatenate([timings, [pair.growth_timing_tokens for pair in pairs]]))
    grown_tokens = (first.compute_flops - timings * base_flops) / target_flops
    size = first.target_params
    grown = losses.grown(size, np.full(len(timings), first.base_params), timings, grown_tokens)
    delta = grown - losses.scratch(np.array([size]), np.array([first.compute_flops / target_flops]))
    spans = intervals(delta, losses.delta_noise_nats, losses, by_law=False)
    for timing, middle, (low, high) in zip(timings, delta.mean(axis=0), spans, strict=True):
        yield PredictedDelta(
            growth_timing_tokens=float(timing), delta_nats=float(middle), low_nats=low, high_nats=high
        )  # fmt: skip


def weighed_laws(guideline: Guideline) -> tuple[LawWeight, ...]:
    """Scratch and growth laws by their share of the draws, the heaviest first; laws that got none say why."""
    if not guideline.laws:
        return ()
    draws: dict[tuple[str, str], list[tuple[tuple[str, ...], Any]]] = {}
    for group in guideline.losses.groups:
        scratch = scratch_law(group.curve.law.name)
        draws.setdefault(("scratch", scratch.name), []).append((scratch.parameter_names, group.curve.params))
        draws.setdefault(("growth", group.growth.name), []).append((group.growth.parameter_names, group.growth_draws))
    found = [
        LawWeight(
            law=name,
            kind=kind,
            weight=sum(len(part) for _, part in parts) / guideline.losses.num_draws,
            verdict=guideline.law_verdicts.get(name, ""),
            parameters=tuple(_parameters(parts[0][0], np.concatenate([part for _, part in parts]))),
        )
        for (kind, name), parts in draws.items()
    ]
    used = {one.law for one in found}
    found += [
        LawWeight(law=name, kind="growth", weight=0.0, verdict=verdict, parameters=())
        for name, verdict in guideline.law_verdicts.items()
        if name not in used
    ]
    return tuple(sorted(found, key=lambda one: (one.kind, -one.weight, one.law)))


def _parameters(names: tuple[str, ...], draws: Any) -> Iterable[LawParameter]:
    tail = (1 - INTERVAL_LEVEL) / 2
    for place, name in enumerate(names):
        low, middle, high = (float(value) for value in np.quantile(draws[:, place], [tail, 0.5, 1 - tail]))
        yield LawParameter(name=name, median=middle, low=low, high=high)


def coverage(what: str, inside: Sequence[bool]) -> Coverage:
    """How often a prediction's 80% interval held what was seen."""
    hits, cases = sum(inside), len(inside)
    share = hits / cases if cases else None
    return Coverage(what=what, hits=hits, cases=cases, share=share, interval=binomial_interval(hits, cases))
