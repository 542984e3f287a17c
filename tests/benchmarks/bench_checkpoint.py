"""Growing a checkpoint twofold in depth: ours beside a plain copy, mergekit 0.1.5 and transformers.

    python tests/benchmarks/bench_checkpoint.py SRC [--make 1.1b] [--peer-python PATH] [--repeats 5] [--out FILE] [--json]

SRC is a transformers folder of the Llama family; ``--make 1.1b`` writes a random one of TinyLlama's shape there first (22
layers, bf16, 2.2 GB, no torch needed). Each repeat runs all contestants in turn, each a process of its own, and counts wall
clock, CPU seconds (user and system) and peak memory of it and its children (wait4). The system counts a process from its
fork on, so no peak is told below this program's own.

==============  ======================================================================================================
contestant      what it does
==============  ======================================================================================================
``cp``          ``cp --reflink=never`` of SRC's weights, over again up to the target's bytes, then ``sync`` of the files
``ours``        ``growthlaw checkpoint grow SRC DST --factor 2``, which syncs by itself
``mergekit``    ``mergekit-yaml`` with the passthrough method over the layers twice, then ``sync``; in the environment given
``transformers``load, deep copy of every layer, ``save_pretrained``, then ``sync``
==============  ======================================================================================================

The page cache is warm for all: one untimed read of SRC comes first. The disk is what the folder lies on, shared with whatever
else runs: the load is told in the report.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import psutil

from app.engine.surgery.folder import read_folder
from app.engine.surgery.layout import TargetTensor, index_of, lay_out

ROOT = Path(__file__).parents[2]
GOAL_CP_RATIO, GOAL_MERGEKIT_RATIO, GOAL_RSS_MB = 1.5, 0.25, 200
SHAPES = {
    "1.1b": {
        "num_hidden_layers": 22, "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4,
        "intermediate_size": 5632, "vocab_size": 32000, "max_position_embeddings": 2048,
    },
    "tiny": {
        "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 128, "vocab_size": 256, "max_position_embeddings": 64,
    },
}  # fmt: skip
TRANSFORMERS_PROGRAM = """
import copy, sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
layers = model.model.layers
model.model.layers = torch.nn.ModuleList([*layers, *(copy.deepcopy(layer) for layer in layers)])
model.config.num_hidden_layers = len(model.model.layers)
model.save_pretrained(sys.argv[2])
"""


def make_checkpoint(folder: Path, shape: dict[str, int], max_shard_bytes: int = 800_000_000) -> None:
    """A random bf16 checkpoint of the Llama family in several shards, one tensor in memory at a time."""
    hidden, ffn, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    kv = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    blocks = {
        "input_layernorm": (hidden,), "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden), "self_attn.o_proj": (hidden, hidden), "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden), "mlp.down_proj": (hidden, ffn),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape["vocab_size"], hidden)}
    for i in range(layers):
        shapes |= {f"model.layers.{i}.{name}.weight": dims for name, dims in blocks.items()}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (shape["vocab_size"], hidden)}
    tensors = [TargetTensor(name=name, dtype="BF16", shape=dims, source=name) for name, dims in shapes.items()]
    shards = lay_out(tensors, max_shard_bytes=max_shard_bytes)
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for shard in shards:
        with open(folder / shard.name, "wb") as file:
            file.write(shard.header)
            for tensor in shard.tensors:
                values = rng.standard_normal(math.prod(tensor.shape), dtype=np.float32) * 0.02
                if len(tensor.shape) == 1:
                    values += 1
                file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())
            os.fsync(file.fileno())
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_of(shards)))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "dtype": "bfloat16", "torch_dtype": "bfloat16",
        "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02, "attention_bias": False, **shape,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def measured(command: list[str]) -> dict[str, float]:
    """Wall clock, CPU seconds and peak memory of a command and its children.

    Raises:
        RuntimeError: it failed; the message is the end of what it printed.
    """
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(lines[-1][-300:] if lines else f"exit {process.returncode}")
    return {
        "wall_seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_rss_mb": usage.ru_maxrss * 1024 / 1e6,
    }


def with_sync(command: str, target: Path) -> list[str]:
    """A shell command, then ``sync`` of every file that it left in ``target``."""
    return ["bash", "-c", f'set -e; {command}; sync "{target}"/*']


def cp_command(source: Path, target: Path, num_bytes: int) -> list[str]:
    """Copies of the source's shards, the last one cut, until there are ``num_bytes`` of them."""
    steps, left, copy = [f'mkdir "{target}"'], num_bytes, 0
    while left:
        for shard in sorted(source.glob("*.safetensors")):
            size = min(left, shard.stat().st_size)
            to = f'"{target}/{copy}-{shard.name}"'
            whole = size == shard.stat().st_size
            # A part of a file: cp has no length, so its equal is head, at most once.
            steps.append(f'cp --reflink=never "{shard}" {to}' if whole else f'head -c {size} "{shard}" > {to}')
            left -= size
            if not left:
                break
        copy += 1
    return with_sync("; ".join(steps), target)


def mergekit_recipe(source: Path, num_layers: int, path: Path) -> Path:
    one = f"- sources:\n  - model: {source.resolve()}\n    layer_range: [0, {num_layers}]\n"
    path.write_text(f"slices:\n{one}{one}merge_method: passthrough\ndtype: bfloat16\n")
    return path


def contestants(
    source: Path, target: Path, num_bytes: int, num_layers: int, scratch: Path, options: argparse.Namespace
) -> Iterator[tuple[str, list[str]]]:
    yield "cp", cp_command(source, target, num_bytes)
    command = [
        sys.executable,
        "-m",
        "app.cli",
        "checkpoint",
        "grow",
        str(source),
        str(target),
        "--factor",
        "2",
        "--json",
    ]
    yield "ours", command
    if options.peer_python:
        # The program beside the interpreter given, whose links are not followed: they lead out of its environment.
        program = Path(options.peer_python).absolute().with_name("mergekit-yaml")
        recipe = mergekit_recipe(source, num_layers, scratch / "recipe.yaml")
        yield "mergekit", with_sync(f'"{program}" "{recipe}" "{target}"', target)
    python = options.transformers_python or sys.executable
    (scratch / "peer.py").write_text(TRANSFORMERS_PROGRAM)
    yield "transformers", with_sync(f'"{python}" "{scratch / "peer.py"}" "{source}" "{target}"', target)


def versions(options: argparse.Namespace) -> dict[str, str | None]:
    def asked(python: str, package: str) -> str | None:
        code = f"from importlib.metadata import version; print(version({package!r}))"
        answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        return answer.stdout.strip() or None

    here = options.transformers_python or sys.executable
    found = {name: asked(here, name) for name in ("torch", "transformers", "safetensors")}
    if options.peer_python:
        found |= {
            f"mergekit env: {name}": asked(options.peer_python, name) for name in ("mergekit", "torch", "transformers")
        }
    return {"python": platform.python_version(), "growthlaw": asked(sys.executable, "growthlaw"), **found}


def machine(folder: Path) -> dict[str, Any]:
    """The machine in general words."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(part.mountpoint)]
    filesystem = max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"
    return {
        "cores": os.cpu_count(),
        "cpu": names[0] if names else platform.machine(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "filesystem": filesystem,
        "kernel": platform.release().partition("-")[0],
    }


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Median, least and most of each measure."""
    return {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name in runs[0]
        for values in [[run[name] for run in runs]]
    }


def ratios(runs: dict[str, list[dict[str, float]]], peer: str, measure: str) -> dict[str, float] | None:
    """Ours / peer's within each repeat: median and spread."""
    if not runs.get(peer) or not runs.get("ours"):
        return None
    values = [mine[measure] / theirs[measure] for mine, theirs in zip(runs["ours"], runs[peer], strict=True)]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure_all(source: Path, options: argparse.Namespace) -> dict[str, Any]:
    folder = read_folder(source)
    num_layers = folder.config["num_hidden_layers"]
    per_layer = sum(tensor.num_bytes for name, tensor in folder.tensors.items() if ".layers." in name)
    num_bytes = folder.num_bytes + per_layer
    for shard in folder.shards:
        with open(source / shard, "rb") as file:
            while file.read(2**24):
                pass
    runs: dict[str, list[dict[str, float]]] = {}
    failures: dict[str, str] = {}
    load = []
    with tempfile.TemporaryDirectory(dir=source.resolve().parent) as scratch:
        for repeat in range(options.repeats):
            target = Path(scratch) / "target"
            for name, command in contestants(source, target, num_bytes, num_layers, Path(scratch), options):
                if name in failures:
                    continue
                os.sync()
                load.append(os.getloadavg()[0])
                try:
                    runs.setdefault(name, []).append(measured(command))
                except RuntimeError as error:
                    failures[name] = str(error)
                    del runs[name]
                shutil.rmtree(target, ignore_errors=True)
                if not options.json:
                    told = runs[name][-1] if name in runs else failures[name]
                    print(f"repeat {repeat + 1}: {name}: {told}", file=sys.stderr)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(source),
        "versions": versions(options),
        "base": {"num_layers": num_layers, "num_bytes": folder.num_bytes, "num_shards": len(folder.shards)},
        "output_bytes": num_bytes,
        "repeats": options.repeats,
        "load_average_before_runs": {"min": min(load), "max": max(load)},
        "contestants": {name: summary(found) for name, found in runs.items()},
        "failures": failures,
        "ours_to_cp_wall": ratios(runs, "cp", "wall_seconds"),
        "ours_to_mergekit_wall": ratios(runs, "mergekit", "wall_seconds"),
        "ours_to_mergekit_cpu": ratios(runs, "mergekit", "cpu_seconds"),
        "ours_to_transformers_wall": ratios(runs, "transformers", "wall_seconds"),
        "goals": {
            "cp_wall_ratio": GOAL_CP_RATIO,
            "mergekit_wall_ratio": GOAL_MERGEKIT_RATIO,
            "peak_rss_mb": GOAL_RSS_MB,
        },
        "runs": runs,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("source", type=Path, metavar="SRC")
    arguments.add_argument("--make", choices=SHAPES, help="write a random checkpoint to SRC first, if it is not there")
    arguments.add_argument("--peer-python", help="interpreter of an environment with mergekit 0.1.5")
    arguments.add_argument("--transformers-python", help="interpreter with torch and transformers; default: this one")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--out", type=Path, help="write the report there as JSON")
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    if options.make and not options.source.exists():
        # In a process of its own: the peaks told below must not start from what writing the checkpoint took.
        maker = multiprocessing.get_context("spawn").Process(
            target=make_checkpoint, args=(options.source, SHAPES[options.make])
        )
        maker.start()
        maker.join()
    report = measure_all(options.source, options)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    if options.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{report['output_bytes'] / 1e9:.2f} GB written, {options.repeats} interleaved repeats, {report['machine']}")
    for name, found in report["contestants"].items():
        print(
            f"{name:13} wall {found['wall_seconds']['median']:6.2f} s ({found['wall_seconds']['min']:.2f} to "
            f"{found['wall_seconds']['max']:.2f}), CPU {found['cpu_seconds']['median']:6.2f} s, "
            f"peak memory {found['peak_rss_mb']['max']:,.0f} MB"
        )
    for name, why in report["failures"].items():
        print(f"{name:13} failed: {why}")
    if not options.peer_python:
        print("mergekit      skipped: give --peer-python an environment with mergekit 0.1.5")
    for name, goal in (("cp", GOAL_CP_RATIO), ("mergekit", GOAL_MERGEKIT_RATIO), ("transformers", None)):
        ratio = report[f"ours_to_{name}_wall"]
        if ratio:
            told = f" (goal {goal})" if goal else ""
            print(f"ours / {name}: {ratio['median']:.3f} of its wall, {ratio['min']:.3f} to {ratio['max']:.3f}{told}")


if __name__ == "__main__":
    main()
