"""The demo as a user runs it, with a quarter of its budget, and its parts on numbers worked by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.demo.conclusion import result_of, words
from app.demo.curves import curve_of, speedup_of
from app.demo.design import FULL, QUICK, TARGET_MODEL
from fitting.speedup import smooth, speedup_lower_bound

ROOT = Path(__file__).parents[2]


def run_demo(data_dir: Path) -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "demo", "--quick", "--json", "--data-dir", str(data_dir)],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_the_quick_demo(tmp_path: Path) -> None:
    result, told = run_demo(tmp_path)
    assert result["flops_equal"] is True
    assert max(result["compute_flops"].values()) / min(result["compute_flops"].values()) < 1.001
    # At this scale growing gains about 0.1 nats on scratch, and the base alone beats both.
    assert result["grown_loss"] < result["scratch_loss"] - 0.05
    assert result["base_only_loss"] < result["grown_loss"]
    assert 0 < result["speedup_lower_bound"] < 1
    assert result["decision_before"] == "infeasible"
    assert result["decision_after"] == "smaller"
    picture = Path(result["plot"]).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
    for sentence in ("times too much", "over-sized", "cannot identify", "growthlaw serve --data-dir"):
        assert sentence in told
    assert "Traceback" not in (tmp_path / "service.log").read_text()

    # The same command again tells the same from the store, without training.
    again, told = run_demo(tmp_path)
    assert "shown from the store" in told
    for name in ("scratch_loss", "grown_loss", "base_only_loss", "speedup_lower_bound", "run_ids", "guideline_id"):
        assert again[name] == result[name]


def test_the_designs_are_the_stated_ones() -> None:
    assert FULL.growth_timing_tokens == 1_200_000
    assert QUICK.token_budget * 4 == FULL.token_budget
    assert FULL.grow_body()["growth_factor"] * 2 == TARGET_MODEL["num_layers"]


def test_smoothing_is_a_centred_mean_that_keeps_the_ends() -> None:
    assert smooth([1, 2, 6, 3, 3]).tolist() == pytest.approx([1, 3, 11 / 3, 4, 3])
    assert smooth([5.0]).tolist() == [5.0]


def test_speedup_by_hand() -> None:
    """Scratch ends at 3.0 with 100 FLOPs; the grown run's smoothed loss stays at or under 3.0 from 80 FLOPs on."""
    speedup = speedup_lower_bound(
        scratch_final_loss_nats=3.0, scratch_flops=100.0, grown_flops=[20, 40, 60, 80, 100],
        grown_loss_nats=[3.6, 2.9, 3.4, 2.8, 2.7],
    )  # fmt: skip
    assert speedup == pytest.approx(100 / 80 - 1)
    for losses in ([3.6, 3.5, 3.4], [2.0, 2.0, 3.1]):
        never = speedup_lower_bound(
            scratch_final_loss_nats=3.0, scratch_flops=100.0, grown_flops=[20, 60, 100], grown_loss_nats=losses
        )
        assert never is None


def test_the_base_phase_does_not_count_as_speedup() -> None:
    def points(*rows: tuple[str, float, float]) -> list[dict[str, Any]]:
        return [{"phase": phase, "compute_flops": flops, "value": loss} for phase, flops, loss in rows]

    curves = {
        "scratch": curve_of("scratch", points(("single", 50, 4.0), ("single", 100, 3.5))),
        # The base is already better than scratch will ever be, but it is not the target.
        "grown": curve_of(
            "grown", points(("base", 20, 3.0), ("grown", 20, 3.9), ("grown", 60, 3.6), ("grown", 100, 3.4))
        ),
    }
    assert speedup_of(curves) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("scratch", "grown", "base", "expected"),
    [
        (3.87, 3.77, 3.57, ["over-sized", "Growing beat"]),
        (3.56, 3.47, 3.49, ["level with the best", "Growing beat"]),
        (3.40, 3.39, 3.60, ["a tie"]),
        (3.40, 3.50, 3.60, ["Growing lost"]),
    ],
)
def test_a_planner_is_told_what_matters_first(scratch: float, grown: float, base: float, expected: list[str]) -> None:
    runs = {
        role: {"final_loss": loss, "compute_flops": 1e12, "run_id": role}
        for role, loss in (("scratch", scratch), ("grown", grown), ("base_only", base))
    }
    sentences = words(result_of(runs, None))
    assert len(sentences) == len(expected) + 1
    for sentence, start in zip(sentences, expected, strict=False):
        assert start in sentence


def test_unequal_flops_are_not_called_equal() -> None:
    runs = {
        role: {"final_loss": 3.0, "compute_flops": flops, "run_id": role}
        for role, flops in (("scratch", 1.0e12), ("grown", 1.02e12), ("base_only", 1.0e12))
    }
    assert result_of(runs, None)["flops_equal"] is False
