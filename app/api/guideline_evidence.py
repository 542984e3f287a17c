"""`GET /guidelines/{id}/evidence` and `/cohorts/{cohort}/refinement`: what a version rests on, and how versions have fared,
ready to be drawn: computed from what fits and predictions stored."""

from __future__ import annotations

import json
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.api.guidelines import VersionScores
from app.api.problems import Problem, responses
from app.api.service import Service, ServiceDep
from app.guidelines.said import DELTA, forecast_of, scores_of_version
from app.store import guidelines as guideline_store
from app.store import predictions as prediction_store
from app.store import runs as run_store
from app.store.tables import PredictionRow
from fitting.evidence import Coverage, LawWeight, Valley, coverage, valleys, weighed_laws
from fitting.guideline import Guideline
from fitting.prequential.scoring import Comparison, Standing

router = APIRouter(tags=["guidelines"])

How = Literal["target_params", "compute", "before_seen"]
_TOLD: dict[How, str] = {
    "target_params": "held out by target size",
    "compute": "held out by compute",
    "before_seen": "predicted before the run was seen",
}


# Of a version, as its row has them.
_COLUMNS = ("id", "version", "created_at", "is_active", "is_pinned", "outcome", "reason", "num_runs")


class PredictedPair(BaseModel):
    """A delta that was predicted by laws which had not seen it, and what was observed (nats, 80% interval)."""

    how: How = Field(description="held out by target size or by compute when fitted, or predicted before it was seen")
    run_id: str
    target_params: float
    growth_factor: float
    growth_timing_tokens: float
    compute_flops: float
    predicted_nats: float
    low_nats: float
    high_nats: float
    observed_nats: float
    is_inside: bool = Field(description="the observed delta lies in the interval")

    @classmethod
    def of_row(cls, row: PredictionRow) -> PredictedPair:
        forecast = forecast_of(row)
        assert forecast is not None
        design = json.loads(row.design)
        return cls(
            how="before_seen",
            run_id=row.run_id,
            target_params=design["target_params"],
            growth_factor=design["growth_factor"],
            growth_timing_tokens=design["growth_timing_tokens"],
            compute_flops=design["compute_flops"],
            predicted_nats=forecast.nats,
            low_nats=forecast.low_nats,
            high_nats=forecast.high_nats,
            observed_nats=row.observed,
            is_inside=forecast.low_nats <= row.observed <= forecast.high_nats,
        )


class Evidence(BaseModel):
    """Valleys (observed and predicted deltas over growth timing), unseen pairs with predictions, coverage, laws."""

    guideline_id: str
    valleys: list[Valley]
    predicted: list[PredictedPair]
    calibration: list[Coverage]
    laws: list[LawWeight]


@router.get(
    "/guidelines/{guideline_id}/evidence", responses=responses(404), summary="What a version rests on, to be drawn"
)
def get_evidence(guideline_id: str, service: ServiceDep) -> Evidence:
    """The valleys its pairs draw beside what its laws say of them; every pair that was predicted unseen; how often the 80%
    intervals held; the laws with their weights."""
    guideline = service.guideline(guideline_id)
    if guideline is None:
        raise Problem.not_found("guideline", guideline_id)
    predicted = [*_held_out(guideline), *_before_seen(service, guideline)]
    kinds = [how for how in _TOLD if any(one.how == how for one in predicted)]
    return Evidence(
        guideline_id=guideline_id,
        valleys=list(valleys(guideline)),
        predicted=predicted,
        calibration=[coverage(_TOLD[how], [one.is_inside for one in predicted if one.how == how]) for how in kinds],
        laws=list(weighed_laws(guideline)),
    )


def _held_out(guideline: Guideline) -> list[PredictedPair]:
    return [
        PredictedPair(
            **{name: value for name, value in pair.items() if name != "left_out"},
            how=pair["left_out"],
            is_inside=pair["low_nats"] <= pair["observed_nats"] <= pair["high_nats"],
        )
        for pair in guideline.held_out_pairs
    ]


def _before_seen(service: Service, guideline: Guideline) -> list[PredictedPair]:
    """What this very version said of runs that came after it, and that still count."""
    assert guideline.cohort is not None
    with service.database.read() as session:
        rows = prediction_store.list_predictions(session, guideline.cohort)
    return [
        PredictedPair.of_row(row)
        for row in rows
        if row.guideline_id == guideline.id
        and row.quantity == DELTA
        and row.void_reason is None
        and row.score is not None
    ]


class VersionStanding(BaseModel):
    """One version with its own scores, and how every predictor stood when it was stored, all over the same cases."""

    id: str
    version: int
    created_at: str
    is_active: bool
    is_pinned: bool
    outcome: str
    reason: str
    num_runs: int
    scores: VersionScores
    compared_with_version: int | None
    comparison: Comparison | None = Field(
        description="of refits with the version that answered; negative: refits better"
    )
    standings: dict[str, Standing] = Field(
        description="by predictor: active (the version that answered when a run came), candidate (the newest version), never "
        "(no growth: a delta of 0), gstack (the published rule, decisions only), other rules"
    )


class Refinement(BaseModel):
    """All versions of a cohort, oldest first."""

    cohort: str
    versions: list[VersionStanding]


@router.get("/cohorts/{cohort}/refinement", responses=responses(404), summary="Scores of a cohort's guideline versions")
def get_refinement(cohort: str, service: ServiceDep) -> Refinement:
    """How predictions made before runs were seen have fared, by version, beside never growing and the published rule."""
    with service.database.read() as session:
        if run_store.get_cohort(session, cohort) is None:
            raise Problem.not_found("cohort", cohort)
        rows = guideline_store.versions_with_reports(session, cohort)
        predictions = prediction_store.list_predictions(session, cohort)
    versions = []
    for row in rows:
        report = json.loads(row.report)
        versions.append(
            VersionStanding(
                **{name: getattr(row, name) for name in _COLUMNS},
                scores=VersionScores(**scores_of_version(predictions, row.id)),
                compared_with_version=(report.get("compared_with") or {}).get("version"),
                comparison=report.get("comparison"),
                standings=report.get("standings", {}),
            )
        )
    return Refinement(cohort=cohort, versions=versions)
