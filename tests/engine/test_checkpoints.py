"""Checkpoints: what they hold after crashes, damage, failed writes and repeats, and how long they stay."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.contract import Spec
from app.engine.checkpoints import CheckpointFolder, Keep, Progress, fingerprint, flat_names, open_checkpoint
from app.engine.errors import BadDataError, BadSpecError
from app.records import from_dict

BASE_1, BASE_2, BASE_3 = (f"tokens-{tokens:015d}-base" for tokens in (128, 256, 384))


@pytest.fixture
def spec(spec_values: Callable[..., dict[str, Any]]) -> Spec:
    return from_dict(Spec, spec_values())


@pytest.fixture
def folder(tmp_path: Path, spec: Spec) -> CheckpointFolder:
    return CheckpointFolder(tmp_path, fingerprint(spec, "hash"))


def progress_at(num_steps: int, phase: str = "base", next_seq: int = 1) -> Progress:
    return Progress(
        phase=phase, num_steps=num_steps, run_tokens=128 * num_steps, next_seq=next_seq, loss_sum=0.1 + num_steps,
        grad_norm_sum=1 / 3, num_summed_steps=2, num_high_lines=1, validation_loss_nats=None, elapsed_seconds=1.5,
    )  # type: ignore[arg-type] # fmt: skip


def state(value: float) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    """Weights and moments, all made of ``value``; one parameter has had no step yet."""
    weight = torch.full((2, 3), value)
    moments = {"step": torch.tensor(3.0), "exp_avg": weight + 1, "exp_avg_sq": weight * weight}
    return {"a.weight": weight, "b.bias": torch.full((5,), -value)}, {"a.weight": moments}


def save(
    folder: CheckpointFolder, num_steps: int, *, phase: str = "base", next_seq: int = 1, keep: Keep = "recent"
) -> Progress:
    progress = progress_at(num_steps, phase, next_seq)
    assert folder.save(progress, *state(float(num_steps)), keep=keep)
    return progress


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def newest_steps(folder: CheckpointFolder) -> tuple[int, list[str]]:
    checkpoint, refusals = folder.load_latest(last_seq=0)
    assert checkpoint is not None
    return checkpoint.progress.num_steps, refusals


# --- what comes back ---------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_exactly(folder: CheckpointFolder) -> None:
    assert folder.load_latest(last_seq=0) == (None, [])
    progress = save(folder, 7)
    checkpoint, refusals = folder.load_latest(last_seq=0)
    assert checkpoint is not None
    assert refusals == []
    assert checkpoint.progress == progress
    model, optimizer = checkpoint.read_whole()
    want_model, want_optimizer = state(7.0)
    assert flat_names(model, optimizer).keys() == flat_names(want_model, want_optimizer).keys()
    for name, tensor in flat_names(want_model, want_optimizer).items():
        assert torch.equal(flat_names(model, optimizer)[name], tensor)
    assert checkpoint.names_with_state() == {"a.weight"}


def test_it_is_read_into_tensors_that_stand(folder: CheckpointFolder) -> None:
    save(folder, 7)
    checkpoint, _ = folder.load_latest(last_seq=0)
    assert checkpoint is not None
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    checkpoint.read({"model.a.weight": parameter.detach()})
    assert torch.equal(parameter.detach(), torch.full((2, 3), 7.0))
    for name, shape in (("model.a.weight", (3, 3)), ("model.c.weight", (2, 3))):
        with pytest.raises(BadDataError, match=rf"holds {name} as .* is needed; it was written for another model"):
            checkpoint.read({name: torch.zeros(shape)})


def test_what_is_saved_is_the_state_of_that_moment(folder: CheckpointFolder) -> None:
    model, optimizer = state(1.0)
    folder.save(progress_at(1), model, optimizer)
    # The trainer's next step, while the background may still write.
    for tensor in flat_names(model, optimizer).values():
        tensor.fill_(99.0)
    checkpoint, _ = folder.load_latest(last_seq=0)
    assert checkpoint is not None
    assert all(not (tensor == 99.0).any() for tensor in flat_names(*checkpoint.read_whole()).values())


def test_the_names_of_what_reached_the_disk_are_told_once(folder: CheckpointFolder) -> None:
    save(folder, 1)
    folder.wait()
    assert folder.take_committed() == [BASE_1]
    assert folder.take_committed() == []


def test_it_is_data_and_never_code(tmp_path: Path, folder: CheckpointFolder) -> None:
    save(folder, 1)
    folder.wait()
    path = tmp_path / "checkpoints" / BASE_1
    files = {file.suffix for file in path.iterdir()}
    assert files == {".json", ".safetensors"}
    tensors = [load_file(file) for file in path.glob("*.safetensors")]
    assert {name for part in tensors for name in part} == flat_names(*state(1.0)).keys()

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    # Where torch's own storage keeps its index.
    (path / ".metadata").write_bytes(pickle.dumps(Evil()))
    open_checkpoint(path).read_whole()
    assert not (tmp_path / "executed").exists()


# --- how long they stay ------------------------------------------------------------------------------------


def test_the_last_two_are_kept_and_a_position_is_saved_once(tmp_path: Path, folder: CheckpointFolder) -> None:
    for num_steps in (1, 2, 3):
        save(folder, num_steps)
    progress = save(folder, 3, phase="grown")
    assert not folder.save(progress, {}, {})
    assert names(tmp_path) == [BASE_3, "tokens-000000000000384-grown"]
    checkpoint, _ = folder.load_latest(last_seq=0)
    assert checkpoint is not None
    assert checkpoint.progress.phase == "grown"


def test_phase_ends_stay_until_the_run_ends_and_trunk_checkpoints_for_good(
    tmp_path: Path, folder: CheckpointFolder
) -> None:
    save(folder, 1, keep="always")
    save(folder, 2, keep="run")
    for num_steps in (3, 4, 5, 6):
        save(folder, num_steps)
    folder.wait()
    assert [int(name.split("-")[1]) // 128 for name in names(tmp_path)] == [1, 2, 5, 6]
    folder.remove()
    assert names(tmp_path) == [BASE_1]


def test_a_run_without_trunk_checkpoints_leaves_no_folder(tmp_path: Path, folder: CheckpointFolder) -> None:
    save(folder, 1, keep="run")
    folder.remove()
    assert not (tmp_path / "checkpoints").exists()


def test_a_leg_opens_its_trunks_checkpoint(tmp_path: Path, folder: CheckpointFolder) -> None:
    save(folder, 1, keep="always")
    save(folder, 2)
    folder.wait()
    of_leg = CheckpointFolder(tmp_path, "another fingerprint")
    checkpoint = of_leg.load_at(128)
    assert checkpoint.progress.num_steps == 1
    assert checkpoint.fingerprint != "another fingerprint"
    with pytest.raises(BadSpecError, match=r"no checkpoint at 129 tokens in .*, which has 128, 256; branch off one"):
        of_leg.load_at(129)
    file = next(checkpoint.path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BadDataError, match=r"is damaged .* branch off another checkpoint"):
        of_leg.load_at(128)


# --- damage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("*.safetensors", lambda data: data[:-10]),
        ("*.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("checkpoint.json", lambda data: data[: len(data) // 2]),
        ("checkpoint.json", lambda data: b""),
        ("checkpoint.json", lambda data: b"[]"),
        ("*.safetensors", None),
        ("checkpoint.json", None),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, folder: CheckpointFolder, file: str, damage: Callable[[bytes], bytes] | None
) -> None:
    save(folder, 1)
    save(folder, 2)
    folder.wait()
    path = next((tmp_path / "checkpoints" / BASE_2).glob(file))
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    num_steps, refusals = newest_steps(folder)
    assert num_steps == 1
    assert len(refusals) == 1
    assert f"{BASE_2} is damaged" in refusals[0]
    assert f"damaged-{BASE_2}" in names(tmp_path)
    save(folder, 2)  # the position can be saved again
    assert newest_steps(folder) == (2, [])


def test_what_a_crash_left_beside_is_no_checkpoint(tmp_path: Path, folder: CheckpointFolder) -> None:
    save(folder, 1)
    folder.wait()
    (tmp_path / "checkpoints" / ".tokens-000000000000999-base.partial").mkdir()
    assert newest_steps(folder) == (1, [])
    save(folder, 2)
    folder.wait()
    assert names(tmp_path) == [BASE_1, BASE_2]


def test_a_save_that_fails_is_told_by_the_next_one_and_leaves_nothing(tmp_path: Path, folder: CheckpointFolder) -> None:
    save(folder, 1)
    folder.wait()
    in_the_way = tmp_path / "checkpoints" / f".{BASE_2}.partial"
    in_the_way.write_text("a file where the folder must go")
    save(folder, 2)
    with pytest.raises(FileExistsError):
        folder.save(progress_at(3), *state(3.0))
    assert folder.take_committed() == [BASE_1]
    assert newest_steps(folder) == (1, [])
    in_the_way.unlink()
    save(folder, 2)
    assert newest_steps(folder) == (2, [])


# --- whose they are ----------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_spec_or_corpus_is_refused(
    tmp_path: Path, folder: CheckpointFolder, spec: Spec, spec_values: Callable[..., dict[str, Any]]
) -> None:
    save(folder, 1)
    folder.wait()
    renamed = from_dict(Spec, spec_values(name="renamed", device="auto", num_threads=2, num_processes=2))
    assert newest_steps(CheckpointFolder(tmp_path, fingerprint(renamed, "hash"))) == (1, [])
    other = from_dict(Spec, spec_values(training__peak_lr=2e-2))
    for changed in (fingerprint(other, "hash"), fingerprint(spec, "other text")):
        with pytest.raises(BadSpecError, match=r"another spec or corpus; restore spec\.json"):
            CheckpointFolder(tmp_path, changed).load_latest(last_seq=0)


def test_a_checkpoint_of_another_version_is_refused_not_dropped(tmp_path: Path, folder: CheckpointFolder) -> None:
    save(folder, 1)
    folder.wait()
    header = tmp_path / "checkpoints" / BASE_1 / "checkpoint.json"
    header.write_text(json.dumps({**json.loads(header.read_text()), "version": 1}))
    with pytest.raises(BadSpecError, match=r"is 1, but this engine reads 2; resume with the engine that wrote it"):
        folder.load_latest(last_seq=0)
    assert names(tmp_path) == [BASE_1]


def test_a_checkpoint_ahead_of_the_curve_is_refused_not_dropped(folder: CheckpointFolder) -> None:
    save(folder, 1, next_seq=12)
    with pytest.raises(BadDataError, match=r"ends at seq 10, but .* goes on from 12; restore the file"):
        folder.load_latest(last_seq=10)
    checkpoint, _ = folder.load_latest(last_seq=11)
    assert checkpoint is not None


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match=r"is no whole checkpoint .*; name a folder below checkpoints/"):
        open_checkpoint(tmp_path)
