"""A folder of runs that can be carried to another machine and trained there without a service.

==================  ==================================================================================================
path                content
==================  ==================================================================================================
index.json          :class:`Index`: which cells, in which order, with how many FLOPs
corpus/             the corpus: its manifest always, its tokens unless they are named on that machine
runs/CELL/          a run directory of :mod:`app.contract`: `spec.json` now, all that the engine writes later
machine.json        where and when cells were trained (:mod:`app.sweep.machine`)
==================  ==================================================================================================

Paths inside a spec are relative to its run directory, in which :class:`app.sweep.work.Worker` starts the engine: the
folder may lie anywhere, and may be moved between two lives of a run. Ids are made from what is trained, so preparing
again names the same run alike.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.contract import ENGINE_NUMERICS_VERSION, SPEC_FILE
from app.corpus.shards import MANIFEST_FILE, TOKENIZER_FILE, Manifest, read_manifest
from app.jobs.design import check_corpus
from app.records import from_dict, read_json, to_dict, write_json_atomically
from app.sweep.bodies import job_body, spec_of
from app.sweep.costs import own_flops, own_tokens
from app.sweep.families import Cell, Design, Family
from app.sweep.grid import Grid
from fitting.errors import InputError

INDEX_FILE = "index.json"
INDEX_VERSION = 1
CORPUS_DIR = "corpus"
RUNS_DIR = "runs"


@dataclass(frozen=True, kw_only=True)
class PreparedCell:
    """A cell of the folder.

    Attributes:
        trunk: the cell that this leg leaves; None: it is a trunk itself.
        tokens, train_flops: of its own run; a leg's are those of its decay.
    """

    cell: str
    family: str
    step: int
    trunk: str | None
    tokens: int
    train_flops: float


@dataclass(frozen=True, kw_only=True)
class Index:
    """All of `index.json`; ``cells`` stand in the order in which they run, a trunk before its legs."""

    corpus: str
    corpus_hash: str
    device: str
    precision: str
    engine_numerics_version: int
    train_flops: float
    families: tuple[str, ...]
    cells: tuple[PreparedCell, ...]
    version: int = INDEX_VERSION


def prepare(
    design: Design,
    families: Sequence[Family],
    standing: Collection[str],
    corpus_dir: Path,
    out: Path,
    *,
    with_tokens: bool = True,
) -> Index:
    """Write the run directories of the families' cells that do not stand yet.

    A trunk that stands is prepared again where one of its legs is missing: a leg needs the trunk's checkpoints, which no
    runs folder holds.

    Args:
        design: its grid says on which device and in which precision.
        families: in the order in which they run.
        standing: names of cells whose rows stand.
        corpus_dir: the corpus, prepared.
        out: made anew; must not exist or be empty.
        with_tokens: copy the corpus's tokens; else the worker is told where they lie.

    Raises:
        InputError: the corpus is not the grid's, is too small for a cell, or ``out`` is not empty.
    """
    grid = design.grid
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            "--out", f"{out} is not empty", "name a new folder, or go on in this one: growthlaw sweep work"
        )
    manifest = checked_manifest(grid, corpus_dir)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        _copy_corpus(corpus_dir, manifest, beside / CORPUS_DIR, with_tokens=with_tokens)
        cells = []
        for family in families:
            trunk_id = _write_run(beside, grid, manifest, family, family.trunk, None)
            cells.append(_prepared(family, family.trunk))
            for leg in family.legs:
                if leg.name not in standing:
                    _write_run(beside, grid, manifest, family, leg, trunk_id)
                    cells.append(_prepared(family, leg))
        index = Index(
            corpus=manifest.name, corpus_hash=manifest.content_hash, device=grid.device, precision=grid.precision,
            engine_numerics_version=ENGINE_NUMERICS_VERSION, train_flops=sum(cell.train_flops for cell in cells),
            families=tuple(family.name for family in families), cells=tuple(cells),
        )  # fmt: skip
        write_json_atomically(beside / INDEX_FILE, to_dict(index))
        os.replace(beside, out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return index


def read_index(folder: Path) -> Index:
    """The index of a prepared folder.

    Raises:
        InputError: there is none, it is damaged, or this growthlaw's engine makes other numbers.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise InputError("DIR", f"{folder} holds no {INDEX_FILE}", "make it with growthlaw sweep prepare")
    try:
        index = from_dict(Index, read_json(path))
    except ValueError as error:
        raise InputError(
            "DIR", f"{path} cannot be read ({error})", "carry it over again, or prepare it again"
        ) from None
    for field, here in (("version", INDEX_VERSION), ("engine_numerics_version", ENGINE_NUMERICS_VERSION)):
        if getattr(index, field) != here:
            raise InputError(
                field, f"of {path} is {getattr(index, field)}, but this growthlaw's is {here}",
                "use the growthlaw that prepared it, or prepare it again",
            )  # fmt: skip
    return index


def run_dir(folder: Path, cell: str) -> Path:
    return folder / RUNS_DIR / cell


def checked_manifest(grid: Grid, corpus_dir: Path) -> Manifest:
    try:
        manifest = read_manifest(corpus_dir)
    except ValueError as error:
        raise InputError("--corpus-dir", str(error), "name a folder that growthlaw corpus prepare made") from None
    if manifest.name != grid.corpus.name:
        raise InputError(
            "corpus.name", f"is {grid.corpus.name!r} in the grid, but {corpus_dir} holds {manifest.name!r}",
            "plan the grid on this corpus, or bring the other",
        )  # fmt: skip
    grid.corpus.check(vocab_size=manifest.vocab_size, train_tokens=manifest.splits["train"].num_tokens)
    return manifest


def _copy_corpus(source: Path, manifest: Manifest, target: Path, *, with_tokens: bool) -> None:
    target.mkdir(parents=True)
    names = [MANIFEST_FILE]
    if with_tokens:
        names += [file for split in manifest.splits.values() for file in split.files]
        names += [TOKENIZER_FILE] if (source / TOKENIZER_FILE).exists() else []
    for name in names:
        shutil.copyfile(source / name, target / name)


def _write_run(folder: Path, grid: Grid, manifest: Manifest, family: Family, cell: Cell, trunk_id: str | None) -> str:
    """Write a cell's run directory; returns its run id."""
    body = job_body(grid, family, cell, trunk_id)
    made_from = json.dumps([body, manifest.content_hash, ENGINE_NUMERICS_VERSION], sort_keys=True)
    run_id = f"run_{hashlib.sha256(made_from.encode()).hexdigest()[:26]}"
    spec = spec_of(grid, body, run_id=run_id, corpus_dir=f"../../{CORPUS_DIR}", trunk_run_dir=f"../{family.trunk.name}")
    check_corpus(spec, manifest)
    path = run_dir(folder, cell.name)
    path.mkdir(parents=True)
    write_json_atomically(path / SPEC_FILE, to_dict(spec))
    return run_id


def _prepared(family: Family, cell: Cell) -> PreparedCell:
    return PreparedCell(
        cell=cell.name, family=family.name, step=family.step,
        trunk=None if cell is family.trunk else family.trunk.name,
        tokens=own_tokens(family, cell), train_flops=own_flops(family, cell),
    )  # fmt: skip
