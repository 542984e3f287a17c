"""How fast the engine trains, beside the Hugging Face Trainer, a plain loop and litgpt; and what a GPU gets out of it.

    python tests/benchmarks/bench_train.py [--rounds 3] [--peer-python PATH] [--trainer-python PATH] [--out FILE]
    python tests/benchmarks/bench_train.py --cuda [...]

Ours is the engine itself (`python -m app.engine` on a run directory) with its metric lines and checkpoints; its speed is
the tokens between the clock times of two of its lines. The others are `train_arms.py`, on the same initial weights, windows,
batch, rate, precision and threads. Every arm is a process of its own; the first quarter of the steps is dropped. Rounds run
the arms forwards and then backwards, so a machine that drifts drifts for all; ratios are of neighbours in time, with a
bootstrap interval over the pairs. Beside wall time stands CPU time over the same steps, which other work on the machine
disturbs less. Where the mean training loss of the last quarter differs between arms, they did not train
the same thing, and the benchmark fails.

``--trainer-python`` is an interpreter with torch, transformers and `accelerate` of the same versions (this one where it has
it); ``--peer-python`` one with litgpt. ``--cuda`` measures a model of about 1B parameters in bf16 with its MFU, then the
growth of a model of more than 100M; it refuses to start without a CUDA device.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import psutil

from fitting.flops import Shape, flops_per_token, non_embedding_params

ROOT = Path(__file__).parents[2]
ARMS_FILE = Path(__file__).with_name("train_arms.py")
GOAL_RATIO, GOAL_MFU = 0.95, 0.50
LOSS_TOLERANCE_NATS = {"fp32": 2e-3, "bf16": 2e-2}
SKIPPED_SHARE = 4
LOOK_SECONDS = 0.05
TRAINING = {"peak_lr": 1e-3, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "gradient_clip": 1.0}
CPU_SHAPE = {
    "num_layers": 6, "hidden_size": 128, "num_heads": 4, "num_kv_heads": 4, "intermediate_size": 352,
    "vocab_size": 1024, "context_length": 128,
}  # fmt: skip
CUDA_SHAPE = {
    "num_layers": 18, "hidden_size": 2048, "num_heads": 16, "num_kv_heads": 16, "intermediate_size": 5504,
    "vocab_size": 32_768, "context_length": 2048,
}  # fmt: skip
CUDA_GROWN_SHAPE = {
    "num_layers": 12, "hidden_size": 1024, "num_heads": 16, "num_kv_heads": 16, "intermediate_size": 2752,
    "vocab_size": 32_768, "context_length": 1024,
}  # fmt: skip


class Bench:
    """One workload: its folder, its corpus, and the arms that can run on it."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.cpu_seconds: dict[str, dict[int, float]] = {}
        self.shape = dict(CUDA_SHAPE if options.cuda else CPU_SHAPE)
        self.num_steps: int = options.steps or (24 if options.cuda else 40)
        self.batch_sequences: int = options.batch_sequences or (256 if options.cuda else 16)
        self.micro_batch_sequences: int = options.micro_batch_sequences or (8 if options.cuda else self.batch_sequences)
        self.corpus_dir = Path(options.corpus or self._prepare_corpus()).resolve()
        self.job = self._prepare()
        self.arms: dict[str, Callable[[str], dict[str, Any]]] = {"growthlaw": self.ours}
        trainer_python = options.trainer_python or sys.executable
        if options.trainer_python or importlib.util.find_spec("accelerate"):
            self.arms["trainer"] = lambda name: self.peer("trainer", trainer_python, name)
        else:
            print("no trainer arm: this environment lacks accelerate; give --trainer-python", file=sys.stderr)
        self.arms["plain"] = lambda name: self.peer("plain", sys.executable, name)
        if options.peer_python:
            eager = {} if self.job["compile"] else {"TORCHDYNAMO_DISABLE": "1"}
            self.arms["litgpt"] = lambda name: self.peer("litgpt", options.peer_python, name, eager)

    @property
    def batch_tokens(self) -> int:
        return self.batch_sequences * int(self.shape["context_length"])

    @property
    def num_skipped(self) -> int:
        return self.num_steps // SKIPPED_SHARE

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "OMP_NUM_THREADS": str(self.options.threads), "PYTHONPATH": str(ROOT)}

    def _prepare_corpus(self) -> Path:
        data_dir = self.folder / "data"
        command = [sys.executable, "-c", "from app.cli import main; main()", "corpus", "prepare", "bench"]
        subprocess.run([*command, "--data-dir", str(data_dir)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return data_dir / "corpora" / "bench"

    def spec(self, name: str, **changed: Any) -> dict[str, Any]:
        """`spec.json` of one run: constant rate, four training lines, one evaluation at the end."""
        tokens = self.num_steps * self.batch_tokens
        return {
            "run_id": name, "name": name, "cohort": "bench", "corpus": "bench", "corpus_dir": str(self.corpus_dir),
            "model": self.shape,
            "training": TRAINING | {
                "tokens": tokens, "batch_sequences": self.batch_sequences, "schedule": "wsd", "decay_fraction": 0.0,
            },
            "evaluation": {"every_tokens": tokens, "num_windows": min(8, self.batch_sequences)},
            "device": "cuda" if self.options.cuda else "cpu",
            "precision": "bf16" if self.options.cuda else "fp32",
            "micro_batch_sequences": self.micro_batch_sequences,
            "compile": self.options.compile,
            "num_threads": self.options.threads,
        } | changed  # fmt: skip

    def _prepare(self) -> dict[str, Any]:
        run_dir = self.folder / "prepare"
        run_dir.mkdir()
        spec = self.spec("prepare")
        (run_dir / "spec.json").write_text(json.dumps(spec))
        job = TRAINING | {
            "run_dir": str(run_dir), "model_dir": str(self.folder / "model"), "windows": str(self.folder / "windows.npy"),
            "shape": self.shape, "num_steps": self.num_steps, "num_skipped": self.num_skipped,
            "batch_sequences": self.batch_sequences, "micro_batch_sequences": self.micro_batch_sequences,
            "device": spec["device"], "precision": spec["precision"], "compile": spec["compile"],
            "num_threads": self.options.threads,
        }  # fmt: skip
        (run_dir / "job.json").write_text(json.dumps(job))
        self._run([sys.executable, str(ARMS_FILE), "prepare", str(run_dir / "job.json")], run_dir / "log.txt")
        return job

    def _run(self, command: list[str], log: Path, look: Callable[..., None] | None = None, **environment: str) -> None:
        with open(log, "w") as file:
            process = subprocess.Popen(
                command, cwd=self.folder, stdout=file, stderr=file, env=self.environment | environment
            )
            while process.poll() is None:
                if look is not None:
                    look(process)
                time.sleep(LOOK_SECONDS)
        if process.returncode:
            tail = log.read_text().strip().splitlines()[-6:]
            raise SystemExit(f"{' '.join(command[:4])} ended with {process.returncode}:\n" + "\n".join(tail))

    def ours(self, name: str) -> dict[str, Any]:
        """The engine on a run directory of its own."""
        lines = self.engine(name, self.spec(name))
        found = [line for line in lines if line["metric"] == "train_loss"]
        clock = [datetime.datetime.fromisoformat(line["time"]).timestamp() for line in found]
        tokens = found[-1]["tokens"] - found[0]["tokens"]
        spent = [self.cpu_seconds[name][line["seq"]] for line in (found[0], found[-1])]
        speeds = [line["value"] for line in lines if line["metric"] == "tokens_per_second"][1:]
        told = len(speeds) / sum(1 / speed for speed in speeds)
        return {
            "tokens_per_second": tokens / (clock[-1] - clock[0]),
            "tokens_per_cpu_second": tokens / (spent[1] - spent[0]),
            "own_lines_tokens_per_second": told,
            "loss": found[-1]["value"],
            "mfu": [line["value"] for line in lines if line["metric"] == "mfu"][1:],
        }

    def engine(self, name: str, spec: dict[str, Any]) -> list[dict[str, Any]]:
        """Train a run to its end; its metric lines. The CPU time at which each was seen goes to `cpu_seconds`."""
        run_dir = self.folder / name
        run_dir.mkdir()
        (run_dir / "spec.json").write_text(json.dumps(spec))
        seen = self.cpu_seconds[name] = {}
        metrics = run_dir / "metrics.jsonl"

        def look(process: subprocess.Popen[bytes]) -> None:
            last = metrics.read_bytes().splitlines()[-1:] if metrics.exists() else []
            if last and (seq := json.loads(last[0])["seq"]) not in seen:
                with contextlib.suppress(psutil.NoSuchProcess):
                    spent = cpu_seconds(process.pid)
                    # Lines written together were seen together.
                    seen.update(dict.fromkeys(range(max(seen, default=0) + 1, seq + 1), spent))

        self._run([sys.executable, "-m", "app.engine", str(run_dir)], run_dir / "log.txt", look)
        return [json.loads(line) for line in metrics.read_text().splitlines()]

    def peer(self, arm: str, python: str, name: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
        """One arm of `train_arms.py`."""
        job_file, out = self.folder / f"{name}.json", self.folder / f"{name}.out.json"
        job_file.write_text(json.dumps(self.job | {"out": str(out)}))
        self._run([python, str(ARMS_FILE), arm, str(job_file)], self.folder / f"{name}.txt", **(environment or {}))
        found = json.loads(out.read_text())
        times, cpu_times, first = found["times"], found["cpu_times"], self.num_skipped - 1
        tokens = (self.num_steps - self.num_skipped) * self.batch_tokens
        return {
            "tokens_per_second": tokens / (times[-1] - times[first]),
            "tokens_per_cpu_second": tokens / (cpu_times[-1] - cpu_times[first]),
            "loss": found["loss"],
            "versions": found["versions"],
        }


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its children so far."""
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return float(sum(spent.user + spent.system for spent in times))


def ratios(speeds: dict[str, list[float]]) -> dict[str, Any]:
    """Ours over each peer: geometric mean over pairs of neighbours, and the 80% and 95% bootstrap intervals of it."""
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for arm, theirs in speeds.items():
        if arm == "growthlaw":
            continue
        logs = np.log(np.array(speeds["growthlaw"]) / np.array(theirs))
        drawn = np.exp(rng.choice(logs, size=(10_000, len(logs))).mean(axis=1))
        found[arm] = {
            "ratio": float(np.exp(logs.mean())),
            "interval_80": np.quantile(drawn, [0.1, 0.9]).tolist(),
            "interval_95": np.quantile(drawn, [0.025, 0.975]).tolist(),
            "num_pairs": len(logs),
        }
    return found


def verdict(compared: dict[str, Any]) -> str:
    """Whether the goal is met, as far as the 95% interval over the pairs can tell."""
    low, high = compared["interval_95"]
    return "yes" if low >= GOAL_RATIO else "no" if high < GOAL_RATIO else "undecided: the interval holds the goal"


def measure(bench: Bench) -> dict[str, Any]:
    """All arms, forwards and backwards in every round."""
    arms = list(bench.arms)
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for turn in range(2 * bench.options.rounds):
        for arm in arms if turn % 2 == 0 else reversed(arms):
            results[arm].append(bench.arms[arm](f"{arm}-{turn}"))
            print(f"turn {turn} {arm}: {results[arm][-1]['tokens_per_second']:,.0f} tokens/s", flush=True)
    reference = results["growthlaw"][0]["loss"]
    for arm in ("trainer", "plain"):
        for result in results.get(arm, []):
            if abs(result["loss"] - reference) > LOSS_TOLERANCE_NATS[bench.job["precision"]]:
                raise SystemExit(f"{arm} ends at a training loss of {result['loss']:.4f}, ours at {reference:.4f}")
    speeds = {arm: [result["tokens_per_second"] for result in found] for arm, found in results.items()}
    compared = ratios(speeds)
    cpu_speeds = {arm: [result["tokens_per_cpu_second"] for result in found] for arm, found in results.items()}
    # litgpt trains another model class; the goal is about the same model.
    best = max((arm for arm in compared if arm != "litgpt"), key=lambda arm: -compared[arm]["ratio"])
    return {
        "shape": bench.shape,
        "non_embedding_params": non_embedding_params(Shape(**bench.shape)),
        "batch_tokens": bench.batch_tokens,
        "num_steps": bench.num_steps,
        "num_steps_dropped": bench.num_skipped,
        "precision": bench.job["precision"],
        "compile": bench.job["compile"],
        "num_threads": bench.options.threads,
        "tokens_per_second": speeds,
        "own_lines_tokens_per_second": [r["own_lines_tokens_per_second"] for r in results["growthlaw"]],
        "train_loss_last_quarter": {arm: found[0]["loss"] for arm, found in results.items()},
        "ours_over": compared,
        "tokens_per_cpu_second": cpu_speeds,
        "ours_over_by_cpu_time": ratios(cpu_speeds),
        "best_on_the_same_model": best,
        "goal": f"at least {GOAL_RATIO} of the best",
        "goal_met": verdict(compared[best]),
        "peer_versions": {arm: found[0]["versions"] for arm, found in results.items() if "versions" in found[0]},
        "mfu": results["growthlaw"][0]["mfu"],
    }


def cuda_extras(bench: Bench, report: dict[str, Any]) -> dict[str, Any]:
    """MFU of every arm, and the growth of a model of more than 100M parameters in bf16."""
    import torch

    from app.engine.hardware import peak_flops_of

    peak = peak_flops_of(torch.device("cuda"))
    cost = flops_per_token(Shape(**bench.shape))
    mfu = {
        arm: float(np.median(speeds)) * cost / peak if peak else None
        for arm, speeds in report["tokens_per_second"].items()
    }
    return {
        "device": torch.cuda.get_device_name(0),
        "mfu": mfu,
        "mfu_goal": GOAL_MFU,
        "growth": [growth(bench, name, compiled) for name, compiled in (("grown-eager", False), ("grown", True))],
    }


def growth(bench: Bench, name: str, compiled: bool) -> dict[str, Any]:
    """3 layers grown to 12: the growth step's seconds, and apart from them what compiling the grown model costs.

    The time between growth and the first training line, less those tokens at the later lines' speed, is compilation (and
    warm-up of the allocator); ``growth_seconds`` is the step itself.
    """
    sequences, shape = 64, dict(CUDA_GROWN_SHAPE)
    tokens = 64 * sequences * int(shape["context_length"])
    spec = bench.spec(
        name, model=shape, compile=compiled, micro_batch_sequences=16,
        growth={"num_base_layers": 3, "growth_timing_tokens": tokens},
        training=TRAINING | {"tokens": tokens, "batch_sequences": sequences, "warmup_tokens": tokens // 16},
        evaluation={"every_tokens": tokens // 8, "num_windows": 16},
    )  # fmt: skip
    lines = bench.engine(name, spec)

    def of(metric: str, phase: str) -> list[dict[str, Any]]:
        return [line for line in lines if line["metric"] == metric and line["phase"] == phase]

    speeds = [line["value"] for line in of("tokens_per_second", "grown")]
    first = of("train_loss", "grown")[0]
    steady = float(np.median(speeds[1:]))
    losses = {phase: [line["value"] for line in of("validation_loss", phase)] for phase in ("base", "grown")}
    return {
        "compile": compiled,
        "non_embedding_params": non_embedding_params(Shape(**shape)),
        "growth_seconds": [line["value"] for line in lines if line["metric"] == "growth_seconds"],
        "first_line_extra_seconds": first["tokens"] / speeds[0] - first["tokens"] / steady,
        "steady_tokens_per_second": steady,
        "validation_loss_nats": losses,
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options, checked before anything is made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", action="store_true", help="bf16 on a CUDA device: about 1B parameters, then growth")
    parser.add_argument("--rounds", type=int, default=3, help="each runs all arms forwards and backwards")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None, help="torch.compile all arms")
    parser.add_argument("--steps", type=int, help="optimizer steps an arm; the first quarter is dropped")
    parser.add_argument("--batch-sequences", type=int)
    parser.add_argument("--micro-batch-sequences", type=int)
    parser.add_argument("--corpus", help="a prepared corpus; the bundled one is prepared where none is given")
    parser.add_argument("--trainer-python")
    parser.add_argument("--peer-python")
    parser.add_argument("--out", type=Path, help="JSON file the report goes to, under 'cpu' or 'cuda'")
    options = parser.parse_args(arguments)
    for name in ("rounds", "threads", "steps", "batch_sequences", "micro_batch_sequences"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    if options.steps is not None and options.steps % SKIPPED_SHARE:
        parser.error(f"--steps is {options.steps}; it must be a multiple of {SKIPPED_SHARE}, one line a quarter")
    batch, micro = options.batch_sequences, options.micro_batch_sequences
    if batch and micro and batch % micro:
        parser.error(f"--batch-sequences is {batch}; it must be a multiple of --micro-batch-sequences ({micro})")
    for name in ("trainer_python", "peer_python"):
        value = getattr(options, name)
        if value is not None and not os.access(value, os.X_OK):
            parser.error(f"--{name.replace('_', '-')} is {value!r}, which is no program; give an interpreter's path")
    if options.cuda:
        import torch

        if not torch.cuda.is_available():
            parser.error("--cuda was given, but torch finds no CUDA device here; run it on a machine with a GPU")
    options.compile = options.cuda if options.compile is None else options.compile
    return options


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        report = measure(bench)
        if options.cuda:
            report |= cuda_extras(bench, report)
    report |= {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, shared with other work",
        "load_average_at_end": round(os.getloadavg()[0], 2),
    }
    for clock, key in (("wall", "ours_over"), ("CPU", "ours_over_by_cpu_time")):
        for arm, found in report[key].items():
            low, high = found["interval_95"]
            print(
                f"ours / {arm} by {clock} time: {found['ratio']:.3f} (95% interval {low:.3f} to {high:.3f}, "
                f"{found['num_pairs']} pairs)"
            )
    if options.out:
        whole = json.loads(options.out.read_text()) if options.out.exists() else {}
        whole["cuda" if options.cuda else ("cpu-compiled" if options.compile else "cpu")] = report
        beside = options.out.with_suffix(".partial")
        beside.write_text(json.dumps(whole, indent=1) + "\n")
        os.replace(beside, options.out)


if __name__ == "__main__":
    main()
