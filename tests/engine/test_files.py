"""Line files and checkpoints: what they hold after crashes, damage and repeats."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.contract import Spec
from app.engine.checkpoints import CheckpointFolder, Progress, fingerprint
from app.engine.errors import BadDataError, BadSpecError
from app.engine.metrics import EventsWriter, LineFile, MetricsWriter
from app.records import from_dict


def write_metrics(run_dir: Path, values: list[float], *, first_seq: int = 1) -> MetricsWriter:
    writer = MetricsWriter(run_dir)
    writer.next_seq = first_seq
    for value in values:
        writer.write("train_loss", value, phase="base", tokens=1, compute_flops=2.0, dataset="d", unit="nats")
    writer.close()
    return writer


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- line files --------------------------------------------------------------------------------------------


def test_lines_written_before_are_not_written_again(tmp_path: Path) -> None:
    write_metrics(tmp_path, [1.0, 2.0, 3.0])
    writer = write_metrics(tmp_path, [2.5, 3.5, 4.0, 5.0], first_seq=2)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [(line["seq"], line["value"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 5.0)]
    assert (writer.next_seq, writer.last_seq) == (6, 5)


@pytest.mark.parametrize("torn", [b'{"seq": 4, "val', b'{"seq": 4}', b"\0" * 40, b'{"value": 1}\n', b'{"seq": 3}\n'])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    write_metrics(tmp_path, [1.0, 2.0, 3.0])
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    LineFile(path).close()
    assert path.read_bytes() == whole


def test_damage_before_the_last_line_is_refused_and_left_alone(tmp_path: Path) -> None:
    write_metrics(tmp_path, [1.0, 2.0, 3.0])
    path = tmp_path / "metrics.jsonl"
    damaged = path.read_bytes().replace(b'"seq": 2', b'"seq": x')
    path.write_bytes(damaged)
    with pytest.raises(BadDataError, match=r"metrics.jsonl is damaged after seq 1; restore the file"):
        LineFile(path)
    assert path.read_bytes() == damaged


def test_events_are_numbered_by_line_over_restarts(tmp_path: Path) -> None:
    for life in range(2):
        events = EventsWriter(tmp_path)
        events.write("started", f"life {life}")
        events.move_to("base", 128)
        events.write("checkpoint", "c")
        events.close()
    lines = read_lines(tmp_path / "events.jsonl")
    assert [line["seq"] for line in lines] == [1, 2, 3, 4]
    assert [line["phase"] for line in lines] == [None, "base", None, "base"]


# --- checkpoints -------------------------------------------------------------------------------------------


@pytest.fixture
def spec(spec_values: Callable[..., dict[str, Any]]) -> Spec:
    return from_dict(Spec, spec_values())


def save(folder: CheckpointFolder, num_steps: int, *, phase: str = "base", next_seq: int = 1) -> Progress:
    progress = Progress(
        phase=phase, num_steps=num_steps, run_tokens=128 * num_steps, next_seq=next_seq, loss_sum=0.1 + num_steps,
        grad_norm_sum=1 / 3, num_summed_steps=2, num_high_lines=1, validation_loss_nats=None, elapsed_seconds=1.5,
    )  # type: ignore[arg-type] # fmt: skip
    weight = torch.full((2, 3), float(num_steps))
    assert folder.save(progress, {"a.weight": weight}, {"a.weight": {"step": torch.tensor(3.0), "exp_avg": weight + 1}})
    return progress


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_a_checkpoint_comes_back_exactly(tmp_path: Path, spec: Spec) -> None:
    folder = CheckpointFolder(tmp_path, fingerprint(spec, "hash"))
    assert folder.load_latest(last_seq=0) == (None, [])
    progress = save(folder, 7)
    checkpoint, refusals = folder.load_latest(last_seq=0)
    assert checkpoint is not None
    assert refusals == []
    assert checkpoint.progress == progress
    assert torch.equal(checkpoint.model["a.weight"], torch.full((2, 3), 7.0))
    assert torch.equal(checkpoint.optimizer["a.weight"]["exp_avg"], torch.full((2, 3), 8.0))
    assert checkpoint.optimizer["a.weight"]["step"] == 3.0


def test_the_last_two_are_kept_and_a_position_is_saved_once(tmp_path: Path, spec: Spec) -> None:
    folder = CheckpointFolder(tmp_path, fingerprint(spec, "hash"))
    for num_steps in (1, 2, 3):
        save(folder, num_steps)
    progress = save(folder, 3, phase="grown")
    assert names(tmp_path) == ["tokens-000000000000384-base", "tokens-000000000000384-grown"]
    assert not folder.save(progress, {}, {})
    checkpoint, _ = folder.load_latest(last_seq=0)
    assert checkpoint is not None
    assert checkpoint.progress.phase == "grown"


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("state.safetensors", lambda data: data[:-10]),
        ("state.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("checkpoint.json", lambda data: data[: len(data) // 2]),
        ("checkpoint.json", lambda data: b""),
        ("checkpoint.json", lambda data: b"[]"),
        ("state.safetensors", None),
        ("checkpoint.json", None),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, spec: Spec, file: str, damage: Callable[[bytes], bytes] | None
) -> None:
    folder = CheckpointFolder(tmp_path, fingerprint(spec, "hash"))
    save(folder, 1)
    save(folder, 2)
    path = tmp_path / "checkpoints" / "tokens-000000000000256-base" / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    checkpoint, refusals = folder.load_latest(last_seq=0)
    assert checkpoint is not None
    assert checkpoint.progress.num_steps == 1
    assert len(refusals) == 1
    assert "tokens-000000000000256-base is damaged" in refusals[0]
    save(folder, 2)  # the position can be saved again
    checkpoint, refusals = folder.load_latest(last_seq=0)
    assert checkpoint is not None
    assert (checkpoint.progress.num_steps, refusals) == (2, [])


def test_what_a_crash_left_beside_is_no_checkpoint(tmp_path: Path, spec: Spec) -> None:
    folder = CheckpointFolder(tmp_path, fingerprint(spec, "hash"))
    save(folder, 1)
    (tmp_path / "checkpoints" / ".tokens-000000000000999-base.partial").mkdir()
    checkpoint, refusals = folder.load_latest(last_seq=0)
    assert checkpoint is not None
    assert (checkpoint.progress.num_steps, refusals) == (1, [])
    save(folder, 2)
    assert names(tmp_path) == ["tokens-000000000000128-base", "tokens-000000000000256-base"]


def test_a_checkpoint_of_another_spec_or_corpus_is_refused(
    tmp_path: Path, spec: Spec, spec_values: Callable[..., dict[str, Any]]
) -> None:
    save(CheckpointFolder(tmp_path, fingerprint(spec, "hash")), 1)
    renamed = from_dict(Spec, spec_values(name="renamed", device="auto", num_threads=2))
    checkpoint, _ = CheckpointFolder(tmp_path, fingerprint(renamed, "hash")).load_latest(last_seq=0)
    assert checkpoint is not None
    other = from_dict(Spec, spec_values(training__peak_lr=2e-2))
    for changed in (fingerprint(other, "hash"), fingerprint(spec, "other text")):
        with pytest.raises(BadSpecError, match=r"another spec or corpus; restore spec\.json"):
            CheckpointFolder(tmp_path, changed).load_latest(last_seq=0)


def test_a_checkpoint_ahead_of_the_curve_is_refused_not_dropped(tmp_path: Path, spec: Spec) -> None:
    folder = CheckpointFolder(tmp_path, fingerprint(spec, "hash"))
    save(folder, 1, next_seq=12)
    with pytest.raises(BadDataError, match=r"ends at seq 10, but .* goes on from 12; restore the file"):
        folder.load_latest(last_seq=10)
    checkpoint, _ = folder.load_latest(last_seq=11)
    assert checkpoint is not None
