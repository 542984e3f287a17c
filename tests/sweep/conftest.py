"""A grid of five runs that train in a second each, on the corpus `tiny`; and that grid trained through the service."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sweeping import ENVIRONMENT, Swept, command, growthlaw

from app.corpus.shards import read_manifest
from app.service_process import running_service
from app.sweep.check import check_runs
from app.sweep.collect import ServiceRuns, collect
from app.sweep.families import Design, expand
from app.sweep.grid import read_grid

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


@pytest.fixture(scope="session")
def grid_file(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path, tiny_grid: Callable[[int], str]) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "grid.toml"
    path.write_text(tiny_grid(read_manifest(tiny_corpus).splits["train"].num_tokens), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def design(grid_file: Path) -> Design:
    return expand(read_grid(grid_file))


@pytest.fixture(scope="session")
def swept(grid_file: Path, design: Design, tiny_corpus: Path) -> Iterator[Swept]:
    """Two chunks: time was over at once, then it was interrupted after its first cell; then it ran to the end."""
    data_dir, runs_dir = grid_file.parent / "data", grid_file.parent / "runs"
    (data_dir / "corpora").mkdir(parents=True)
    (data_dir / "corpora" / "tiny").symlink_to(tiny_corpus)
    run = ("run", grid_file, "--data-dir", data_dir, "--runs-dir", runs_dir)
    at_once = growthlaw(*run, "--max-minutes", "0.001")
    assert at_once.returncode == 0, at_once.stderr
    assert "0.001 minutes are over: " in at_once.stdout
    with subprocess.Popen(
        command(*run), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        said = ""
        while " nats" not in said and (line := process.stdout.readline()):
            said += line
        process.send_signal(signal.SIGINT)
        said += process.stdout.read()
    assert process.returncode == 130, said
    assert "The same command goes on with them" in said

    collected = growthlaw("collect", grid_file, "--data-dir", data_dir, "--out", runs_dir, "--json")
    assert collected.returncode == 0, collected.stderr
    num_first = json.loads(collected.stdout)["num_new"]
    assert 1 <= num_first < 5
    partly = growthlaw("check", grid_file, "--runs-dir", runs_dir, "--partial")
    assert partly.returncode == 0, partly.stdout
    assert f"{num_first} of 5 cells, missing: " in partly.stdout
    assert not check_runs(design, runs_dir).is_complete

    rest = growthlaw(*run, "--json")
    assert rest.returncode == 0, rest.stderr
    told = json.loads(rest.stdout)
    assert told["ended"] is True
    assert told["failures"] == []
    assert told["core_seconds_left"] == pytest.approx(0)
    with running_service(data_dir) as client:
        done = collect(ServiceRuns(client), design, runs_dir)
        assert (done.num_new, done.num_standing) == (5 - num_first, 5)
        yield Swept(data_dir, runs_dir, client)
