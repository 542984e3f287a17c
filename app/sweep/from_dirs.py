"""Runs that were trained in prepared folders (:mod:`app.sweep.prepared`), as the collector asks for them.

Rows are those that the service would store: :func:`app.jobs.headers.run_row` of the spec and what the result decides. A run
stands under the date of its first event.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from app.contract import EVENTS_FILE, METRICS_FILE, EventLine, MetricLine, Spec, read_result, read_spec
from app.corpus.shards import Manifest, read_manifest
from app.jobs.headers import result_columns, run_row
from app.jobs.tail import read_new_lines
from app.sweep.collect import Collected, collect
from app.sweep.families import Design
from app.sweep.machine import MACHINE_FILE, add_sessions, read_sessions
from app.sweep.prepared import CORPUS_DIR, Index, read_index, run_dir
from fitting.errors import InputError
from fitting.table import COLUMNS

Line = TypeVar("Line", MetricLine, EventLine)


class DirectoryRuns:
    """The runs of prepared folders that were brought back.

    Raises:
        InputError: a folder is none, was prepared from another grid, or the folders were trained on several corpora.
    """

    def __init__(self, folders: Sequence[Path], design: Design) -> None:
        self._folders = {folder: read_index(folder) for folder in folders}
        self._run_dirs: dict[str, Path] = {}
        self._manifest: Manifest | None = None
        names = {cell.name for _, cell in design.cells()}
        for folder, index in self._folders.items():
            strangers = sorted({cell.cell for cell in index.cells} - names)
            if strangers:
                raise InputError(
                    "--from-dirs", f"{folder} holds {strangers[0]}, which is no cell of the grid",
                    "collect it by the grid it was prepared from",
                )  # fmt: skip
            manifest = _read_manifest(folder, index)
            design.grid.corpus.check(vocab_size=manifest.vocab_size, train_tokens=manifest.splits["train"].num_tokens)
            if self._manifest is not None and self._manifest.content_hash != manifest.content_hash:
                raise InputError(
                    "--from-dirs", f"{folder} was trained on another corpus of the name {manifest.name!r} than the "
                    "folders before it", "losses of two corpora do not compare: collect one of them under another cohort",
                )  # fmt: skip
            self._manifest = manifest

    def runs_by_name(self, design: Design) -> Mapping[str, list[Mapping[str, Any]]]:
        """What has a result; runs that have none yet are left for another time."""
        found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for folder, index in self._folders.items():
            for cell in index.cells:
                path = run_dir(folder, cell.cell)
                row = self._row(design, path)
                if row is not None:
                    found[cell.cell].append(row)
                    self._run_dirs.setdefault(row["run_id"], path)
        return found

    def points(self, run_id: str) -> Iterable[Mapping[str, Any]]:
        return (vars(line) for line in _lines(self._run_dirs[run_id] / METRICS_FILE, MetricLine))

    def manifest(self, design: Design) -> Manifest:
        assert self._manifest is not None, "at least one folder"
        return self._manifest

    def _row(self, design: Design, path: Path) -> dict[str, Any] | None:
        try:
            result = read_result(path)
            if result is None:
                return None
            spec = read_spec(path)
        except ValueError as error:
            raise InputError("--from-dirs", str(error), "carry the run directory over again") from None
        if result.run_id != spec.run_id:
            raise InputError(
                "--from-dirs", f"{path} holds the result of run {result.run_id}, but the spec of run {spec.run_id}",
                "carry the run directory over again",
            )  # fmt: skip
        _require_as_planned(design, spec)
        row = run_row(spec, self.manifest(design), None)
        columns = {name: getattr(row, name) for name in COLUMNS} | result_columns(spec, result)
        first = next(_lines(path / EVENTS_FILE, EventLine), None)
        return columns | {"created_at": first.time if first is not None else None}


def collect_dirs(folders: Sequence[Path], design: Design, out: Path) -> Collected:
    """Bring the runs folder up to date with what was trained in prepared folders, and say there on which machines.

    Raises:
        InputError: as :func:`app.sweep.collect.collect`; or a run was not trained on the grid's device and precision.
    """
    done = collect(DirectoryRuns(folders, design), design, out)
    sessions = [session for folder in folders for session in read_sessions(folder / MACHINE_FILE) if session.cells]
    if sessions:
        add_sessions(out / MACHINE_FILE, sessions)
    return done


def _require_as_planned(design: Design, spec: Spec) -> None:
    """bf16 and fp32 end at other losses, and no two kinds of device at the same bits: neither repeats the other."""
    for field in ("device", "precision"):
        planned, trained = getattr(design.grid, field), getattr(spec, field)
        if planned != trained:
            raise InputError(
                field,
                f"of {spec.name} was {trained!r}, but the grid's cohort {spec.cohort!r} is {planned!r}",
                "collect it by a grid file of that device and precision, with a cohort of its own",
            )


def _read_manifest(folder: Path, index: Index) -> Manifest:
    try:
        manifest = read_manifest(folder / CORPUS_DIR)
    except ValueError as error:
        raise InputError("--from-dirs", str(error), f"carry {folder / CORPUS_DIR} over again") from None
    if manifest.content_hash != index.corpus_hash:
        raise InputError(
            "--from-dirs", f"{folder / CORPUS_DIR} is another corpus than {folder} was prepared with",
            "carry it over again",
        )  # fmt: skip
    return manifest


def _lines(path: Path, kind: type[Line]) -> Iterator[Line]:
    """All records of an append-only file.

    Raises:
        InputError: a line is no record.
    """
    offset = 0
    while True:
        tail = read_new_lines(path, offset, kind)
        if tail.bad_lines:
            raise InputError("--from-dirs", f"{path} is damaged ({tail.bad_lines[0]})", "carry it over again")
        if tail.offset == offset:
            return
        yield from tail.lines
        offset = tail.offset
