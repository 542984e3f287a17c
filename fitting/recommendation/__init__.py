"""Whether, when and by how much to grow: a question and a guideline in, one answer with its support out.

>>> from fitting.published import published_guideline
>>> answer = recommend(Request(target_params=7e9, token_budget=2e12), published_guideline("gstack"))
>>> answer.decision, answer.growth_factor, round(answer.growth_timing_tokens / 1e9, 2)
('grow', 4.0, 11.11)
"""

from __future__ import annotations

from fitting.errors import InputError
from fitting.guideline import Guideline
from fitting.published import published_guideline
from fitting.recommendation.answer import Recommendation
from fitting.recommendation.by_rule import answer_by_rule
from fitting.recommendation.elsewhere import with_alternatives_from
from fitting.recommendation.existing_base import ExistingBase
from fitting.recommendation.from_laws import answer_from_laws
from fitting.recommendation.loss_surface import Surface, surface
from fitting.recommendation.observed import answer_from_observation, pairs_at
from fitting.recommendation.questions import LossRequest, Question, question_of
from fitting.recommendation.request import Hardware, Request, refuse_unknown_wishes
from fitting.recommendation.support import support
from fitting.recommendation.to_loss import answer_for_loss

__all__ = [
    "ExistingBase", "Hardware", "LossRequest", "Question", "Recommendation", "Request", "Surface", "question_of",
    "recommend", "refuse_unknown_wishes", "surface", "with_alternatives_from",
]  # fmt: skip


def recommend(question: Question, guideline: Guideline) -> Recommendation:
    """Answer ``question`` from ``guideline``, or say why it cannot and give the published prior. A question for a loss has
    no prior: where the guideline cannot answer it, it is refused.

    Raises:
        InputError: the question names another cohort than the guideline's, or asks for what the guideline cannot tell.
    """
    if isinstance(question, LossRequest):
        _refuse_another_cohort(question.probe, guideline)
        return answer_for_loss(question, guideline)
    request = question
    _refuse_another_cohort(request, guideline)
    if guideline.kind == "published":
        return answer_by_rule(request, guideline)
    if guideline.laws:
        if support(request, guideline).grade != "unsupported":
            answer = answer_from_laws(request, guideline, guideline.losses)
            # The factor chosen may lie too far out even where size and compute do not.
            if answer.support.grade != "unsupported":
                return answer
    else:
        _refuse_what_needs_laws(request, guideline)
        pairs = pairs_at(request, guideline)
        if pairs:
            return answer_from_observation(request, guideline, pairs)
    return answer_by_rule(request, published_guideline("gstack"), _why_not(request, guideline))


def _refuse_another_cohort(request: Request, guideline: Guideline) -> None:
    if request.cohort is not None and guideline.cohort is not None and request.cohort != guideline.cohort:
        raise InputError(
            "cohort", f"is {request.cohort!r}, but guideline {guideline.id} was fitted on {guideline.cohort!r}",
            "ask that cohort's own guideline, or a published one",
        )  # fmt: skip


def _refuse_what_needs_laws(request: Request, guideline: Guideline) -> None:
    if request.objective != "lowest_loss":
        raise InputError(
            "objective", f"is {request.objective!r}, but {guideline.name} predicts no losses to compare",
            "ask a fitted guideline, or use 'lowest_loss'",
        )  # fmt: skip
    if request.hardware is not None and request.hardware.base_cost_factor != 1:
        raise InputError(
            "base_utilisation", f"differs from utilisation, but {guideline.name} holds runs at equal FLOPs only",
            "ask a fitted guideline, or give one utilisation",
        )  # fmt: skip


def _why_not(request: Request, guideline: Guideline) -> list[str]:
    """Why a guideline does not answer for a question, and what it saw."""
    graded = support(request, guideline)
    if graded.grade == "unsupported":
        return [f"{guideline.name} does not answer here. {graded.reason} The published prior stands instead."]
    sentences = [
        f"{guideline.name} is provisional and was not run at this target and compute, so it predicts nothing here; the "
        "published prior stands instead."
    ]
    sentences += [
        f"What it saw: target {pair.target_params:,.0f} parameters, {pair.compute_flops:.3g} FLOPs, "
        f"g = {pair.growth_factor:g}, d = {pair.growth_timing_tokens:,.0f} tokens: "
        f"grown - scratch = {pair.delta_nats:+.3f} nats."
        for pair in guideline.pairs
    ]
    return sentences
