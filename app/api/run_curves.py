"""`GET /runs/{id}/metrics` and `/curve`: what of a run can be drawn, and its curve with its trunk's, held against another run.

    speedup at a point = FLOPs at which the other run first had the same loss / FLOPs of the point - 1

A decay leg holds no points from before its branch, so its curve begins with its trunk's. Losses along a curve are mid-schedule
ones; only the last point of a finished run with a final loss is final, and each point says which it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from app.api.problems import Problem, responses
from app.api.runs import find_run
from app.api.service import ServiceDep
from app.store import runs as run_store
from app.store.tables import PointRow, RunRow
from fitting.conventions import SAME_SIZE
from fitting.speedup import speedups_at_equal_loss

router = APIRouter(tags=["runs"])

# A leg of a leg of a trunk is deep already; a chain that never ends is a damaged one.
_LONGEST_CHAIN = 20

Metric = Annotated[str | None, Query(max_length=64, description="the cohort's decision metric where left out")]
Dataset = Annotated[str | None, Query(max_length=64, description="the cohort's decision data set where left out")]


class RunMetric(BaseModel):
    """One curve that a run has points of."""

    metric: str
    dataset: str
    unit: str
    num_points: int


class RunMetrics(BaseModel):
    """`metrics` by name; the cohort's decision metric first."""

    run_id: str
    metrics: list[RunMetric]


class CurvePoint(BaseModel):
    """One point; `tokens` counts from the start of the run, base phase included, `compute_flops` likewise."""

    run_id: str = Field(description="whose point it is: the run's, or of a run that it branched from")
    phase: str
    tokens: int
    compute_flops: float
    value: float
    is_final: bool = Field(description="the final loss of a finished run; all others are mid-schedule")
    against_flops: float | None = Field(description="FLOPs at which the other run first had this loss; none: not seen")
    speedup: float | None = Field(description="against_flops / compute_flops - 1, a ratio")


class FinalSpeedup(BaseModel):
    """Final loss against final losses of scratch runs of the same target, read between them: no mid-schedule loss in it."""

    speedup: float | None
    scratch_flops: float | None = Field(description="FLOPs with which scratch would end at the run's final loss")
    scratch_run_ids: list[str]
    detail: str


class Curve(BaseModel):
    """The curve of one metric on one data set, at most `max_points` of it; `num_points` counts them all."""

    run_id: str
    cohort: str
    metric: str
    dataset: str
    unit: str
    num_points: int
    against: str | None = Field(description="the run it is held against")
    points: list[CurvePoint]
    final: FinalSpeedup | None = Field(description="none where nothing was asked about, or the run has no final loss")


@router.get("/runs/{run_id}/metrics", summary="What curves a run has", responses=responses(404, 410))
def list_metrics(run_id: str, service: ServiceDep) -> RunMetrics:
    with service.database.read() as session:
        run = find_run(session, run_id)
        cohort = run_store.get_cohort(session, run.cohort)
        found = run_store.count_points(session, run_id)
    assert cohort is not None
    decision = (cohort.decision_metric, cohort.decision_dataset)
    ordered = sorted(found, key=lambda one: (one[:2] != decision, *one))
    return RunMetrics(
        run_id=run_id,
        metrics=[RunMetric(metric=m, dataset=d, unit=u, num_points=count) for m, d, u, count in ordered],
    )


@router.get("/runs/{run_id}/curve", summary="A run's curve, held against another's", responses=responses(404, 410, 422))
def get_curve(
    run_id: str,
    service: ServiceDep,
    metric: Metric = None,
    dataset: Dataset = None,
    against: Annotated[
        str | None, Query(max_length=64, description="run of the same cohort: every point then has its speedup over it")
    ] = None,
    max_points: Annotated[int, Query(ge=2, le=20_000, description="evenly thinned, first and last kept")] = 2000,
) -> Curve:
    """In the order of compute. Losses compare only within a cohort: `against` in another one is refused."""
    with service.database.read() as session:
        run = find_run(session, run_id)
        cohort = run_store.get_cohort(session, run.cohort)
        assert cohort is not None
        metric, dataset = metric or cohort.decision_metric, dataset if dataset is not None else cohort.decision_dataset
        rows = _whole_curve(session, run, metric, dataset)
        other = None if against is None else _other(session, run, against)
        others = [] if other is None else _whole_curve(session, other, metric, dataset)
        scratch = [] if other is None else run_store.final_scratch_runs(session, run.cohort)
    speedups = _speedups(rows, others, metric)
    is_decision = (metric, dataset) == (cohort.decision_metric, cohort.decision_dataset)
    points = [_point(run, row, speedup) for row, speedup in zip(rows, speedups, strict=True)]
    if points and run.status == "finished" and run.is_final and rows[-1].run_id == run_id:
        points[-1].is_final = True
    return Curve(
        run_id=run_id,
        cohort=run.cohort,
        metric=metric,
        dataset=dataset,
        unit=rows[0].unit if rows else "",
        num_points=len(points),
        against=against,
        points=_thinned(points, max_points),
        final=_final(run, scratch) if other is not None and is_decision else None,
    )


def _other(session: Session, run: RunRow, against: str) -> RunRow:
    other = run_store.get_run(session, against)
    if other is None:
        raise Problem.field("query:against", f"there is no run {against!r}; name a run of cohort {run.cohort!r}")
    if other.cohort != run.cohort:
        raise Problem.field(
            "query:against",
            f"{against} is of cohort {other.cohort!r} and {run.run_id} of {run.cohort!r}, whose losses may not be compared; "
            "name a run of the same cohort",
        )
    return other


def _whole_curve(session: Session, run: RunRow, metric: str, dataset: str) -> list[PointRow]:
    """The run's points behind those of the runs it branched from, ascending in FLOPs; the base model's are left out."""
    points: list[PointRow] = []
    here: RunRow | None = run
    for _ in range(_LONGEST_CHAIN):
        if here is None:
            break
        own = run_store.curve_points(session, here.run_id, metric, dataset)
        # The base is a smaller model: its losses are none of the target's.
        own = [point for point in own if point.phase != "base"]
        before = points[0].compute_flops if points else math.inf
        points = [point for point in own if point.compute_flops < before] + points
        here = None if here.parent_run_id is None else run_store.get_run(session, here.parent_run_id)
    return points


def _speedups(rows: Sequence[PointRow], others: Sequence[PointRow], metric: str) -> list[float | None]:
    """Speedups of a loss; of any other metric equal values say nothing about equal quality."""
    if not others or not metric.endswith("_loss"):
        return [None] * len(rows)
    found = speedups_at_equal_loss(
        flops=[row.compute_flops for row in rows],
        loss_nats=[row.value for row in rows],
        reference_flops=[row.compute_flops for row in others],
        reference_loss_nats=[row.value for row in others],
    )
    return [float(value) if math.isfinite(value) else None for value in found]


def _point(run: RunRow, row: PointRow, speedup: float | None) -> CurvePoint:
    before = int(run.growth_timing_tokens) if row.phase in ("growth", "grown") else 0
    return CurvePoint(
        run_id=row.run_id,
        phase=row.phase,
        tokens=before + row.tokens,
        compute_flops=row.compute_flops,
        value=row.value,
        is_final=False,
        against_flops=None if speedup is None else (speedup + 1) * row.compute_flops,
        speedup=speedup,
    )


def _thinned(points: list[CurvePoint], most: int) -> list[CurvePoint]:
    if len(points) <= most:
        return points
    return [points[place] for place in np.linspace(0, len(points) - 1, most).round().astype(int)]


def _final(run: RunRow, scratch: Sequence[RunRow]) -> FinalSpeedup | None:
    """The speedup of final losses alone; None where the run has none."""
    if run.status != "finished" or not run.is_final or run.final_loss is None or run.compute_flops is None:
        return None
    same = [
        one
        for one in scratch
        if abs(one.target_params / run.target_params - 1) < SAME_SIZE and one.compute_flops and one.run_id != run.run_id
    ]
    same.sort(key=lambda one: one.compute_flops or 0.0)
    (found,) = speedups_at_equal_loss(
        flops=[run.compute_flops],
        loss_nats=[run.final_loss],
        reference_flops=[one.compute_flops or 0.0 for one in same],
        reference_loss_nats=[one.final_loss or 0.0 for one in same],
    )
    ids = [one.run_id for one in same]
    if math.isfinite(found):
        detail = f"read between the final losses of {len(same)} scratch runs of this target"
        needed = float((found + 1) * run.compute_flops)
        return FinalSpeedup(speedup=float(found), scratch_flops=needed, scratch_run_ids=ids, detail=detail)
    if not same:
        detail = "no scratch run of this target has a final loss"
    elif run.final_loss < min(one.final_loss or math.inf for one in same):
        detail = f"it ended lower than all {len(same)} scratch runs of this target: a longer one would tell by how much"
    else:
        detail = f"it ended higher than all {len(same)} scratch runs of this target"
    return FinalSpeedup(speedup=None, scratch_flops=None, scratch_run_ids=ids, detail=detail)
