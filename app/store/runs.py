"""Queries on cohorts, runs and their points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.orm import Session

from app.contract import MetricLine
from app.store.database import add_missing
from app.store.tables import CohortRow, PointRow, RunRow
from fitting.table import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

# Values of one IN list: below what SQLite and PostgreSQL bind in a statement.
_SEQS_A_QUERY = 10_000
_ROWS_A_COPY = 50_000

PointTuple = tuple[str, int, str, int, float, str, str, float, str, str]


def get_cohort(session: Session, name: str) -> CohortRow | None:
    return session.get(CohortRow, name)


def list_cohorts(session: Session, *, after: str | None, limit: int) -> Sequence[CohortRow]:
    """Cohorts by name; `after` is the last name of the page before."""
    query = select(CohortRow).order_by(CohortRow.name).limit(limit)
    if after is not None:
        query = query.where(CohortRow.name > after)
    return session.scalars(query).all()


def count_runs(session: Session, cohorts: Sequence[str]) -> dict[str, int]:
    """Runs of each of the cohorts; one without any is left out."""
    query = (
        select(RunRow.cohort, func.count().label("num_runs")).where(RunRow.cohort.in_(cohorts)).group_by(RunRow.cohort)
    )
    return {row.cohort: row.num_runs for row in session.execute(query)}


def add_cohort(session: Session, cohort: CohortRow) -> None:
    session.add(cohort)
    session.flush()


def list_cohort_names(session: Session) -> Sequence[str]:
    return session.scalars(select(CohortRow.name).order_by(CohortRow.name)).all()


def add_run(session: Session, run: RunRow) -> None:
    session.add(run)
    session.flush()


def finish_run(session: Session, run_id: str, **values: Any) -> None:
    """Set a run's final columns."""
    session.execute(update(RunRow).where(RunRow.run_id == run_id).values(**values))


def stop_run(session: Session, run_id: str, reason: str) -> None:
    """End a run that will not finish: it keeps the tokens and FLOPs that its points say it has seen, no more."""
    by_phase = select(PointRow.phase, func.max(PointRow.tokens)).where(PointRow.run_id == run_id)
    seen: dict[str, int] = dict(session.execute(by_phase.group_by(PointRow.phase)).all())
    run = get_run(session, run_id)
    if seen and run is not None and run.parent_run_id is not None:
        # The base phase of a decay leg was trained, whole, by its trunk, and its points are the trunk's.
        trunk = get_run(session, run.parent_run_id)
        seen["base"] = int(trunk.growth_timing_tokens) if trunk is not None else 0
    finish_run(
        session,
        run_id,
        status="stopped",
        reason=reason,
        growth_timing_tokens=seen.get("base", 0),
        grown_tokens=seen.get("grown", seen.get("single", 0)),
        compute_flops=session.scalar(select(func.max(PointRow.compute_flops)).where(PointRow.run_id == run_id)),
    )


def has_usable_runs(session: Session, cohort: str) -> bool:
    """Whether a run of the cohort has finished or may still finish."""
    usable = RunRow.status.in_(("finished", "running"))
    return session.scalars(select(RunRow.run_id).where(RunRow.cohort == cohort, usable).limit(1)).first() is not None


def has_final_runs(session: Session, cohort: str) -> bool:
    """Whether a guideline could be fitted to anything."""
    final = (RunRow.cohort == cohort, RunRow.status == "finished", RunRow.is_final)
    return session.scalars(select(RunRow.run_id).where(*final).limit(1)).first() is not None


def get_run(session: Session, run_id: str) -> RunRow | None:
    return session.get(RunRow, run_id)


def run_of_content(session: Session, content_hash: str) -> RunRow | None:
    """The run that was imported with this content."""
    return session.scalars(select(RunRow).where(RunRow.content_hash == content_hash)).first()


def run_of_request(session: Session, request_key: str) -> RunRow | None:
    """The run that was pushed with this Idempotency-Key."""
    return session.scalars(select(RunRow).where(RunRow.request_key == request_key)).first()


def imported_run(session: Session, cohort: str, name: str) -> RunRow | None:
    """The run from elsewhere that people call so within its cohort."""
    query = select(RunRow).where(RunRow.cohort == cohort, RunRow.name == name, RunRow.source == "import")
    return session.scalars(query.order_by(RunRow.run_id)).first()


@dataclass(frozen=True, kw_only=True)
class RunFilter:
    """Which runs are wanted; None (or no text) means any. Both ends of a range count as inside.

    Attributes:
        search: words, all of which must stand in the run's name or id, in whatever case.
    """

    cohort: str | None = None
    status: str | None = None
    source: str | None = None
    is_final: bool | None = None
    search: str = ""
    target_params: tuple[float | None, float | None] = (None, None)
    growth_factor: tuple[float | None, float | None] = (None, None)
    growth_timing_tokens: tuple[float | None, float | None] = (None, None)

    def conditions(self) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = []
        for name in ("cohort", "status", "source", "is_final"):
            wanted = getattr(self, name)
            if wanted is not None:
                found.append(getattr(RunRow, name) == wanted)
        for name in ("target_params", "growth_factor", "growth_timing_tokens"):
            column, (low, high) = getattr(RunRow, name), getattr(self, name)
            found += [] if low is None else [column >= low]
            found += [] if high is None else [column <= high]
        for word in self.search.split():
            found.append(
                or_(RunRow.name.icontains(word, autoescape=True), RunRow.run_id.icontains(word, autoescape=True))
            )
        return found


ANY_RUN = RunFilter()


def list_runs(
    session: Session, wanted: RunFilter = ANY_RUN, *, after: str | None = None, limit: int
) -> Sequence[RunRow]:
    """Runs, newest first; `after` is the last id of the page before."""
    query = select(RunRow).where(*wanted.conditions()).order_by(RunRow.run_id.desc()).limit(limit)
    if after is not None:
        query = query.where(RunRow.run_id < after)
    return session.scalars(query).all()


def final_scratch_runs(session: Session, cohort: str) -> Sequence[RunRow]:
    """The runs of one size that finished with a final loss."""
    query = select(RunRow).where(
        RunRow.cohort == cohort, RunRow.status == "finished", RunRow.is_final, RunRow.growth_factor == 1,
        RunRow.final_loss.is_not(None),
    )  # fmt: skip
    return session.scalars(query).all()


def cohort_frame(session: Session, cohort: str) -> pd.DataFrame:
    """The canonical table of a cohort's runs that have ended, in the order of their ids."""
    import pandas as pd

    columns = [getattr(RunRow, name) for name in COLUMNS]
    query = select(*columns).where(RunRow.cohort == cohort, RunRow.status != "running")
    # Sorted here: databases order text by the rules of their locale, and a fit must not depend on those.
    rows = sorted((tuple(row) for row in session.execute(query)), key=lambda row: str(row[0]))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def add_points(session: Session, run_id: str, lines: Iterable[MetricLine]) -> None:
    """Store metric lines; a (run_id, seq) that is there already stays as it is."""
    add_missing(session, PointRow, [{"run_id": run_id} | vars(line) for line in lines], key=("run_id", "seq"))


def copy_points(session: Session, points: Iterable[PointTuple]) -> None:
    """Store points of which the store has none, a million in seconds: by the database's own bulk way.

    Args:
        points: the columns of `PointRow` in their order. Their texts go in as they are, so they must be printable:
            PostgreSQL takes neither NUL characters nor halves of surrogate pairs.
    """
    session.flush()
    connection = session.connection()
    names = [column.name for column in PointRow.__table__.columns]
    if connection.dialect.name == "postgresql":
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor, cursor.copy(f"COPY points ({', '.join(names)}) FROM STDIN") as copy:
            for point in points:
                copy.write_row(point)
        return
    rows = iter(points)
    # In parts, as SQLAlchemy holds all that it is given.
    while part := list(islice(rows, _ROWS_A_COPY)):
        connection.exec_driver_sql(
            f"INSERT INTO points ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", part
        )


def points_of_seqs(session: Session, run_id: str, seqs: Sequence[int]) -> dict[int, PointRow]:
    """The points of these seqs that are there."""
    found: dict[int, PointRow] = {}
    for start in range(0, len(seqs), _SEQS_A_QUERY):
        query = select(PointRow).where(PointRow.run_id == run_id, PointRow.seq.in_(seqs[start : start + _SEQS_A_QUERY]))
        found |= {point.seq: point for point in session.scalars(query)}
    return found


def delete_points(session: Session, run_id: str, seqs: Sequence[int] | None = None) -> None:
    """Remove a run's points of these seqs, all of them where None."""
    if seqs is None:
        session.execute(delete(PointRow).where(PointRow.run_id == run_id))
        return
    for start in range(0, len(seqs), _SEQS_A_QUERY):
        some = seqs[start : start + _SEQS_A_QUERY]
        session.execute(delete(PointRow).where(PointRow.run_id == run_id, PointRow.seq.in_(some)))


def last_seq(session: Session, run_id: str) -> int:
    """The highest seq of a run; -1 where it has no point."""
    found = session.scalar(select(func.max(PointRow.seq)).where(PointRow.run_id == run_id))
    return -1 if found is None else found


def all_points(session: Session, run_id: str) -> Sequence[PointRow]:
    return session.scalars(select(PointRow).where(PointRow.run_id == run_id).order_by(PointRow.seq)).all()


def list_points(
    session: Session, run_id: str, *, metric: str | None = None, after_seq: int = -1, limit: int
) -> Sequence[PointRow]:
    """Points in the order of their seq, from behind `after_seq`."""
    query = (
        select(PointRow).where(PointRow.run_id == run_id, PointRow.seq > after_seq).order_by(PointRow.seq).limit(limit)
    )
    if metric is not None:
        query = query.where(PointRow.metric == metric)
    return session.scalars(query).all()


def count_points(session: Session, run_id: str) -> list[tuple[str, str, str, int]]:
    """(metric, data set, unit, points) of every curve that the run has."""
    columns = (PointRow.metric, PointRow.dataset, PointRow.unit)
    query = select(*columns, func.count()).where(PointRow.run_id == run_id).group_by(*columns)
    return [(metric, dataset, unit, count) for metric, dataset, unit, count in session.execute(query)]


def curve_points(session: Session, run_id: str, metric: str, dataset: str) -> Sequence[PointRow]:
    """One curve of a run, in the order of its seq."""
    query = select(PointRow).where(PointRow.run_id == run_id, PointRow.metric == metric, PointRow.dataset == dataset)
    return session.scalars(query.order_by(PointRow.seq)).all()


def last_point(session: Session, run_id: str, metric: str) -> PointRow | None:
    query = (
        select(PointRow)
        .where(PointRow.run_id == run_id, PointRow.metric == metric)
        .order_by(PointRow.seq.desc())
        .limit(1)
    )
    return session.scalars(query).first()
