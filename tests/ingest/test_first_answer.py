"""From a project's logs to a first answer: a W&B project of some thirty real runs, one import, a refit, one question. Timed.

The runs are those of data/runs (trained by this project) at hidden 48 with the first seed, told as W&B would tell them: the
histories that they logged, their models and learning rates as configurations, every growth as a W&B run of its own beside its
base's.
"""

from __future__ import annotations

import csv
import lzma
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner
from wandb_server import KEY, RecordedRun, wandb_server

from app.bundled import bundled_dir
from app.client import Growthlaw
from app.commands.runs import runs as runs_command

# The promise.
MOST_SECONDS = 600.0
BATCH_TOKENS = 1024
LOGGED = {"validation_loss": "val/loss", "train_loss": "train/loss", "learning_rate": "lr"}


def model(header: dict[str, str], num_layers: str) -> dict[str, Any]:
    return {
        "model_type": "llama", "num_hidden_layers": int(num_layers), "hidden_size": int(header["hidden_size"]),
        "num_attention_heads": int(header["num_heads"]), "num_key_value_heads": int(header["num_kv_heads"]),
        "intermediate_size": int(header["intermediate_size"]), "vocab_size": int(header["vocab_size"]),
        "max_position_embeddings": int(header["context_length"]),
    }  # fmt: skip


def grid_as_a_wandb_project() -> tuple[list[RecordedRun], dict[str, dict[str, str]]]:
    """The W&B runs, and the headers of data/runs by name."""
    folder = bundled_dir("runs")
    with open(folder / "headers.csv", encoding="utf-8") as file:
        headers = [row for row in csv.DictReader(file) if row["name"].startswith("h48-") and "-s0-" in row["name"]]
    # The grid is run in the order of its steps and grows; its first ones are enough here.
    headers = [row for row in headers if row["step"] in ("1", "2")]
    logged: dict[tuple[str, str], dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    with lzma.open(folder / "points.csv.xz", "rt", encoding="utf-8") as file:
        for point in csv.DictReader(file):
            if point["metric"] in LOGGED:
                row = logged[point["run_id"], point["phase"]][int(point["tokens"])]
                row[LOGGED[point["metric"]]] = float(point["value"])

    def rows(run_id: str, trunk: str, phase: str) -> list[dict[str, Any]]:
        own = logged[run_id, phase]
        before = {tokens: row for tokens, row in logged[trunk, phase].items() if own and tokens < min(own)}
        return [{"_step": tokens // BATCH_TOKENS, **row} for tokens, row in sorted((before | own).items())]

    recorded: dict[str, RecordedRun] = {}
    for header in headers:
        run_id, trunk = header["run_id"], header["trunk_id"]
        config = {
            "batch_tokens": BATCH_TOKENS, "model": model(header, header["num_target_layers"]), "lr": float(header["peak_lr"]),
            "trunk": trunk,
        }  # fmt: skip
        phase = "single"
        if header["base_params"]:
            phase, base = "grown", model(header, header["num_base_layers"])
            timing = int(float(header["growth_timing_tokens"]))
            recorded[f"b{trunk[-8:]}"] = RecordedRun(
                f"b{trunk[-8:]}", f"base-d{timing}", rows(trunk, trunk, "base"), {"model": base}
            )
            config |= {"growth": {"base": f"base-d{timing}", "tokens": timing, "base_model": base}}
        recorded[run_id] = RecordedRun(run_id[-8:], header["name"], rows(run_id, trunk, phase), config)
    return list(recorded.values()), {header["name"]: header for header in headers}


def test_a_wandb_project_answers_within_ten_minutes(
    live_client: Growthlaw,
    until: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    project, headers = grid_as_a_wandb_project()
    assert len(project) > len(headers) >= 22  # every base is a run of its own
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    began = time.monotonic()
    with wandb_server(grid=project) as server:
        done = CliRunner().invoke(
            runs_command,
            ["import", "wandb:team/grid", "--wandb-url", server.url, "--url", live_client.url, "--run", "h48-*",
             "--cohort", "from-wandb", "--corpus", "demo", "--tokenizer", "bpe-1024", "--tokens", "step * 1024",
             "--map", "validation_loss:held-out=val/loss", "--map", "train_loss=train/loss", "--map", "learning_rate=lr",
             "--from-config", "config=model", "--from-config", "base=growth.base",
             "--from-config", "base_config=growth.base_model", "--from-config", "growth_timing_tokens=growth.tokens",
             "--from-config", "peak_lr=lr", "--from-config", "trunk_id=trunk", "--set", "schedule=wsd",
             "--set", "lr_selection=shared"],
        )  # fmt: skip
    assert done.exit_code == 0, done.output + str(done.exception)
    imported = time.monotonic()
    guidelines = until(
        lambda: live_client.guidelines(cohort="from-wandb")["data"], "the cohort is fitted", MOST_SECONDS
    )
    fitted = time.monotonic()
    shape = model(headers["h48-l8-lr0.004-s0-b10"], "8")
    answer = live_client.recommend(
        cohort="from-wandb",
        target_shape={
            "num_layers": 8, "hidden_size": shape["hidden_size"], "num_heads": shape["num_attention_heads"],
            "num_kv_heads": shape["num_key_value_heads"], "intermediate_size": shape["intermediate_size"],
            "vocab_size": shape["vocab_size"], "context_length": shape["max_position_embeddings"],
        },
        token_budget=2_220_032,
    )  # fmt: skip
    seconds = {"import": imported - began, "refit": fitted - imported, "answer": time.monotonic() - fitted}
    for name, value in seconds.items():
        record_property(f"{name}_seconds", round(value, 1))
    print(f"first answer: {', '.join(f'{name} {value:.1f} s' for name, value in seconds.items())}")
    assert sum(seconds.values()) < MOST_SECONDS

    # The runs are those of data/runs, number by number.
    stored = {run["name"]: run for run in live_client.runs(cohort="from-wandb", limit=100)["data"]}
    assert stored.keys() == headers.keys()
    for name, run in stored.items():
        for column in (
            "growth_factor",
            "growth_timing_tokens",
            "grown_tokens",
            "compute_flops",
            "final_loss",
            "peak_lr",
        ):
            assert run[column] == pytest.approx(float(headers[name][column]), rel=1e-9), (name, column)
        assert (run["status"], run["is_final"]) == ("finished", True), name
    # And the answer is that cohort's, not the published rule's.
    assert guidelines[0]["num_runs"] == len(headers)
    assert answer["guideline"]["id"] == guidelines[0]["id"]
    assert answer["decision"] in ("grow", "scratch", "smaller_model")
