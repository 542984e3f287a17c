"""Decay legs off a trunk, and bases that come as a checkpoint: a run cut in two is the run undivided."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import PauseAfter, curve, events, exported, outcome, read_metrics, values_of
from safetensors.torch import load_file, save_file

from app.contract import ExitCode, ModelSpec, read_result
from app.engine.__main__ import main
from app.engine.given_base import load_base
from app.engine.launch import Pause
from app.engine.models import build_model, initialize

Write = Callable[..., Path]

SHORT = {
    "growth__growth_timing_tokens": 2_560, "training__tokens": 5_120, "training__warmup_tokens": 640,
    "evaluation__every_tokens": 1_280, "checkpoint_every_tokens": 1_000,
}  # fmt: skip


def run(run_dir: Path) -> Path:
    assert main([str(run_dir)], Pause()) == ExitCode.DONE, events(run_dir)
    return run_dir


def failure(run_dir: Path) -> str:
    assert main([str(run_dir)], Pause()) in (ExitCode.BAD_SPEC, ExitCode.BAD_DATA)
    event, message = events(run_dir)[-1]
    assert event == "failed"
    assert not (run_dir / "result.json").exists()
    return message


# --- decay legs ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory, write_run: Write) -> Path:
    run_dir = write_run(tmp_path_factory.mktemp("trunk") / "run", **SHORT, run_id="trunk-1",
                        training__schedule="constant", keep_checkpoints_at_tokens=[2_560, 4_096])  # fmt: skip
    return run(run_dir)


def leg_of(trunk: Path, write_run: Write, path: Path, **overrides: Any) -> Path:
    leg = {"trunk_run_dir": str(trunk), "trunk_id": "trunk-1", "branch_tokens": 4_096}
    leg["branch_tokens"] = overrides.pop("branch_tokens", 4_096)
    return write_run(path, **{**SHORT, "run_id": "leg-1", "trunk": leg, **overrides})


def test_a_trunk_keeps_what_its_legs_need(trunk: Path) -> None:
    names = sorted(path.name for path in (trunk / "checkpoints").iterdir())
    assert names == ["tokens-000000000005120-grown", "tokens-000000000006656-grown"]
    result = read_result(trunk)
    assert result is not None
    assert result.trunk_id == "trunk-1"


@pytest.mark.parametrize(
    ("branch_tokens", "overrides"),
    [
        (4_096, {}),
        # Another budget off the same trunk, from inside the growth's healing; its decay is longer than the trunk.
        (2_560, {"training__tokens": 6_400, "training__decay_fraction": 0.6, "training__final_lr_fraction": 0.0}),
    ],
)
def test_a_leg_is_the_undivided_run_bit_for_bit(
    tmp_path: Path, write_run: Write, trunk: Path, branch_tokens: int, overrides: dict[str, Any]
) -> None:
    leg = run(leg_of(trunk, write_run, tmp_path / "leg", branch_tokens=branch_tokens, **overrides))
    undivided = run(write_run(tmp_path / "undivided", **{**SHORT, **overrides}))

    def after_the_branch(run_dir: Path) -> list[tuple[Any, ...]]:
        return [line[1:] for line in curve(run_dir) if line[1] == "grown" and line[2] > branch_tokens]

    assert after_the_branch(leg) == after_the_branch(undivided)
    assert len(after_the_branch(leg)) == len(read_metrics(leg)), "the trunk's lines stay in the trunk's file"
    assert [line.seq for line in read_metrics(leg)] == list(range(1, len(read_metrics(leg)) + 1))
    assert exported(leg, "final") == exported(undivided, "final")
    ours, theirs = read_result(leg), read_result(undivided)
    assert ours is not None
    assert theirs is not None
    for field in ("final_loss_nats", "compute_flops", "base_tokens", "final_phase_tokens", "spike_height_nats"):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert (ours.trunk_id, theirs.trunk_id) == ("trunk-1", None)


def test_a_paused_leg_goes_on_from_its_own_checkpoint(tmp_path: Path, write_run: Write, trunk: Path) -> None:
    whole = run(leg_of(trunk, write_run, tmp_path / "whole"))
    paused = leg_of(trunk, write_run, tmp_path / "paused")
    assert main([str(paused)], PauseAfter(1 + 3)) == ExitCode.PAUSED
    run(paused)
    assert curve(paused) == curve(whole)
    assert outcome(paused) == outcome(whole)
    story = events(paused)
    assert "off trunk" in story[0][1]
    assert [event for event, _ in story].count("resumed") == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"training__peak_lr": 2e-2}, r"training\.peak_lr is 0\.02, but the trunk was trained with 0\.01"),
        ({"init_seed": 4}, r"init_seed is 4, but the trunk was trained with 3"),
        ({"growth__order": "interpose"}, r"growth\.order is 'interpose', but the trunk was trained with 'stack'"),
        ({"branch_tokens": 3_072}, r"no checkpoint at 5632 tokens .* which has 5120, 6656; branch off one of these"),
        (
            {"training__schedule": "power", "training__power_amplitude": 1e-3},
            r"training\.power_amplitude is 0\.001",
        ),
        ({"training__schedule": "power"}, r"training\.schedule gives a rate of .* the trunk was trained at"),
    ],
)
def test_a_leg_that_does_not_continue_its_trunk_is_refused(
    tmp_path: Path, write_run: Write, trunk: Path, overrides: dict[str, Any], message: str
) -> None:
    assert re.search(message, failure(leg_of(trunk, write_run, tmp_path / "leg", **overrides)))


def test_a_trunk_that_is_not_there_is_refused(tmp_path: Path, write_run: Write) -> None:
    message = failure(leg_of(tmp_path / "nowhere", write_run, tmp_path / "leg"))
    assert "trunk.trunk_run_dir is" in message
    assert "name the run directory of a trunk" in message


# --- a base that is given --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, write_run: Write) -> Path:
    return run(write_run(tmp_path_factory.mktemp("whole") / "run", **SHORT))


def test_from_a_given_base_only_the_grown_phase_trains_and_ends_the_same(
    tmp_path: Path, write_run: Write, whole: Path
) -> None:
    given = write_run(tmp_path / "given", **SHORT, growth__base_checkpoint=str(whole / "exports" / "base"))
    assert main([str(given)], PauseAfter(1 + 7)) == ExitCode.PAUSED
    run(given)
    grown = [line[1:] for line in curve(whole) if line[1] != "base"]
    ours = curve(given)
    assert [line[1:] for line in ours[1:]] == grown
    # The base's own loss is measured on this corpus: it is what the spike is counted from.
    assert ours[0][1:5] == ("base", 2_560, 2_560 * (read_result(whole)).base_flops_per_token, "validation_loss")  # type: ignore[union-attr]
    assert ours[0][7] == values_of(whole, "validation_loss", "base")[2_560]
    assert exported(given, "final") == exported(whole, "final")
    assert exported(given, "base") == []
    ours_result, theirs = read_result(given), read_result(whole)
    assert ours_result is not None
    assert theirs is not None
    assert (ours_result.compute_flops, ours_result.base_tokens) == (theirs.compute_flops, theirs.base_tokens)


def test_a_sharded_checkpoint_is_read_too(tmp_path: Path, write_run: Write, whole: Path) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(whole / "exports" / "base", folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    given = run(write_run(tmp_path / "given", **SHORT, growth__base_checkpoint=str(folder)))
    assert exported(given, "final") == exported(whole, "final")


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_stay_tied(tmp_path: Path, tied: bool) -> None:
    shape = ModelSpec(
        num_layers=2, hidden_size=16, num_heads=2, num_kv_heads=1, intermediate_size=32, vocab_size=64,
        context_length=32, tie_embeddings=tied,
    )  # fmt: skip
    model = build_model(shape, num_layers=2)
    initialize(model, seed=1)
    model.save_pretrained(tmp_path)
    base = load_base(tmp_path, shape)
    assert (base.lm_head.weight is base.model.embed_tokens.weight) == tied
    ours, theirs = dict(base.named_parameters()), dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def edit_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def point_outside(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "there is no config.json; name a transformers folder"),
        (lambda f: edit_config(f, num_hidden_layers=3), "config has num_hidden_layers 3, but the spec's base has 2"),
        (lambda f: edit_config(f, rms_norm_eps=1e-6), "config has rms_norm_eps 1e-06, but the spec's base has 1e-05"),
        (lambda f: edit_config(f, model_type="mistral"), "config has model_type 'mistral'"),
        (lambda f: edit_config(f, max_position_embeddings=16), "was made for 16"),
        (pickle_weights, "holds no model.safetensors; only safetensors are read"),
        (drop_tensor, "lacks the tensor model.norm.weight"),
        (cut_off, "model.safetensors is damaged"),
        (point_outside, "names '../model.safetensors', which is no safetensors file beside it"),
    ],
)
def test_a_base_that_is_not_the_specs_is_refused(
    tmp_path: Path, write_run: Write, whole: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(whole / "exports" / "base", folder)
    damage(folder)
    assert message in failure(write_run(tmp_path / "run", **SHORT, growth__base_checkpoint=str(folder)))
