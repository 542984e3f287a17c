"""The real curves of `tests/data/early_view`, and the measurement of the early view on them.

    OMP_NUM_THREADS=1 python tests/fitting/early_view_runs.py

prints, for shares of the run, how far predictions were off beside two naive ones and the mean of the cohort's final
losses, and how often 80% intervals held. "first": every run of the first set from all others (prior, noise and replays
without it). "later": runs trained after the method stood, from the first set.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pandas as pd

from fitting.early_view import Cohort, EarlyView, LossCurve, predict_final
from fitting.early_view.baselines import last_value, power_law
from fitting.validation.scores import binomial_interval

CURVES = Path(__file__).parents[1] / "data" / "early_view" / "curves.csv"
WARMUP_TOKENS = 30_720.0
SHARES = (0.25, 0.5, 0.75)


def read_curves(part: str) -> list[LossCurve]:
    """Last phases of the runs of one set ("first" or "later"); schedules from the rates written at each evaluation."""
    table = pd.read_csv(CURVES)
    curves = []
    for run_id, rows in table[table["set"] == part].groupby("run_id", sort=False):
        last = rows[(rows["phase"] == rows["phase"].iloc[-1]) & (rows["tokens"] > 0)]
        after = last[last["tokens"] > WARMUP_TOKENS]
        curves.append(
            LossCurve(
                run_id=str(run_id),
                tokens=last["tokens"].to_numpy(float),
                loss_nats=last["validation_loss_nats"].to_numpy(),
                schedule_tokens=np.concatenate([[0.0, WARMUP_TOKENS], after["tokens"].to_numpy(float)]),
                learning_rates=np.concatenate([[0.0, last["learning_rate"].max()], after["learning_rate"].to_numpy()]),
                grown=bool(last["phase"].iloc[0] == "grown"),
            )
        )
    return curves


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Errors in nats, and how many of the 80% intervals held."""

    share: float
    num_runs: int
    num_told: int
    rmse_nats: float
    last_value_rmse_nats: float
    power_law_rmse_nats: float
    cohort_mean_rmse_nats: float
    num_covered: int
    mean_half_width_nats: float

    @property
    def coverage(self) -> float:
        return self.num_covered / self.num_told

    def row(self) -> str:
        low, high = binomial_interval(self.num_covered, self.num_told) or (0.0, 1.0)
        return (
            f"{self.share:5.0%} {self.num_told:3d} of {self.num_runs:2d} told  rmse {self.rmse_nats:.4f}  last value "
            f"{self.last_value_rmse_nats:.4f}  power law {self.power_law_rmse_nats:.4f}  cohort mean "
            f"{self.cohort_mean_rmse_nats:.4f}  80% intervals held {self.coverage:.0%} ({low:.0%} to {high:.0%}), half width "
            f"{self.mean_half_width_nats:.4f}"
        )


def measure(curves: list[LossCurve], cohort_of: Callable[[LossCurve], Cohort], share: float) -> Measured:
    """Predict each finished curve from its first ``share`` by its own cohort."""
    views: list[EarlyView] = [predict_final(c.truncated(share), cohort=cohort_of(c)) for c in curves]
    told = [(c, v.run) for c, v in zip(curves, views, strict=True) if v.run.status == "predicted"]
    final = np.array([c.final_loss_nats for c, _ in told])
    cut = [c.truncated(share) for c, _ in told]
    means = [float(np.mean([run.final_loss_nats for run in cohort_of(c).runs])) for c, _ in told]

    def rmse(predicted: list[float]) -> float:
        return float(np.sqrt(np.mean((final - np.array(predicted)) ** 2)))

    low, high = (np.array([getattr(run, end) for _, run in told]) for end in ("low_nats", "high_nats"))
    return Measured(
        share=share,
        num_runs=len(curves),
        num_told=len(told),
        rmse_nats=rmse([run.final_loss_nats for _, run in told]),
        last_value_rmse_nats=rmse([last_value(c) for c in cut]),
        power_law_rmse_nats=rmse([power_law(c) for c in cut]),
        cohort_mean_rmse_nats=rmse(means),
        num_covered=int(np.sum((low <= final) & (final <= high))),
        mean_half_width_nats=float(np.mean(high - low) / 2),
    )


def leave_one_out(curves: list[LossCurve]) -> Callable[[LossCurve], Cohort]:
    """The cohort of all curves but the asked one, each made once."""
    made: dict[str, Cohort] = {}

    def cohort_of(curve: LossCurve) -> Cohort:
        if curve.run_id not in made:
            made[curve.run_id] = Cohort([other for other in curves if other.run_id != curve.run_id])
        return made[curve.run_id]

    return cohort_of


def main() -> None:
    first, later = read_curves("first"), read_curves("later")
    whole = Cohort(first)
    parts = (("first", first, leave_one_out(first)), ("later", later, lambda curve: whole))
    for name, curves, cohort_of in parts:
        print(name)
        for share in SHARES:
            print("  " + measure(curves, cohort_of, share).row())
    print("later, chances of pairs, both cut at the same share")
    for share in SHARES:
        print(f"  {share:5.0%} " + pair_chances(later, whole, share))


def pair_chances(curves: list[LossCurve], cohort: Cohort, share: float) -> str:
    """How often what was called likely came true, over all pairs of ``curves`` (pairs of few runs: not independent)."""
    told, sure, hits, brier = 0, 0, 0, 0.0
    num_pairs = len(curves) * (len(curves) - 1) // 2
    for i, run in enumerate(curves):
        for control in curves[:i]:
            view = predict_final(run.truncated(share), cohort=cohort, control=control.truncated(share))
            if view.chance_below_control is None:
                continue
            below = run.final_loss_nats < control.final_loss_nats
            told += 1
            brier += (view.chance_below_control - below) ** 2
            if abs(view.chance_below_control - 0.5) >= 0.3:
                sure += 1
                hits += (view.chance_below_control > 0.5) == below
    score = f"{brier / told:.3f}" if told else "-"
    return f"{told} of {num_pairs} pairs told, at least 80% sure in {sure}, right in {hits}, Brier score {score} (coin 0.25)"


if __name__ == "__main__":
    main()
