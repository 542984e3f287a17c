"""Growing the engine's own training checkpoints: the run that goes on is the run that never stopped, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from app.commands.checkpoint import checkpoint
from app.contract import read_spec
from app.engine.__main__ import main
from app.engine.checkpoints import open_checkpoint
from app.engine.errors import BadDataError
from app.engine.growth import grow_model
from app.engine.launch import Pause
from app.engine.models import build_model
from app.engine.operators.base import growth_from_spec
from app.engine.operators.optimizer_state import grow_optimizer_tensors
from app.engine.operators.state_files import grow_training_checkpoint
from fitting.errors import InputError

BASE_TOKENS = 5_120  # 40 batches of 4 windows of 32 tokens


@pytest.fixture(scope="module")
def base_checkpoint(
    write_run: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Two layers trained alone, kept before their rate decays."""
    run_dir = write_run(
        tmp_path_factory.mktemp("base") / "run", growth=None, model__num_layers=2, training__tokens=7_680,
        keep_checkpoints_at_tokens=[BASE_TOKENS],
    )  # fmt: skip
    assert main([str(run_dir)], Pause()) == 0
    (path,) = (run_dir / "checkpoints").iterdir()
    return path


@pytest.fixture
def write_growth(write_run: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A function that makes the run directory of a growth off that base."""

    def write(**overrides: Any) -> Path:
        values = {"growth__growth_timing_tokens": BASE_TOKENS, "training__tokens": 2_560} | overrides
        if values.get("growth", 0) is None:
            del values["growth__growth_timing_tokens"]
        return write_run(tmp_path / f"run-{len(list(tmp_path.iterdir()))}", **values)

    return write


def test_the_run_that_goes_on_is_the_run_that_never_stopped(
    base_checkpoint: Path, write_growth: Callable[..., Path]
) -> None:
    whole, second = (write_growth(growth__optimizer_state_policy="copy") for _ in range(2))
    assert main([str(whole)], Pause()) == 0
    ran = CliRunner().invoke(checkpoint, ["grow-state", str(base_checkpoint), str(second)])
    assert ran.exit_code == 0, ran.output
    assert f"tokens-{BASE_TOKENS:015d}-grown is complete" in ran.output
    assert main([str(second)], Pause()) == 0
    results = [json.loads((run_dir / "result.json").read_text()) for run_dir in (whole, second)]
    for field in ("final_loss_nats", "base_tokens", "final_phase_tokens", "compute_flops"):
        assert results[0][field] == results[1][field], field
    ours, theirs = (load_file(run_dir / "exports/final/model.safetensors") for run_dir in (whole, second))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize(
    "overrides",
    [
        {"growth__operator": "zero", "growth__optimizer_state_policy": "keep_old_zero_new"},
        {"growth__order": "interpose", "growth__noise": 0.2},
        {
            "growth__width_factor": 2, "model__num_layers": 2, "model__hidden_size": 32, "model__num_heads": 4,
            "model__num_kv_heads": 2, "model__intermediate_size": 64, "growth__optimizer_state_policy": "copy",
        },
        {"growth__operator": "random", "growth__mask_tokens": 1_280},
    ],
    ids=["zero", "noise", "width", "random"],
)  # fmt: skip
def test_files_hold_what_live_growth_gives(
    overrides: dict[str, Any], base_checkpoint: Path, write_growth: Callable[..., Path]
) -> None:
    run_dir = write_growth(**overrides)
    path = grow_training_checkpoint(base_checkpoint, run_dir)
    spec = read_spec(run_dir)
    assert spec.growth is not None
    assert spec.base_model is not None
    weights, moments = open_checkpoint(base_checkpoint).read_whole()
    base = build_model(spec.base_model, num_layers=2)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            parameter.copy_(weights[name])
    growth = growth_from_spec(spec)
    target = grow_model(base, growth)
    names = [name for name, _ in target.named_parameters()]
    expected = grow_optimizer_tensors(moments, growth, base.config.to_dict(), names, spec.growth.optimizer_state_policy)
    model, optimizer = open_checkpoint(path).read_whole()
    assert list(path.parent.iterdir()) == [path]
    assert model.keys() == set(names)
    assert all(torch.equal(model[name], parameter) for name, parameter in target.named_parameters())
    assert optimizer.keys() == expected.keys()
    for name, state in expected.items():
        assert all(torch.equal(optimizer[name][key], tensor) for key, tensor in state.items()), name


def test_runs_that_do_not_fit_are_refused(
    base_checkpoint: Path, write_growth: Callable[..., Path], tmp_path: Path
) -> None:
    for overrides, message in (
        ({"growth": None, "training__warmup_tokens": 0}, "growth is absent"),
        (
            {"growth__operator": "learn", "growth__learn_steps": 1, "training__warmup_tokens": 0},
            "growth.operator is 'learn'",
        ),
        ({"growth__growth_timing_tokens": 5_248}, "means a base of 5248 tokens, but .* has seen 5120; set it to 5120"),
        ({"data_seed": 6}, "data_seed is 6, but .* with 5"),
        ({"growth__num_base_layers": 3}, "growth.num_base_layers and the model make .* absent"),
        ({"model__intermediate_size": 48}, "make model.layers.0.mlp.down_proj.weight 16x48 .* holds 16x32"),
        (
            {"growth__operator": "random", "growth__mask_tokens": 1_280, "growth__optimizer_state_policy": "copy"},
            "optimizer_state_policy is 'copy', but operator 'random' in depth",
        ),
    ):
        run_dir = write_growth(**overrides)
        with pytest.raises(InputError, match=message):
            grow_training_checkpoint(base_checkpoint, run_dir)
        assert [path.name for path in run_dir.iterdir()] == ["spec.json"]

    used = write_growth()
    (used / "checkpoints").mkdir()
    with pytest.raises(InputError, match="holds checkpoints already"):
        grow_training_checkpoint(base_checkpoint, used)

    copied = tmp_path / "copied"
    shutil.copytree(base_checkpoint.parent.parent, copied)
    damaged = copied / "checkpoints" / base_checkpoint.name
    (shard,) = damaged.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(BadDataError, match="no whole checkpoint"):
        grow_training_checkpoint(damaged, write_growth())

    spec = json.loads((base_checkpoint.parent.parent / "spec.json").read_text())
    edited = tmp_path / "edited"
    shutil.copytree(base_checkpoint.parent.parent, edited)
    (edited / "spec.json").write_text(json.dumps(spec | {"init_seed": 4}))
    with pytest.raises(InputError, match=r"another corpus, or its spec.json has changed"):
        grow_training_checkpoint(edited / "checkpoints" / base_checkpoint.name, write_growth())
