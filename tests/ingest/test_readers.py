"""Each reader on a log of its tool: rows, tokens, data sets, units. How the logs came about: `make_logs.py`."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.ingest.joining import join
from app.ingest.logs.recognise import FORMATS, read_logs, recognise
from app.ingest.logs.rows import Log, LogFile
from app.ingest.stages import Stage, stage_of
from fitting.errors import InputError

LOGS = Path(__file__).parent / "logs"


def logged(*names: str) -> tuple[LogFile, ...]:
    return tuple(LogFile(name=name, content=(LOGS / name).read_bytes()) for name in names)


def one(*names: str, format_name: str | None = None) -> Log:
    (log,) = read_logs(logged(*names), format_name)
    return log


def stage(log: Log, tokens: str | None = None, **options: Any) -> Stage:
    return stage_of(log, options.get("columns", ()), tokens, options.get("batch_ramp", ()), "validation_loss")


def values(found: Stage, metric: str, dataset: str = "") -> list[tuple[int, float]]:
    return [
        (point.tokens, round(point.value, 6))
        for point in found.points
        if (point.column.metric, point.column.dataset) == (metric, dataset)
    ]


def test_transformers_own_state_gives_tokens_and_each_evaluation_set() -> None:
    found = stage(one("trainer_state.json"))
    # 4 sequences of 32 tokens a step, 12 steps; logged every second, evaluated every fourth.
    assert [tokens for tokens, _ in values(found, "train_loss")] == [256, 512, 768, 1024, 1280, 1536]
    assert values(found, "validation_loss", "web")[0] == (512, 4.16306)
    assert values(found, "validation_loss", "code")[0] == (512, 4.153627)
    assert len(values(found, "validation_loss", "web")) == 3
    assert found.end_tokens == 1536
    assert found.tokens_described == "column num_input_tokens_seen"
    assert (found.diverged_at, found.ended_early_at, found.num_rollbacks) == (None, None, 0)


def test_megatron_lines_count_samples_and_join_the_restart() -> None:
    log = one("megatron.log")
    found = stage(log, "tokens = consumed_samples * 2048")
    assert found.format == "megatron"
    assert log.planned_steps == 120
    # Killed behind iteration 80, back at 60: 70 and 80 come from the second branch; 20 steps of 8 x 2048 tokens are wasted.
    assert dict(values(found, "train_loss"))[70 * 8 * 2048] == pytest.approx(5 - 0.12 * 7)
    assert dict(values(found, "train_loss"))[60 * 8 * 2048] == pytest.approx(5 - 0.1 * 6)
    assert values(found, "validation_loss", "validation") == [
        (tokens * 8 * 2048, pytest.approx(loss)) for tokens, loss in ((40, 4.65), (80, 4.09), (120, 3.61))
    ]
    assert values(found, "validation_loss", "test") == [(120 * 8 * 2048, 3.65)]
    assert (found.num_rollbacks, found.wasted_tokens, found.end_tokens) == (1, 20 * 8 * 2048, 120 * 8 * 2048)


def test_torchtitan_event_files_join_where_the_second_goes_on() -> None:
    pytest.importorskip("tensorboard", reason="pip install 'growthlaw[tensorboard]'")
    found = stage(one("events.out.tfevents.1", "events.out.tfevents.2"))
    assert [tokens // 4096 for tokens, _ in values(found, "train_loss")] == list(range(1, 13))
    # Steps 6 to 8 of the first file stood 0.5 higher.
    assert dict(values(found, "train_loss"))[6 * 4096] == pytest.approx(3.4, abs=1e-6)
    assert values(found, "validation_loss", "validation")[1] == (8 * 4096, pytest.approx(3.25, abs=1e-6))
    assert (found.num_rollbacks, found.wasted_tokens) == (1, 3 * 4096)
    assert found.points[0].time.startswith("20")


def test_megatron_event_files_take_their_losses_over_steps_alone(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'growthlaw[tensorboard]'")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(tmp_path))
    # Megatron-LM core_v0.16: training_log, and evaluate_and_print_results with one validation set.
    for step in range(100, 501, 100):
        tags = {
            "lm loss": 5 - step / 500,
            "lm loss vs samples": 99.0,
            "learning-rate": 1e-3,
            "learning-rate vs samples": 99.0,
        }
        if step % 200 == 0:
            tags |= {"lm loss validation": 5.1 - step / 500, "lm loss validation vs samples": 99.0}
        for tag, value in tags.items():
            at = step * 256 if tag.endswith("vs samples") else step
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.add_event(Event(step=at, wall_time=1.75e9 + step, summary=summary))
    writer.close()
    (path,) = tmp_path.iterdir()
    (log,) = read_logs([LogFile(name=path.name, content=path.read_bytes())])
    found = stage(log, batch_ramp=((1, 256 * 2048), (201, 512 * 2048)))
    # 200 steps of 256 sequences, then 512.
    assert [tokens // 2048 for tokens, _ in values(found, "train_loss")] == [25_600, 51_200, 102_400, 153_600, 204_800]
    assert values(found, "validation_loss", "validation") == [(51_200 * 2048, 4.7), (153_600 * 2048, 4.3)]
    assert {value for _, value in values(found, "learning_rate")} == {0.001}
    with pytest.raises(InputError, match="tokens are not in this tensorboard log, and they are never guessed"):
        stage(log)


def test_an_event_file_cut_off_by_a_crash_is_read_as_far_as_it_is_whole() -> None:
    pytest.importorskip("tensorboard", reason="pip install 'growthlaw[tensorboard]'")
    (whole,) = logged("events.out.tfevents.1")
    (log,) = read_logs([LogFile(name="cut", content=whole.content[:-200])])
    assert 0 < len(log.rows) < len(one("events.out.tfevents.1").rows)


def test_litgpt_rows_take_the_tokens_of_all_processes() -> None:
    found = stage(one("metrics.csv"))
    assert found.format == "lightning"
    assert values(found, "train_loss") == [(2048, 3.8), (4096, 3.6), (6144, 3.4), (8192, 3.2)]
    assert values(found, "validation_loss", "validation") == [(4096, 3.65), (8192, 3.25)]


def test_nanochat_results_are_a_run_a_row_in_bits_per_byte() -> None:
    logs = read_logs(logged("results.csv"))
    assert [(log.name, log.target_params) for log in logs] == [("d8-1e18", 25_165_824), ("d10-1e18", 49_152_000)]
    (point,) = stage(logs[0]).points
    assert (point.tokens, point.value, point.column.unit) == (1_572_864_000, 0.981, "bits per byte")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b"step;loss;note\n1;3.5;a\n2;3.25;b\n"),
        ("t.csv", b"\xef\xbb\xbfstep,loss,note\r\n1,3.5,a\r\n2,3.25,b\r\n"),
        ("t.jsonl", b'{"step": 1, "loss": 3.5, "note": "a"}\n\n{"step": 2, "loss": 3.25}\n'),
    ],
)
def test_any_table_with_a_map(name: str, content: bytes) -> None:
    (log,) = read_logs([LogFile(name=name, content=content)])
    assert [(row.step, row.values["loss"]) for row in log.rows] == [(1, 3.5), (2, 3.25)]
    with pytest.raises(InputError, match="never guessed; say how they count, as in --tokens 'step"):
        stage(log)
    with pytest.raises(InputError, match=r"map is needed.*give METRIC=COLUMN"):
        stage(log, "step * 1024")


def test_parquet_reads_number_columns_alone() -> None:
    table = pa.table({"iteration": [1, 2], "loss": [3.5, 3.25], "text": ["a", "b"], "list": [[1], [2]]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    (log,) = read_logs([LogFile(name="t.parquet", content=buffer.getvalue())])
    assert log.format == "parquet"
    assert [(row.step, dict(row.values)) for row in log.rows] == [
        (1, {"loss": 3.5}),
        (2, {"loss": 3.25}),
    ]


def test_a_batch_ramp_counts_every_step_with_its_own_batch() -> None:
    content = "step,train\n" + "".join(f"{step},3.0\n" for step in range(1, 8))
    (log,) = read_logs([LogFile(name="t.csv", content=content.encode())])
    ramp = ((1, 10), (3, 100), (6, 1000))
    found = stage(log, batch_ramp=ramp, columns=[c_map("train")])
    # Steps 1, 2 read 10 each; 3, 4, 5 read 100 each; 6, 7 read 1000 each.
    assert [tokens for tokens, _ in values(found, "train_loss")] == [10, 20, 120, 220, 320, 1320, 2320]
    for bad in (((2, 10),), ((1, 10), (1, 20)), ((1, 0),)):
        with pytest.raises(InputError, match="batch_ramp"):
            stage(log, batch_ramp=bad, columns=[c_map("train")])


def c_map(column: str, metric: str = "train_loss") -> Any:
    from app.ingest.logs.rows import ColumnMap

    return ColumnMap(column=column, metric=metric, unit="nats")


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ("__import__('os').system('x')", "more than arithmetic"),
        ("step ** 9", "more than arithmetic"),
        ("(lambda: 1)()", "more than arithmetic"),
        ("step.real", "more than arithmetic"),
        ("'a' * 3", "more than arithmetic"),
        ("step * ", "no arithmetic"),
        ("(" * 300 + "1" + ")" * 300, "characters long|no arithmetic"),
        ("1 + " * 200 + "1", "characters long"),
        ("-" * 399 + "1", "no arithmetic|must lie in"),
        ("loss_of_sanity * 2", "names 'loss_of_sanity', which the log does not have"),
        ("step - 100", "must lie in 0 to"),
        ("1 / (step - step)", "can be told at no step"),
        ("step * 1e300", "must lie in 0 to"),
        ("100 - step", "fall from"),
    ],
)
def test_an_expression_is_arithmetic_and_nothing_else(tokens: str, words: str) -> None:
    (log,) = read_logs([LogFile(name="t.csv", content=b"step,loss\n1,3.5\n2,3.25\n")])
    with pytest.raises(InputError, match=words):
        stage(log, tokens, columns=[c_map("loss")])


def test_every_format_is_recognised_from_its_content() -> None:
    files = {"transformers": "trainer_state.json", "megatron": "megatron.log", "tensorboard": "events.out.tfevents.1",
             "lightning": "metrics.csv", "nanochat": "results.csv"}  # fmt: skip
    for format_name, name in files.items():
        (file,) = logged(name)
        assert recognise(LogFile(name="x", content=file.content)) == format_name
    assert set(files) < set(FORMATS)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04rest", "zip archive"),
        (b"\x80\x04\x95rest", "a pickle"),
        (b"\x1f\x8b\x08rest", "gzip archive"),
        (b"SQLite format 3\0rest", "a database"),
        (b"", "no known format"),
        (b"just words\nand more\n", "no known format"),
        (b"\xff\xfe\0\0", "no known format"),
        (b"a,a\n1,2\n", "the column 'a' twice"),
        (b"step,loss\n1,2,3\n", "has 3 cells in line 2"),
        (b"step,loss\nx,2\n", "step is 'x' in row 1"),
        (b"step,loss\n-1,2\n", "step is"),
        (b"step,loss\n", "holds no logged row"),
        (b'{"log_history": 3}', "has no log_history"),
        (b'{"log_history": [3]}', "no row at log_history"),
        (b'{"log_history": [{"loss": 3}]}', "step is 'None'"),
        (b'{"step": 1}\nnonsense\n', "is not JSON"),
        (b'{"a": ' + b"[" * 100_000, "is not JSON"),
        (b"PAR1 and no more", "no readable Parquet"),
    ],
)
def test_what_is_no_log_is_refused_by_name(content: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_logs([LogFile(name="given", content=content)])


def test_files_of_one_run_share_a_format() -> None:
    with pytest.raises(InputError, match="several formats"):
        read_logs(logged("metrics.csv", "megatron.log"))
    with pytest.raises(InputError, match=r"format is 'excel'.*use one of transformers"):
        read_logs(logged("metrics.csv"), "excel")


def test_a_fork_from_the_start_wastes_everything_before_it() -> None:
    (log,) = read_logs([LogFile(name="t.csv", content=b"step,loss\n1,5\n2,4\n3,3\n1,5\n2,4.5\n")])
    joined = join(log.rows)
    assert [(row.step, row.values["loss"]) for row in joined.rows] == [(1, 5), (2, 4.5)]
    assert [(stretch.after, [row.step for row in stretch.rows]) for stretch in joined.abandoned] == [(None, [1, 2, 3])]


def test_metrics_that_are_logged_late_are_no_restart() -> None:
    content = b"step,loss,val\n1,5,\n2,4,\n1,,5.5\n3,3,\n2,,4.5\n"
    (log,) = read_logs([LogFile(name="t.csv", content=content)])
    joined = join(log.rows)
    assert not joined.abandoned
    assert [dict(row.values) for row in joined.rows] == [{"loss": 5, "val": 5.5}, {"loss": 4, "val": 4.5}, {"loss": 3}]


def test_a_run_that_ends_without_a_number_has_diverged() -> None:
    (log,) = read_logs([LogFile(name="t.csv", content=b"step,loss\n1,5\n2,nan\n3,NaN\n")])
    found = stage(log, "step * 10", columns=[c_map("loss")])
    assert found.diverged_at == 3
    assert all(math.isfinite(point.value) for point in found.points)
    (healed,) = read_logs([LogFile(name="t.csv", content=b"step,loss\n1,5\n2,nan\n3,4\n")])
    assert stage(healed, "step * 10", columns=[c_map("loss")]).diverged_at is None


def test_a_step_column_of_any_name_is_named_and_rows_without_it_are_told() -> None:
    content = b"update,loss,tok\n10,3.5,100\n,3.4,\n20,3.25,200\n"
    (log,) = read_logs([LogFile(name="t.csv", content=content)], step="update")
    assert ([row.step for row in log.rows], log.num_stepless) == ([10, 20], 1)
    with pytest.raises(InputError, match=r"step is the column 'steps', which no row of t\.csv has"):
        read_logs([LogFile(name="t.csv", content=content)], step="steps")
    with pytest.raises(InputError, match="a megatron log says its steps itself"):
        read_logs(logged("megatron.log"), step="iteration")


def test_two_columns_of_one_name_in_an_expression_are_told() -> None:
    (log,) = read_logs([LogFile(name="t.csv", content=b"step,tokens seen,tokens/seen,loss\n1,10,20,3\n")])
    with pytest.raises(InputError, match="names 'tokens_seen', which is both 'tokens seen' and 'tokens/seen'"):
        stage(log, "tokens_seen * 2", columns=[c_map("loss")])
