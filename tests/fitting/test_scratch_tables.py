"""Bad scratch tables get a clear error or a stated limit; the command prints what the issue promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from app.commands.fit import fit

COLUMNS = ["--params", "N", "--loss", "L", "--tokens", "D"]
CHINCHILLA = Path(__file__).parents[1] / "data" / "chinchilla" / "svg_points.csv"


def good_table(num_sizes: int = 5, num_tokens: int = 5) -> pd.DataFrame:
    sizes, tokens = (
        a.ravel() for a in np.meshgrid(np.geomspace(1e8, 1e10, num_sizes), np.geomspace(2e9, 1e12, num_tokens))
    )
    noise = np.random.default_rng(0).normal(0, 0.004, len(sizes))
    return pd.DataFrame(
        {"N": sizes, "D": tokens, "L": (1.8 + 480 * sizes**-0.35 + 2100 * tokens**-0.37) * np.exp(noise)}
    )


def run(table: pd.DataFrame | str, tmp_path: Path, *more: str, columns: list[str] | None = None) -> Result:
    file = tmp_path / "table.csv"
    file.write_text(table if isinstance(table, str) else table.to_csv(index=False), encoding="utf-8")
    return CliRunner().invoke(fit, ["scratch", str(file), *(columns or COLUMNS), *more])


def with_cell(row: int, column: str, value: object) -> pd.DataFrame:
    table = good_table().astype(object)
    table.loc[row, column] = value
    return table


BAD: dict[str, tuple[object, str]] = {
    "missing column": (good_table().drop(columns="L"), "column 'L' is not in the table; it has N, D"),
    "duplicate column": ("N,D,L,L\n1e9,1e10,3,3\n", "more than once: L"),
    "empty file": ("", "is empty"),
    "header only": ("N,D,L\n", "no rows"),
    "NaN": (with_cell(3, "L", None), "no finite number in 1 row(s) (rows 4)"),
    "text": (with_cell(3, "D", "many"), "no finite number in 1 row(s) (rows 4)"),
    "infinite": (with_cell(0, "D", "inf"), "no finite number"),
    "zero loss": (with_cell(2, "L", 0.0), "is 0 in row 3; it must be positive"),
    "negative loss": (with_cell(2, "L", -1.0), "is -1 in row 3; it must be positive"),
    "perplexities": (good_table().assign(L=lambda t: np.exp(t["L"] + 2)), "take the logarithm of perplexities"),
    "sizes in billions": (good_table().assign(N=lambda t: t["N"] / 1e9), "must be multiplied out"),
    "tokens in billions": (good_table().assign(D=lambda t: t["D"] / 1e9), "must be multiplied out"),
    "one size in millions": (with_cell(22, "N", 4100.0), "row 23 has 2.44e+08 tokens per parameter"),
    "two runs": (good_table().iloc[:2], "6 runs needed for 5 free parameters, 2 found"),
    "one size": (good_table(1, 9), "3 sizes needed, 1 found"),
    "two token counts": (good_table(5, 2), "3 token counts needed, 2 found"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_refused_by_name(case: str, tmp_path: Path) -> None:
    table, words = BAD[case]
    result = run(table, tmp_path, "--law", "chinchilla")  # type: ignore[arg-type]
    assert result.exit_code == 1, result.output
    assert words in result.output
    assert "Traceback" not in result.output


def test_bits_per_byte_among_nats_are_pointed_at(tmp_path: Path) -> None:
    table = good_table()
    table.loc[4, "L"] *= 0.27 / np.log(2)
    result = run(table, tmp_path, "--law", "chinchilla", "--json")
    assert result.exit_code == 0
    assert any(
        "bits per byte" in warning and "1 row(s)" in warning for warning in json.loads(result.output)["warnings"]
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--law", "chinchila"], "law is 'chinchila'"),
        (["--knee", "sharp"], "knee is 'sharp'"),
        (["--knee", "-1"], "knee is -1"),
        (["--bootstrap", "-3"], "bootstrap is -3"),
        (["--drop-highest", "25"], "drop_highest is 25"),
        (["--test-above-flops", "1e30"], "leaves every row to fit"),
        (["--test-above-flops", "1"], "leaves no row to fit"),
        (["--test-above-flops", "nan"], "finite"),
    ],
)
def test_bad_options_are_refused_by_name(options: list[str], words: str, tmp_path: Path) -> None:
    result = run(good_table(), tmp_path, *options)
    assert result.exit_code == 1, result.output
    assert words in result.output


def test_usage_errors(tmp_path: Path) -> None:
    assert "--tokens COL or --flops COL" in run(good_table(), tmp_path, columns=["--params", "N", "--loss", "L"]).output
    both = run(good_table(), tmp_path, "--flops", "D")
    assert both.exit_code == 2
    missing = CliRunner().invoke(fit, ["scratch", str(tmp_path / "none.csv"), *COLUMNS])
    assert missing.exit_code == 1
    assert "is not a file" in missing.output


def test_json_of_the_golden_fit() -> None:
    arguments = ["scratch", str(CHINCHILLA), "--params", "model_size", "--loss", "loss", "--flops", "training_flop"]
    options = [
        "--law",
        "chinchilla",
        "--knee",
        "1e-3",
        "--drop-highest",
        "5",
        "--bootstrap",
        "300",
        "--seed",
        "42",
        "--json",
    ]
    result = CliRunner().invoke(fit, arguments + options)
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert report["objective"] == pytest.approx(1.0182740e-3, rel=1e-6)
    assert set(report["parameters"]) == {"A", "B", "E", "alpha", "beta"} == set(report["standard_errors"])
    assert report["num_rows"] == 240
    assert report["law"] == "chinchilla"
    assert report["share_of_starts_at_best"] == 1.0
    assert report["test_mape_percent"] is None
    assert report["weights"] is None
    assert 0.3 < report["train_mape_percent"] < 0.7
    assert set(report["seconds"]) == {"fit", "bootstrap"}


def test_auto_reports_weights_verdicts_and_held_out_rows(tmp_path: Path) -> None:
    table = good_table(7, 7)
    cut = str(6 * 1e10 * 1e11)
    report = json.loads(run(table, tmp_path, "--test-above-flops", cut, "--bootstrap", "20", "--json").output)
    assert report["law"] == "auto"
    assert sum(report["weights"].values()) == pytest.approx(1.0)
    assert set(report["verdicts"]) >= set(report["weights"])
    assert report["num_rows"] + report["num_test_rows"] == 49
    assert report["test_mape_percent"] < 2.0
    # The rows come from a Chinchilla law: it must not be outweighed by the law without an irreducible loss.
    assert report["weights"]["chinchilla"] > report["weights"]["kaplan"]


def test_text_for_a_person(tmp_path: Path) -> None:
    text = run(good_table(), tmp_path, "--bootstrap", "20").output
    assert "law " in text
    assert "+-" in text
    assert "mean absolute error" in text
    one_draw = json.loads(run(good_table(), tmp_path, "--law", "chinchilla", "--bootstrap", "1", "--json").output)
    assert one_draw["standard_errors"]["E"] is None
