"""A design small enough to train in seconds, whose lengths are whole steps, and an answer made up around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from app.contract import EvaluationSpec, GrowthSpec, ModelSpec, Spec, TrainingSpec
from fitting.flops import non_embedding_params

DESIGN: dict[str, Any] = json.loads(Path(__file__).with_name("design.json").read_text())
TARGET = ModelSpec(
    num_layers=4, hidden_size=32, num_heads=4, num_kv_heads=2, intermediate_size=64, vocab_size=128, context_length=32
)


def flops_by_hand(num_layers: int) -> float:
    """6 (L P + V h) + 12 L h S with P = q 32 x 32, k and v 32 x 16, o 32 x 32, three MLP matrices 32 x 64."""
    block = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64
    return 6.0 * (num_layers * block + 128 * 32) + 12.0 * num_layers * 32 * 32


def design_spec() -> Spec:
    """Base: 10 steps, warm-up 4. Grown: 16 steps, warm-up 4, decay 2."""
    return Spec(
        run_id="plan",
        name="case",
        cohort="case",
        corpus="own",
        corpus_dir=".",
        model=TARGET,
        training=TrainingSpec(
            tokens=2048, peak_lr=4e-3, base_peak_lr=6e-3, batch_sequences=4, warmup_tokens=512, decay_fraction=0.125
        ),
        growth=GrowthSpec(num_base_layers=2, growth_timing_tokens=1280),
        evaluation=EvaluationSpec(every_tokens=2048),
    )


ANSWER: dict[str, Any] = {
    "guideline": {"name": "made up"},
    "decision": "grow",
    "growth_factor": 2.0,
    "growth_timing_tokens": 1300.0,
    "grown_tokens": 2050.0,
    "order": "stack",
    "base_model": {"num_layers": 2},
    "target_model": {"params": float(non_embedding_params(TARGET)), "num_layers": 4},
    "support": {"grade": "interpolation"},
    "warnings": [],
    "decision_points": [
        {
            "tokens_after_growth": 615.0, "compute_flops": 1.0, "expected_loss_nats": 3.2, "expected_band": [3.0, 3.4],
            "stop_above_nats": 3.5, "fallback": "train from scratch",
        }
    ],
    "recipe": {
        "target_peak_lr": {"value": 1e-3}, "base_peak_lr": {"value": 2e-3}, "rewarmup_tokens": {"value": 256.0},
        "schedule": {"value": "wsd"}, "batch_tokens": {"value": 128.0}, "optimizer_state_policy": {"value": "copy"},
    },
}  # fmt: skip
