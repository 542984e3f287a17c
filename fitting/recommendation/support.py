"""How far a question lies from what a guideline knows, on each axis, and the grade that follows.

    distance(x) = max(1, low / x, x / high)     for the known range (low, high) of an axis

=============== ======================= =======================================================================
grade           largest distance        what an answer may use
=============== ======================= =======================================================================
interpolation   1 (within 2%)           everything
mild            below 4                 everything
far             below 30                everything; intervals include the disagreement between laws
unsupported     30 or more              no chance, no speedup, no d from a fit: the published prior only
=============== ======================= =======================================================================

Axes: size (target parameters), compute (C), tokens_per_parameter (token budget / parameters), growth_factor, shape
(hidden size / layers). An axis that the guideline or the question does not name has no distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fitting.guideline import Guideline, Range
from fitting.recommendation.request import Request
from fitting.rules.base import quantity

Grade = Literal["interpolation", "mild", "far", "unsupported"]

INTERPOLATION_SLACK = 1.02
MILD_LIMIT = 4.0
FAR_LIMIT = 30.0
# A pilot is this much smaller, and this much shorter, than the plan; its runs are scratch, grown and base alone.
_PILOT_CUT, _PILOT_RUNS = 5, 3


@dataclass(frozen=True, kw_only=True)
class Support:
    grade: Grade
    distances: dict[str, float | None]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """The cheapest pilot that would let a guideline answer: runs of a smaller target at equal FLOPs.

    ``compute_flops`` and ``gpu_hours`` are those of all its runs together.
    """

    sentence: str
    target_params: float
    token_budget: float
    num_runs: int
    compute_flops: float
    gpu_hours: float | None


def distance(value: float, known: Range | None) -> float | None:
    """How many times ``value`` lies outside the range; 1 inside it."""
    if known is None:
        return None
    low, high = known
    return max(1.0, low / value, value / high)


def distances(
    request: Request, guideline: Guideline, growth_factor: float | None, token_budget: float
) -> dict[str, float | None]:
    """The distance on every axis, at another token budget than the request's own if need be."""
    target, known = request.target, guideline.known
    shape = target.shape
    return {
        "size": distance(target.params, known.target_params),
        "compute": distance(token_budget * target.flops_per_token, known.compute_flops),
        "tokens_per_parameter": distance(token_budget / target.params, known.tokens_per_parameter),
        "growth_factor": None if growth_factor is None else distance(growth_factor, known.growth_factor),
        "shape": None if shape is None else distance(shape.hidden_size / shape.num_layers, known.hidden_per_layer),
    }


def grade_at(request: Request, guideline: Guideline, growth_factor: float | None, token_budget: float) -> Grade:
    """The grade at another growth factor or token budget."""
    if guideline.known.target_params is None or guideline.known.compute_flops is None:
        return "unsupported"
    found = distances(request, guideline, growth_factor, token_budget)
    return grade_of(max(value for value in found.values() if value is not None))


def support(request: Request, guideline: Guideline, growth_factor: float | None = None) -> Support:
    """The support of ``guideline`` for ``request``, answered with ``growth_factor`` (None: not grown)."""
    found = distances(request, guideline, growth_factor, request.token_budget)
    known = guideline.known
    if known.target_params is None or known.compute_flops is None:
        return Support(grade="unsupported", distances=found, reason=f"{guideline.name} was never fitted to runs.")
    measured = {axis: value for axis, value in found.items() if value is not None}
    axis = max(measured, key=lambda name: measured[name])
    return Support(grade=grade_of(measured[axis]), distances=found, reason=_reason(guideline, axis, measured[axis]))


def grade_of(largest_distance: float) -> Grade:
    if largest_distance <= INTERPOLATION_SLACK:
        return "interpolation"
    if largest_distance < MILD_LIMIT:
        return "mild"
    return "far" if largest_distance < FAR_LIMIT else "unsupported"


def _reason(guideline: Guideline, axis: str, largest: float) -> str:
    if largest <= INTERPOLATION_SLACK:
        return f"The question lies inside what {guideline.name} knows on every axis."
    amount = f"{largest:.3g}x" if largest < 1e4 else f"10^{math.log10(largest):.1f}x"
    return f"The question lies {amount} outside what {guideline.name} knows in {axis.replace('_', ' ')}."


def pilot(request: Request) -> Pilot:
    """The cheapest pilot that brings the question within "far": a fifth of the size on a fifth of the tokens.

    Both cut together keep the tokens per parameter; three arms at C / 25 each.
    """
    params, tokens = request.target.params / _PILOT_CUT, request.token_budget / _PILOT_CUT
    compute = _PILOT_RUNS * request.compute_flops / _PILOT_CUT**2
    sentence = (
        f"The cheapest pilot that would help: a target of {quantity(params)} parameters on {quantity(tokens)} tokens, three "
        f"runs at equal FLOPs (scratch, grown, base alone), about {_PILOT_RUNS / _PILOT_CUT**2:.0%} of this budget's compute "
        f"in all; it brings the question from unsupported to far ({_PILOT_CUT**2}x in compute)."
    )
    return Pilot(
        sentence=sentence, target_params=params, token_budget=tokens, num_runs=_PILOT_RUNS, compute_flops=compute,
        gpu_hours=None if request.hardware is None else request.hardware.gpu_hours(compute),
    )  # fmt: skip
