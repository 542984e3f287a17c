"""The two kinds of question: with a budget (:class:`Request`), or for a loss, whose budget is the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from fitting.errors import InputError
from fitting.recommendation.request import BUDGETS, TOKENS_LIMITS, Request, given_fields

# A model that guesses evenly among a million tokens has 13.8 nats; above this a number is not nats per token.
LARGEST_LOSS_NATS = 20.0


@dataclass(frozen=True, kw_only=True)
class LossRequest:
    """What budget reaches ``loss_to_match_nats``?

    Args:
        loss_to_match_nats: a final loss of the cohort, nats per token.
        fields: the other fields of :class:`Request`, without a budget.

    Raises:
        InputError: names the field, the limit and the mend.
    """

    loss_to_match_nats: float
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        loss = self.loss_to_match_nats
        if (
            not isinstance(loss, (int, float))
            or isinstance(loss, bool)
            or not math.isfinite(loss)
            or not 0 < loss <= LARGEST_LOSS_NATS
        ):
            raise InputError(
                "loss_to_match_nats", f"is {loss!r}, but it must lie above 0 and at most {LARGEST_LOSS_NATS:g}",
                "give a final loss in nats per token",
            )  # fmt: skip
        _ = self.probe

    @cached_property
    def probe(self) -> Request:
        """The same question at the largest budget that can be asked about: for what does not depend on the budget."""
        return Request(**{**self.fields, "objective": "lowest_loss"}, token_budget=TOKENS_LIMITS[1])

    def at(self, token_budget: float) -> Request:
        """The same question with a budget."""
        return replace(self.probe, token_budget=token_budget)


Question = Request | LossRequest


def question_of(fields: Mapping[str, Any]) -> Question:
    """A question from plain fields, as HTTP and the command line have them: those of :meth:`Request.from_fields`, or
    ``loss_to_match_nats`` instead of a budget.

    Raises:
        InputError: names the field, the limit and the mend.
    """
    given = given_fields(fields)
    if "loss_to_match_nats" not in given:
        return Request.from_fields(fields)
    for name in BUDGETS[:-1]:
        if name in given:
            raise InputError("loss_to_match_nats", f"stands beside {name}", f"give exactly one of {', '.join(BUDGETS)}")
    return LossRequest(loss_to_match_nats=given.pop("loss_to_match_nats"), fields=given)
