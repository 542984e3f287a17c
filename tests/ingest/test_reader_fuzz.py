"""Whatever bytes come, a reader gives rows or an InputError, and a run is built whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.ingest.build import build_runs
from app.ingest.imported import ImportFiles, ImportOptions
from app.ingest.logs.recognise import FORMATS, read_logs
from app.ingest.logs.rows import ColumnMap, LogFile
from fitting.errors import InputError

LOGS = Path(__file__).parent / "logs"
REAL = {
    "transformers": "trainer_state.json", "megatron": "megatron.log", "tensorboard": "events.out.tfevents.1",
    "lightning": "metrics.csv", "nanochat": "results.csv", "csv": "metrics.csv", "jsonl": "trainer_state.json",
    "parquet": "metrics.csv", "wandb": "8-layers.wandb.jsonl",
}  # fmt: skip
QUIET = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
numbers = st.one_of(
    st.integers(-5, 60), st.floats(allow_nan=True), st.sampled_from(["", "x", "1e999", "nan", None, True, [1]])
)


def read(content: bytes, format_name: str | None) -> None:
    try:
        logs = read_logs([LogFile(name="given", content=content)], format_name)
    except InputError:
        return
    for log in logs:
        assert log.rows
        assert all(row.step >= 0 and all(isinstance(value, float) for value in row.values.values()) for row in log.rows)


@pytest.mark.parametrize("format_name", [*FORMATS, None])
@QUIET
@given(content=st.binary(max_size=400))
@example(content=b"")
@example(content=b'"')
@example(content=b"step,loss\n" + b"9" * 5000 + b",1\n")
@example(content=b'{"log_history": [{"step": 1e400, "loss": 1}]}')
def test_any_bytes_give_rows_or_an_input_error(format_name: str | None, content: bytes) -> None:
    if format_name == "tensorboard":
        pytest.importorskip("tensorboard", reason="pip install 'growthlaw[tensorboard]'")
    read(content, format_name)


@pytest.mark.parametrize("format_name", FORMATS)
@QUIET
@given(data=st.data())
def test_a_real_log_damaged_anywhere_gives_rows_or_an_input_error(format_name: str, data: Any) -> None:
    if format_name == "tensorboard":
        pytest.importorskip("tensorboard", reason="pip install 'growthlaw[tensorboard]'")
    content = (LOGS / REAL[format_name]).read_bytes()
    at = data.draw(st.integers(0, len(content)))
    length = data.draw(st.integers(0, 200))
    read(content[:at] + data.draw(st.binary(max_size=40)) + content[at + length :], format_name)


@QUIET
@given(
    rows=st.lists(
        st.fixed_dictionaries({"step": numbers}, optional={"loss": numbers, "val": numbers, "tok": numbers}), max_size=12
    ),
    tokens=st.sampled_from([None, "step * 1024", "tok", "tok + step", "1 / step", "tok // loss"]),
    split=st.integers(0, 12),
)  # fmt: skip
def test_any_rows_give_a_whole_run_or_an_input_error(
    rows: list[dict[str, Any]], tokens: str | None, split: int
) -> None:
    def file(part: list[dict[str, Any]]) -> tuple[LogFile, ...]:
        text = "".join(json.dumps(row) + "\n" for row in part)
        return (LogFile(name="log.jsonl", content=text.encode()),) if part else ()

    options = ImportOptions(
        cohort="c", name="n", format="jsonl", tokens=tokens, target_params=2e6, base_params=1e6,
        columns=(ColumnMap(column="loss", metric="train_loss", unit="nats"),
                 ColumnMap(column="val", metric="validation_loss", dataset="web", unit="nats")),
    )  # fmt: skip
    for files in (
        ImportFiles(single=file(rows)),
        ImportFiles(base=file(rows[:split]), grown=file(rows[split:])),
    ):
        try:
            (run,) = build_runs(files, options)
        except InputError:
            continue
        order = [("base", "grown", "single").index(point.phase) for point in run.points]
        assert order == sorted(order)
        flops = [point.compute_flops for point in run.points]
        assert flops == sorted(flops)
        assert 0 <= min(flops) <= max(flops) <= run.header["compute_flops"] * (1 + 1e-12)
        assert run.wasted_flops >= 0
        assert len(run.content_hash) == 64
