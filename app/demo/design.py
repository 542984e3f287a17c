"""The demo's own stated design: an 8-layer target of 402,496 non-embedding parameters, grown from 2 layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

COHORT = "demo"
CORPUS = "demo"
VOCAB_SIZE = 1024
TARGET_MODEL = {
    "num_layers": 8,
    "hidden_size": 64,
    "num_heads": 2,
    "num_kv_heads": 2,
    "intermediate_size": 176,
    "context_length": 128,
}
GROWTH_FACTOR = 4
TIMING_FRACTION = 0.6


@dataclass(frozen=True, kw_only=True)
class DemoDesign:
    """One size of the demo; everything else follows from its token budget."""

    token_budget: int
    warmup_tokens: int

    @property
    def growth_timing_tokens(self) -> int:
        return int(TIMING_FRACTION * self.token_budget)

    def question(self) -> dict[str, Any]:
        """The body of `POST /recommend`."""
        shape = TARGET_MODEL | {"vocab_size": VOCAB_SIZE}
        return {"target_shape": shape, "token_budget": self.token_budget, "growth_factors": [2, 4, 8]}

    def grow_body(self) -> dict[str, Any]:
        """The body of `POST /grow`: the grown run and two controls at equal FLOPs."""
        return {
            "name": "demo",
            "cohort": COHORT,
            "corpus": CORPUS,
            "target_model": TARGET_MODEL,
            "growth_factor": GROWTH_FACTOR,
            "growth_timing_tokens": self.growth_timing_tokens,
            "token_budget": self.token_budget,
            "controls": ["scratch", "base_only"],
            "training": {"peak_lr": 4e-3, "batch_sequences": 8, "schedule": "wsd", "warmup_tokens": self.warmup_tokens},
            # One evaluation costs about as much as training on 4,000 tokens.
            "evaluation_every_tokens": max(self.token_budget // 25, 40_000),
            "num_validation_windows": 96,
        }


FULL = DemoDesign(token_budget=2_000_000, warmup_tokens=50_000)
QUICK = DemoDesign(token_budget=500_000, warmup_tokens=25_000)
