"""Make `curves.csv` again: short real runs of this project's engine, their validation losses and learning rates.

    python tests/data/early_view/make.py WORK_DIR [--only NAME ...]

Prepares the bundled corpus under WORK_DIR, trains every run below by `python -m app.engine` on one thread of the CPU
(finished ones are skipped) and writes WORK_DIR/curves.csv. All runs together take about an hour of one slow core.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[3]
VOCAB_SIZE, CONTEXT_LENGTH, BATCH_SEQUENCES = 1024, 64, 16
WARMUP_TOKENS = 30_720
NUM_EVALUATIONS = 40
COLUMNS = ("run_id", "set", "num_layers", "growth_factor", "phase", "tokens", "learning_rate", "validation_loss_nats")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: ``num_layers`` of hidden 32, grown from ``num_base_layers`` after ``timing`` tokens where that is given."""

    num_layers: int
    tokens: int
    schedule: str = "wsd"
    peak_lr: float = 4e-3
    seed: int = 0
    num_base_layers: int | None = None
    timing: int = 0

    @property
    def run_id(self) -> str:
        start = f"-from{self.num_base_layers}at{self.timing // 1000}k" if self.num_base_layers else ""
        return f"l{self.num_layers}{start}-{self.tokens // 1000}k-{self.schedule}-lr{self.peak_lr * 1e3:g}-s{self.seed}"

    def spec(self, corpus_dir: Path) -> dict[str, Any]:
        """Values of `spec.json`."""
        return {
            "run_id": self.run_id,
            "name": self.run_id,
            "cohort": "early-view",
            "corpus": "bundled",
            "corpus_dir": str(corpus_dir),
            "model": {
                "num_layers": self.num_layers, "hidden_size": 32, "num_heads": 2, "num_kv_heads": 2,
                "intermediate_size": 88, "vocab_size": VOCAB_SIZE, "context_length": CONTEXT_LENGTH,
            },
            "growth": {"num_base_layers": self.num_base_layers, "growth_timing_tokens": self.timing}
            if self.num_base_layers
            else None,
            "training": {
                "tokens": self.tokens, "peak_lr": self.peak_lr, "batch_sequences": BATCH_SEQUENCES,
                "schedule": self.schedule, "warmup_tokens": WARMUP_TOKENS,
            },
            "evaluation": {"every_tokens": self.tokens // NUM_EVALUATIONS, "num_windows": 96},
            "init_seed": self.seed,
            "data_seed": self.seed,
            "device": "cpu",
            "num_threads": 1,
            "checkpoint_every_tokens": 10 * self.tokens,
        }  # fmt: skip


def _scratch(num_layers: int, tokens: int, *schedules: str) -> list[Run]:
    return [Run(num_layers=num_layers, tokens=tokens, schedule=schedule) for schedule in schedules]


RUNS = (
    *_scratch(6, 600_000, "wsd", "cosine"),
    Run(num_layers=6, num_base_layers=2, timing=400_000, tokens=600_000),
    Run(num_layers=6, num_base_layers=2, timing=800_000, tokens=600_000, schedule="cosine"),
    *_scratch(6, 1_200_000, "wsd", "cosine"),
    Run(num_layers=6, num_base_layers=2, timing=400_000, tokens=1_200_000),
    Run(num_layers=6, num_base_layers=3, timing=600_000, tokens=900_000),
    *_scratch(3, 900_000, "wsd", "cosine"),
    *_scratch(2, 1_200_000, "wsd", "cosine"),
    Run(num_layers=6, tokens=600_000, seed=1),
    Run(num_layers=6, tokens=600_000, peak_lr=2e-3),
    Run(num_layers=6, num_base_layers=2, timing=800_000, tokens=900_000, seed=1),
    Run(num_layers=6, num_base_layers=3, timing=300_000, tokens=600_000, schedule="cosine", seed=1),
    Run(num_layers=3, tokens=1_200_000, schedule="cosine", seed=1),
    Run(num_layers=2, tokens=1_800_000, seed=1),
    Run(num_layers=6, tokens=900_000, schedule="cosine", seed=1, peak_lr=8e-3),
    Run(num_layers=6, num_base_layers=2, timing=400_000, tokens=900_000, schedule="cosine", peak_lr=2e-3),
    Run(num_layers=3, tokens=900_000, seed=1, peak_lr=8e-3),
    Run(num_layers=6, num_base_layers=2, timing=1_200_000, tokens=900_000, seed=2),
    Run(num_layers=6, tokens=1_200_000, seed=2),
    Run(num_layers=6, num_base_layers=3, timing=600_000, tokens=1_200_000, schedule="cosine", seed=2),
)

# Trained after form, priors and thresholds stood, and used for nothing but the final measurement.
LATER_RUNS = (
    Run(num_layers=6, tokens=750_000, seed=3),
    Run(num_layers=6, tokens=750_000, schedule="cosine", seed=4),
    Run(num_layers=6, num_base_layers=2, timing=500_000, tokens=750_000, seed=3),
    Run(num_layers=6, num_base_layers=2, timing=1_000_000, tokens=750_000, schedule="cosine", seed=4),
    Run(num_layers=6, num_base_layers=3, timing=750_000, tokens=600_000, schedule="cosine", seed=6),
    Run(num_layers=3, tokens=1_050_000, seed=3),
    Run(num_layers=2, tokens=1_350_000, schedule="cosine", seed=4),
    Run(num_layers=6, tokens=900_000, peak_lr=3e-3, seed=5),
)


def prepare(work_dir: Path) -> Path:
    """The bundled corpus with a byte-level BPE of 1024."""
    folder = work_dir / "corpus"
    run_dir = work_dir / "corpus-run"
    if not (folder / "corpus.json").exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        spec = {"run_id": "corpus", "name": "bundled", "corpus_dir": str(folder), "vocab_size": VOCAB_SIZE}
        (run_dir / "spec.json").write_text(json.dumps(spec))
        subprocess.run([sys.executable, "-m", "app.corpus", str(run_dir)], cwd=ROOT, check=True)
    return folder


def train(run: Run, run_dir: Path, corpus_dir: Path) -> None:
    """Run the engine unless it has finished."""
    if (run_dir / "result.json").exists():
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    values = {name: value for name, value in run.spec(corpus_dir).items() if value is not None}
    (run_dir / "spec.json").write_text(json.dumps(values))
    command = [sys.executable, "-m", "app.engine", str(run_dir)]
    with open(run_dir / "log.txt", "w") as log:
        subprocess.run(command, cwd=ROOT, check=True, stdout=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def rows(run: Run, run_dir: Path) -> list[list[Any]]:
    """One row an evaluation, with the rate there: straight lines between the rates of the training lines."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rates: dict[str, tuple[list[int], list[float]]] = {}
    for line in lines:
        if line["metric"] == "learning_rate":
            tokens, values = rates.setdefault(line["phase"], ([], []))
            tokens.append(line["tokens"])
            values.append(line["value"])
    growth_factor = run.num_layers / (run.num_base_layers or run.num_layers)
    found = []
    for line in lines:
        if line["metric"] == "validation_loss":
            at = (line["phase"], line["tokens"])
            rate = f"{np.interp(line['tokens'], *rates[line['phase']]):.6g}" if line["tokens"] else ""
            found.append(
                [
                    run.run_id,
                    "first" if run in RUNS else "later",
                    run.num_layers,
                    f"{growth_factor:g}",
                    *at,
                    rate,
                    f"{line['value']:.5f}",
                ]
            )
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("work_dir", type=Path)
    arguments.add_argument("--only", nargs="*", default=None, help="run ids; all by default")
    options = arguments.parse_args()
    work_dir = options.work_dir.resolve()
    corpus_dir = prepare(work_dir)
    chosen = [run for run in RUNS + LATER_RUNS if options.only is None or run.run_id in options.only]
    for run in chosen:
        train(run, work_dir / "runs" / run.run_id, corpus_dir)
    with open(work_dir / "curves.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for run in chosen:
            writer.writerows(rows(run, work_dir / "runs" / run.run_id))


if __name__ == "__main__":
    main()
