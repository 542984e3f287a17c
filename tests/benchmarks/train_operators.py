"""The four operators in both directions beside the target from scratch, at equal FLOPs, on the demo's corpus and target.

    python tests/benchmarks/train_operators.py [--corpus-dir DIR] [--num-seeds 3] [--num-workers 2] [--work-dir DIR]

Each arm is a run of the real engine (``python -m app.engine``) on a quarter of the demo's token budget:

    C = B f_target,    D = (C - d f_base) / f_target,    d = 0.6 B

======  ============================================================================================  ======
symbol  meaning                                                                                       unit
======  ============================================================================================  ======
C, B    compute of every arm; tokens that it buys the target from scratch                             FLOPs, tokens
d, D    tokens of the base, of the grown target (the steps of ``learn`` are among them)               tokens
f       training FLOPs a token (``fitting.flops``)                                                    FLOPs
======  ============================================================================================  ======

The base is a quarter of the target in depth (2 of 8 layers) or in width (half of hidden size, heads and MLP). All arms
share peak rate, schedule and data order, as the paper's did; nothing is tuned for one of them. A run that is done is not
run again, so the work directory can be used to go on. Writes data/operators/training.json and training.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from app.contract import CorpusSpec, EvaluationSpec, GrowthSpec, ModelSpec, Spec, TrainingSpec, read_result
from app.corpus.prepare import prepare_corpus
from app.demo.design import CORPUS, FULL, TARGET_MODEL, TIMING_FRACTION, VOCAB_SIZE
from app.records import to_dict
from fitting.flops import flops_per_token

REPOSITORY = Path(__file__).parents[2]
OUT = REPOSITORY / "data" / "operators"
BUDGET_TOKENS = FULL.token_budget // 4
BATCH_SEQUENCES = 8
LEARN_STEPS = 50
MASK_FRACTION = 0.1  # of the token budget: how long the masked branches take to fade in
PAPER_SCRATCH_LOSS = 2.204
# arXiv 2405.15319: 1.1B target, 400M base, d = 10B, g = 4, at 8e20 FLOPs: loss and speedup over scratch.
PAPER = {
    "depth direct": (2.151, "49.1%"),
    "depth learn": (2.156, "48.6%"),
    "depth zero": (2.161, "46.6%"),
    "depth random": (2.258, "-25.7%"),
    "width direct": (2.209, "-0.7%"),
    "width random": (2.227, "-13.8%"),
    "width learn": (2.233, "-15.4%"),
    "width zero": (2.249, "-17.9%"),
}
ARMS = ("scratch", *PAPER, "width direct, noise")


def arm_spec(arm: str, seed: int, corpus_dir: Path) -> Spec:
    """The spec of an arm; every length in whole batches."""
    model = ModelSpec(vocab_size=VOCAB_SIZE, **TARGET_MODEL)
    batch_tokens = BATCH_SEQUENCES * model.context_length
    growth, tokens = None, float(BUDGET_TOKENS)
    if arm != "scratch":
        direction, _, rest = arm.partition(" ")
        operator, _, noise = rest.partition(", ")
        growth = GrowthSpec(
            num_base_layers=model.num_layers // 4 if direction == "depth" else model.num_layers,
            width_factor=1 if direction == "depth" else 2,
            growth_timing_tokens=round(TIMING_FRACTION * BUDGET_TOKENS / batch_tokens) * batch_tokens,
            operator=operator,  # type: ignore[arg-type]
            noise=0.2 if noise else 0.0,
            operator_seed=seed,
            mask_tokens=int(MASK_FRACTION * BUDGET_TOKENS) if operator == "random" else None,
            learn_steps=LEARN_STEPS if operator == "learn" else None,
        )
        base_flops = growth.growth_timing_tokens * flops_per_token(growth.base_model(model))
        tokens -= base_flops / flops_per_token(model)
    return Spec(
        run_id=f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}",
        name=arm,
        cohort="operators",
        corpus=CORPUS,
        corpus_dir=str(corpus_dir.resolve()),
        model=model,
        growth=growth,
        training=TrainingSpec(
            tokens=round(tokens / batch_tokens) * batch_tokens,
            peak_lr=4e-3,
            batch_sequences=BATCH_SEQUENCES,
            warmup_tokens=FULL.warmup_tokens // 4,
        ),
        evaluation=EvaluationSpec(every_tokens=100_000, num_windows=96),
        init_seed=seed,
        data_seed=seed,
        device="cpu",
        checkpoint_every_tokens=BUDGET_TOKENS,
    )


def run_arm(spec: Spec, work_dir: Path) -> dict[str, Any]:
    """Train an arm, or read what an earlier call trained; its result with the loss right before and after growth."""
    run_dir = work_dir / spec.run_id
    if not (run_dir / "result.json").exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "spec.json").write_text(json.dumps(to_dict(spec)))
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "app.engine", str(run_dir)],
            cwd=REPOSITORY, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        if not (run_dir / "result.json").exists():
            raise SystemExit(f"{spec.run_id} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    result = read_result(run_dir)
    assert result is not None
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = {(line["phase"], line["tokens"]): line["value"] for line in lines if line["metric"] == "validation_loss"}
    base = [value for (phase, _), value in losses.items() if phase == "base"]
    grown = [value for (phase, _), value in losses.items() if phase == "grown"]
    print(f"{spec.run_id}: {result.status}, final loss {result.final_loss_nats}", flush=True)
    return {
        "arm": spec.name,
        "seed": spec.init_seed,
        "status": result.status,
        "final_loss_nats": result.final_loss_nats,
        "loss_before_growth_nats": base[-1] if base else None,
        "loss_after_growth_nats": grown[0] if grown else None,
        "base_tokens": result.base_tokens,
        "final_phase_tokens": result.final_phase_tokens,
        "compute_flops": result.compute_flops,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The table of training.md."""
    by_arm = {arm: [row for row in rows if row["arm"] == arm] for arm in ARMS}
    scratch = {row["seed"]: row["final_loss_nats"] for row in by_arm["scratch"]}
    text = [
        "| arm | before growth | after | final loss, nats | minus scratch | paper, 1.1B: loss | minus scratch | speedup |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, runs in sorted(by_arm.items(), key=lambda item: _mean(item[1], "final_loss_nats")):
        delta = [row["final_loss_nats"] - scratch[row["seed"]] for row in runs]
        if arm == "scratch":
            own, paper = "- | -", f"{PAPER_SCRATCH_LOSS:.3f} | - | -"
        else:
            own = f"{_mean(runs, 'loss_before_growth_nats'):.3f} | {_mean(runs, 'loss_after_growth_nats'):.3f}"
            loss, speedup = PAPER.get(arm, (None, "-"))
            paper = f"{loss:.3f} | {loss - PAPER_SCRATCH_LOSS:+.3f} | {speedup}" if loss else "- | - | -"
        spread = f" (sd {stdev(delta):.3f})" if len(delta) > 1 and arm != "scratch" else ""
        difference = "-" if arm == "scratch" else f"{mean(delta):+.3f}{spread}"
        text.append(f"| {arm} | {own} | {_mean(runs, 'final_loss_nats'):.3f} | {difference} | {paper} |")
    return "\n".join(text) + "\n"


def _mean(runs: list[dict[str, Any]], field: str) -> float:
    return mean(row[field] for row in runs)


def report(rows: list[dict[str, Any]]) -> str:
    num_seeds = len({row["seed"] for row in rows})
    return (
        "# Operators beside scratch, at equal FLOPs\n\n"
        "Written by `tests/benchmarks/train_operators.py`: the demo's target (8 layers of hidden size 64), compute of "
        f"{BUDGET_TOKENS:,} of its tokens an arm, {num_seeds} seed(s), base grown fourfold after {TIMING_FRACTION:.0%} as "
        f"many tokens, `learn` for {LEARN_STEPS} of the grown steps, `random` fading in over {MASK_FRACTION:.0%} of the "
        "budget. `minus scratch` is the mean over seeds of the difference from the scratch run of the same seed. The paper's "
        "columns are its operators table, for a 1.1B target at 8e20 FLOPs (arXiv 2405.15319): 2,700 times as large.\n\n"
        + table(rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus-dir", type=Path, help="a prepared demo corpus; without it one is prepared")
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--work-dir", type=Path, help="where runs go on from; a temporary folder without it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work_dir = options.work_dir or Path(temporary)
        corpus_dir = options.corpus_dir or work_dir / "corpus"
        if options.corpus_dir is None and not corpus_dir.exists():
            corpus = CorpusSpec(run_id="corpus", name=CORPUS, corpus_dir=str(corpus_dir), vocab_size=VOCAB_SIZE)
            prepare_corpus(corpus, lambda stage, done, total: None)
        specs = [arm_spec(arm, seed, corpus_dir) for seed in range(options.num_seeds) for arm in ARMS]
        with ThreadPoolExecutor(options.num_workers) as pool:
            rows = list(pool.map(lambda spec: run_arm(spec, work_dir), specs))
    OUT.mkdir(exist_ok=True)
    settings = {"budget_tokens": BUDGET_TOKENS, "learn_steps": LEARN_STEPS, "mask_fraction": MASK_FRACTION}
    record = {"torch": torch.__version__, **settings, "runs": rows}
    (OUT / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (OUT / "training.md").write_text(report(rows), encoding="utf-8")
    print((OUT / "training.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
