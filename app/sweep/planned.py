"""Planned runs: a folder of bodies of `POST /jobs`, as `growthlaw plan next --out` writes them, ready for a sweep.

Files are taken in the order of their names, a control before what is compared with it. All of them are read and checked
before any starts: a sweep that stops at its fifth run for a misspelt field has spent four.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from pydantic import ValidationError

from app.api.problems import Problem
from app.api.run_bodies import growth_spec, model_spec
from app.api.train import TrainBody
from app.corpus.shards import Manifest
from app.sweep.prepared import INDEX_FILE
from app.sweep.runner import Task
from fitting.errors import InputError
from fitting.flops import flops_per_token

_MAKE_ONE = "name the folder that `growthlaw plan next --out` wrote, or a grid such as data/runs/grid.toml"


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One file: ``asked`` as it stands there, ``body`` as the service will read it."""

    file: str
    asked: Mapping[str, Any]
    body: TrainBody


def read_planned(folder: Path) -> tuple[PlannedRun, ...]:
    """The runs of a folder, by the names of their files.

    Raises:
        InputError: the folder holds none, or a file is no body of `POST /jobs`, or two files ask for one run.
    """
    if (folder / INDEX_FILE).is_file():
        raise InputError("DIR", f"{folder} holds prepared runs", f"train them with growthlaw sweep work {folder}")
    files = sorted(folder.glob("*.json"))
    if not files:
        raise InputError("DIR", f"{folder} holds no planned run (NAME.json)", _MAKE_ONE)
    runs: dict[str, PlannedRun] = {}
    for path in files:
        run = _read(path)
        design = run.body.model_dump_json(exclude={"name"})
        if design in runs:
            raise InputError(
                path.name, f"asks for the same run as {runs[design].file}",
                "remove it, or give it an init_seed and a data_seed of its own",
            )  # fmt: skip
        runs[design] = run
    return tuple(runs.values())


def planned_tasks(runs: Sequence[PlannedRun], corpora: Iterable[Mapping[str, Any]]) -> tuple[Task, ...]:
    """The runs as tasks of a sweep, their work in FLOPs.

    Args:
        corpora: those of the service that will train them.

    Raises:
        InputError: a corpus is not there, or a model or growth breaks a limit; names the file.
    """
    known = {corpus["name"]: corpus for corpus in corpora}
    tasks = []
    for run in runs:
        if run.body.corpus not in known:
            raise InputError(
                f"{run.file}, /corpus", f"is {run.body.corpus!r}, which this service does not have ({_listed(known)})",
                "use the service that the plan was made by, or prepare the corpus there: growthlaw corpus prepare",
            )  # fmt: skip
        whole, own = _flops(run, known[run.body.corpus]["vocab_size"])
        name = run.file.removesuffix(".json")
        tasks.append(
            Task(name=name, body=lambda _, asked=dict(run.asked): asked, work=own, compute_flops=whole, own_flops=own)  # type: ignore[misc]
        )
    return tuple(tasks)


def _read(path: Path) -> PlannedRun:
    try:
        asked = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(path.name, f"is not JSON ({error})", _MAKE_ONE) from None
    try:
        return PlannedRun(file=path.name, asked=asked, body=TrainBody.model_validate(asked))
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"/{part}" for part in first["loc"])
        raise InputError(
            f"{path.name}{', ' if place else ''}{place}", f"is wrong: {first['msg']}",
            "mend it: each file is a body of `growthlaw train`",
        ) from None  # fmt: skip


def _flops(run: PlannedRun, vocab_size: int) -> tuple[float, float]:
    """FLOPs of the whole run, and of what it trains itself: a leg trains what comes after its branch."""
    body = run.body
    try:
        # Of a corpus's manifest a model takes the vocabulary alone.
        model = model_spec(body.model, cast(Manifest, SimpleNamespace(vocab_size=vocab_size)), "/model")
        growth = None if body.growth is None else growth_spec(body.growth, model, "/growth")
    except Problem as problem:
        raise InputError(run.file, str(problem), "mend it: each file is a body of `growthlaw train`") from None
    price = flops_per_token(model)
    base = 0.0 if growth is None else growth.growth_timing_tokens * flops_per_token(growth.base_model(model))
    whole = base + body.training.tokens * price
    own = whole if body.trunk is None else (body.training.tokens - body.trunk.branch_tokens) * price
    return whole, max(own, price)


def _listed(known: Mapping[str, Any]) -> str:
    return f"it has {', '.join(sorted(known))}" if known else "it has none"
