"""The real process: undisturbed, starved of disk, diverging, misled; and what it leaves behind."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import curve, events, outcome, read_metrics
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.contract import ExitCode, read_result
from app.engine import step, trainer
from app.engine.__main__ import main
from app.engine.launch import Pause
from fitting.flops import Shape, flops_per_token, non_embedding_params

Start = Callable[..., subprocess.Popen[str]]
Run = Callable[..., subprocess.CompletedProcess[str]]
Write = Callable[..., Path]

SHAPE = Shape(
    num_layers=4, hidden_size=16, num_heads=2, num_kv_heads=1, intermediate_size=32, vocab_size=512, context_length=32
)


# --- an undisturbed run ------------------------------------------------------------------------------------


def test_the_curve_is_complete_and_counts_right(undisturbed: Path) -> None:
    lines = read_metrics(undisturbed)
    assert [line.seq for line in lines] == list(range(1, len(lines) + 1))
    base_flops, target_flops = flops_per_token(SHAPE.with_layers(2)), flops_per_token(SHAPE)
    for line in lines:
        before = 0.0 if line.phase == "base" else 19_968 * base_flops
        per_token = base_flops if line.phase == "base" else target_flops
        assert line.compute_flops == before + line.tokens * per_token
    validation = [(line.phase, line.tokens) for line in lines if line.metric == "validation_loss"]
    assert validation == [
        *(("base", 2_560 * i) for i in range(1, 8)), ("base", 19_968),
        *(("grown", 2_560 * i) for i in range(16)), ("grown", 39_936),
    ]  # fmt: skip
    assert [line.phase for line in lines if line.metric == "growth_seconds"] == ["growth"]
    assert {line.metric: (line.dataset, line.unit) for line in lines} == {
        "train_loss": ("stdlib/train", "nats"),
        "validation_loss": ("stdlib/validation", "nats"),
        "learning_rate": ("", "1"),
        "grad_norm": ("", "1"),
        "tokens_per_second": ("", "tokens/s"),
        "growth_seconds": ("", "s"),
        "growth_flops": ("", "FLOPs"),
        "peak_memory": ("", "bytes"),
        "spike_height": ("stdlib/validation", "nats"),
        "healing_tokens": ("stdlib/validation", "tokens"),
    }


def test_it_learns_spikes_at_growth_and_heals(undisturbed: Path) -> None:
    losses = {(m.phase, m.tokens): m.value for m in read_metrics(undisturbed) if m.metric == "validation_loss"}
    before, spike, final = losses["base", 19_968], losses["grown", 0], losses["grown", 39_936]
    assert losses["base", 2_560] > before + 0.5
    assert spike > before
    assert final < before


def test_the_result_and_the_story(undisturbed: Path) -> None:
    result = read_result(undisturbed)
    assert result is not None
    last = [m for m in read_metrics(undisturbed) if m.metric == "validation_loss"][-1]
    assert (result.status, result.final_loss_nats, result.reason) == ("finished", last.value, "")
    assert (result.base_tokens, result.final_phase_tokens) == (19_968, 39_936)
    assert result.compute_flops == last.compute_flops
    assert result.base_flops_per_token == flops_per_token(SHAPE.with_layers(2))
    assert result.target_flops_per_token == flops_per_token(SHAPE)
    story = events(undisturbed)
    assert [event for event, _ in story if event != "checkpoint"] == ["started", "growing", "growth", "finished"]
    (growth,) = [message for event, message in story if event == "growth"]
    assert "2 to 4 layers by order stack (sources 0,1,0,1; connection rate 66.7%)" in growth
    assert not (undisturbed / "checkpoints").exists()


def test_a_run_with_its_result_is_left_alone(undisturbed: Path, run_engine: Run) -> None:
    before = {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}
    ended = run_engine(undisturbed)
    assert ended.returncode == ExitCode.DONE
    assert "has its result already: finished" in ended.stdout
    assert {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("name", "num_layers", "phase"), [("base", 2, "base"), ("final", 4, "grown")])
def test_exports_load_in_transformers_and_give_the_same_loss(
    undisturbed: Path, corpus_dir: Path, name: str, num_layers: int, phase: str
) -> None:
    folder = undisturbed / "exports" / name
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    assert model.config.num_hidden_layers == num_layers
    tokens = np.fromfile(corpus_dir / "validation-00000.bin", dtype="<u2").astype(np.int64)
    num_available = (len(tokens) - 1) // 32
    losses = []
    for i in range(8):
        start = i * num_available // 8 * 32
        window = torch.from_numpy(tokens[start : start + 33])[None]
        with torch.no_grad():
            logits = model(input_ids=window[:, :-1]).logits
        losses.append(float(torch.nn.functional.cross_entropy(logits[0], window[0, 1:])))
    recorded = [m.value for m in read_metrics(undisturbed) if m.metric == "validation_loss" and m.phase == phase][-1]
    assert sum(losses) / 8 == pytest.approx(recorded, rel=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("def main(): pass")["input_ids"]) == "def main(): pass"


def test_the_data_goes_on_where_the_base_stopped(
    tmp_path: Path, write_run: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    train_windows = trainer.train_windows

    def record(sequences: Any, **options: Any) -> Any:
        asked.extend(sequences.tolist())
        return train_windows(sequences, **options)

    monkeypatch.setattr(trainer, "train_windows", record)
    run_dir = write_run(tmp_path / "run", growth__growth_timing_tokens=1_300, training__tokens=2_000,
                        training__warmup_tokens=0)  # fmt: skip
    assert main([str(run_dir)], Pause()) == ExitCode.DONE
    assert asked == list(range((1_280 + 1_920) // 32))


def test_copied_optimizer_state_and_cosine_give_another_curve(
    tmp_path: Path, write_run: Write, undisturbed: Path
) -> None:
    run_dir = write_run(tmp_path / "run", growth__optimizer_state_policy="copy", growth__order="interpose",
                        training__tokens=5_120, training__schedule="cosine")  # fmt: skip
    assert main([str(run_dir)], Pause()) == ExitCode.DONE
    ours, reset = curve(run_dir), curve(undisturbed)
    num_base_lines = sum(line[1] == "base" for line in reset)
    assert ours[:num_base_lines] == reset[:num_base_lines]
    first_loss = num_base_lines + 2  # after the growth step's duration and cost
    assert ours[first_loss][4] == "validation_loss"
    assert ours[first_loss] != reset[first_loss]
    rates = [m.value for m in read_metrics(run_dir) if m.metric == "learning_rate"]
    assert rates[-1] == pytest.approx(1e-3)
    growth = next(message for event, message in events(run_dir) if event == "growth")
    assert "order interpose (sources 0,0,1,1; connection rate 33.3%), direct, optimizer state copy" in growth


def test_reading_a_small_corpus_more_than_once_is_reported(tmp_path: Path, write_run: Write, corpus_dir: Path) -> None:
    small = tmp_path / "corpus"
    shutil.copytree(corpus_dir, small)
    manifest = json.loads((small / "corpus.json").read_text())
    (small / "train-00000.bin").write_bytes((small / "train-00000.bin").read_bytes()[: 2 * 1_001])
    manifest["splits"]["train"].update(files=["train-00000.bin"], num_tokens=1_001)
    (small / "corpus.json").write_text(json.dumps(manifest))
    run_dir = write_run(tmp_path / "run", corpus_dir=str(small), growth=None, training__tokens=2_560,
                        training__warmup_tokens=0)  # fmt: skip
    assert main([str(run_dir)], Pause()) == ExitCode.DONE
    epochs = next(message for event, message in events(run_dir) if event == "epochs")
    assert "2.58 epochs" in epochs  # 80 sequences of 31 windows


# --- faults ------------------------------------------------------------------------------------------------


def test_a_diverged_run_keeps_its_last_good_checkpoint(tmp_path: Path, write_run: Write, run_engine: Run) -> None:
    # AdamW steps at a rate of 30 ruin the weights however they are clipped; the first ones of the warm-up are harmless.
    run_dir = write_run(
        tmp_path / "run", training__peak_lr=30.0, training__warmup_tokens=20_000, checkpoint_every_tokens=128
    )
    ended = run_engine(run_dir)
    assert ended.returncode == ExitCode.DIVERGED
    assert ended.stderr.count("\n") == 1
    assert "lower training.peak_lr or lengthen training.warmup_tokens" in ended.stderr
    result = read_result(run_dir)
    assert result is not None
    assert (result.status, result.final_loss_nats) == ("diverged", None)
    assert result.reason in ended.stderr
    assert 0 < result.base_tokens < 19_968
    assert result.final_phase_tokens == 0
    assert result.compute_flops == result.base_tokens * flops_per_token(SHAPE.with_layers(2))
    assert events(run_dir)[-1] == ("diverged", result.reason)
    kept = sorted((run_dir / "checkpoints").glob("tokens-*"))
    assert len(kept) == 2
    progress = json.loads((kept[-1] / "checkpoint.json").read_text())["progress"]
    assert progress["num_high_lines"] == 0
    assert progress["run_tokens"] == result.base_tokens - 3 * 640 + 640 - 128  # the step before the first high line
    assert run_engine(run_dir).returncode == ExitCode.DIVERGED


def test_a_loss_that_is_no_number_is_divergence(
    tmp_path: Path, write_run: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, calls = step.next_token_loss, []

    def fail_late(model: Any, windows: torch.Tensor, **options: Any) -> torch.Tensor:
        calls.append(1)
        return good(model, windows, **options) * (float("nan") if len(calls) > 40 else 1.0)

    monkeypatch.setattr(step, "next_token_loss", fail_late)
    run_dir = write_run(tmp_path / "run")
    assert main([str(run_dir)], Pause()) == ExitCode.DIVERGED
    result = read_result(run_dir)
    assert result is not None
    assert "the training loss is nan" in result.reason
    (newest,) = sorted((run_dir / "checkpoints").glob("tokens-*"))[-1:]
    assert newest.name == "tokens-000000000003072-base"
    assert all(np.isfinite(line.value) for line in read_metrics(run_dir))


def test_a_full_disk_ends_clearly_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, write_run: Write, run_engine: Run, undisturbed: Path
) -> None:
    run_dir = write_run(tmp_path / "run")
    # The system's own limit on a file's size: checkpoints (three fp32 copies) of the base fit, of the grown model not.
    base, grown = (
        3 * 4 * (2 * 512 * 16 + non_embedding_params(SHAPE.with_layers(num_layers))) for num_layers in (2, 4)
    )
    limit = (base + grown) // 2

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    ended = run_engine(run_dir, preexec_fn=limit_files)
    assert ended.returncode == ExitCode.NO_SPACE, ended
    assert ended.stderr.strip().splitlines()[-1].startswith("no space left for the run's files (")
    assert "free space and resume" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert events(run_dir)[-1][0] == "failed"
    assert {path.name.rsplit("-", 1)[1] for path in (run_dir / "checkpoints").iterdir()} == {"base"}
    assert run_engine(run_dir).returncode == ExitCode.DONE
    assert curve(run_dir) == curve(undisturbed)
    assert outcome(run_dir) == outcome(undisturbed)


def test_a_line_that_does_not_fit_is_not_left_half_written(tmp_path: Path, write_run: Write, run_engine: Run) -> None:
    run_dir = write_run(tmp_path / "run")

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))

    ended = run_engine(run_dir, preexec_fn=limit_files)
    assert ended.returncode == ExitCode.NO_SPACE, ended
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert all(line.endswith("\n") for line in lines)


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        ({"training__peak_lr": -1.0}, ExitCode.BAD_SPEC, "peak_lr is -1.0.*above 0.*give a positive"),
        ({"training__momentum": 0.9}, ExitCode.BAD_SPEC, "training.momentum is not a field"),
        ({"training__tokens": 100}, ExitCode.BAD_SPEC, "training.tokens is 100.*128 tokens.*raise"),
        ({"growth__num_base_layers": 4}, ExitCode.BAD_SPEC, "num_base_layers is 4.*below the target's 4.*shallower"),
        ({"training__warmup_tokens": 39_000}, ExitCode.BAD_SPEC, "warmup_tokens is 39000.*31948.*shorten"),
        ({"corpus_dir": "nowhere"}, ExitCode.BAD_DATA, "corpus_dir is 'nowhere'.*prepare the corpus"),
        ({"model__vocab_size": 400}, ExitCode.BAD_DATA, "vocab_size is 400.*512 tokens.*raise"),
    ],
)
def test_bad_input_ends_before_any_work(
    tmp_path: Path, write_run: Write, run_engine: Run, overrides: dict[str, Any], code: ExitCode, message: str
) -> None:
    run_dir = write_run(tmp_path / "run", **overrides)
    ended = run_engine(run_dir)
    assert ended.returncode == code
    assert ended.stderr.count("\n") == 1
    assert re.search(message, ended.stderr)
    assert events(run_dir) == [("failed", ended.stderr.strip())]
    assert {path.name for path in run_dir.iterdir()} == {"spec.json", "events.jsonl", ".engine.lock"}


def test_a_directory_without_a_spec_is_refused(tmp_path: Path, run_engine: Run) -> None:
    assert run_engine(tmp_path / "nowhere").returncode == ExitCode.BAD_SPEC
    ended = run_engine(tmp_path)
    assert ended.returncode == ExitCode.BAD_SPEC
    assert "spec.json does not exist" in ended.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the CUDA device that the test asks for in vain")
def test_cuda_without_a_device_is_refused(tmp_path: Path, write_run: Write) -> None:
    assert main([str(write_run(tmp_path / "run", device="cuda"))], Pause()) == ExitCode.BAD_SPEC


def test_a_bad_spec_costs_no_torch(tmp_path: Path, write_run: Write) -> None:
    run_dir = write_run(tmp_path / "run", corpus_dir="nowhere")
    code = (
        "import sys; from app.engine.__main__ import main; from app.engine.launch import Pause; "
        f"code = main([{str(run_dir)!r}], Pause()); "
        "sys.exit(1 if 'torch' in sys.modules else code)"
    )
    ended = subprocess.run([sys.executable, "-c", code], env={**os.environ}, cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == ExitCode.BAD_DATA
