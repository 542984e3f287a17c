"""One growth fit from a run table to its answer: pairs, scratch curve, laws with draws, weights, nested validation.

    table -> pairs -> S -> laws -> weights (inner folds) -> scores (outer folds)

This is what ``growthlaw fit growth`` prints and ``growthlaw fit report`` draws.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fitting.growth_data import GrowthData, growth_data, read_growth_table
from fitting.growth_fit import ALL_LAWS, GrowthFit, ScratchBasis, fit_growth_law, fit_scratch_basis
from fitting.laws.base import Array
from fitting.validation.baselines import RuleScores, rule_scores
from fitting.validation.folds import LeaveOut, folds
from fitting.validation.nested import Validation, Weights, law_weights, validate
from fitting.validation.scores import Scores

NUM_DRAWS = 400
_FEWEST_HELD_OUT = 10


@dataclass(frozen=True, kw_only=True)
class GrowthReport:
    """Everything one growth fit says; ``seconds`` are of the fits with draws and of the validation."""

    data: GrowthData
    basis: ScratchBasis
    fits: Mapping[str, GrowthFit]
    weights: Weights
    validation: Validation
    rules: Mapping[str, RuleScores]
    warnings: tuple[str, ...]
    fit_seconds: float
    validation_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a law's scores are null where nothing could be held out."""
        validation = self.validation
        return {
            "cohort": self.data.cohort,
            "basis": self.data.basis,
            "num_pairs": len(self.data),
            "num_scratch_runs": len(self.data.scratch),
            "data_hash": self.data.data_hash,
            "left_out": validation.leave_out,
            "scratch_law": {
                "law": self.basis.curve.law.name,
                "parameters": dict(
                    zip(self.basis.curve.law.parameter_names, map(float, self.basis.curve.params), strict=True)
                ),
                "borrowed": list(self.basis.borrowed),
            },
            "laws": {
                name: {
                    **_scores(validation.scores.get(name)),
                    "weight": float(self.weights.by_law.get(name, 0.0)),
                    "verdict": self.weights.verdicts.get(name, ""),
                    "may_choose_timing": fit.law.may_choose_timing,
                    "formula": fit.law.formula,
                    "parameters": fit.parameters,
                    "standard_errors": standard_errors(fit),
                    "by_left_out": {value: s.to_dict() for value, s in validation.by_left_out.get(name, {}).items()},
                }
                for name, fit in self.fits.items()
            },
            "averaged": {
                **_scores(validation.averaged),
                "weight": 1.0,
                "by_left_out": {value: s.to_dict() for value, s in validation.averaged_by_left_out.items()},
            },
            "by_left_out": {value: s.to_dict() for value, s in validation.averaged_by_left_out.items()},
            "inner_weights": {value: dict(weights) for value, weights in validation.inner_weights.items()},
            "rules": {name: asdict(scores) for name, scores in self.rules.items()},
            "warnings": list(self.warnings),
            "seconds": {"fit": self.fit_seconds, "validation": self.validation_seconds},
        }


def _scores(scores: Scores | None) -> dict[str, Any]:
    if scores is None:
        return dict.fromkeys(name for name in Scores.__dataclass_fields__)
    return scores.to_dict()


def standard_errors(fit: GrowthFit) -> dict[str, float] | None:
    """Bootstrap standard errors by parameter name; None without draws."""
    if fit.draws is None or len(fit.draws) < 2:
        return None
    return dict(zip(fit.law.parameter_names, map(float, fit.draws.std(axis=0, ddof=1)), strict=True))


def fit_growth(
    source: str | Path | pd.DataFrame,
    *,
    cohort: str | None = None,
    leave_out: LeaveOut | None = None,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> GrowthReport:
    """Fit and validate every growth law and predictor on one cohort of a run table.

    Args:
        leave_out: ``target_params`` or ``compute``; None leaves out targets where there are two or more, else budgets.

    Raises:
        ValueError: the table is bad, or holds no pair or too few scratch runs; the message names the mend.
    """
    if leave_out not in (None, "target_params", "compute"):
        raise ValueError(f"leave_out is '{leave_out}'; it must be 'target_params' or 'compute'")
    if num_draws < 2:
        raise ValueError(f"num_draws is {num_draws}; it must be at least 2")
    table, taken = read_growth_table(source, cohort)
    data = growth_data(table)
    kind: LeaveOut = leave_out or ("target_params" if folds(data, "target_params") else "compute")
    began = time.perf_counter()
    basis = fit_scratch_basis(data.scratch, num_draws, seed)
    fits = {
        name: fit_growth_law(
            law, data.points, data.delta_nats, basis, clusters=data.clusters, controls=data.controls, seed=seed
        )
        for name, law in ALL_LAWS.items()
        if len(data) >= law.min_pairs
    }
    fitted = time.perf_counter()
    weights = law_weights(data, {name: fit.law for name, fit in fits.items()})
    validation = validate(data, kind, seed=seed)
    warnings = [*taken, *data.warnings, *basis.borrowed, *validation.warnings, *_warnings(data, validation)]
    used = [name for name in fits if weights.by_law.get(name, 0.0) > 0]
    warnings += [sentence for name in used for sentence in fits[name].warnings]
    short = [name for name, law in ALL_LAWS.items() if name not in fits]
    if short:
        warnings.append(f"too few pairs ({len(data)}) for: {', '.join(short)}")
    return GrowthReport(
        data=data,
        basis=basis,
        fits=fits,
        weights=weights,
        validation=validation,
        rules=rule_scores(data),
        warnings=tuple(dict.fromkeys(warnings)),
        fit_seconds=fitted - began,
        validation_seconds=time.perf_counter() - fitted,
    )


def _warnings(data: GrowthData, validation: Validation) -> list[str]:
    """What these data cannot tell, and held-out errors as large as the effect itself."""
    found = []
    points = data.points
    for values, least, what in (
        (points.target_params, 3, "target sizes"),
        (points.growth_factor, 2, "growth factors"),
        (points.timing_tokens / points.base_params, 4, "growth timings"),
        (points.grown_tokens / points.target_params, 3, "budgets"),
    ):
        number = len(np.unique(np.round(np.log(values), 2)))
        if number < least:
            found.append(f"a timing law needs {least} {what}, {number} found")
    num_clusters = len(np.unique(data.clusters))
    if num_clusters < _FEWEST_HELD_OUT:
        found.append(f"{num_clusters} independent run families: intervals and weights rest on few")
    if validation.averaged is not None:
        size = float(np.median(np.abs(data.delta_nats)))
        if validation.averaged.rmse_delta_nats > size:
            found.append(
                f"the held-out error ({validation.averaged.rmse_delta_nats:.3f} nats) is as large as the effect "
                f"({size:.3f} nats)"
            )
    return found


def averaged_delta(report: GrowthReport) -> Array:
    """Delta (R,) of the weighted average of all fits, on the report's own pairs."""
    from fitting.growth_laws import Prepared

    prepared = Prepared.of(report.data.points, report.basis.curve)
    total = np.zeros(len(report.data))
    for name, fit in report.fits.items():
        total = total + report.weights.by_law.get(name, 0.0) * fit.law.delta(fit.params, prepared)
    return total
