"""A guideline is a value: exact JSON, deterministic refits, differences that say what moved."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import pandas as pd
import pytest

from fitting.cells import (
    DEFAULT_NOISE_DEGREES_OF_FREEDOM,
    DEFAULT_SEED_SD_NATS,
    cells,
    noise,
    pairs,
    singles,
    with_compute,
)
from fitting.comparison import compare_versions
from fitting.errors import InputError
from fitting.flops import flops_per_token
from fitting.guideline import Guideline
from fitting.identifiability import cannot_identify
from fitting.published import PUBLISHED_NAMES, published_guideline
from fitting.refit import fit_guideline
from fitting.table import read_runs


def test_three_runs_give_a_provisional_guideline(tables: SimpleNamespace) -> None:
    guideline = fit_guideline(tables.demo_table(), "demo")
    assert guideline.provisional
    assert guideline.num_runs == 3
    assert guideline.run_ids == ("base", "grown", "scratch")
    (pair,) = guideline.pairs
    assert pair.delta_nats == pytest.approx(3.466 - 3.564)
    assert pair.grown_run_ids == ("grown",)
    assert pair.scratch_run_ids == ("scratch",)
    assert pair.compute_flops == pytest.approx(2e6 * 3_588_096)
    assert pair.base_flops == pytest.approx(1.2e6 * 1_191_936)
    assert [single.loss_nats for single in guideline.controls if single.num_layers == 2] == [3.491]
    assert guideline.held_out is None


def test_json_round_trip_is_exact(tables: SimpleNamespace) -> None:
    for guideline in [fit_guideline(tables.demo_table()), *map(published_guideline, PUBLISHED_NAMES)]:
        again = Guideline.from_json(guideline.to_json())
        assert again == guideline
        assert again.to_json() == guideline.to_json()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format_version": 99}, "format_version"),
        ({"format_version": None}, "format_version"),
        ({"surprise": 1}, "guideline.surprise"),
        ({"noise": {"sd_nats": 1.0}}, "noise.degrees_of_freedom"),
    ],
)
def test_other_documents_are_refused(change: dict[str, object], field: str, tables: SimpleNamespace) -> None:
    document = json.loads(fit_guideline(tables.demo_table()).to_json()) | change
    with pytest.raises(InputError) as caught:
        Guideline.from_json(json.dumps(document))
    assert caught.value.field == field


def test_text_that_is_no_guideline_is_refused() -> None:
    for text in ("{", "[1]"):
        with pytest.raises(InputError):
            Guideline.from_json(text)


def test_refit_is_deterministic_and_ids_follow_the_data(tables: SimpleNamespace) -> None:
    table = tables.demo_table()
    first, again = fit_guideline(table), fit_guideline(table.iloc[::-1])
    assert first == again
    assert fit_guideline(tables.demo_table(grown=3.4)).id != first.id


def test_what_three_runs_cannot_identify_is_named(tables: SimpleNamespace) -> None:
    sentences = " | ".join(fit_guideline(tables.demo_table()).cannot_identify)
    for words in ("best timing d*", "1 timing", "1 target size found, 3 needed", "1 budget over 0.0 decades",
                  "1 factor found, 2 needed", "seed noise", "scratch law"):  # fmt: skip
        assert words in sentences


def test_a_full_grid_identifies_all_but_what_is_missing(tables: SimpleNamespace) -> None:
    rows = []
    for layers in (8, 12, 16):
        shape = tables.shape.with_layers(layers)
        for budget in (1e6, 8e6, 40e6):
            compute = budget * flops_per_token(shape)
            name = f"{layers}-{budget:g}"
            for seed in (0, 1):
                rows.append(
                    tables.single_row(shape, compute, 3.5 + 0.01 * seed, run_id=f"s-{name}-{seed}", init_seed=seed)
                )
            for g in (2, 4):
                for share, loss in ((0.1, 3.45), (0.3, 3.4), (0.9, 3.7)):
                    d = share * compute / flops_per_token(shape.with_layers(layers // g))
                    rows.append(tables.grown_row(shape, layers // g, d, compute, loss, run_id=f"g-{name}-{g}-{share}"))
    table, _ = with_compute(read_runs(pd.DataFrame(rows)))
    designs = cells(table)
    assert len(pairs(designs)) == 3 * 3 * 2 * 3
    assert cannot_identify(pairs(designs), singles(designs), noise(designs)) == ()
    without_late = [pair for pair in pairs(designs) if pair.grown_loss_nats < 3.6]
    (missing,) = cannot_identify(without_late, singles(designs), noise(designs))
    assert "3 needed incl. one clearly too late" in missing


def test_seeds_of_a_cell_are_averaged_and_give_the_noise(tables: SimpleNamespace) -> None:
    rows = tables.demo_rows()
    rows[0]["init_seed"] = 0
    rows.append(rows[0] | {"run_id": "scratch-2", "init_seed": 1, "final_loss": 3.584})
    guideline = fit_guideline(pd.DataFrame(rows))
    (pair,) = guideline.pairs
    assert pair.num_scratch_seeds == 2
    assert pair.scratch_loss_nats == pytest.approx(3.574)
    # One repeat: sum of squares 2 x 0.01^2, joined with the assumed noise.
    nu0 = DEFAULT_NOISE_DEGREES_OF_FREEDOM
    expected = math.sqrt((nu0 * DEFAULT_SEED_SD_NATS**2 + 2 * 0.01**2) / (nu0 + 1))
    assert guideline.noise is not None
    assert guideline.noise.sd_nats == pytest.approx(expected)
    assert guideline.noise.measured
    assert not any("seed noise" in sentence for sentence in guideline.cannot_identify)


def test_a_run_repeated_with_its_seed_is_no_new_seed(tables: SimpleNamespace) -> None:
    rows = [row | {"init_seed": 0, "data_seed": 0} for row in tables.demo_rows()]
    rows.append(rows[0] | {"run_id": "scratch-again"})
    guideline = fit_guideline(pd.DataFrame(rows))
    assert guideline.pairs[0].num_scratch_seeds == 1
    assert guideline.noise is not None
    assert not guideline.noise.measured


def test_pairs_need_equal_compute(tables: SimpleNamespace) -> None:
    rows = tables.demo_rows()
    for factor, num_pairs in ((1.009, 1), (1.02, 0)):
        changed = [rows[0] | {"grown_tokens": rows[0]["grown_tokens"] * factor}, *rows[1:]]
        guideline = fit_guideline(pd.DataFrame(changed))
        assert len(guideline.pairs) == num_pairs
    assert any("no scratch control at equal FLOPs" in sentence for sentence in guideline.cannot_identify)


def test_control_id_names_the_control(tables: SimpleNamespace) -> None:
    rows = tables.demo_rows()
    rows.append(rows[0] | {"run_id": "other", "peak_lr": 8e-3, "final_loss": 3.50})
    by_rate = fit_guideline(pd.DataFrame(rows)).pairs[0]
    assert by_rate.scratch_loss_nats == 3.564
    assert by_rate.comparable
    rows[1]["control_id"] = "other"
    named = fit_guideline(pd.DataFrame(rows)).pairs[0]
    assert named.scratch_loss_nats == 3.50
    assert not named.comparable


def test_diverged_and_mid_schedule_runs_are_counted_not_used(tables: SimpleNamespace) -> None:
    rows = tables.demo_rows()
    rows.append(rows[0] | {"run_id": "boom", "status": "diverged", "final_loss": None})
    rows.append(rows[0] | {"run_id": "half", "is_final": False, "final_loss": 3.0})
    guideline = fit_guideline(pd.DataFrame(rows))
    assert guideline.num_runs == 3
    assert guideline.num_excluded == {"diverged": 1, "mid_schedule": 1}
    assert guideline.pairs[0].scratch_loss_nats == 3.564
    assert any("1 diverged, 1 mid-schedule" in sentence for sentence in guideline.warnings)


def test_no_finished_run_is_an_error(tables: SimpleNamespace) -> None:
    table = tables.demo_table().assign(status="stopped")
    with pytest.raises(InputError, match="3 stopped"):
        fit_guideline(table)


def test_diff_says_what_moved(tables: SimpleNamespace) -> None:
    before = fit_guideline(tables.demo_table())
    rows = tables.demo_rows(grown=3.45)
    rows.append(rows[0] | {"run_id": "scratch-2", "init_seed": 1, "final_loss": 3.584})
    after = fit_guideline(pd.DataFrame(rows))
    moved = compare_versions(before, after)
    assert moved.runs_added == ("scratch-2",)
    assert moved.runs_removed == ()
    (delta,) = moved.deltas_nats.values()
    assert delta.before == pytest.approx(-0.098)
    assert delta.after == pytest.approx(3.45 - 3.574)
    # Both only repeat what they saw, so they have no laws to differ in; asked where it was run, each answers its own delta.
    assert (moved.weights, moved.parameters) == ({}, ())
    there = moved.questions[0]
    assert (there.before.delta_nats, there.after.delta_nats) == pytest.approx((-0.098, 3.45 - 3.574))
    assert compare_versions(before, before).deltas_nats == {}
    json.dumps(asdict(moved))
    with pytest.raises(ValueError, match="may not be compared"):
        compare_versions(before, replace(before, cohort="another"))
