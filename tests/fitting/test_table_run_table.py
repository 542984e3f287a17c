"""The run table refuses what would poison a fit, and names column, rows and mend."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from fitting.errors import InputError
from fitting.table import COLUMNS, REQUIRED_COLUMNS, data_hash, is_grown, read_runs

DESIGN_HEADER = """run_id, cohort, source, name, status, target_params, num_target_layers, hidden_size, num_heads,
num_kv_heads, intermediate_size, vocab_size, context_length, base_params, num_base_layers, growth_factor,
growth_timing_tokens, grown_tokens, operator, order, optimizer, optimizer_state_policy, peak_lr, base_peak_lr,
lr_selection, schedule, warmup_tokens, planned_tokens, decay_tokens, is_final, batch_tokens, tokenizer, corpus,
unique_tokens, init_seed, data_seed, trunk_id, control_id, parent_run_id, base_flops_per_token,
target_flops_per_token, compute_flops, final_loss, created_at, engine_numerics_version"""


def minimal(**columns: Any) -> pd.DataFrame:
    """Two rows of a real size with the required columns only."""
    values = {
        "cohort": ["c", "c"], "target_params": [1.1e9, 1.1e9], "base_params": [math.nan, 2.75e8],
        "growth_factor": [1, 4], "growth_timing_tokens": [0, 10e9], "grown_tokens": [100e9, 97.5e9],
        "final_loss": [2.204, 2.151],
    }  # fmt: skip
    return pd.DataFrame(values | columns)


def test_header_is_the_documented_one() -> None:
    assert list(COLUMNS) == [name.strip() for name in DESIGN_HEADER.replace("\n", " ").split(",")]


def test_required_columns_suffice() -> None:
    table = read_runs(minimal())
    assert set(COLUMNS) <= set(table.columns)
    assert table["run_id"].tolist() == ["row-1", "row-2"]
    assert table["status"].tolist() == ["finished", "finished"]
    assert table["is_final"].tolist() == [True, True]
    assert is_grown(table).tolist() == [False, True]
    assert table["final_loss"].tolist() == [2.204, 2.151]


def test_csv_and_frame_agree(tmp_path: Path, tables: SimpleNamespace) -> None:
    path = tmp_path / "runs.csv"
    frame = tables.demo_table()
    frame.to_csv(path, index=False)
    pd.testing.assert_frame_equal(read_runs(path), read_runs(frame))


def test_hash_ignores_order_and_sees_every_value(tables: SimpleNamespace) -> None:
    table = read_runs(tables.demo_table())
    assert data_hash(table) == data_hash(table.iloc[::-1])
    assert data_hash(table) != data_hash(read_runs(tables.demo_table(grown=math.nextafter(3.466, 4))))


@pytest.mark.parametrize("column", REQUIRED_COLUMNS)
def test_missing_column_is_named(column: str) -> None:
    with pytest.raises(InputError, match="is missing") as caught:
        read_runs(minimal().drop(columns=column))
    assert caught.value.field == column


def test_misspelt_column_is_guessed() -> None:
    with pytest.raises(InputError, match="is 'final_los' meant"):
        read_runs(minimal().rename(columns={"final_loss": "final_los"}))


def test_duplicate_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("cohort,target_params,final_loss,final_loss\nc,1e9,2.2,2.3\n")
    with pytest.raises(InputError, match="stands 2 times") as caught:
        read_runs(path)
    assert caught.value.field == "final_loss"


@pytest.mark.parametrize(
    ("columns", "field", "words"),
    [
        ({"final_loss": [2.2, math.nan]}, "final_loss", "empty in row 2"),
        ({"base_params": [math.nan, math.nan]}, "base_params", "empty in row 2"),
        ({"final_loss": [2.2, -2.1]}, "final_loss", "not above 0 in row 2"),
        ({"final_loss": [0.0, 2.1]}, "final_loss", "not above 0 in row 1"),
        ({"grown_tokens": [-1e9, 97.5e9]}, "grown_tokens", "not above 0 in row 1"),
        ({"growth_timing_tokens": [0, -10e9]}, "growth_timing_tokens", "negative in row 2"),
        ({"growth_timing_tokens": [5e9, 10e9]}, "growth_timing_tokens", "above 0 where growth_factor is 1"),
        ({"growth_factor": [0.5, 4]}, "growth_factor", "below 1 in row 1"),
        ({"growth_factor": [1, 24]}, "growth_factor", "differs more than twofold"),
        ({"base_params": [math.nan, 2.2e9]}, "base_params", "not below target_params"),
        ({"target_params": [1.1, 1.1], "base_params": [math.nan, 0.275]}, "target_params", "looks like billions"),
        ({"growth_timing_tokens": [0, 10.0]}, "growth_timing_tokens", "looks like billions in row 2"),
        ({"grown_tokens": [15_000.0, 97.5e9]}, "grown_tokens", "one of the counts is off"),
        ({"compute_flops": [6.6e11, 6.6e11]}, "compute_flops", "units off by 1e9"),
        ({"final_loss": [2.2, 0.72]}, "final_loss", "bits per byte in row 2"),
        ({"unit": ["nats", "bits_per_byte"]}, "unit", "is not nats in row 2"),
        ({"final_loss": [2.2, 16.0], "vocab_size": [32000, 32000]}, "final_loss", "worse than guessing in row 2"),
        ({"final_loss": [2.2, "low"]}, "final_loss", "must be a number"),
        ({"final_loss": [2.2, math.inf]}, "final_loss", "must be finite"),
        ({"status": ["finished", "exploded"]}, "status", "not a known status in row 2"),
        ({"is_final": ["true", "maybe"]}, "is_final", "must be true or false"),
        ({"run_id": ["a", "a"]}, "run_id", "used by several final rows in rows 1, 2"),
        ({"tokenizer": ["gpt2", "llama"]}, "tokenizer", "differs inside cohort 'c'"),
        ({"cohort": ["c", None]}, "cohort", "empty in row 2"),
    ],
)
def test_bad_rows_are_named(columns: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_runs(minimal(**columns))
    assert caught.value.field == field
    assert words in str(caught.value)
    assert ";" in str(caught.value)


def test_runs_that_did_not_finish_need_no_loss() -> None:
    table = read_runs(minimal(status=["finished", "diverged"], final_loss=[2.2, None]))
    assert table["status"].tolist() == ["finished", "diverged"]


def test_cohorts_are_selected_or_refused() -> None:
    table = minimal(cohort=["a", "b"])
    assert read_runs(table, cohort="b")["growth_factor"].tolist() == [4]
    with pytest.raises(InputError, match="holds 2 cohorts"):
        read_runs(table, one_cohort=True)
    with pytest.raises(InputError, match="choose one of: a, b"):
        read_runs(table, cohort="z")


def test_empty_or_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_runs(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="is not a CSV table"):
        read_runs(tmp_path / "empty.csv")
    with pytest.raises(InputError, match="has no rows"):
        read_runs(minimal().iloc[:0])
