"""Run tables for tests: the demo's scale, with losses measured on it (hidden 64, 8 layers, 2x budget).

Test modules are imported one by one without a package, so what they share comes through the ``tables`` fixture.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from fitting.flops import Shape, flops_per_token, non_embedding_params

DEMO_SHAPE = Shape(
    num_layers=8, hidden_size=64, num_heads=2, num_kv_heads=2, intermediate_size=176, vocab_size=1024,
    context_length=128,
)  # fmt: skip
DEMO_BUDGET = 2_000_000.0


def shape_columns(shape: Shape) -> dict[str, Any]:
    return {
        "num_target_layers": shape.num_layers, "hidden_size": shape.hidden_size, "num_heads": shape.num_heads,
        "num_kv_heads": shape.num_kv_heads, "intermediate_size": shape.intermediate_size,
        "vocab_size": shape.vocab_size, "context_length": shape.context_length,
    }  # fmt: skip


def single_row(shape: Shape, compute_flops: float, loss: float, **other: Any) -> dict[str, Any]:
    """A run of one size that spends ``compute_flops``."""
    return {
        "run_id": f"single-{shape.num_layers}", "cohort": "demo", **shape_columns(shape),
        "target_params": non_embedding_params(shape), "growth_factor": 1, "growth_timing_tokens": 0,
        "grown_tokens": compute_flops / flops_per_token(shape), "peak_lr": 4e-3, "final_loss": loss, **other,
    }  # fmt: skip


def grown_row(
    shape: Shape, num_base_layers: int, d: float, compute_flops: float, loss: float, **other: Any
) -> dict[str, Any]:
    """A grown run that spends ``compute_flops``, base included."""
    base = shape.with_layers(num_base_layers)
    grown_tokens = (compute_flops - d * flops_per_token(base)) / flops_per_token(shape)
    return {
        "run_id": f"grown-{num_base_layers}-{d:g}", "cohort": "demo", **shape_columns(shape),
        "target_params": non_embedding_params(shape), "base_params": non_embedding_params(base),
        "num_base_layers": num_base_layers, "growth_factor": shape.num_layers / num_base_layers,
        "growth_timing_tokens": d, "grown_tokens": grown_tokens, "order": "stack", "peak_lr": 4e-3,
        "final_loss": loss, **other,
    }  # fmt: skip


def demo_rows(*, scratch: float = 3.564, grown: float = 3.466, base: float = 3.491) -> list[dict[str, Any]]:
    """The demo's three arms at equal FLOPs: the target from scratch, grown by 4 at d = 1.2M, two layers alone."""
    compute = DEMO_BUDGET * flops_per_token(DEMO_SHAPE)
    return [
        single_row(DEMO_SHAPE, compute, scratch, run_id="scratch"),
        grown_row(DEMO_SHAPE, 2, 1.2e6, compute, grown, run_id="grown"),
        single_row(DEMO_SHAPE.with_layers(2), compute, base, run_id="base"),
    ]


def demo_table(**losses: float) -> pd.DataFrame:
    return pd.DataFrame(demo_rows(**losses))


@pytest.fixture(scope="session")
def tables() -> SimpleNamespace:
    """The builders of this module, and the demo's shape, budget (tokens) and compute (FLOPs)."""
    return SimpleNamespace(
        shape=DEMO_SHAPE, budget=DEMO_BUDGET, compute=DEMO_BUDGET * flops_per_token(DEMO_SHAPE),
        single_row=single_row, grown_row=grown_row, demo_rows=demo_rows, demo_table=demo_table,
    )  # fmt: skip
