"""The model behind `tests/ingest/logs`: its transformers config, its shape, and its training FLOPs a token."""

from __future__ import annotations

from pathlib import Path

from fitting.flops import Shape, flops_per_token

LOGS = Path(__file__).parent / "ingest" / "logs"
CONFIG = {
    "model_type": "llama", "num_hidden_layers": 8, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 1000, "max_position_embeddings": 128,
}  # fmt: skip
TARGET = Shape(
    num_layers=8, hidden_size=64, num_heads=4, num_kv_heads=2, intermediate_size=128, vocab_size=1000,
    context_length=128,
)  # fmt: skip
BASE = TARGET.with_layers(2)
F, F_BASE = flops_per_token(TARGET), flops_per_token(BASE)
