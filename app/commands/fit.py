"""``growthlaw fit``: laws fitted to a table of runs, on this machine and without a service."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fitting.scratch import AveragedScratchFit, ScratchFit
    from fitting.scratch_rows import ScratchRows


@click.group()
def fit() -> None:
    """Fit scratch laws and growth laws to tables of runs, and write reports on them."""


@fit.command()
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--params", required=True, metavar="COL", help="Column with model parameters.")
@click.option("--loss", required=True, metavar="COL", help="Column with final losses in nats per token.")
@click.option("--tokens", metavar="COL", help="Column with training tokens; or give --flops.")
@click.option("--flops", metavar="COL", help="Column with training FLOPs; tokens are then C / 6N.")
@click.option(
    "--law", default="auto", show_default=True, metavar="NAME", help="Law to fit; auto averages all by extrapolation."
)
@click.option("--loss-function", type=click.Choice(["huber", "lad"]), default="huber", show_default=True)
@click.option(
    "--knee", default="auto", show_default=True, help="Huber knee in log-loss units, or auto: 1.345 robust sd."
)
@click.option("--drop-highest", default=0, show_default=True, metavar="K", help="Leave out the K highest losses.")
@click.option("--bootstrap", default=0, show_default=True, metavar="K", help="Resamples for standard errors.")
@click.option("--seed", default=0, show_default=True, help="Seed of the resampling.")
@click.option(
    "--test-above-flops", type=float, metavar="X", help="Hold out rows with more than X FLOPs (6ND) and score them."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def scratch(
    table: Path,
    params: str,
    loss: str,
    tokens: str | None,
    flops: str | None,
    law: str,
    loss_function: str,
    knee: str,
    drop_highest: int,
    bootstrap: int,
    seed: int,
    test_above_flops: float | None,
    as_json: bool,
) -> None:
    """Fit the loss of from-scratch runs in TABLE (CSV, one run a row) by model size and training tokens."""
    if (tokens is None) == (flops is None):
        raise click.UsageError("give either --tokens COL or --flops COL")
    from fitting.scratch import fit_scratch_law
    from fitting.scratch_rows import read_table, scratch_rows, split_by_flops

    try:
        rows = scratch_rows(
            read_table(table), params=params, loss=loss, tokens=tokens, flops=flops, drop_highest=drop_highest
        )
        train, test = split_by_flops(rows, test_above_flops)
        fitted = fit_scratch_law(train, law, loss_function=loss_function, knee=knee, bootstrap=bootstrap, seed=seed)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    report = scratch_report(fitted, train, test)
    click.echo(json.dumps(report, indent=2) if as_json else _scratch_text(report))


def scratch_report(
    fitted: ScratchFit | AveragedScratchFit, train: ScratchRows, test: ScratchRows | None
) -> dict[str, Any]:
    """What ``fit scratch --json`` prints; with ``auto`` the parameters are those of ``leading_law``, of the largest weight."""
    from fitting.scratch import ScratchFit

    one = fitted if isinstance(fitted, ScratchFit) else fitted.leader
    report: dict[str, Any] = {
        "law": one.law.name if isinstance(fitted, ScratchFit) else "auto",
        "formula": one.law.formula,
        "parameters": one.parameters,
        "objective": one.objective,
        "loss_function": one.loss_function,
        "knee": one.knee,
        "standard_errors": _finite(one.standard_errors),
        "bootstrap": _bootstrap_counts(one),
        "share_of_starts_at_best": one.share_of_starts_at_best,
        "num_rows": fitted.num_rows,
        "num_test_rows": 0 if test is None else len(test),
        "train_mape_percent": _mape_percent(fitted, train),
        "test_mape_percent": None if test is None else _mape_percent(fitted, test),
        "weights": None,
        "seconds": {"fit": fitted.seconds.fit, "bootstrap": fitted.seconds.bootstrap},
        "warnings": list(fitted.warnings),
    }
    if not isinstance(fitted, ScratchFit):
        report["leading_law"] = one.law.name
        report["weights"] = dict(fitted.weights)
        report["verdicts"] = dict(fitted.verdicts)
        report["laws"] = {
            name: {
                "parameters": law_fit.parameters,
                "standard_errors": _finite(law_fit.standard_errors),
                "objective": law_fit.objective,
                "extrapolation_rms_log_error": fitted.extrapolation_errors.get(name),
                "train_mape_percent": _mape_percent(law_fit, train),
                "test_mape_percent": None if test is None else _mape_percent(law_fit, test),
            }
            for name, law_fit in fitted.fits.items()
        }
    return report


def _bootstrap_counts(one: ScratchFit) -> dict[str, int] | None:
    if one.draws is None:
        return None
    return {"requested": one.draws.num_requested, "failed": one.draws.num_failed, "seed": one.draws.seed}


def _finite(values: dict[str, float] | None) -> dict[str, float | None] | None:
    """JSON knows no NaN: what could not be estimated is null."""
    if values is None:
        return None
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _mape_percent(fitted: ScratchFit | AveragedScratchFit, rows: ScratchRows) -> float:
    """Mean absolute error of the loss in per cent."""
    predicted = fitted.predict(rows.num_params, rows.tokens)
    return float(100 * abs(predicted / rows.loss_nats - 1).mean())


def _scratch_text(report: dict[str, Any]) -> str:
    """The report as a short table for a person."""
    name = report.get("leading_law", report["law"])
    lines = [
        f"law {name}: {report['formula']}   ({report['num_rows']} runs, {report['loss_function']}, knee {report['knee']:.3g})"
    ]
    errors = report["standard_errors"] or {}
    for parameter, value in report["parameters"].items():
        error = f"  +- {errors[parameter]:.3g}" if errors.get(parameter) is not None else ""
        lines.append(f"  {parameter:<8} {value:.6g}{error}")
    lines.append(
        f"  objective {report['objective']:.7g}; {report['share_of_starts_at_best']:.0%} of the cold starts reached it"
    )
    scores = f"  mean absolute error {report['train_mape_percent']:.3f}%"
    if report["test_mape_percent"] is not None:
        scores += f" on the rows fitted, {report['test_mape_percent']:.3f}% on {report['num_test_rows']} held out"
    lines.append(scores)
    for law, verdict in report.get("verdicts", {}).items():
        detail = report["laws"].get(law)
        held_out = ""
        if detail and detail["extrapolation_rms_log_error"] is not None:
            held_out = f"   (extrapolation error {100 * detail['extrapolation_rms_log_error']:.2f}%)"
        lines.append(f"  {law:<12} {verdict}{held_out}")
    lines += [f"note: {warning}" for warning in report["warnings"]]
    lines.append(f"fit {report['seconds']['fit']:.2f} s, bootstrap {report['seconds']['bootstrap']:.2f} s")
    return "\n".join(lines)


@fit.command()
@click.argument("runs", type=click.Path(path_type=Path))
@click.option("--cohort", metavar="C", help="Cohort to fit; needed where RUNS holds several.")
@click.option(
    "--leave-out", type=click.Choice(["target_params", "compute"]),
    help="What is held out: one target size at a time, or budgets above a rolling origin.",
)  # fmt: skip
@click.option(
    "--draws", default=400, show_default=True, metavar="K", help="Bootstrap draws of scratch law and growth laws."
)
@click.option("--seed", default=0, show_default=True, help="Seed of all resampling.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the cohort's guideline, with these scores."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def growth(
    runs: Path, cohort: str | None, leave_out: str | None, draws: int, seed: int, out: Path | None, as_json: bool
) -> None:
    """Fit and validate growth laws on RUNS (CSV, canonical columns)."""
    from fitting.growth_report import fit_growth

    try:
        report = fit_growth(runs, cohort=cohort, leave_out=leave_out, num_draws=draws, seed=seed)  # type: ignore[arg-type]
        values = report.to_dict()
        if out is not None:
            _write_guideline(runs, cohort, seed, out, values)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(values, indent=2, allow_nan=False) if as_json else _growth_text(values))
    if out is not None:
        click.echo(f"guideline written to {out}", err=True)


def _write_guideline(runs: Path, cohort: str | None, seed: int, out: Path, scores: dict[str, Any]) -> None:
    """The cohort's guideline with these validation scores in it, written beside and renamed."""
    import dataclasses

    from app.records import write_json_atomically
    from fitting.growth_data import read_growth_table
    from fitting.refit import fit_guideline

    table, _ = read_growth_table(runs, cohort)
    guideline = dataclasses.replace(fit_guideline(table, seed=seed), held_out=scores)
    write_json_atomically(out, json.loads(guideline.to_json()))


def _growth_text(values: dict[str, Any]) -> str:
    """Scores by law as a table for a person, best weight first."""
    lines = [
        f"cohort {values['cohort']}: {values['num_pairs']} pairs, {values['num_scratch_runs']} scratch runs, "
        f"{values['basis'].replace('_', '-')} losses; held out by {values['left_out']}",
        f"{'law':<36}{'weight':>7}{'error of delta':>16}{'signs':>9}{'best g':>8}{'regret':>9}{'coverage':>10}",
    ]
    rows = sorted(values["laws"].items(), key=lambda item: -item[1]["weight"])
    for name, scores in [("averaged", values["averaged"]), *rows]:
        if scores["rmse_delta_nats"] is None:
            lines.append(f"{name:<36}{scores['weight']:>7.2f}   not held out")
            continue
        factors = f"{scores['best_factor_hits']}/{scores['best_factor_cases']}" if scores["best_factor_cases"] else "-"
        lines.append(
            f"{name:<36}{scores['weight']:>7.2f}{scores['rmse_delta_nats']:>11.4f} nats"
            f"{scores['sign_hits']:>5}/{scores['sign_cases']:<3}{factors:>8}{scores['regret_nats']:>9.4f}{scores['coverage_80']:>10.0%}"
        )
    for name, scores in values["rules"].items():
        lines.append(
            f"rule {name:<54}{scores['sign_hits']:>5}/{scores['sign_cases']:<3}{'':>8}{scores['regret_nats']:>9.4f}"
        )
    lines += [
        f"{name}: {law['verdict']}" for name, law in values["laws"].items() if law["verdict"].startswith("no weight")
    ]
    lines += [f"note: {warning}" for warning in values["warnings"]]
    lines.append(f"fit {values['seconds']['fit']:.1f} s, validation {values['seconds']['validation']:.1f} s")
    return "\n".join(lines)


@fit.command()
@click.argument("runs", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Folder to write to."
)
@click.option("--cohort", metavar="C", help="Cohort to fit; needed where RUNS holds several.")
@click.option("--seed", default=0, show_default=True, help="Seed of all resampling.")
def report(runs: Path, out: Path, cohort: str | None, seed: int) -> None:
    """Write a page on the growth laws of RUNS: self-contained HTML and PNG figures."""
    from app.commands.fit_report import write_report
    from fitting.growth_report import fit_growth

    try:
        written = write_report(fit_growth(runs, cohort=cohort, seed=seed), out)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    for path in written:
        click.echo(str(path))
