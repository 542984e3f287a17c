"""What guidelines of other cohorts would do, as further rows of an answer's alternatives.

A difference delta at equal FLOPs travels between cohorts far better than a loss does, so another cohort's guideline is worth
hearing where the question lies within its reach: below 30x on every axis (:mod:`fitting.recommendation.support`). Beyond
that, and where it predicts nothing, it has no row. It never changes the answer itself. A question for a loss has no rows:
losses of other cohorts are other losses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fitting.errors import InputError
from fitting.guideline import Guideline
from fitting.recommendation.answer import Alternative, Recommendation
from fitting.recommendation.questions import Question
from fitting.recommendation.request import Request


def with_alternatives_from(answer: Recommendation, request: Question, others: Iterable[Guideline]) -> Recommendation:
    """``answer`` with one row for each guideline of ``others`` that answers ``request`` from its own runs."""
    if not isinstance(request, Request):
        return answer
    found = [row for other in others if (row := _row(request, other)) is not None]
    return replace(answer, alternatives=(*answer.alternatives, *found)) if found else answer


def _row(request: Request, other: Guideline) -> Alternative | None:
    from fitting.recommendation import recommend

    try:
        theirs = recommend(replace(request, cohort=None), other)
    except InputError:  # such as an objective that this guideline cannot serve
        return None
    # Where it does not reach, a published rule answers in its place, under that rule's own id.
    if theirs.guideline["id"] != other.id or theirs.support.grade == "unsupported" or not theirs.alternatives:
        return None
    rows = [row for row in theirs.alternatives if row.delta_nats is not None]
    chosen = [row for row in rows if row.growth_factor == theirs.growth_factor]
    best = min(chosen or rows, key=lambda row: row.delta_nats or 0.0, default=None)
    if best is None:
        return None
    source = {"id": other.id, "name": other.name, "cohort": other.cohort, "num_runs": other.num_runs}
    return replace(best, decision=theirs.decision, grade=theirs.support.grade, guideline=source)
