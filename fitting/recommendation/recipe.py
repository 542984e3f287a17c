"""The recipe that goes with an answer: every setting with where it comes from.

Origins: ``given`` by the question, ``fitted`` from the guideline's own best runs, ``published`` in arXiv 2405.15319
(training settings and how to stack), ``default`` where neither says anything.

    peak LR between published sizes:  log-log interpolation over (410M, 6e-4), (1.1B, 3e-4), (3B, 1.6e-4), (7B, 1e-4)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fitting.guideline import Guideline
from fitting.layers import BaseOption, Target
from fitting.recommendation.answer import Setting

_PUBLISHED_PEAK_LR = ((410e6, 6e-4), (1.1e9, 3e-4), (3e9, 1.6e-4), (7e9, 1e-4))
_PUBLISHED_BATCH_TOKENS = 2_000_000
# 3000 warm-up steps of 300,000 planned ones.
_PUBLISHED_WARMUP_SHARE = 0.01
# A run of fewer steps than this has no room for the published batch.
_FEWEST_STEPS = 1_000
_SAME_SIZE = 0.01
# Stacking wins on young bases, interposing once the base is past about this many tokens per parameter (2510.08008).
_INTERPOSE_TOKENS_PER_PARAMETER = 20.0


def recipe(
    guideline: Guideline, target: Target, base: BaseOption, timing_tokens: float, grown_tokens: float
) -> dict[str, Setting]:
    """Settings for growing ``target`` from ``base`` at ``timing_tokens`` and training it on ``grown_tokens``."""
    observed = guideline.recipe_of(target.params)
    of_base = observed.get("base_peak_lr", guideline.recipe_of(base.params).get("peak_lr"))
    return {
        "target_peak_lr": _peak_lr(observed.get("peak_lr"), target.params),
        "base_peak_lr": _peak_lr(of_base, base.params, observed.get("peak_lr")),
        "rewarmup_tokens": _from_runs(observed, "warmup_tokens")
        or Setting(
            value=_PUBLISHED_WARMUP_SHARE * grown_tokens, origin="published",
            note="warm-up again after growth, one per cent of the planned run",
        ),
        "schedule": _from_runs(observed, "schedule")
        or Setting(value="cosine", origin="published", note="warm-up, then cosine to a tenth of the peak"),
        "batch_tokens": _batch(observed, grown_tokens),
        "optimizer_state_policy": _from_runs(observed, "optimizer_state_policy")
        or Setting(value="reset", origin="published", note="a fresh optimizer after growth"),
        "order": Setting(value=base.order, origin="published", note=_order_note(base, timing_tokens)),
        "data_offset_tokens": Setting(
            value=timing_tokens, origin="published",
            note="the grown run reads on where the base stopped, so no token is seen twice",
        ),
    }  # fmt: skip


def _from_runs(observed: Mapping[str, Any], name: str) -> Setting | None:
    value = observed.get(name)
    return None if value is None else Setting(value=value, origin="fitted", note="as in the cohort's best run")


def _batch(observed: Mapping[str, Any], grown_tokens: float) -> Setting:
    found = _from_runs(observed, "batch_tokens")
    if found is not None:
        return found
    if grown_tokens >= _FEWEST_STEPS * _PUBLISHED_BATCH_TOKENS:
        return Setting(value=_PUBLISHED_BATCH_TOKENS, origin="published")
    return Setting(
        value=grown_tokens / _FEWEST_STEPS,
        origin="default",
        note="the published 2M tokens would leave under 1000 steps",
    )


def _peak_lr(observed: float | None, params: float, of_target: float | None = None) -> Setting:
    if observed is not None:
        return Setting(value=observed, origin="fitted", note="as in the cohort's best run of this size")
    if of_target is not None:
        return Setting(value=of_target, origin="default", note="the target's own rate; a smaller base often takes more")
    sizes = np.log([size for size, _ in _PUBLISHED_PEAK_LR])
    rates = np.log([rate for _, rate in _PUBLISHED_PEAK_LR])
    inside = sizes[0] - _SAME_SIZE <= math.log(params) <= sizes[-1] + _SAME_SIZE
    value = float(np.exp(np.interp(math.log(params), sizes, rates)))
    if inside:
        return Setting(value=value, origin="published", note="between the published sizes' rates")
    return Setting(value=value, origin="default", note="the rate of the nearest published size; tune it")


def _order_note(base: BaseOption, timing_tokens: float) -> str:
    if timing_tokens / base.params > _INTERPOSE_TOKENS_PER_PARAMETER:
        return (
            "the base is past 20 tokens per parameter, where interposing layers was found better than stacking "
            "(arXiv 2510.08008); try both"
        )
    return "whole blocks stacked"
