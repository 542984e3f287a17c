"""Predictions between the values of `fitting.prequential` and the store's rows: made once, scored as the runs stand now."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from app.store.tables import PredictionRow
from fitting.cells import usable, with_compute
from fitting.guideline import Guideline
from fitting.prequential.cases import Case
from fitting.prequential.predicting import (
    NEVER,
    PUBLISHED,
    Forecast,
    base_loss_of,
    forecast_delta,
    forecast_loss,
    rule_decisions,
)
from fitting.prequential.scoring import Comparison, Said, compare, standing, weighted_interval_score
from fitting.table import is_grown

if TYPE_CHECKING:
    import pandas as pd

# The version that answered when a run came, and the newest one where that was another.
ACTIVE, CANDIDATE = "active", "candidate"
DELTA, LOSS = "delta_nats", "loss_nats"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A version that is asked about new runs; ``waited`` are runs it lists whose control was not there: it holds nothing of
    their deltas."""

    role: str
    guideline: Guideline
    waited: frozenset[str]

    def has_seen(self, run_id: str) -> bool:
        return run_id in self.guideline.run_ids and run_id not in self.waited


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the run table says of one run: of a case its delta, of a run of one size its loss."""

    quantity: str
    design: dict[str, float]
    family: str
    control: str
    observed: float


def seen_now(table: pd.DataFrame, found: Sequence[Case]) -> dict[str, Seen]:
    """By run id, everything in a checked table that can be predicted."""
    result = {
        case.run_id: Seen(
            quantity=DELTA, design=case.design, family=case.family, control=case.control, observed=case.delta_nats
        )
        for case in found
    }  # fmt: skip
    used, _ = with_compute(usable(table)[0])
    for row in used[~is_grown(used) & (used["growth_factor"] == 1)].to_dict("records"):
        names = ("target_params", "grown_tokens", "compute_flops")
        run_id = str(row["run_id"])
        family = str(row["trunk_id"] or run_id)
        design = {str(name): float(row[name]) for name in names}
        result[run_id] = Seen(
            quantity=LOSS, design=design, family=family, control=run_id, observed=float(row["final_loss"])
        )  # fmt: skip
    return result


def new_predictions(
    cohort: str,
    found: Sequence[Case],
    seen: Mapping[str, Seen],
    stored: Iterable[PredictionRow],
    contenders: Sequence[Contender],
    now: str,
) -> list[dict[str, Any]]:
    """Rows for the runs that were never predicted.

    Rules hold no number of these runs, so they speak of every case once, those of the first fit included; a version speaks of
    the runs that it has not seen.
    """
    admitted = {row.run_id for row in stored}
    fresh = [case for case in found if case.run_id not in admitted]
    watched = base_loss_of(next((one.guideline for one in contenders if one.role == ACTIVE), None))
    rows = []
    for case in fresh:
        decisions = rule_decisions(case, found, watched)
        for name, rule in decisions.items():
            forecast = Forecast(nats=0.0, low_nats=0.0, high_nats=0.0) if name == NEVER else None
            one = Said(
                forecast=forecast,
                decision=rule.decision,
                growth_factor=rule.growth_factor,
                timing_tokens=rule.growth_timing_tokens,
            )
            rows.append(_row(cohort, case.run_id, seen[case.run_id], name, "", one, now))
        prior = decisions[PUBLISHED]
        for contender in contenders:
            if contender.has_seen(case.run_id):
                continue
            forecast = forecast_delta(contender.guideline, case)
            if forecast is None:
                one = Said(
                    forecast=None,
                    decision=prior.decision,
                    growth_factor=prior.growth_factor,
                    timing_tokens=prior.growth_timing_tokens,
                )
            else:
                one = Said(forecast=forecast, decision="grow" if forecast.nats < 0 else "scratch")
            rows.append(_row(cohort, case.run_id, seen[case.run_id], contender.role, contender.guideline.id, one, now))
    for run_id, single in seen.items():
        if single.quantity != LOSS or run_id in admitted:
            continue
        for contender in contenders:
            design, guideline = single.design, contender.guideline
            if contender.has_seen(run_id):
                continue
            forecast = forecast_loss(
                guideline, design["target_params"], design["grown_tokens"], design["compute_flops"]
            )
            if forecast is not None:
                rows.append(
                    _row(
                        cohort, run_id, single, contender.role, guideline.id, Said(forecast=forecast, decision=""), now
                    )
                )
    return rows


def _row(
    cohort: str, run_id: str, seen: Seen, predictor: str, guideline_id: str, one: Said, now: str
) -> dict[str, Any]:
    forecast = one.forecast
    return {
        "cohort": cohort, "run_id": run_id, "predictor": predictor, "guideline_id": guideline_id,
        "quantity": seen.quantity, "design": json.dumps(seen.design, sort_keys=True), "family": seen.family,
        "control": seen.control, "predicted": forecast and forecast.nats, "low": forecast and forecast.low_nats,
        "high": forecast and forecast.high_nats, "decision": one.decision or None, "growth_factor": one.growth_factor,
        "growth_timing_tokens": one.timing_tokens, "observed": seen.observed,
        "score": forecast and weighted_interval_score(seen.observed, forecast), "created_at": now, "observed_at": now,
    }  # fmt: skip


def void_reason(row: PredictionRow, seen: Mapping[str, Seen], table_ids: frozenset[str]) -> str | None:
    """Why a prediction counts no more, None where it does."""
    if row.run_id not in table_ids:
        return "the run was removed"
    now = seen.get(row.run_id)
    if now is None:
        return "its control at equal FLOPs was removed, or it is no finished run any more"
    if now.quantity != row.quantity or json.dumps(now.design, sort_keys=True) != row.design:
        return "the run was corrected: another design was predicted"
    return None


def forecast_of(row: PredictionRow) -> Forecast | None:
    if row.predicted is None or row.low is None or row.high is None:
        return None
    return Forecast(nats=row.predicted, low_nats=row.low, high_nats=row.high)


def said_of(row: PredictionRow) -> Said:
    return Said(
        forecast=forecast_of(row),
        decision=row.decision or "",
        growth_factor=row.growth_factor,
        timing_tokens=row.growth_timing_tokens,
    )


def lines(rows: Iterable[PredictionRow]) -> dict[str, dict[str, PredictionRow]]:
    """By predictor, by run id, the predictions of deltas that count; the line of refits is the newest version's, which often is
    the active one."""
    result: dict[str, dict[str, PredictionRow]] = {}
    for row in rows:
        if row.quantity == DELTA and row.void_reason is None:
            result.setdefault(row.predictor, {})[row.run_id] = row
    if ACTIVE in result:
        result[CANDIDATE] = result[ACTIVE] | result.get(CANDIDATE, {})
    return result


def standings(found: Sequence[Case], rows: Iterable[PredictionRow]) -> dict[str, dict[str, Any]]:
    """Every predictor over the same cases: those that a version had not seen when they came, in the order they came."""
    by_predictor = lines(rows)
    known = {case.run_id: case for case in found}
    came = [run_id for run_id in by_predictor.get(ACTIVE, {}) if run_id in known]
    result = {}
    for name, own in by_predictor.items():
        both = [run_id for run_id in came if run_id in own]
        if both:
            result[name] = asdict(
                standing([known[run_id] for run_id in both], [said_of(own[run_id]) for run_id in both])
            )
    return result


def comparison(rows: Sequence[PredictionRow], active_id: str, version_of: Mapping[str, int]) -> Comparison | None:
    """The line of refits against one version, on the cases that both gave a number for before they had seen them."""
    by_active: dict[str, PredictionRow] = {}
    by_newer: dict[str, PredictionRow] = {}
    for row in rows:
        if row.quantity != DELTA or row.void_reason is not None or row.score is None or not row.guideline_id:
            continue
        if row.guideline_id == active_id:
            by_active[row.run_id] = row
        elif version_of.get(row.guideline_id, 0) > version_of[active_id]:
            newer = by_newer.get(row.run_id)
            if newer is None or version_of[newer.guideline_id] < version_of[row.guideline_id]:
                by_newer[row.run_id] = row
    both = [(by_active[run_id], by_newer[run_id]) for run_id in sorted(by_active.keys() & by_newer.keys())]
    return compare(
        [(newer.score or 0.0) - (old.score or 0.0) for old, newer in both],
        [old.family for old, _ in both],
        [old.control for old, _ in both],
    )


def scores_of_version(rows: Iterable[PredictionRow], guideline_id: str) -> dict[str, Any]:
    """How one version did on what it predicted before it was seen: mean scores in nats, coverage, counts; None without any."""
    own = [
        row for row in rows if row.guideline_id == guideline_id and row.void_reason is None and row.score is not None
    ]  # fmt: skip
    deltas, losses = ([row for row in own if row.quantity == quantity] for quantity in (DELTA, LOSS))
    held = [row for row in deltas if (row.low or 0.0) <= row.observed <= (row.high or 0.0)]

    def mean(part: list[PredictionRow]) -> float | None:
        return sum(row.score or 0.0 for row in part) / len(part) if part else None

    return {
        "num_deltas": len(deltas),
        "delta_score_nats": mean(deltas),
        "delta_coverage": len(held) / len(deltas) if deltas else None,
        "num_losses": len(losses),
        "loss_score_nats": mean(losses),
    }
