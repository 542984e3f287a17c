"""What several of the engine's tests ask of a run directory, and how they stop a run at a chosen point."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.contract import MetricLine
from app.engine.launch import Pause
from app.records import from_dict

# Metrics whose value is the machine's, not the spec's.
BY_THE_CLOCK = ("tokens_per_second", "growth_seconds", "peak_memory", "mfu")


def read_metrics(run_dir: Path) -> list[MetricLine]:
    return [from_dict(MetricLine, json.loads(line)) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def values_of(run_dir: Path, metric: str, phase: str | None = None) -> dict[int, float]:
    """A metric's values by tokens of its phase."""
    return {m.tokens: m.value for m in read_metrics(run_dir) if m.metric == metric and phase in (None, m.phase)}


def curve(run_dir: Path) -> list[tuple[Any, ...]]:
    """All that is a function of the spec: every line but its time, and speeds without their values."""
    return [
        (m.seq, m.phase, m.tokens, m.compute_flops, m.metric, m.dataset, m.unit,
         None if m.metric in BY_THE_CLOCK else m.value)
        for m in read_metrics(run_dir)
    ]  # fmt: skip


def events(run_dir: Path) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    return [(line["event"], line["message"]) for line in lines]


def outcome(run_dir: Path) -> tuple[Any, ...]:
    """Result but for its duration, and the bytes of every exported file."""
    result = json.loads((run_dir / "result.json").read_text())
    del result["duration_seconds"]
    return result, exported(run_dir)


def exported(run_dir: Path, name: str = "") -> list[tuple[Path, bytes]]:
    files = sorted(path for path in (run_dir / "exports" / name).rglob("*") if path.is_file())
    return [(path.relative_to(run_dir), path.read_bytes()) for path in files]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until a file says so; fails if the process ends first."""
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"the engine ended with {process.returncode} too early: {process.communicate()}")
        time.sleep(0.002)


def has_line(run_dir: Path, phase: str, min_tokens: int) -> bool:
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return any(line["phase"] == phase and line["tokens"] >= min_tokens for line in lines)


def stop_at(
    start: Callable[..., subprocess.Popen[str]], run_dir: Path, signum: int, phase: str, min_tokens: int
) -> int:
    process = start(run_dir)
    wait_for(lambda: has_line(run_dir, phase, min_tokens), process)
    process.send_signal(signum)
    process.communicate()
    return process.returncode


class PauseAfter(Pause):
    """Asks for a pause once it was asked ``num_questions`` times: once for the lock, then before every step."""

    def __init__(self, num_questions: int) -> None:
        self.num_left = num_questions

    @property
    def requested(self) -> bool:
        self.num_left -= 1
        return self.num_left < 0
