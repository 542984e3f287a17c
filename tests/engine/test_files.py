"""Line files: what they hold after crashes, damage and repeats."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.engine.errors import BadDataError
from app.engine.metrics import EventsWriter, LineFile, MetricsWriter


def write_metrics(run_dir: Path, values: list[float], *, first_seq: int = 1) -> MetricsWriter:
    writer = MetricsWriter(run_dir)
    writer.next_seq = first_seq
    for value in values:
        writer.write("train_loss", value, phase="base", tokens=1, compute_flops=2.0, dataset="d", unit="nats")
    writer.close()
    return writer


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


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
