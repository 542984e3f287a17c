"""Runs that push their points while they train: opened once, points once by ``seq``, joined and judged at their end.

A trainer that was restarted goes on with higher ``seq`` and lower tokens. At the run's end the later branch counts, as it
does in a log (`app.ingest.joining`): the points it overlaps are removed, and what they cost is stored as wasted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy.orm import Session

from app.contract import MetricLine
from app.ingest.headers import base_model_of, check_stated, header_of, recipe_of, target_model
from app.ingest.imported import ImportedPoint, ImportOptions, Phase
from app.ingest.joining import join
from app.ingest.judging import final_loss, peak_rate
from app.ingest.logs.rows import LogRow
from app.ingest.stages import TRAIN_LOSS
from app.ingest.storing import SOURCE, check_table, enter_cohort
from app.store import audit, removals
from app.store import runs as run_store
from app.store.ids import new_id
from app.store.tables import LOCAL, PointRow, RunRow
from fitting.errors import InputError
from fitting.flops import flops_by_6nd

Ending = Literal["finished", "diverged", "stopped"]


class Conflict(ValueError):
    """A request that contradicts what is stored; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class LivePoint:
    """A pushed point; ``tokens`` counts inside the phase."""

    seq: int
    phase: Phase
    tokens: int
    metric: str
    dataset: str
    value: float
    unit: str
    time: str


def open_run(
    session: Session, options: ImportOptions, request_key: str | None, request_hash: str, *, actor: str
) -> RunRow:
    """A run that will push, opened by ``actor``; the same key and request give the same run again.

    Raises:
        Conflict: the key came with another request, or the cohort has a run of this name.
        CohortMismatch, InputError: as of an import.
    """
    known = None if request_key is None else run_store.run_of_request(session, request_key)
    if known is not None:
        if known.request_hash != request_hash:
            raise Conflict("this Idempotency-Key came with another body before; send the same body, or another key")
        return known
    removed = None if request_key is None else removals.removed_request(session, request_key)
    if removed is not None:
        raise Conflict(f"{removals.told(removed)}, and came with this Idempotency-Key; push under another key")
    check_stated(options)
    model = target_model(options)
    is_growth = any(given is not None for given in (options.base_config, options.base_layers, options.base_params))
    base = base_model_of(options) if is_growth else None
    if is_growth != (options.growth_timing_tokens is not None):
        raise InputError(
            "growth_timing_tokens", "and the base go together", "give both for a growth, none for another run"
        )
    if options.decision_dataset is None:
        raise InputError("decision_dataset", "is missing", "name the data set whose loss the cohort is judged by")
    enter_cohort(session, options.cohort, recipe_of(options, model), options.decision_metric, options.decision_dataset)
    if run_store.imported_run(session, options.cohort, options.name) is not None:
        raise Conflict(
            f"cohort {options.cohort!r} has a run {options.name!r}; give another name, or the Idempotency-Key it came with"
        )
    header = header_of(options, model, base) | {"growth_timing_tokens": float(options.growth_timing_tokens or 0)}
    live = {
        "live": True,
        "owner": actor,
        "is_final": options.is_final,
        "bytes_per_token": dict(options.bytes_per_token),
    }
    row = RunRow(
        run_id=new_id("run"), source=SOURCE, request_key=request_key, request_hash=request_hash,
        provenance=json.dumps(live), **header,
    )  # fmt: skip
    run_store.add_run(session, row)
    audit.record(
        session, actor=actor, action="run.open", subject=row.run_id, detail=f"{row.name!r} in cohort {row.cohort!r}"
    )
    return row


def owner_of(run: RunRow) -> str:
    """The key that opened a run which pushes."""
    owner: str = json.loads(run.provenance or "{}").get("owner", LOCAL)
    return owner


def push_points(session: Session, run: RunRow, points: Sequence[LivePoint], ending: Ending | None, reason: str) -> int:
    """Store points, each seq once, and end the run where it has ended; all of it or nothing.

    Returns:
        How many points were new.

    Raises:
        Conflict: a seq holds another value, or new points come for a run that has ended.
        InputError: a point cannot be one of this run.
    """
    if run.source != SOURCE or not run.provenance or not json.loads(run.provenance).get("live"):
        raise Conflict(f"run {run.run_id} was not opened by POST /runs, so nothing can be pushed to it; open a run")
    lines = {point.seq: _line(run, point) for point in points}
    if len(lines) < len(points):
        raise InputError("points", "hold a seq twice", "give each point its own")
    stored = run_store.points_of_seqs(session, run.run_id, list(lines))
    for seq, point in stored.items():
        _check_same(point, lines[seq])
    fresh = [line for seq, line in lines.items() if seq not in stored]
    if run.status != "running":
        # What a rollback removed may come again too, and is no news.
        newest = run_store.last_seq(session, run.run_id)
        if any(line.seq > newest for line in fresh) or (ending is not None and ending != run.status):
            raise Conflict(f"run {run.run_id} has {run.status}, and takes no more points; open another run")
        return 0
    run_store.add_points(session, run.run_id, fresh)
    if ending is not None:
        _end(session, run, ending, reason)
    return len(fresh)


def _rates(run: RunRow) -> tuple[float, float]:
    """Training FLOPs a token of the base and of the target."""
    target = run.target_flops_per_token or flops_by_6nd(run.target_params, 1.0)
    base = run.base_flops_per_token or flops_by_6nd(run.base_params or 0.0, 1.0)
    return base, target


def _line(run: RunRow, point: LivePoint) -> MetricLine:
    phases = ("single",) if run.base_params is None else ("base", "grown")
    if point.phase not in phases:
        raise InputError("phase", f"is {point.phase!r} at seq {point.seq}", f"this run has {' and '.join(phases)}")
    base, target = _rates(run)
    flops = point.tokens * base if point.phase == "base" else run.growth_timing_tokens * base + point.tokens * target
    return MetricLine(**vars(point), compute_flops=flops)


def _check_same(stored: PointRow, given: MetricLine) -> None:
    for name in ("phase", "tokens", "metric", "dataset", "value", "unit"):
        if getattr(stored, name) != getattr(given, name):
            raise Conflict(
                f"seq {given.seq} holds {name} {getattr(stored, name)!r}, not {getattr(given, name)!r}; a point never "
                "changes: send new ones with higher seq"
            )


def _end(session: Session, run: RunRow, ending: Ending, reason: str) -> None:
    base_rate, target_rate = _rates(run)
    kept: list[PointRow] = []
    gone: list[int] = []
    wasted = 0.0
    seen: dict[str, int] = {}
    points = run_store.all_points(session, run.run_id)
    for phase in ("base", "grown", "single"):
        own = [point for point in points if point.phase == phase]
        training = {f"{p.metric}\0{p.dataset}" for p in own if p.metric == TRAIN_LOSS}
        rows = [LogRow(step=p.tokens, values={f"{p.metric}\0{p.dataset}": float(p.seq)}) for p in own]
        joined = join(rows, training)
        alive = {int(seq) for row in joined.rows for seq in row.values.values()}
        kept += [point for point in own if point.seq in alive]
        gone += [point.seq for point in own if point.seq not in alive]
        rate = base_rate if phase == "base" else target_rate
        wasted += rate * sum(s.rows[-1].step - (s.after.step if s.after else 0) for s in joined.abandoned)
        seen[phase] = joined.rows[-1].step if joined.rows else 0
    final_tokens = seen["grown"] or seen["single"]
    # A growth that ended before its growth has trained a part of its base and no more.
    timing = run.growth_timing_tokens if final_tokens else float(seen["base"])
    cohort = run_store.get_cohort(session, run.cohort)
    assert cohort is not None
    values: dict[str, Any] = {
        "status": ending,
        "reason": reason,
        "grown_tokens": float(final_tokens),
        # One that ended before its first point has trained nothing, and the table takes no zeros.
        "compute_flops": timing * base_rate + final_tokens * target_rate or None,
        "growth_timing_tokens": timing,
        "wasted_flops": wasted,
    }
    measured = [_measured(point) for point in kept]
    values["peak_lr"] = run.peak_lr or peak_rate(measured, ("single", "grown"))
    values["base_peak_lr"] = run.base_peak_lr or peak_rate(measured, ("base",))
    if ending == "finished":
        live = json.loads(run.provenance)
        loss, late = final_loss(
            measured, cohort.decision_metric, cohort.decision_dataset, final_tokens, live["bytes_per_token"]
        )
        values |= {"final_loss": loss, "is_final": bool(live["is_final"]) and not late, "reason": reason or late}
    run_store.delete_points(session, run.run_id, gone)
    run_store.finish_run(session, run.run_id, **values)
    check_table(session, run.cohort)


def _measured(point: PointRow) -> ImportedPoint:
    phase: Any = point.phase
    return ImportedPoint(
        phase=phase, step=point.tokens, tokens=point.tokens, compute_flops=point.compute_flops, metric=point.metric,
        dataset=point.dataset, value=point.value, unit=point.unit, time=point.time,
    )  # fmt: skip
