"""Growth inside a run: every operator, direction and policy, its spike and healing, and restarts in the middle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from engine_runs import PauseAfter, curve, events, exported, outcome, read_metrics, values_of
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from app.commands.checkpoint import checkpoint
from app.contract import ExitCode, read_result, read_spec
from app.engine import trainer
from app.engine.__main__ import main
from app.engine.checkpoint_files import open_checkpoint
from app.engine.data import open_corpus, validation_windows
from app.engine.evaluation import evaluate
from app.engine.growth import grow_model
from app.engine.launch import Pause
from app.engine.operators.base import Growth
from fitting.orders import source_layers

Write = Callable[..., Path]

SHORT = {
    "growth__growth_timing_tokens": 2_560, "training__tokens": 5_120, "training__warmup_tokens": 640,
    "evaluation__every_tokens": 1_280, "checkpoint_every_tokens": 10**9,
}  # fmt: skip
WIDTH = {"growth__num_base_layers": 4, "growth__width_factor": 2, "model__num_kv_heads": 2}
RANDOM = {"growth__operator": "random", "growth__mask_tokens": 1_280}
LEARN = {"growth__operator": "learn", "growth__learn_steps": 5}
GROWTHS = {
    "depth-direct-copy": {"growth__optimizer_state_policy": "copy"},
    "depth-direct-v": {"growth__optimizer_state_policy": "copy_v_only", "growth__noise": 0.2},
    "depth-zero-keep": {"growth__operator": "zero", "growth__optimizer_state_policy": "keep_old_zero_new"},
    "depth-random": RANDOM,
    "depth-learn": LEARN,
    "width-direct-copy": {**WIDTH, "growth__optimizer_state_policy": "copy"},
    "width-zero": {**WIDTH, "growth__operator": "zero"},
    "width-random": {**WIDTH, **RANDOM},
    "width-learn": {**WIDTH, **LEARN},
}
PRESERVING = ("depth-zero-keep", "depth-random", "width-direct-copy", "width-zero", "width-random")


@pytest.mark.parametrize("name", GROWTHS)
def test_a_growth_trains_and_paused_anywhere_it_ends_the_same(tmp_path: Path, write_run: Write, name: str) -> None:
    whole, paused = (write_run(tmp_path / part, **SHORT, **GROWTHS[name]) for part in ("whole", "paused"))
    assert main([str(whole)], Pause()) == ExitCode.DONE
    # 20 steps of the base, then five of the grown phase (or of learning maps), then on: masks are half open there.
    for num_steps in (15, 10):
        assert main([str(paused)], PauseAfter(1 + num_steps)) == ExitCode.PAUSED
    assert main([str(paused)], Pause()) == ExitCode.DONE
    assert curve(paused) == curve(whole)
    assert outcome(paused) == outcome(whole)

    before = values_of(whole, "validation_loss", "base")[2_560]
    after = values_of(whole, "validation_loss", "grown")
    first = min(after)
    (spike,) = values_of(whole, "spike_height").values()
    assert spike == after[first] - before
    assert first == (5 * 128 if "learn" in name else 0)
    if name in PRESERVING:
        assert abs(spike) < 1e-5
    result = read_result(whole)
    assert result is not None
    assert result.spike_height_nats == spike
    healed = [tokens for tokens, loss in after.items() if loss <= before + 1e-4]
    assert result.healing_tokens == (min(healed) if healed else None)
    assert ("not_healed" in dict(events(whole))) == (result.healing_tokens is None)
    assert after[5_120] < before
    model, loading = AutoModelForCausalLM.from_pretrained(whole / "exports" / "final", output_loading_info=True)
    assert not any(loading.values()), loading
    assert model.config.num_hidden_layers == 4
    assert model.config.hidden_size == 16


def test_learning_costs_tokens_and_flops_of_the_grown_phase(tmp_path: Path, write_run: Write) -> None:
    run_dir = write_run(tmp_path / "run", **SHORT, **LEARN)
    assert main([str(run_dir)], Pause()) == ExitCode.DONE
    result = read_result(run_dir)
    assert result is not None
    (line,) = [m for m in read_metrics(run_dir) if m.metric == "growth_flops"]
    assert (line.phase, line.tokens, line.unit) == ("growth", 640, "FLOPs")
    assert line.value == 640 * result.target_flops_per_token
    assert result.final_phase_tokens == 5_120
    assert result.base_flops_per_token is not None
    assert result.compute_flops == 2_560 * result.base_flops_per_token + 5_120 * result.target_flops_per_token
    assert min(values_of(run_dir, "train_loss", "grown")) > 640


@pytest.mark.parametrize("policy", ["reset", "copy", "copy_v_only", "keep_old_zero_new"])
def test_the_grown_state_is_the_operators_and_policies_own(
    tmp_path: Path, write_run: Write, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = write_run(tmp_path / "run", **SHORT, growth__optimizer_state_policy=policy)
    # 20 base steps, then the question before the first grown one.
    assert main([str(run_dir)], PauseAfter(1 + 20)) == ExitCode.PAUSED
    base, grown = (open_checkpoint(path) for path in sorted((run_dir / "checkpoints").glob("tokens-*")))
    (base_model, base_state), (model, state) = base.read_whole(), grown.read_whole()
    exported_base = AutoModelForCausalLM.from_pretrained(run_dir / "exports" / "base")
    assert all(torch.equal(tensor, exported_base.get_parameter(name)) for name, tensor in base_model.items())
    expected = grow_model(exported_base, Growth(layers=source_layers("stack", 2, 4)))
    assert all(torch.equal(tensor, expected.get_parameter(name)) for name, tensor in model.items())
    name, source = (f"model.layers.{i}.mlp.up_proj.weight" for i in (2, 0))
    if policy == "reset":
        assert state == {}
    elif policy == "copy":
        assert all(torch.equal(state[name][key], base_state[source][key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    elif policy == "copy_v_only":
        assert torch.equal(state[name]["exp_avg_sq"], base_state[source]["exp_avg_sq"])
        assert not state[name]["exp_avg"].any()
    else:
        assert not state[name]["exp_avg"].any()
        assert torch.equal(state[source]["exp_avg"], base_state[source]["exp_avg"])


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        ({"growth__order": "interpose"}, ["--layers", "4", "--order", "interpose"]),
        ({"growth__noise": 0.2, "growth__operator_seed": 7}, ["--factor", "2", "--noise", "0.2", "--seed", "7"]),
        ({"growth__operator": "zero"}, ["--factor", "2", "--operator", "zero"]),
        (
            {**RANDOM, "growth__operator_seed": 7},
            ["--factor", "2", "--operator", "random", "--seed", "7", "--mask", "1"],
        ),
        (WIDTH, ["--width", "2"]),
        ({**WIDTH, "growth__operator": "zero"}, ["--width", "2", "--operator", "zero"]),
        ({**WIDTH, **RANDOM}, ["--width", "2", "--operator", "random", "--mask", "1"]),
    ],
    ids=["depth", "depth-noise", "depth-zero", "depth-random", "width", "width-zero", "width-random"],
)
def test_growth_in_a_run_is_growthlaws_checkpoint_grow_bit_for_bit(
    tmp_path: Path, write_run: Write, overrides: dict[str, Any], options: list[str]
) -> None:
    run_dir = write_run(tmp_path / "run", **SHORT, **overrides)
    assert main([str(run_dir)], PauseAfter(1 + 20)) == ExitCode.PAUSED
    *_, grown = (open_checkpoint(path) for path in sorted((run_dir / "checkpoints").glob("tokens-*")))
    assert (grown.progress.phase, grown.progress.num_steps) == ("grown", 0)
    command = ["grow", str(run_dir / "exports" / "base"), str(tmp_path / "grown"), *options, "--json"]
    ended = CliRunner().invoke(checkpoint, command)
    assert ended.exit_code == 0, ended.output
    model, _ = grown.read_whole()
    written = load_file(tmp_path / "grown" / "model.safetensors")
    assert written.keys() == model.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in model.items())


def test_the_fade_in_ends_in_a_plain_model(tmp_path: Path, write_run: Write) -> None:
    run_dir = write_run(tmp_path / "run", **SHORT, **RANDOM)
    assert main([str(run_dir)], Pause()) == ExitCode.DONE
    model = AutoModelForCausalLM.from_pretrained(run_dir / "exports" / "final")
    final = values_of(run_dir, "validation_loss", "grown")[5_120]
    # A mask left on would be missing here: the export's loss is the run's.
    spec = read_spec(run_dir)
    stream = open_corpus(spec).validation
    windows = stream.windows(validation_windows(num_available=stream.num_windows(32), num_windows=8), 32)
    assert evaluate(model, torch.from_numpy(windows), batch_sequences=4, precision="fp32") == pytest.approx(final)


def test_a_growth_that_is_not_defined_is_refused_before_training(tmp_path: Path, write_run: Write) -> None:
    run_dir = write_run(tmp_path / "run", **SHORT, **LEARN, growth__optimizer_state_policy="copy")
    assert main([str(run_dir)], Pause()) == ExitCode.BAD_SPEC
    ((event, message),) = events(run_dir)
    assert event == "failed"
    assert "optimizer_state_policy is 'copy', but operator 'learn'" in message


# --- batches and how steps are taken -------------------------------------------------------------------------


def test_the_batch_may_change_at_growth(tmp_path: Path, write_run: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    train_windows = trainer.train_windows

    def record(sequences: Any, **options: Any) -> Any:
        asked.extend(sequences.tolist())
        return train_windows(sequences, **options)

    monkeypatch.setattr(trainer, "train_windows", record)
    run_dir = write_run(tmp_path / "run", **SHORT, training__base_batch_sequences=2)
    assert main([str(run_dir)], Pause()) == ExitCode.DONE
    assert asked == list(range((2_560 + 5_120) // 32))


@pytest.mark.parametrize("options", [{"micro_batch_sequences": 1}, {"activation_checkpointing": True}])
def test_how_a_step_is_taken_does_not_change_what_is_learned(
    tmp_path: Path, write_run: Write, options: dict[str, Any]
) -> None:
    plain, other = write_run(tmp_path / "plain", **SHORT), write_run(tmp_path / "other", **SHORT, **options)
    for run_dir in (plain, other):
        assert main([str(run_dir)], Pause()) == ExitCode.DONE
    ours, theirs = values_of(plain, "train_loss", "grown"), values_of(other, "train_loss", "grown")
    assert list(ours) == list(theirs)
    assert list(ours.values()) == pytest.approx(list(theirs.values()), abs=1e-4)
    if "activation_checkpointing" in options:
        assert exported(plain, "final") == exported(other, "final")


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_other_families_train_grow_and_export(tmp_path: Path, write_run: Write, family: str) -> None:
    run_dir = write_run(tmp_path / "run", **SHORT, model__family=family)
    assert main([str(run_dir)], Pause()) == ExitCode.DONE
    model, loading = AutoModelForCausalLM.from_pretrained(run_dir / "exports" / "final", output_loading_info=True)
    assert not any(loading.values()), loading
    assert model.config.model_type == family
    losses = values_of(run_dir, "validation_loss", "grown")
    assert losses[5_120] < losses[0]
