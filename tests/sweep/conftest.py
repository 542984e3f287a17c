"""A grid of five runs that train in a second each, on the corpus `tiny`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

TINY_GRID = """
cohort = "tiny"
engine_numerics_version = 1

[corpus]
name = "tiny"
vocab_size = 512
train_tokens = {train_tokens}

[recipe]
context_length = 64
batch_sequences = 8
warmup_tokens = 1024
decay_fraction = 0.2
final_lr_fraction = 0.1
fewest_grown_tokens = 2048
num_validation_windows = 16
evaluations_a_run = 4

[costs]
startup_core_seconds = 5.0
core_hours_at_least = 0.0
core_hours_at_most = 1.0
speeds = [{{ hidden_size = 32, num_layers = 2, flops_per_core_second = 1e10 }}]

[[sizes]]
name = "h32"
num_layers = 2
hidden_size = 32
num_heads = 2
intermediate_size = 64
tokens_per_parameter = [0.5, 1.0]
shared_lr = 4e-3
other_lrs = [2e-3]

[[first]]
steps = [2]
sizes = ["h32"]
seeds = [0]

[[steps]]
number = 1
title = "controls"
[[steps.arms]]
kind = "scratch"
[[steps.arms]]
kind = "alone"
num_layers = [1]
tokens_per_parameter = [1.0]

[[steps]]
number = 2
title = "grown"
[[steps.arms]]
kind = "grown"
num_layers = [1]
timings = [0.3]
"""


@pytest.fixture(scope="session")
def tiny_grid() -> Callable[[int], str]:
    """The text of the tiny grid for a corpus of so many train tokens."""
    return lambda train_tokens: TINY_GRID.format(train_tokens=train_tokens)


@pytest.fixture(scope="session")
def tiny_grid_text(tiny_grid: Callable[[int], str]) -> str:
    return tiny_grid(600_000)
