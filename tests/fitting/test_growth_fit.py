"""Growth fits on synthetic tables of known truth and on the digitised G_stack curves; pairing, commands, bad tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import growth_truth as truth
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from app.commands.fit import fit
from fitting.growth_data import growth_data, read_growth_table
from fitting.growth_fit import ALL_LAWS, fit_growth_law, fit_scratch_basis
from fitting.growth_laws import Prepared
from fitting.validation.nested import law_weights, validate
from fitting.validation.scores import HeldOut, binomial_interval, score

KAPPA_C = ALL_LAWS["equivalent_progress_kappa_c"]
CURVES = Path(__file__).parents[1] / "data" / "gstack_curves" / "curves.csv"
FLOPS_PER_TOKEN = {"410M": 2.24e9, "1.1B": 8.19e9, "3B": 1.44e10}
SIZES = {"410M": 4.1e8, "1.1B": 1.1e9, "3B": 3e9}


def gstack_table(every: int = 4) -> pd.DataFrame:
    """The digitised curves over the last 90% of the compute range as a run table: points of one curve are rows."""
    rows = []
    for (target, kind), curve in pd.read_csv(CURVES).groupby(["target", "curve"]):
        late = curve[curve["flops_1e20"] >= curve["flops_1e20"].max() / 10].iloc[::every]
        for flops, loss in zip(late["flops_1e20"] * 1e20, late["train_loss_nats"], strict=True):
            grown, per_token = kind != "scratch", FLOPS_PER_TOKEN[target]
            rows.append(
                {
                    "run_id": f"{target} {kind}", "cohort": "gstack", "target_params": SIZES[target],
                    "base_params": SIZES[target] / 4 if grown else np.nan, "growth_factor": 4.0 if grown else 1.0,
                    "growth_timing_tokens": 1e10 if grown else 0.0,
                    "grown_tokens": flops / per_token - (2.5e9 if grown else 0.0),
                    "compute_flops": flops, "target_flops_per_token": per_token,
                    "base_flops_per_token": per_token / 4 if grown else np.nan, "final_loss": loss,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def synthetic() -> pd.DataFrame:
    return truth.run_table(KAPPA_C, np.array([0.3, 0.03]), 0.004, 0)


def run(table: pd.DataFrame, tmp_path: Path, *more: str, command: str = "growth") -> Result:
    file = tmp_path / "runs.csv"
    table.to_csv(file, index=False)
    return CliRunner().invoke(fit, [command, str(file), *more])


def test_pairs_have_the_delta_of_their_control(synthetic: pd.DataFrame) -> None:
    table, _ = read_growth_table(synthetic)
    data = growth_data(table)
    row = 11
    point = data.points.where(np.array([row]))
    control = synthetic[
        (synthetic["growth_factor"] == 1)
        & np.isclose(synthetic["target_params"], point.target_params[0])
        & np.isclose(synthetic["grown_tokens"], point.scratch_tokens[0])
    ]["final_loss"]
    grown = synthetic[
        (synthetic["growth_factor"] == point.growth_factor[0])
        & np.isclose(synthetic["target_params"], point.target_params[0])
        & np.isclose(synthetic["growth_timing_tokens"], point.timing_tokens[0])
        & np.isclose(synthetic["grown_tokens"], point.grown_tokens[0])
    ]["final_loss"]
    assert data.delta_nats[row] == pytest.approx(grown.item() - control.item(), rel=1e-12)
    by_hand = 6 * (point.base_params * point.timing_tokens + point.target_params * point.grown_tokens)
    assert data.compute_flops[row] == pytest.approx(by_hand[0])


def test_a_named_control_of_other_compute_is_not_taken(synthetic: pd.DataFrame) -> None:
    table = read_growth_table(synthetic)[0]
    right = growth_data(table)
    grown = table["growth_factor"] > 1
    cheapest = table.loc[table[~grown]["grown_tokens"].idxmin(), "run_id"]
    wrong = growth_data(table.assign(control_id=np.where(grown, cheapest, None)))
    assert np.array_equal(wrong.delta_nats, right.delta_nats)
    assert f"{int(grown.sum())} control_id(s) name a run of another size" in " ".join(wrong.warnings)


def test_control_loss_column_stands_in_for_scratch_runs(synthetic: pd.DataFrame) -> None:
    table = synthetic[synthetic["growth_factor"] > 1].copy()
    points = truth.points_of(
        *(np.asarray(table[name]) for name in ("target_params", "growth_factor", "growth_timing_tokens")),
        np.asarray(table["grown_tokens"] + table["growth_timing_tokens"] / table["growth_factor"]),
    )
    table["control_loss"] = truth.TRUTH.loss(points.target_params, points.scratch_tokens)
    data = growth_data(read_growth_table(table)[0])
    assert len(data) == len(table)
    # Each (target, budget) gives one scratch observation, however many pairs state it.
    assert len(data.scratch) == len(truth.SIZES) * len(truth.TOKENS_PER_PARAM)
    basis = fit_scratch_basis(data.scratch)
    np.testing.assert_allclose(basis.curve.params[[3, 4]], [0.34, 0.36], rtol=0.01)


def test_recovers_the_growth_parameters(synthetic: pd.DataFrame) -> None:
    data = growth_data(read_growth_table(synthetic)[0])
    basis = fit_scratch_basis(data.scratch, 60, 0)
    found = fit_growth_law(
        KAPPA_C, data.points, data.delta_nats, basis, clusters=data.clusters, controls=data.controls, seed=0
    )
    assert found.draws is not None
    for value, sd, expected in zip(found.params, found.draws.std(axis=0), (0.3, 0.03), strict=True):
        assert abs(value - expected) < 3.5 * sd
        assert sd < 0.25
    truth_delta = KAPPA_C.delta(np.array([0.3, 0.03]), Prepared.of(data.points, truth.TRUTH))
    assert (
        np.sqrt(np.mean((KAPPA_C.delta(found.params, Prepared.of(data.points, basis.curve)) - truth_delta) ** 2))
        < 0.004
    )


def test_weights_prefer_the_law_that_made_the_data(synthetic: pd.DataFrame) -> None:
    data = growth_data(read_growth_table(synthetic)[0])
    weights = law_weights(data)
    nested = sum(weight for name, weight in weights.by_law.items() if name.startswith("equivalent_progress_kappa_c"))
    assert sum(weights.by_law.values()) == pytest.approx(1.0)
    assert nested > 0.5
    assert set(weights.verdicts) == set(ALL_LAWS)


def test_same_table_and_seed_give_the_same_bits(synthetic: pd.DataFrame) -> None:
    def draws(table: pd.DataFrame) -> np.ndarray:
        data = growth_data(read_growth_table(table)[0])
        basis = fit_scratch_basis(data.scratch, 20, 5)
        found = fit_growth_law(KAPPA_C, data.points, data.delta_nats, basis, clusters=data.clusters, seed=5)
        assert found.draws is not None
        return found.draws

    assert (draws(synthetic) == draws(synthetic.sample(frac=1, random_state=1))).all()


def test_digitised_curves_leaving_one_target_out() -> None:
    """All three splits given the left-out scratch curve: the average against constant speedup, whichever wins."""
    table, taken = read_growth_table(gstack_table())
    assert "points of curves" in taken[0]
    data = growth_data(table)
    assert data.basis == "mid_schedule"
    result = validate(data, "target_params", num_draws=20)
    averaged = [scores.rmse_delta_nats for scores in result.averaged_by_left_out.values()]
    speedup = [scores.rmse_delta_nats for scores in result.by_left_out["constant_speedup"].values()]
    print(f"\naveraged {np.round(averaged, 4)}, constant speedup {np.round(speedup, 4)}")
    assert len(averaged) == 3
    assert np.mean(averaged) <= 1.1 * np.mean(speedup)
    assert result.averaged is not None
    assert result.averaged.sign_hits == result.averaged.sign_cases


def test_digitised_410m_beyond_700_tokens_per_parameter_from_the_rest() -> None:
    data = growth_data(read_growth_table(gstack_table())[0])
    far = (data.points.target_params == 4.1e8) & (data.points.scratch_tokens / data.points.target_params > 700)
    everything = np.ones(len(data.scratch), dtype=bool)
    train, test = data.where(~far, everything), data.where(far, everything)
    basis = fit_scratch_basis(data.scratch)
    weights = law_weights(train)
    errors, averaged = {}, np.zeros(len(test))
    for name, law in ALL_LAWS.items():
        found = fit_growth_law(law, train.points, train.delta_nats, basis)
        predicted = law.delta(found.params, Prepared.of(test.points, basis.curve))
        errors[name] = float(np.sqrt(np.mean((predicted - test.delta_nats) ** 2)))
        averaged += weights.by_law[name] * predicted
    error = float(np.sqrt(np.mean((averaged - test.delta_nats) ** 2)))
    print(f"\naveraged {error:.4f}, constant speedup {errors['constant_speedup']:.4f}")
    assert len(test) >= 5
    assert error <= 1.1 * errors["constant_speedup"]


def test_scores_by_hand(synthetic: pd.DataFrame) -> None:
    data = growth_data(read_growth_table(synthetic)[0])
    perfect = score(
        data, HeldOut(delta_nats=data.delta_nats, low_nats=data.delta_nats - 1, high_nats=data.delta_nats + 1)
    )
    assert perfect.rmse_delta_nats == 0
    assert perfect.regret_nats == 0
    assert perfect.coverage_80 == 1
    assert perfect.sign_hits == perfect.sign_cases == int(np.sum(np.abs(data.delta_nats) > 0.003))
    assert perfect.best_factor_hits == perfect.best_factor_cases > 0
    wrong = score(
        data, HeldOut(delta_nats=-data.delta_nats, low_nats=data.delta_nats + 1, high_nats=data.delta_nats + 2)
    )
    assert wrong.sign_hits == 0
    assert wrong.coverage_80 == 0
    assert wrong.regret_nats > 0
    assert binomial_interval(0, 0) is None
    assert binomial_interval(5, 10) == pytest.approx((0.267, 0.733), abs=1e-3)


@pytest.mark.parametrize("leave_out", ["target_params", "compute"])
def test_command_prints_what_is_promised(leave_out: str, synthetic: pd.DataFrame, tmp_path: Path) -> None:
    small = synthetic[
        (synthetic["growth_factor"] == 1) | ((synthetic.index % 2 == 0) & (synthetic["target_params"] < 1.5e9))
    ]
    guideline = tmp_path / "guideline.json"
    result = run(small, tmp_path, "--leave-out", leave_out, "--draws", "10", "--json", "--out", str(guideline))
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    keys = {
        "rmse_delta_nats",
        "sign_hits",
        "sign_cases",
        "best_factor_hits",
        "best_factor_cases",
        "regret_nats",
        "coverage_80",
        "weight",
    }
    assert keys <= set(values["averaged"])
    for scores in values["laws"].values():
        assert keys <= set(scores)
        assert len(scores["by_left_out"]) == len(values["by_left_out"]) > 1
    assert values["left_out"] == leave_out
    assert sum(law["weight"] for law in values["laws"].values()) == pytest.approx(1.0)
    assert isinstance(values["warnings"], list)
    written = json.loads(guideline.read_text())
    assert written["cohort"] == "synthetic"
    assert written["held_out"]["averaged"]["rmse_delta_nats"] == values["averaged"]["rmse_delta_nats"]


def test_report_is_one_page_with_figures(synthetic: pd.DataFrame, tmp_path: Path) -> None:
    small = synthetic[
        (synthetic["growth_factor"] == 1) | ((synthetic.index % 2 == 0) & (synthetic["target_params"] < 1.5e9))
    ]
    result = run(small, tmp_path, "--out", str(tmp_path / "page"), command="report")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page" / "report.html").read_text()
    names = {path.name for path in (tmp_path / "page").iterdir()}
    assert names == {"report.html", "predicted.png", "residuals.png", "hull.png", "calibration.png", "valleys.png"}
    assert (tmp_path / "page" / "hull.png").read_bytes().startswith(b"\x89PNG")
    assert page.count("data:image/png;base64,") == 5
    assert "http" not in page.replace("https://", "http://").split("<body>")[0]
    for words in ("What was fitted", "What the data cannot tell", "equivalent_progress_kappa_c", "80% coverage"):
        assert words in page


BAD: dict[str, tuple[Any, str]] = {
    "no grown run": (lambda t: t[t["growth_factor"] == 1], "no finished grown run"),
    "no control": (lambda t: t[t["growth_factor"] > 1], "has a control"),
    "missing column": (lambda t: t.drop(columns="final_loss"), "final_loss"),
    "two cohorts": (lambda t: t.assign(cohort=np.where(t.index % 2, "a", "b")), "cohort"),
    "sizes in billions": (
        lambda t: t.assign(target_params=t["target_params"] / 1e9, base_params=t["base_params"] / 1e9),
        "billions",
    ),
    "negative loss": (lambda t: t.assign(final_loss=-t["final_loss"]), "final_loss"),
    "two scratch runs": (
        lambda t: pd.concat([t[t["growth_factor"] == 1].iloc[[6, 6]], t[t["growth_factor"] > 1].iloc[:1]]),
        "",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_refused(case: str, synthetic: pd.DataFrame, tmp_path: Path) -> None:
    change, words = BAD[case]
    result = run(change(synthetic), tmp_path, "--draws", "5")
    assert result.exit_code == 1, result.output
    assert words in result.output
    assert "Traceback" not in result.output


def test_mixed_bits_per_byte_are_refused(synthetic: pd.DataFrame, tmp_path: Path) -> None:
    table = synthetic.copy()
    table.loc[3, "final_loss"] *= 0.3
    result = run(table, tmp_path, "--draws", "5")
    assert result.exit_code == 1
    assert "bits per byte" in result.output


def test_one_target_borrows_and_says_so(synthetic: pd.DataFrame, tmp_path: Path) -> None:
    one = synthetic[np.isclose(synthetic["target_params"], 1.2e9)]
    values = json.loads(run(one, tmp_path, "--draws", "10", "--json").output)
    assert values["left_out"] == "compute"
    assert any("borrowed" in warning and "1 found" in warning for warning in values["warnings"])


def test_report_of_few_pairs_says_what_is_not_validated(synthetic: pd.DataFrame, tmp_path: Path) -> None:
    few = pd.concat([synthetic[synthetic["growth_factor"] == 1], synthetic[synthetic["growth_factor"] > 1].iloc[:1]])
    result = run(few, tmp_path, "--out", str(tmp_path / "page"), command="report")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page" / "report.html").read_text()
    assert "nothing here is validated" in page
    assert "in-sample" in page
    assert not (tmp_path / "page" / "calibration.png").exists()
