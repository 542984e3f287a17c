"""What grows right: tiny random models of every family doubled in depth by mergekit's passthrough and by ``growthlaw
checkpoint grow``, each result loaded with transformers and its logits held against a model put together by hand.

    python tests/benchmarks/compare_mergekit.py --mergekit ENVIRONMENT [--out data/benchmarks/mergekit_comparison.json]

ENVIRONMENT is a virtual environment with mergekit 0.1.5. The models are written by the transformers of that environment, with
a tokenizer beside them, so mergekit reads what its own libraries save. Where older files on the hub differ (a config.json
without per-layer lists, gpt_neox's causal masks among the tensors) they are tried too.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "engine" / "surgery"))

import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import CONTEXT_LENGTH, TINY_FAMILIES, grown_reference, token_ids
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.engine.surgery.families import FAMILIES
from fitting.orders import source_layers

REPOSITORY = Path(__file__).parents[2]
TINY_MODELS = REPOSITORY / "tests" / "engine" / "surgery"
NUM_LAYERS = 4
LISTS = ("layer_types", "no_rope_layers")
NO_LISTS, WITH_MASKS = "without per-layer lists", "with the masks of older files"
OLDER_FILES = dict.fromkeys(("qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3", "gpt_oss"), NO_LISTS)
OLDER_FILES["gpt_neox"] = WITH_MASKS
TIMEOUT_SECONDS = 600

# Runs in mergekit's environment; tiny_models needs torch and transformers alone.
WRITE_MODELS = """
import json, sys
from importlib.metadata import version
from pathlib import Path
from tiny_models import TINY_FAMILIES, VOCAB_SIZE, save_tiny_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(VOCAB_SIZE)}, unk_token="t0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="t0", bos_token="t1", eos_token="t2")
for family in TINY_FAMILIES:
    folder = save_tiny_model(Path(sys.argv[1]) / family, family, num_layers=int(sys.argv[2]))
    tokenizer.save_pretrained(folder)
print(json.dumps({name: version(name) for name in ("mergekit", "transformers", "torch", "safetensors", "pydantic")}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", type=Path, required=True, help="virtual environment with mergekit")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "data" / "benchmarks" / "mergekit_comparison.json")
    parser.add_argument("--families", nargs="+", default=list(TINY_FAMILIES), choices=list(TINY_FAMILIES))
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peer_versions = write_models(arguments.mergekit, folder)
        rows = []
        for family in arguments.families:
            for variant in ("as saved", *([OLDER_FILES[family]] if family in OLDER_FILES else [])):
                rows.append(compare(arguments.mergekit, folder, family, variant))
                print(row_text(rows[-1]), flush=True)
        bad = bad_input(arguments.mergekit, folder)
    result = {
        "what": f"tiny random models of {NUM_LAYERS} layers doubled in depth as 0123 0123",
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "growthlaw_environment": {"torch": torch.__version__, "transformers": transformers.__version__},
        "mergekit_environment": peer_versions,
        "models_saved_by": f"transformers {peer_versions['transformers']} of mergekit's environment",
        "rows": rows,
        "bad_input": bad,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(markdown(result))


def write_models(environment: Path, folder: Path) -> dict[str, str]:
    done = subprocess.run(
        [environment / "bin" / "python", "-c", WRITE_MODELS, folder, str(NUM_LAYERS)],
        env=os.environ | {"PYTHONPATH": str(TINY_MODELS)}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    versions: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return versions


def compare(environment: Path, folder: Path, family: str, variant: str) -> dict[str, Any]:
    source = folder / family
    make_older(source, variant)
    layers = source_layers("stack", NUM_LAYERS, 2 * NUM_LAYERS)
    tools: dict[str, Any] = {}
    for tool in ("mergekit", "growthlaw"):
        target = folder / f"{family}-{variant.replace(' ', '-')}-{tool}"
        ran = grow(tool, environment, source, target, [(0, NUM_LAYERS)] * 2, "stack")
        tools[tool] = ran | judge(source, target, layers, ran["exit_code"])
    return {
        "family": family,
        "config": variant,
        "num_base_layers": NUM_LAYERS,
        "num_target_layers": len(layers),
        **tools,
    }


def make_older(folder: Path, variant: str) -> None:
    """Change a saved model into what older versions of transformers wrote."""
    if variant == NO_LISTS:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(
            json.dumps({key: value for key, value in config.items() if key not in LISTS})
        )
    elif variant == WITH_MASKS:
        tensors = load_file(folder / "model.safetensors")
        for i in range(NUM_LAYERS):
            attention = f"gpt_neox.layers.{i}.attention"
            tensors[f"{attention}.bias"] = torch.ones(1, 1, CONTEXT_LENGTH, CONTEXT_LENGTH).tril()
            tensors[f"{attention}.masked_bias"] = torch.tensor(-1e9)
            tensors[f"{attention}.rotary_emb.inv_freq"] = torch.ones(1)  # head size 4, a quarter of it rotary
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def grow(
    tool: str, environment: Path, source: Path, target: Path, ranges: list[tuple[int, int]], order: str
) -> dict[str, Any]:
    """Run one tool as its users do; its exit code and, where that is not 0, the last line it wrote."""
    if tool == "mergekit":
        slices = [{"sources": [{"model": str(source), "layer_range": list(one)}]} for one in ranges]
        recipe = target.with_suffix(".yaml")
        recipe.write_text(json.dumps({"merge_method": "passthrough", "slices": slices}))  # JSON is YAML
        command = [environment / "bin" / "mergekit-yaml", recipe, target]
    else:
        command = [
            sys.executable,
            "-m",
            "app.cli",
            "checkpoint",
            "grow",
            source,
            target,
            "--factor",
            "2",
            "--order",
            order,
        ]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_SECONDS,
    )  # fmt: skip
    lines = [line.strip(" │╰─╯╭╮") for line in done.stdout.splitlines()]
    lines = [line for line in lines if line and "it/s]" not in line]
    return {
        "exit_code": done.returncode,
        "message": last_words(lines, source.parent) if done.returncode else None,
        "left_behind": sorted(path.name for path in target.glob("*")) if done.returncode else [],
    }


def last_words(lines: list[str], folder: Path) -> str | None:
    """The error's own line: the last that names an exception, else the last line; without this machine's paths."""
    errors = [line for line in lines if "Error" in line.split(":")[0] or line.startswith(("Error", "error"))]
    chosen = (errors or lines or [None])[-1]
    return None if chosen is None else chosen.replace(str(folder), "").replace(str(REPOSITORY), "")[:400]


def judge(source: Path, target: Path, layers: tuple[int, ...], exit_code: int) -> dict[str, Any]:
    """Whether what stands in ``target`` is the grown model, whatever the tool's exit code said."""
    verdict: dict[str, Any] = {"right": False}
    if not (target / "config.json").exists():
        return verdict | {"problem": "no config.json" if target.exists() else "nothing written"}
    config = json.loads((target / "config.json").read_text())
    verdict["config_layers"] = config.get(FAMILIES[config["model_type"]].num_layers_field)
    base = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager").eval()
    try:
        grown, found = AutoModelForCausalLM.from_pretrained(
            target, attn_implementation="eager", output_loading_info=True
        )
        AutoTokenizer.from_pretrained(target)
    except Exception as error:  # what a user would meet, whatever it is
        return verdict | {"problem": f"does not load: {type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    counts = {what: len(names) for what, names in found.items() if names}
    verdict["loading"] = counts
    with torch.no_grad():
        logits = grown.eval()(token_ids(), use_cache=False).logits
        expected = grown_reference(base, layers)(token_ids(), use_cache=False).logits
    verdict["max_logit_difference"] = float((logits - expected).abs().max())
    problems = [f"{count} {what.replace('_keys', ' tensors')}" for what, count in counts.items()]
    if verdict["config_layers"] != len(layers):
        problems.insert(0, f"config.json says {verdict['config_layers']} layers")
    if problems:
        verdict["problem"] = ", ".join(problems)
    elif verdict["max_logit_difference"] > 0:
        verdict["problem"] = f"logits differ by {verdict['max_logit_difference']:.2g}"
    elif exit_code:
        verdict["problem"] = f"right, but exit code {exit_code}"
    else:
        verdict["right"] = True
    return verdict


def bad_input(environment: Path, folder: Path) -> list[dict[str, Any]]:
    """Layer ranges that mean nothing, on a model that both tools grow."""
    rows = []
    asked = {"an empty range": ([(2, 2)], "list:"), "a reversed range": ([(NUM_LAYERS, 0)], "4..1-4..1")}
    for what, (ranges, order) in asked.items():
        row: dict[str, Any] = {"what": what}
        for tool in ("mergekit", "growthlaw"):
            target = folder / f"{what.replace(' ', '-')}-{tool}"
            ran = grow(tool, environment, folder / "llama", target, ranges, order)
            config = target / "config.json"
            layers = json.loads(config.read_text())["num_hidden_layers"] if config.exists() else None
            row[tool] = ran | {"refused": ran["exit_code"] != 0 and not target.exists(), "config_layers": layers}
        rows.append(row)
        print(what, {tool: (row[tool]["exit_code"], row[tool]["config_layers"]) for tool in ("mergekit", "growthlaw")})
    return rows


def row_text(row: dict[str, Any]) -> str:
    name = f"{row['family']:12} {row['config']:24}"
    return f"{name} mergekit: {outcome(row['mergekit'])} | growthlaw: {outcome(row['growthlaw'])}"


def outcome(tool: dict[str, Any]) -> str:
    if tool["right"]:
        return "right"
    if tool["exit_code"]:
        left = ", half a folder left" if tool["left_behind"] else ""
        return f"exit code {tool['exit_code']}{left}: {tool['message']}"
    return f"exit code 0, but {tool['problem']}"


def markdown(result: dict[str, Any]) -> str:
    """The README's table."""
    peer = f"mergekit {result['mergekit_environment']['mergekit']} passthrough"
    lines = [f"| family | {peer} | growthlaw checkpoint grow |", "|---|---|---|"]
    for row in result["rows"]:
        name = row["family"] + ("" if row["config"] == "as saved" else f" ({row['config']})")
        lines.append(f"| {name} | {outcome(row['mergekit'])} | {outcome(row['growthlaw'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
