"""The tiny grid without a service: prepared, carried about, worked on by real engines with an interruption, collected."""

from __future__ import annotations

import fcntl
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from sweeping import ENVIRONMENT, ROOT, Swept, command, growthlaw

import app.sweep.work as work_module
from app.contract import read_result, read_spec
from app.corpus.shards import read_manifest
from app.ingest.bundle import read_bundle
from app.jobs.headers import recipe_of
from app.sweep.bodies import check_design, job_body, spec_of
from app.sweep.check import check_runs
from app.sweep.collect import OWN_COLUMNS
from app.sweep.families import Design, expand
from app.sweep.from_dirs import collect_dirs
from app.sweep.grid import read_grid
from app.sweep.machine import MACHINE_FILE, read_sessions
from app.sweep.prepared import CORPUS_DIR, INDEX_FILE, prepare, read_index, run_dir
from app.sweep.repeats import MACHINE_METRICS, compare, picked_families
from app.sweep.runs_folder import HEADER_COLUMNS, POINT_COLUMNS, read_headers, read_points, write_headers, write_points
from app.sweep.work import LOCK_FILE, Worker
from fitting.errors import InputError

GPU_GRID = ROOT / "data" / "runs" / "gpu-grid.toml"
TRUNK, LEG = "h32-l2-lr0.004-s0-b1", "h32-l2-lr0.004-s0-b0.5"


@dataclass(frozen=True)
class Worked:
    """The folder after two moves, and what was said in the life that ended well."""

    folder: Path
    said: str


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory, grid_file: Path, tiny_corpus: Path) -> Worked:
    """Prepared, moved, interrupted in its first run, moved again, and trained to the end two at once."""
    here = tmp_path_factory.mktemp("prepared")
    prepared = growthlaw(
        "prepare", grid_file, "--corpus-dir", tiny_corpus, "--out", here / "made", "--runs-dir", here / "none"
    )
    assert prepared.returncode == 0, prepared.stderr
    assert "5 cells of 3 families" in prepared.stdout
    carried = Path(shutil.move(here / "made", here / "carried"))
    with subprocess.Popen(
        command("work", carried, "--at-once", "1"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=ENVIRONMENT,
    ) as process:  # fmt: skip
        while not any("started" in path.read_text() for path in carried.glob("runs/*/events.jsonl")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate()
    assert process.returncode == 130, said
    assert "1 run(s) save and stop" in said
    back = Path(shutil.move(carried, here / "back"))
    rest = growthlaw("work", back, "--at-once", "2")
    assert rest.returncode == 0, rest.stderr
    return Worked(back, rest.stdout)


@pytest.fixture
def spoiled(worked: Worked, tmp_path: Path) -> Path:
    """A copy of the folder that was worked on, to be spoiled; without what only another life of a run needs."""
    ignore = shutil.ignore_patterns("checkpoints", "exports")
    return shutil.copytree(worked.folder, tmp_path / "spoiled", ignore=ignore)


@pytest.fixture
def fresh(tmp_path: Path, design: Design, tiny_corpus: Path) -> Path:
    """A prepared folder that nobody has worked on."""
    prepare(design, design.families, (), tiny_corpus, tmp_path / "fresh")
    return tmp_path / "fresh"


def mend_spec(path: Path, **values: object) -> None:
    file = path / "spec.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_every_cell_is_done_once_wherever_the_folder_lay(worked: Worked) -> None:
    index = read_index(worked.folder)
    assert "5 of 5 cells, 100.0% of the FLOPs" in worked.said
    assert "5 of 5 cells are done" in worked.said
    first, second = read_sessions(worked.folder / MACHINE_FILE)
    assert first.cells == ()
    assert Counter(cell.cell for cell in second.cells) == Counter(cell.cell for cell in index.cells)
    assert all(cell.status == "finished" and cell.seconds > 0 for cell in second.cells)
    assert second.machine is not None
    assert second.machine.torch in worked.said
    assert second.started_at > first.ended_at > first.started_at
    # What ran when it was interrupted saved, and went on from there.
    begun = index.cells[0].cell
    for cell in index.cells:
        story = (run_dir(worked.folder, cell.cell) / "events.jsonl").read_text()
        assert ('"paused"' in story, '"resumed"' in story) == (cell.cell == begun, cell.cell == begun), cell.cell
    for path in worked.folder.glob("runs/*/spec.json"):
        assert str(worked.folder.parent) not in path.read_text()


def test_the_runs_are_the_services_bit_for_bit(
    worked: Worked, swept: Swept, grid_file: Path, design: Design, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    collected = growthlaw("collect", grid_file, "--from-dirs", worked.folder, "--out", out, "--json")
    assert collected.returncode == 0, collected.stderr
    assert json.loads(collected.stdout)["num_new"] == 5
    assert growthlaw("check", grid_file, "--runs-dir", out).stdout == "5 of 5 cells\n"
    assert {name: len(rows) for name, rows in read_bundle(out).runs.items()} == {"tiny": 5}
    assert read_sessions(out / MACHINE_FILE) == read_sessions(worked.folder / MACHINE_FILE)[1:]
    assert (out / "cohorts.json").read_text() == (swept.runs_dir / "cohorts.json").read_text()

    ours = {row["cell"]: row for row in read_headers(out)}
    theirs = {row["cell"]: row for row in read_headers(swept.runs_dir)}
    points = {"ours": read_points(out), "theirs": read_points(swept.runs_dir)}
    for cell, row in ours.items():
        for column in HEADER_COLUMNS:
            if column not in OWN_COLUMNS:
                assert row[column] == theirs[cell][column], (cell, column)
        assert row["created_at"]
        ids = {"ours": row["run_id"], "theirs": theirs[cell]["run_id"]}
        told = {
            whose: [
                [point[column] for column in POINT_COLUMNS if column not in ("run_id", "time")]
                for point in points[whose]
                if point["run_id"] == ids[whose] and point["metric"] not in MACHINE_METRICS
            ]
            for whose in ids
        }
        assert len(told["ours"]) > 5
        assert told["ours"] == told["theirs"]
        weights = [
            (path / "exports" / "final" / "model.safetensors").read_bytes()
            for path in (run_dir(worked.folder, cell), swept.data_dir / "runs" / ids["theirs"])
        ]
        assert weights[0] == weights[1], cell
    # Beside the service's rows they are nothing new, and change nothing.
    both = shutil.copytree(swept.runs_dir, tmp_path / "both")
    assert collect_dirs([worked.folder], design, both).num_new == 0
    assert (both / "headers.csv").read_bytes() == (swept.runs_dir / "headers.csv").read_bytes()


def test_repeats_are_held_against_what_stands_bit_by_bit(
    worked: Worked, swept: Swept, design: Design, grid_file: Path, spoiled: Path
) -> None:
    """The service's runs stand; the folder's are the repeats, then one of them with its last bits changed."""
    said = growthlaw("compare", grid_file, worked.folder, "--runs-dir", swept.runs_dir)
    assert said.returncode == 0, said.stderr
    assert "5 of 5 cells are equal to the last bit" in said.stdout
    repeats = compare(design, [worked.folder], swept.runs_dir)
    assert all(repeat.num_points >= 4 and repeat.final_loss == repeat.final_loss_again for repeat in repeats)

    metrics = run_dir(spoiled, LEG) / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    index = next(n for n, line in enumerate(lines) if line["metric"] == "validation_loss")
    lines[index]["value"] = math.nextafter(lines[index]["value"], math.inf)
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = growthlaw("compare", grid_file, spoiled, "--runs-dir", swept.runs_dir)
    assert said.returncode == 1
    assert "4 of 5 cells are equal to the last bit" in said.stdout
    assert f"{LEG}  " in said.stdout
    assert "1 differences, first: point " in said.stdout


def test_repeats_are_picked_at_random_with_their_trunks(
    swept: Swept, design: Design, grid_file: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    headers = read_headers(swept.runs_dir)
    picks = {seed: picked_families(design, headers, count=2, seed=seed) for seed in range(20)}
    assert picks[3] == picked_families(design, headers[::-1], count=2, seed=3)
    cells = {frozenset(cell.name for family in families for cell in family.cells) for families in picks.values()}
    assert len(cells) > 3
    assert all(family.cells[0].branch_tokens is None for families in picks.values() for family in families)
    with pytest.raises(InputError, match="asks for 6 cells, but 5 stand"):
        picked_families(design, headers, count=6, seed=0)
    out = tmp_path / "again"
    prepared = growthlaw(
        "prepare", grid_file, "--corpus-dir", tiny_corpus, "--out", out, "--runs-dir", swept.runs_dir, "--repeat", "5"
    )
    assert prepared.returncode == 0, prepared.stderr
    assert len(read_index(out).cells) == 5
    refused = growthlaw(
        "prepare", grid_file, "--corpus-dir", tiny_corpus, "--out", out, "--repeat", "5", "--steps", "1"
    )
    assert "--repeat picks from all that stands" in refused.stderr


def test_a_part_is_collected_and_the_rest_prepared_again(
    worked: Worked, design: Design, tiny_corpus: Path, tmp_path: Path, spoiled: Path
) -> None:
    """A leg that is missing needs its trunk's checkpoints, so the trunk is trained again, under the same id."""
    (run_dir(spoiled, LEG) / "result.json").unlink()
    shutil.rmtree(run_dir(spoiled, "h32-l1-lr0.004-s0-b1"))
    out = tmp_path / "runs"
    assert collect_dirs([spoiled], design, out).num_new == 3
    assert check_runs(design, out).missing == (LEG, "h32-l1-lr0.004-s0-b1")
    standing = {row["cell"] for row in read_headers(out)}
    left = [family for family in design.families if not all(cell.name in standing for cell in family.cells)]
    index = prepare(design, left, standing, tiny_corpus, tmp_path / "again")
    assert [(cell.cell, cell.trunk) for cell in index.cells] == [
        (TRUNK, None), (LEG, TRUNK), ("h32-l1-lr0.004-s0-b1", None),
    ]  # fmt: skip
    before = read_spec(run_dir(worked.folder, TRUNK))
    assert read_spec(run_dir(tmp_path / "again", TRUNK)).run_id == before.run_id
    assert collect_dirs([spoiled, worked.folder], design, out).num_new == 2
    assert check_runs(design, out).is_complete


def test_the_index_holds_what_the_plan_says(fresh: Path, design: Design) -> None:
    index = read_index(fresh)
    assert [cell.cell for cell in index.cells] == [cell.name for _, cell in design.cells()]
    assert index.families == tuple(family.name for family in design.families)
    by_name = {cell.cell: cell for cell in index.cells}
    # 2,048 tokens of the leg's decay and 20,480 of its trunk: see test_design's family by hand.
    assert (by_name[LEG].tokens, by_name[TRUNK].tokens) == (2_048, 20_480)
    assert by_name[LEG].train_flops == by_name[TRUNK].train_flops / 10
    assert index.train_flops == pytest.approx(sum(cell.train_flops for cell in index.cells))
    spec = read_spec(run_dir(fresh, LEG))
    assert spec.trunk is not None
    assert (spec.corpus_dir, spec.trunk.trunk_run_dir) == ("../../corpus", f"../{TRUNK}")
    assert spec.trunk.trunk_id == read_spec(run_dir(fresh, TRUNK)).run_id


def test_another_device_and_precision_are_told_and_kept_apart(
    spoiled: Path, swept: Swept, design: Design, tmp_path: Path
) -> None:
    mend_spec(run_dir(spoiled, TRUNK), precision="bf16")
    with pytest.raises(InputError, match=r"precision of .* was 'bf16', but the grid's cohort 'tiny' is 'fp32'"):
        collect_dirs([spoiled], design, tmp_path / "runs")
    # A grid that says so takes them; but not beside fp32 runs under one name, where they would pass for repeats.
    for cell in read_index(spoiled).cells:
        mend_spec(run_dir(spoiled, cell.cell), precision="bf16")
    half = replace(design, grid=replace(design.grid, precision="bf16"))
    runs = shutil.copytree(swept.runs_dir, tmp_path / "standing")
    write_headers(runs, [row for row in read_headers(runs) if row["cell"] != LEG])
    standing = {row["run_id"] for row in read_headers(runs)}
    write_points(runs, [point for point in read_points(runs) if point["run_id"] in standing])
    before = {path.name: path.read_bytes() for path in runs.iterdir()}
    with pytest.raises(InputError, match=r"cohort tiny stands in .* another recipe .*precision None against 'bf16'"):
        collect_dirs([spoiled], half, runs)
    assert {path.name: path.read_bytes() for path in runs.iterdir()} == before
    apart = tmp_path / "apart"
    assert collect_dirs([spoiled], half, apart).num_new == 5
    assert json.loads((apart / "cohorts.json").read_text())["cohorts"]["tiny"]["precision"] == "bf16"


def test_a_cohort_of_its_own_stands_beside_another(
    spoiled: Path, swept: Swept, tmp_path: Path, grid_file: Path
) -> None:
    """Two grids in one runs folder: each is checked for itself."""
    text = grid_file.read_text().replace('cohort = "tiny"', 'cohort = "other"\nprecision = "bf16"')
    path = tmp_path / "other.toml"
    path.write_text(text.replace('"h32"', '"wide"'))
    other = expand(read_grid(path))
    folder = tmp_path / "renamed"
    prepare(other, other.families, (), spoiled / CORPUS_DIR, folder)
    for cell in read_index(folder).cells:
        shutil.copytree(run_dir(spoiled, cell.cell.replace("wide", "h32")), run_dir(folder, cell.cell) / "from")
        result = json.loads((run_dir(folder, cell.cell) / "from" / "result.json").read_text())
        result["run_id"] = read_spec(run_dir(folder, cell.cell)).run_id
        if result["trunk_id"] is not None:
            result["trunk_id"] = read_spec(run_dir(folder, cell.trunk or cell.cell)).run_id
        (run_dir(folder, cell.cell) / "result.json").write_text(json.dumps(result))
        for name in ("metrics.jsonl", "events.jsonl"):
            shutil.copy(run_dir(folder, cell.cell) / "from" / name, run_dir(folder, cell.cell) / name)
    runs = shutil.copytree(swept.runs_dir, tmp_path / "runs")
    assert collect_dirs([folder], other, runs).num_standing == 10
    assert set(json.loads((runs / "cohorts.json").read_text())["cohorts"]) == {"other", "tiny"}
    assert check_runs(expand(read_grid(grid_file)), runs).is_complete
    assert check_runs(other, runs).is_complete
    assert {name: len(rows) for name, rows in read_bundle(runs).runs.items()} == {"other": 5, "tiny": 5}


def test_a_grid_of_another_kind_of_cell_is_refused(worked: Worked, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which is no cell of the grid"):
        collect_dirs([worked.folder], expand(read_grid(GPU_GRID)), tmp_path / "runs")


def test_files_that_do_not_belong_together_are_refused(spoiled: Path, design: Design, tmp_path: Path) -> None:
    metrics = run_dir(spoiled, LEG) / "metrics.jsonl"
    whole = metrics.read_bytes()
    metrics.write_bytes(b"{}\n" + whole)
    with pytest.raises(InputError, match=r"metrics\.jsonl is damaged"):
        collect_dirs([spoiled], design, tmp_path / "runs")
    metrics.write_bytes(whole)
    shutil.copy(run_dir(spoiled, TRUNK) / "result.json", run_dir(spoiled, LEG) / "result.json")
    with pytest.raises(InputError, match="holds the result of run"):
        collect_dirs([spoiled], design, tmp_path / "runs")
    (spoiled / CORPUS_DIR / "corpus.json").write_text("{}")
    with pytest.raises(InputError, match=r"--from-dirs .*corpus\.json"):
        collect_dirs([spoiled], design, tmp_path / "runs")
    (spoiled / INDEX_FILE).write_text('{"version": 1}')
    with pytest.raises(InputError, match=r"index\.json cannot be read"):
        collect_dirs([spoiled], design, tmp_path / "runs")


def test_what_cannot_be_prepared_is_refused(fresh: Path, design: Design, tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not empty"):
        prepare(design, design.families, (), tiny_corpus, fresh)
    with pytest.raises(InputError, match=r"--corpus-dir .*is not prepared"):
        prepare(design, design.families, (), tmp_path, tmp_path / "out")
    other = replace(design, grid=replace(design.grid, corpus=replace(design.grid.corpus, name="other")))
    with pytest.raises(InputError, match=r"corpus\.name is 'other' in the grid, but .* holds 'tiny'"):
        prepare(other, design.families, (), tiny_corpus, tmp_path / "out")
    many = replace(design, grid=replace(design.grid, recipe=replace(design.grid.recipe, num_validation_windows=10**6)))
    with pytest.raises(InputError, match="num_validation_windows"):
        prepare(many, design.families, (), tiny_corpus, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh"]
    index = json.loads((fresh / INDEX_FILE).read_text())
    (fresh / INDEX_FILE).write_text(json.dumps(index | {"engine_numerics_version": 99}))
    with pytest.raises(InputError, match=r"engine_numerics_version of .* is 99"):
        read_index(fresh)


def test_a_rehearsal_on_another_device_says_that_it_is_one(grid_file: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    said = growthlaw(
        "prepare", grid_file, "--corpus-dir", tiny_corpus, "--out", tmp_path / "out", "--precision", "bf16",
        "--runs-dir", tmp_path, "--families", "h32-l1-*", "--without-tokens",
    ).stdout  # fmt: skip
    assert "1 cells of 1 families" in said
    assert "A rehearsal: the grid is cpu fp32" in said
    assert read_spec(run_dir(tmp_path / "out", "h32-l1-lr0.004-s0-b1")).precision == "bf16"


def test_the_corpus_may_lie_elsewhere_but_must_be_the_same(design: Design, tiny_corpus: Path, tmp_path: Path) -> None:
    prepare(design, design.families, (), tiny_corpus, tmp_path / "light", with_tokens=False)
    with pytest.raises(InputError, match=r"--corpus-dir .* lacks train-00000\.bin"):
        Worker(folder=tmp_path / "light", num_at_once=1)
    with pytest.raises(InputError, match=r"--corpus-dir .*is not prepared"):
        Worker(folder=tmp_path / "light", num_at_once=1, corpus_dir=tmp_path)
    assert not Worker(folder=tmp_path / "light", num_at_once=1, corpus_dir=tiny_corpus).is_complete
    other = shutil.copytree(tiny_corpus, tmp_path / "other")
    manifest = json.loads((other / "corpus.json").read_text())
    (other / "corpus.json").write_text(json.dumps(manifest | {"content_hash": "0" * 64}))
    with pytest.raises(InputError, match="is another corpus"):
        Worker(folder=tmp_path / "light", num_at_once=1, corpus_dir=other)


def test_one_worker_a_folder(fresh: Path) -> None:
    with open(fresh / LOCK_FILE, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="is worked on already"):
            Worker(folder=fresh, num_at_once=1).run()


def test_what_fails_is_told_and_nothing_is_burned_on_it(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus that was cut off on its way fails every run, in its first second."""
    (tokens,) = (fresh / CORPUS_DIR).glob("validation-*.bin")
    tokens.write_bytes(tokens.read_bytes()[:-2])
    monkeypatch.setattr(work_module, "MAX_FIRST_FAILURES", 1)
    said: list[str] = []
    worker = Worker(folder=fresh, num_at_once=1, corpus_dir=fresh / CORPUS_DIR, num_threads=2, say=said.append)
    session = worker.run()
    assert session.cells == ()
    (failure,) = worker.failures
    assert "promises" in failure
    assert failure in said
    began = read_spec(run_dir(fresh, worker.index.cells[0].cell))
    # The spec that was started says what it ran with; the others are as they were prepared.
    assert (began.corpus_dir, began.num_threads) == (str(fresh / CORPUS_DIR), 2)
    assert read_spec(run_dir(fresh, worker.index.cells[2].cell)).corpus_dir == "../../corpus"


def test_a_process_that_is_killed_is_started_once_more(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[str] = []

    def start(path: Path, num_threads: int) -> subprocess.Popen[bytes]:
        starts.append(path.name)
        return subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])

    monkeypatch.setattr(work_module, "_start_engine", start)
    monkeypatch.setattr(work_module, "MAX_FIRST_FAILURES", 1)
    said: list[str] = []
    worker = Worker(folder=fresh, num_at_once=1, say=said.append)
    worker.run()
    assert starts == [worker.index.cells[0].cell] * 2
    assert "signal 9" in worker.failures[0]
    assert any("started once more" in line for line in said)


def test_the_legs_of_a_diverged_trunk_are_lost(spoiled: Path) -> None:
    path = run_dir(spoiled, TRUNK) / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "diverged", "final_loss_nats": None}))
    (run_dir(spoiled, LEG) / "result.json").unlink()
    said: list[str] = []
    worker = Worker(folder=spoiled, num_at_once=1, say=said.append)
    assert worker.is_complete
    assert said == [f"{LEG}  is lost: its trunk diverged"]
    assert read_result(run_dir(spoiled, LEG)) is None


def test_precision_is_part_of_a_recipe_and_old_recipes_stay(design: Design, tiny_corpus: Path) -> None:
    manifest, family = read_manifest(tiny_corpus), design.families[0]
    recipes = {}
    for precision in ("fp32", "bf16"):
        grid = replace(design.grid, precision=precision)
        recipes[precision] = recipe_of(spec_of(grid, job_body(grid, family, family.trunk, None)), manifest)
    assert "precision" not in recipes["fp32"]
    assert recipes["bf16"] == recipes["fp32"] | {"precision": "bf16"}


def test_the_gpu_grid_is_sound() -> None:
    design = expand(read_grid(GPU_GRID))
    check_design(design)
    grid = design.grid
    assert (grid.device, grid.precision) == ("cuda", "bf16")
    # A name "grid-..." would make its runs variants of the CPU's cohort.
    assert {family.cohort for family in design.families} == {"gpu"}
    other = {cell.name for _, cell in expand(read_grid(GPU_GRID.with_name("grid.toml"))).cells()}
    assert not other & {cell.name for _, cell in design.cells()}
    for family, cell in design.cells():
        # Whoever reads the corpus again is a smaller depth alone, or the latest timing at hidden 128.
        flagged = (family.growth is None and family.shape.num_layers < 8) or family.step == 2
        assert cell.num_epochs <= 1 or flagged, cell.name
    assert {family.shape.hidden_size for family in design.families} == {128, 256, 384}
    sizes = [family.shape.hidden_size for family in design.families]
    assert sizes == sorted(sizes)


def test_the_worker_needs_no_torch_and_no_service() -> None:
    code = (
        "import app.cli, app.commands.sweep, app.sweep.work, sys; "
        "print([name for name in ('torch', 'sqlalchemy', 'fastapi', 'pydantic', 'pandas', 'uvicorn') if name in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=ENVIRONMENT
    )
    assert told.stdout.strip() == "[]"
