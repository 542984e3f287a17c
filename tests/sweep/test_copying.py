"""What the tiny grid's models had learned of copying: measured once, by the models that stand, as `growthlaw evaluate` does."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from sweeping import Swept, growthlaw

from app.cli import cli
from app.contract import read_spec
from app.sweep.copying import measure_copying
from app.sweep.families import Design
from app.sweep.runs_folder import read_copying_rows, read_headers, write_headers
from fitting.errors import InputError

TRUNK, LEG = "h32-l2-lr0.004-s0-b1", "h32-l2-lr0.004-s0-b0.5"


@pytest.fixture
def runs(swept: Swept, tmp_path: Path) -> Path:
    return shutil.copytree(swept.runs_dir, tmp_path / "runs")


def test_every_model_is_measured_once(swept: Swept, runs: Path, grid_file: Path, tiny_corpus: Path) -> None:
    command = ("copying", grid_file, swept.data_dir, "--corpus-dir", tiny_corpus, "--windows", "8", "--runs-dir", runs)
    first = growthlaw(*command)
    assert first.returncode == 0, first.stderr
    assert "5 cells are new; 5 stand" in first.stdout
    assert f"{TRUNK}  first copy " in first.stdout
    with (runs / "copying.csv").open(newline="") as file:
        rows = {row["cell"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == sorted(row["cell"] for row in read_headers(runs))
    run = next(path for path in (swept.data_dir / "runs").iterdir() if _name(path) == LEG)
    told = CliRunner().invoke(
        cli, ["evaluate", str(run), "--corpus", str(tiny_corpus), "--windows", "8", "--copying", "--json"]
    )
    assert told.exit_code == 0, told.output
    gain = json.loads(told.stdout)["checkpoints"][0]["copying"]["gain_nats"]
    assert float(rows[LEG]["gain_nats"]) == pytest.approx(gain["value"], abs=1e-6)
    assert float(rows[LEG]["standard_error_nats"]) == pytest.approx(gain["standard_error"], abs=1e-6)
    before = (runs / "copying.csv").read_bytes()
    again = json.loads(growthlaw(*command, "--json").stdout)
    assert again == {"num_new": 0, "num_standing": 5, "unmeasured": []}
    assert (runs / "copying.csv").read_bytes() == before


def test_only_models_of_what_stands_are_measured(swept: Swept, runs: Path, design: Design, tmp_path: Path) -> None:
    """A lost model is told; a model whose cell ended at another loss is another run, and refused before it is read."""
    values = (3.0, 2.5, 0.5, 0.01)
    done = measure_copying(design, [tmp_path], runs, lambda path: values, lambda text: None)
    assert (done.num_new, done.num_standing, len(done.unmeasured)) == (0, 0, 5)
    assert not (runs / "copying.csv").exists()
    headers = read_headers(runs)
    write_headers(runs, [row for row in headers if row["cell"] != LEG])
    done = measure_copying(design, [swept.data_dir], runs, lambda path: values, lambda text: None)
    assert (done.num_new, done.unmeasured) == (4, ())
    assert LEG not in {row["cell"] for row in read_copying_rows(runs)}
    write_headers(runs, [row | ({"final_loss": "1.5"} if row["cell"] == LEG else {}) for row in headers])
    with pytest.raises(InputError, match=f"cell {LEG} stands with a final loss of 1.5, but the run in"):
        measure_copying(design, [swept.data_dir], runs, pytest.fail, lambda text: None)


def test_a_repeat_may_stand_for_its_cell_and_says_so(swept: Swept, runs: Path, design: Design) -> None:
    headers = read_headers(runs)
    trained = next(float(row["final_loss"]) for row in headers if row["cell"] == LEG)
    stands = f"{trained + 0.004!r}"
    write_headers(runs, [row | ({"final_loss": stands} if row["cell"] == LEG else {}) for row in headers])

    def measured(within_nats: float) -> None:
        measure_copying(
            design,
            [swept.data_dir],
            runs,
            lambda path: (3.0, 2.5, 0.5, 0.01),
            lambda text: None,
            within_nats=within_nats,
        )

    with pytest.raises(InputError, match=f"cell {LEG} stands with a final loss of {stands}, .* --within"):
        measured(0.003)
    measured(0.005)
    losses = {row["cell"]: float(row["model_final_loss"]) for row in read_copying_rows(runs)}
    assert losses[LEG] == trained
    assert losses[TRUNK] == next(float(row["final_loss"]) for row in headers if row["cell"] == TRUNK)


def _name(path: Path) -> str:
    return read_spec(path).name
