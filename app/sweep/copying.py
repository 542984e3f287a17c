"""What the models of a grid's cells had learned of copying (:mod:`app.engine.assess.copying`): `copying.csv` by their headers.

Models lie in the run directories of a service's data directory, or of a prepared folder that was worked on. A cell's model is
that of the finished run that bears its name and ended at the very loss that stands; its run may be another than the one that
stands, since on one CPU thread the same cell trained again is the same model. On another processor it is not quite: how far its
loss may lie from the one that stands is then to be said, and which loss it ended at stands in the row. Cells whose models are
gone keep what was measured of them, or stay unmeasured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.contract import EXPORTS_DIR, SPEC_FILE, read_result, read_spec
from app.sweep.families import Design
from app.sweep.prepared import RUNS_DIR
from app.sweep.runs_folder import Row, as_text, read_copying_rows, read_headers, write_copying_rows
from fitting.errors import InputError
from fitting.grid_report.copying import COPYING_COLUMNS

# (first copy, second copy, gain, standard error of the gain), nats a token
Measured = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class CopyingDone:
    """Cells measured now, cells that stand in the file, and finished cells of the headers that were never measured."""

    num_new: int
    num_standing: int
    unmeasured: tuple[str, ...]


def measure_copying(
    design: Design,
    folders: Sequence[Path],
    runs_dir: Path,
    measure: Callable[[Path], Measured],
    say: Callable[[str], None],
    *,
    within_nats: float = 0.0,
) -> CopyingDone:
    """Measure every standing cell that has a model and no row yet; the file is written after each.

    Args:
        folders: data directories or prepared folders, with run directories under `runs/`.
        measure: of a run directory.
        within_nats: so far may a model's final loss lie from the one that stands.

    Raises:
        InputError: a model's run ended further from the cell that stands.
    """
    finished = {row["cell"]: row for row in read_headers(runs_dir) if row["status"] == "finished"}
    names = {cell.name for _, cell in design.cells()}
    rows = {row["cell"]: row for row in read_copying_rows(runs_dir)}
    num_new = 0
    for name, path in models(folders):
        if name not in names or name not in finished or name in rows:
            continue
        final_loss = _final_loss(name, path, finished[name], within_nats)
        values = measure(path)
        rows[name] = dict(zip(COPYING_COLUMNS, [name, *map(as_text, (*values, final_loss))], strict=True))
        num_new += 1
        write_copying_rows(runs_dir, rows.values())
        say(f"{name}  first copy {values[0]:.3f}, second {values[1]:.3f}, gain {values[2]:+.3f} nats")
    return CopyingDone(
        num_new=num_new, num_standing=len(rows), unmeasured=tuple(sorted(finished.keys() & names - rows.keys()))
    )


def models(folders: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Name and run directory of every run under the folders that left a model, in the order of their names."""
    found = []
    for folder in folders:
        for spec in sorted(folder.glob(f"{RUNS_DIR}/*/{SPEC_FILE}")):
            path = spec.parent
            if (path / EXPORTS_DIR / "final").is_dir() and (name := read_spec(path).name):
                found.append((name, path))
    yield from sorted(found)


def _final_loss(name: str, path: Path, standing: Row, within_nats: float) -> float:
    result = read_result(path)
    final_loss = result.final_loss_nats if result is not None else None
    if final_loss is None or abs(final_loss - float(standing["final_loss"])) > within_nats:
        raise InputError(
            f"cell {name}",
            f"stands with a final loss of {standing['final_loss']}, but the run in {path} ended at {final_loss or 'none'}",
            "give the folders of the runs that were collected; of cells trained again on another processor say --within",
        )
    return final_loss
