"""No grown phase is offered that is much shorter than any that was run: right after growth a loss stands above its law."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fitting.budget import LEAST_GROWN_SHARE, Budget
from fitting.flops import Shape, flops_per_token
from fitting.guideline import Guideline
from fitting.layers import Target, base_options
from fitting.recommendation import Request, recommend, surface
from fitting.recommendation.from_laws import least_grown_share

GRID_GUIDELINE = Path(__file__).parents[1] / "data" / "grid_guideline" / "guideline.json"
SHAPE = Shape(
    num_layers=8,
    hidden_size=48,
    num_heads=3,
    num_kv_heads=3,
    intermediate_size=128,
    vocab_size=1024,
    context_length=128,
)


@pytest.fixture(scope="module")
def guideline() -> Guideline:
    return Guideline.from_json(GRID_GUIDELINE.read_text(encoding="utf-8"))


def test_the_share_is_half_the_shortest_that_was_run(guideline: Guideline) -> None:
    widths = {222_000.0: SHAPE}
    shares = [
        pair.grown_tokens * flops_per_token(widths[pair.target_params]) / pair.compute_flops
        for pair in guideline.pairs
        if pair.target_params in widths
    ]
    assert shares
    # Of other widths there may be shorter ones.
    assert LEAST_GROWN_SHARE < least_grown_share(guideline) <= min(shares) / 2 * 1.001


@pytest.mark.parametrize("token_budget", [1e6, 2e6, 3e6])
def test_no_answer_leaves_the_grown_phase_less(guideline: Guideline, token_budget: float) -> None:
    answer = recommend(Request(target_shape=SHAPE, token_budget=token_budget), guideline)
    share = least_grown_share(guideline)
    for one in answer.alternatives:
        if one.guideline is None and one.grown_tokens is not None:
            assert one.grown_tokens >= share * token_budget * (1 - 1e-9)
    # The landscape shows on: it says where the law leads, an answer does not follow it there.
    rows = surface(Request(target_shape=SHAPE, token_budget=token_budget), guideline, num_timings=10).rows
    assert min(row.grown_tokens[-1] for row in rows) == pytest.approx(LEAST_GROWN_SHARE * token_budget, rel=1e-6)


def test_a_base_that_is_there_may_leave_less() -> None:
    target = Target(params=222_000.0, num_layers=8, shape=SHAPE)
    (base,) = base_options(target, (4.0,))
    budget = Budget(target=target, compute_flops=1e12, least_grown_share=0.4)
    affordable = 1e12 / base.flops_per_token
    assert np.allclose(budget.timings(base), (1e-4 * affordable, 0.6 * affordable))
    late = Budget(target=target, compute_flops=1e12, least_grown_share=0.4, existing_base_tokens=0.8 * affordable)
    assert np.allclose(late.timings(base), (0.8 * affordable, (1 - LEAST_GROWN_SHARE) * affordable))
    too_late = Budget(target=target, compute_flops=1e12, least_grown_share=0.4, existing_base_tokens=affordable)
    assert too_late.timings(base) is None
