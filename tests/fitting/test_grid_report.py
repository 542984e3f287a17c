"""The report on grids of planted truth: what it says of timing, rules, coverage, ablation and rates is what was planted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import grid_truth as truth
import numpy as np
import pandas as pd
import pytest

from fitting.errors import InputError
from fitting.flops import flops_per_token, non_embedding_params
from fitting.grid_report import GridReport, findings, grid_report, read_grid
from fitting.grid_report.contrasts import ABLATION, ORDER, contrasts, rate_checks, schedule_deltas
from fitting.grid_report.gains import gain, scratch_tokens_at, valleys
from fitting.grid_report.rule_regret import cases, rule_scores
from fitting.grid_report.spread import Resampler, spreads
from fitting.grid_report.timing import _minima, best_timings, timing_trend
from fitting.growth_fit import ALL_LAWS
from fitting.rules import RULES

LAW, GROWTH = ALL_LAWS["equivalent_progress_kappa_c"], np.array([0.5, 0.02])
NOISE = 0.004


@pytest.fixture(scope="module")
def report() -> GridReport:
    """One whole report; copy_v_only is planted 0.03 nats higher than the other policies."""
    return grid_report(truth.whole_grid(LAW, GROWTH, noise_nats=NOISE, policy_effects={"copy_v_only": 0.03}))


def only(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def test_seed_spread_is_the_planted_one(report: GridReport) -> None:
    # Every loss has its family's noise and a fifth of it of its own.
    low, high = report.spread.interval_nats or (0, 0)
    assert low < NOISE * np.sqrt(1 + 0.2**2) < high
    assert report.spread.sd_nats < 1.2 * NOISE
    # Legs of a trunk are no independent repeats: the budgets of an arm count once.
    assert report.spread.degrees_of_freedom < 0.5 * report.spread.num_runs


def test_a_noisy_budget_widens_its_own_intervals_alone() -> None:
    """Ten times the noise at the largest budget: its differences are told to be that uncertain, those beside it are not."""
    frame = truth.whole_grid(LAW, GROWTH, noise_nats=NOISE)
    rng = np.random.default_rng(1)
    noisy = (frame["hidden_size"] == 64) & (
        frame["budget_tokens"] == frame["budget_tokens"][frame["hidden_size"] == 64].max()
    )
    frame.loc[noisy, "final_loss"] += rng.normal(0, 10 * NOISE, noisy.sum())
    grid = read_grid(frame)
    found = spreads(grid.targets)
    target = next(one for one in grid.targets if one.label.startswith("64"))
    calm, loud = found.at(target, 0), found.at(target, len(target.budget_tokens) - 1)
    assert loud.interval_nats is not None
    assert loud.interval_nats[0] < 10 * NOISE < loud.interval_nats[1]
    assert calm.sd_nats < 1.3 * NOISE
    assert calm.sd_nats < found.pooled.sd_nats < loud.sd_nats
    # By hand: the deviations of every repeated arm at that budget.
    losses = [[run.loss_nats for run in arm.runs[0]] for arm in target.arms if arm.num_seeds(0) > 1]
    squares = sum(np.var(one) * len(one) for one in losses)
    assert calm.degrees_of_freedom == sum(len(one) - 1 for one in losses)
    assert calm.sd_nats == pytest.approx(np.sqrt(squares / calm.degrees_of_freedom))
    wide, narrow = (
        valley.points[0].interval_nats[1] - valley.points[0].interval_nats[0]
        for valley in (valleys(target, found)[-1], valleys(target, found)[0])
    )
    assert wide > 4 * narrow
    # Too few repeats of its own: the spread of all.
    few = read_grid(frame[(frame["init_seed"] == 0) | ((frame["init_seed"] == 1) & (frame["growth_factor"] == 1))])
    assert spreads(few.targets).own == {}


def test_deltas_and_their_intervals_hold_the_truth(report: GridReport) -> None:
    held = []
    for valley in report.valleys:
        width = (valley.target.shape or {})["hidden_size"]
        tokens = valley.target.budget_tokens[valley.budget]
        scratch = truth.scratch_loss(truth.shape_of(width), tokens)
        for point in valley.points:
            grown = truth.grown_loss(LAW, GROWTH, width, point.growth_factor, point.timing_tokens, tokens)[0]
            held.append(point.interval_nats[0] <= grown - scratch <= point.interval_nats[1])
    assert len(held) > 60
    assert 0.6 < np.mean(held) <= 1


def test_gains_against_both_controls(report: GridReport) -> None:
    assert len(report.gains) == 9
    for one in report.gains:
        width = (one.valley.target.shape or {})["hidden_size"]
        tokens = one.valley.target.budget_tokens[one.valley.budget]
        compute = tokens * flops_per_token(truth.shape_of(width))
        alone = {
            layers: truth.scratch_loss(
                truth.shape_of(width, layers), compute / flops_per_token(truth.shape_of(width, layers))
            )
            for layers in (1, 2, 4)
        }
        assert one.fixed_loss_nats == pytest.approx(min(alone.values()), abs=4 * NOISE)
        assert one.against_scratch == "lower"
        # Speedup by the scratch law itself, where it was read between runs.
        if not one.beyond_scratch_runs:
            grid = np.geomspace(0.5, 4, 4000) * tokens
            curve = truth.CURVE.loss(np.full(4000, one.valley.target.params), grid)
            own = grid[np.argmin(np.abs(curve - one.valley.best.loss_nats))] / tokens - 1
            assert one.speedup == pytest.approx(own, abs=0.08)
            assert one.saved_tokens == pytest.approx(one.speedup * tokens)


def test_scratch_tokens_by_hand(report: GridReport) -> None:
    target = report.grid.targets[0]
    assert target.scratch is not None
    for budget, tokens in enumerate(target.budget_tokens):
        found, beyond = scratch_tokens_at(target, target.scratch.loss(budget))
        assert found == pytest.approx(tokens)
        assert not beyond
    middle = float(np.sqrt(target.scratch.loss(0) * target.scratch.loss(1)))
    assert scratch_tokens_at(target, middle)[0] == pytest.approx(
        np.sqrt(target.budget_tokens[0] * target.budget_tokens[1])
    )
    assert scratch_tokens_at(target, 0.99 * target.scratch.loss(2))[1]


def test_three_points_in_the_root_of_d_find_the_minimum() -> None:
    """Noise-free valleys of known laws over the grid's timings: within 7%, and a parabola through three points is exact."""
    x = np.array([1.0, 4.0, 9.0, 25.0])
    assert np.exp(_minima(x, ((np.sqrt(x) - 2.4) ** 2)[None]))[0] == pytest.approx(2.4**2)
    missed = []
    for growth in ([0.5, 0.02], [0.8, 0.03], [0.3, 0.03]):
        for width in truth.WIDTHS:
            largest = truth.BUDGETS[-1] * non_embedding_params(truth.shape_of(width))
            for budget in truth.BUDGETS:
                tokens = budget * largest / truth.BUDGETS[-1]
                ratio = flops_per_token(truth.shape_of(width)) / flops_per_token(truth.shape_of(width, 2))
                timings = np.array(
                    [share * largest for share in truth.TIMINGS if share * largest < 0.9 * ratio * tokens]
                )
                losses = truth.grown_loss(LAW, np.array(growth), width, 4, timings, tokens)
                if 0 < np.argmin(losses) < len(timings) - 1:
                    true = truth.best_timing(LAW, np.array(growth), width, 4, budget)
                    missed.append(float(_minima(timings, losses[None])[0] - np.log(true)))
    assert len(missed) > 20
    assert max(map(abs, missed)) < 0.075


def test_best_timing_and_its_exponent_are_the_true_ones(report: GridReport) -> None:
    trend = report.trend
    assert trend is not None
    slopes = []
    for width in truth.WIDTHS:
        log_best = [np.log(truth.best_timing(LAW, GROWTH, width, 4, budget)) for budget in truth.BUDGETS]
        slopes.append(np.polyfit(np.log(truth.BUDGETS), log_best, 1)[0])
    low, high = trend.call_interval
    assert low < np.mean(slopes) < high
    # The published law falls; the planted one rises, and the report says so.
    assert trend.published_exponents[1] < -0.8
    assert any("rises with compute, where the published law says it falls" in one for one in findings(report))
    assert all(one.edge in (None, "latest") for one in report.best_timings)


def test_published_exponent_is_the_derivative_of_the_published_formula(report: GridReport) -> None:
    from fitting.rules.gstack import growth_timing_tokens

    assert report.trend is not None
    target = report.grid.targets[-1]
    compute = target.compute_flops(len(target.budget_tokens) - 1)
    tokens = compute / (6 * target.params)
    by_hand = np.diff(np.log([growth_timing_tokens(target.params, tokens * step) for step in (0.999, 1.001)])) / np.log(
        1.001 / 0.999
    )
    assert report.trend.published_exponents[1] == pytest.approx(float(by_hand[0]), rel=1e-3)


def test_rules_are_ranked_as_the_truth_ranks_them(report: GridReport) -> None:
    """The same picks scored by the planted losses: every regret within its noise, and the same winner."""
    assert {one.rule for one in report.rules} == set(RULES)
    true_excess = {}
    for one in report.rules:
        values = []
        for pick in one.picks:
            width = (pick.case.target.shape or {})["hidden_size"]
            tokens = pick.case.target.budget_tokens[pick.case.budget]
            arm = pick.case.cells[pick.cell]
            scratch = truth.scratch_loss(truth.shape_of(width), tokens)
            grown = (
                truth.grown_loss(LAW, GROWTH, width, arm.growth_factor, arm.timing_tokens, tokens)[0]
                if pick.cell
                else scratch
            )
            values.append(grown - scratch)
        true_excess[one.rule] = float(np.mean(values))
        assert one.excess_nats == pytest.approx(true_excess[one.rule], abs=0.006)
    assert report.rules[0].rule == min(true_excess, key=lambda name: true_excess[name])
    never = next(one for one in report.rules if one.rule == "never")
    assert never.excess_nats == 0
    assert all(pick.cell == 0 for pick in never.picks)
    # G_stack asks for more than the whole budget at this scale: it scores as scratch and is counted as such.
    gstack = next(one for one in report.rules if one.rule == "gstack")
    assert gstack.num_infeasible == len(gstack.picks) == 9
    assert gstack.regret_nats == never.regret_nats


def test_a_guideline_of_the_smaller_sizes_is_told_better_than_never_growing(report: GridReport) -> None:
    found = report.held_out
    assert found is not None
    errors = {one.name: one for one in found.errors}
    assert errors["fitted guideline"].rmse_nats < 2.5 * NOISE
    assert errors["never grow"].guideline_is == "lower"
    assert errors["never grow"].sign_hits == 0
    by_rule = {one.rule: one for one in found.picks}
    assert by_rule["fitted guideline"].regret_nats < by_rule["never"].regret_nats
    assert set(RULES) | {"fitted guideline"} <= set(by_rule)
    for cover in found.coverage:
        # The law that made the data is among those fitted, so its 80% must lie in what was counted, or above it.
        assert cover.family_interval[1] > 0.8
        assert cover.binomial_interval[0] <= cover.share <= cover.binomial_interval[1]


def test_the_planted_policy_is_called_and_the_null_ones_are_not(report: GridReport) -> None:
    assert len(report.ablation) == 7
    for one in report.ablation:
        assert one.num_pairs == 5
        planted = 0.03 if one.setting["optimizer_state_policy"] == "copy_v_only" else 0.0
        assert one.verdict == ("higher" if planted else "not told apart"), one
        assert abs(one.effect_nats - planted) < 4 * NOISE
    assert {one.setting["variant"] for one in report.ablation} == {"", "rewind"}
    assert any("copy_v_only, rewarm higher" in sentence for sentence in findings(report))


def test_null_effects_are_called_one_in_few_of_many_grids() -> None:
    """50 ablations without any effect: fewer than 5% + three standard errors of them call one."""
    called = 0
    for seed in range(50):
        table = truth.GridTable(LAW, GROWTH, noise_nats=0.01, seed=seed)
        table.single(48, budgets=(5.0,))
        for policy in truth.POLICIES:
            for cohort in ("grid", "grid-rewind"):
                for s in range(5):
                    table.grown(48, 4, 0.3, seed=s, policy=policy, cohort=cohort, budgets=(5.0,))
        grid = read_grid(table.frame())
        found = contrasts(grid, ABLATION, spreads(grid.targets))
        assert len(found) == 7
        called += any(one.verdict != "not told apart" for one in found)
    assert called <= 50 * (0.05 + 3 * np.sqrt(0.05 * 0.95 / 50))


def test_growth_without_effect_is_a_negative_finding_in_the_first_line() -> None:
    """Grown runs that end where scratch does, and smaller models that end lower."""
    nothing = ALL_LAWS["equivalent_progress_kappa_c"]
    table = truth.whole_grid(nothing, np.array([0.0, 0.0]), num_seeds=2, fixed_gain_nats=0.1)
    grown = table["growth_factor"] > 1
    scratch = table[
        (table["growth_factor"] == 1) & (table["num_target_layers"] == 8) & (table["peak_lr"] == truth.SHARED_RATE)
    ]
    level = scratch.groupby(["hidden_size", "budget_tokens"])["final_loss"].mean()
    keys = pd.MultiIndex.from_frame(table.loc[grown, ["hidden_size", "budget_tokens"]])
    rng = np.random.default_rng(3)
    table.loc[grown, "final_loss"] = level.reindex(keys).to_numpy() + rng.normal(0, NOISE, int(grown.sum()))
    grid = read_grid(table)
    spread = spreads(grid.targets)
    gains = [gain(valley, spread) for target in grid.targets for valley in valleys(target, spread)]
    assert {one.against_scratch for one in gains} == {"not told apart"}
    assert {one.against_fixed for one in gains} == {"higher"}
    whole = dataclasses.replace(_bare(table), gains=tuple(gains))
    assert findings(whole)[0].startswith("Negative: growth helped in no cell")


def _bare(table: pd.DataFrame) -> GridReport:
    """A report without what takes long: one size alone cannot be left out."""
    return grid_report(only(table, hidden_size=48))


def test_rates_are_judged_for_scratch_and_for_grown(report: GridReport) -> None:
    assert {one.kind for one in report.rates} == {"scratch", "grown"}
    assert all(one.verdict == "not told apart" and one.best_rate == truth.SHARED_RATE for one in report.rates)
    bad = read_grid(truth.whole_grid(LAW, GROWTH, num_seeds=2, rate_effect=-0.05))
    found = rate_checks(bad, spreads(bad.targets))
    assert {one.verdict for one in found} == {"higher"}
    assert all(one.best_rate != one.shared_rate and one.at_end for one in found)


def test_a_step_that_only_some_runs_took_is_told_beside_what_growth_gained(tmp_path: Path) -> None:
    """At the largest budget the grown runs have learned to copy and end 0.2 nats lower, of scratch's three seeds one has."""
    table = truth.GridTable(LAW, GROWTH, noise_nats=1e-4, seed=0)
    for seed in range(3):
        table.single(48, seed=seed, extra=-0.2 if seed == 0 else 0.0, budgets=(10.0,))
        table.grown(48, 4, 0.1, seed=seed, extra=-0.2, budgets=(10.0,))
        table.single(48, 4, seed=seed, budgets=(10.0,))
        table.single(48, seed=seed, budgets=(5.0,))
        table.grown(48, 4, 0.1, seed=seed, budgets=(5.0,))
    frame = table.frame()
    took = (frame["budget_tokens"] > 2e6) & ((frame["growth_factor"] > 1) | (frame["init_seed"] == 0))
    took &= frame["num_target_layers"] == 8
    gains = dict(zip(frame["cell"], np.where(took, 0.6, 0.05), strict=True))
    unmeasured = frame.loc[(frame["growth_factor"] > 1) & (frame["init_seed"] == 2), "cell"]
    for cell in unmeasured:
        del gains[cell]
    smaller, larger = grid_report(frame, copying=gains).copying
    assert (smaller.num_copying, smaller.num_measured, smaller.step_nats) == (0, 5, None)
    assert (larger.num_copying, larger.num_measured, larger.gains_nats) == (3, 5, (0.05, 0.6))
    assert (larger.scratch.num_copying, larger.scratch.num_measured) == (1, 3)
    assert (larger.best_grown.num_copying, larger.best_grown.num_measured) == (2, 2)
    assert (larger.best_fixed.num_copying, larger.best_fixed.num_measured) == (0, 3)
    own = frame[frame["cell"].isin(gains) & (frame["budget_tokens"] > 2e6) & (frame["num_target_layers"] == 8)]
    by = own.assign(copies=own["cell"].map(gains) > 0.1).groupby("copies")["final_loss"].mean()
    assert larger.step_nats == pytest.approx(by[False] - by[True])
    mixed = grid_report(frame, copying=gains)
    assert any("in 1 of 2 (size, budget) cells some of the target's runs had learned" in one for one in findings(mixed))
    assert any("In 0 of them only one of scratch and the best grown run had" in one for one in findings(mixed))
    without = {cell: gain for cell, gain in gains.items() if not cell.endswith("s0-b10") or "g4" in cell}
    assert any("In 1 of them only one of" in one for one in findings(grid_report(frame, copying=without)))
    none = grid_report(frame, copying=dict.fromkeys(gains, 0.1))
    assert any("upsets no comparison: in each of 2" in one for one in findings(none))
    silent = grid_report(frame)
    assert "sweep copying" in silent.missing["copying"]
    # From files it is the same; what a file may not hold is refused by name.
    frame.to_csv(tmp_path / "headers.csv", index=False)
    file = tmp_path / "copying.csv"
    pd.DataFrame({"cell": list(gains), "gain_nats": list(gains.values())}).to_csv(file, index=False)
    assert grid_report(tmp_path).copying == mixed.copying
    file.write_text("cell,gain_nats\na,0.1\nb,much\n")
    with pytest.raises(ValueError, match=r"gain_nats of b in copying\.csv is no number"):
        grid_report(tmp_path)
    file.write_text("cell\na\n")
    with pytest.raises(ValueError, match=r"gain_nats is missing from copying\.csv"):
        grid_report(tmp_path)


def test_orders_and_schedules_stand_in_sections_of_their_own() -> None:
    table = truth.GridTable(LAW, GROWTH, noise_nats=0.002, seed=1)
    for seed in range(3):
        table.single(48, seed=seed)
        table.grown(48, 4, 0.1, seed=seed)
    table.grown(48, 4, 0.1, order="interpose", extra=0.05)
    frame = table.frame()
    cosine = frame[frame["init_seed"] == 0].assign(cohort="grid-cosine", schedule="cosine")
    cosine["run_id"] += "-cosine"
    cosine["final_loss"] += 0.5
    grid = read_grid(pd.concat([frame, cosine]))
    spread = spreads(grid.targets)
    orders = contrasts(grid, ORDER, spread)
    assert [one.verdict for one in orders] == ["higher"] * 3
    assert contrasts(grid, ABLATION, spread) == []
    # Another schedule's losses are held against its own scratch runs: a level of 0.5 nats is no effect of growth.
    deltas = schedule_deltas(grid, spread)
    assert {one.schedule for one in deltas} == {"wsd", "cosine"}
    for budget in range(3):
        by = {one.schedule: one.delta_nats for one in deltas if one.budget == budget}
        assert by["cosine"] == pytest.approx(by["wsd"], abs=0.02)


def test_a_part_of_the_grid_says_what_is_missing() -> None:
    """Seed 0 of one size: no spread, no size to leave out, no ablation, and no smaller depth where none was run."""
    table = truth.GridTable(LAW, GROWTH, noise_nats=NOISE, seed=0)
    table.single(48)
    for share in truth.TIMINGS:
        table.grown(48, 4, share)
    found = grid_report(table.frame())
    assert not found.spread.measured
    assert found.held_out is None
    assert "2 sizes" in found.missing["held_out"]
    assert {"ablation", "orders", "rates", "schedules"} <= set(found.missing)
    assert all(one.against_fixed is None for one in found.gains)
    said = " ".join(findings(found))
    assert "no smaller depth was run alone" in said
    table.single(48, 4)
    # One seed on each side tells nothing: it is called neither negative nor positive.
    unsure = findings(grid_report(table.frame()))
    assert any(one.startswith("Whether growing beats simply training a smaller model cannot be told") for one in unsure)
    assert not any("Negative" in one for one in unsure)
    assert any("one seed" in sentence for sentence in found.cannot_tell)
    alone = truth.GridTable(LAW, GROWTH, noise_nats=NOISE, seed=0)
    alone.single(48)
    nothing = grid_report(alone.frame())
    assert findings(nothing)[0].startswith("Nothing can be said of growth yet")
    assert {"valleys", "rules", "timing", "held_out"} <= set(nothing.missing)


def test_valleys_at_an_edge_give_no_exponent() -> None:
    table = truth.GridTable(LAW, GROWTH, noise_nats=1e-5, seed=0)
    for seed in range(2):
        table.single(48, seed=seed)
        for share in truth.TIMINGS[:3]:
            table.grown(48, 4, share, seed=seed)
    grid = read_grid(table.frame())
    found, draws = best_timings(grid, 4.0, Resampler(grid, seed=0))
    assert [one.edge for one in found] == ["latest"] * 3
    with pytest.raises(ValueError, match="0 have an inner minimum"):
        timing_trend(grid, 4.0, found, draws)


def test_reports_are_deterministic_and_survive_shuffling() -> None:
    table = only(truth.whole_grid(LAW, GROWTH, num_seeds=2), hidden_size=64)
    a, b = grid_report(table), grid_report(table.sample(frac=1, random_state=0))
    assert findings(a) == findings(b)
    assert [one.excess_interval for one in a.rules] == [one.excess_interval for one in b.rules]


def test_cases_offer_only_what_was_run() -> None:
    table = truth.GridTable(LAW, GROWTH, noise_nats=NOISE, seed=0)
    table.single(48)
    table.grown(48, 4, 0.1)
    grid = read_grid(table.frame())
    found = cases(grid, Resampler(grid, seed=0, num_draws=50))
    assert [len(case.cells) for case in found] == [2, 2, 2]
    # The null rule grows below g = 3 alone, and none such was run.
    scores = {one.rule: one for one in rule_scores(grid, found)}
    assert {pick.decision for pick in scores["null"].picks} == {"scratch"}
    assert scores["eighty_percent"].picks[0].cell == 1


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda t: t.assign(status="diverged", final_loss=np.nan), "no finished run"),
        (lambda t: t.assign(is_final=False), "final loss"),
        (lambda t: t.drop(columns="final_loss"), "final_loss"),
    ],
)
def test_bad_tables_are_refused_by_name(break_it: Any, words: str) -> None:
    table = truth.GridTable(LAW, GROWTH, noise_nats=NOISE, seed=0)
    table.single(48)
    with pytest.raises(InputError, match=words):
        grid_report(break_it(table.frame()))


def test_a_folder_without_headers_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"headers\.csv"):
        grid_report(tmp_path)
