"""A grid multiplied out: by hand for one family, its limits, and the grid that ships."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from app.sweep.bodies import check_design, job_body, request_key
from app.sweep.costs import core_seconds, disk_bytes, own_flops, step_totals
from app.sweep.families import Design, Family, expand
from app.sweep.grid import Grid, read_grid
from app.sweep.plan import plan_rows
from fitting.errors import InputError

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "data" / "runs" / "grid.toml"


@pytest.fixture(scope="module")
def shipped() -> Design:
    return expand(read_grid(SHIPPED))


@pytest.fixture
def read(tmp_path: Path, tiny_grid_text: str) -> Callable[..., Grid]:
    def read(*changes: tuple[str, str]) -> Grid:
        text = tiny_grid_text
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / "grid.toml"
        path.write_text(text, encoding="utf-8")
        return read_grid(path)

    return read


def family_of(design: Design, start: str) -> Family:
    (family,) = (family for family in design.families if family.name.startswith(start))
    return family


def test_one_family_by_hand(read: Callable[..., Grid]) -> None:
    """Hidden 32, MLP 64, vocabulary 512, context 64, batches of 512 tokens; base of 1 layer, target of 2."""
    block = 4 * 32 * 32 + 3 * 32 * 64
    f_base = 6 * (block + 512 * 32) + 12 * 32 * 64
    f_target = 6 * (2 * block + 512 * 32) + 12 * 2 * 32 * 64
    params = 2 * (block + 2 * 32) + 32
    grown = family_of(expand(read()), "h32-l1to2")
    largest, smallest = grown.cells
    budget = round(params / 512) * 512
    assert largest.budget_tokens == budget == 20_480
    assert grown.base_tokens == round(0.3 * budget / 512) * 512 == 6_144
    for cell, tokens_per_parameter in ((largest, 1.0), (smallest, 0.5)):
        scratch = round(tokens_per_parameter * params / 512) * 512
        exact = (scratch * f_target - 6_144 * f_base) / f_target
        assert cell.budget_flops == scratch * f_target
        assert cell.tokens == round(exact / 512) * 512
        assert cell.compute_flops == 6_144 * f_base + cell.tokens * f_target
        assert cell.num_epochs == pytest.approx((6_144 + cell.tokens) / (599_999 // 64 * 64))
    assert largest.branch_tokens is None
    assert smallest.branch_tokens == int(0.8 * smallest.tokens) // 512 * 512
    assert largest.control == "h32-l2-lr0.004-s0-b1"
    assert own_flops(grown, smallest) == (smallest.tokens - smallest.branch_tokens) * f_target
    alone = family_of(expand(read()), "h32-l1-")
    assert alone.trunk.tokens == round(budget * f_target / f_base / 512) * 512


def test_what_a_cell_costs_by_hand(read: Callable[..., Grid]) -> None:
    grid = read()
    family = family_of(expand(grid), "h32-l2-")
    f = 6 * (2 * 10_240 + 512 * 32) + 12 * 2 * 32 * 64
    # 20,480 tokens, a validation of 16 x 64 tokens every quarter and one more; the leg decays from 8,192 to 10,240.
    assert core_seconds(grid, family, family.trunk) == pytest.approx(5 + f * (20_480 + 5 * 16 * 64 / 3) / 1e10)
    (leg,) = family.legs
    assert leg.tokens - leg.branch_tokens == 2_048
    assert core_seconds(grid, family, leg) == pytest.approx(5 + f * (2_048 + 1 * 16 * 64 / 3) / 1e10)
    all_params = 2 * (10_240 + 64) + 32 + 2 * 512 * 32
    assert disk_bytes(family) == all_params * (12 + 2 * 4)


def test_the_first_waves_run_first(read: Callable[..., Grid]) -> None:
    assert [family.step for family in expand(read()).families] == [2, 1, 1]
    assert [family.step for family in expand(read(("[[first]]\nsteps = [2]", "[[first]]\nsteps = [1]"))).families] == [
        1,
        1,
        2,
    ]


def test_what_cannot_be_had_is_dropped_by_name(read: Callable[..., Grid]) -> None:
    late = expand(read(("timings = [0.3]", "timings = [0.3, 1.0]")))
    (dropped,) = late.dropped
    assert dropped.name == "h32-l1to2-d20480-lr0.004-s0-b0.5"
    assert "fewer than 2,048" in dropped.reason
    both = ("tokens_per_parameter = [1.0]\n", "")
    tight = expand(read(("train_tokens = 600000", "train_tokens = 25_000"), both))
    assert [cell.name for cell in tight.dropped] == ["h32-l1-lr0.004-s0-b1"]
    assert "reads the corpus 1.2" in tight.dropped[0].reason
    # The trunk is then the largest budget that is left, and has no legs.
    assert family_of(tight, "h32-l1-").name == "h32-l1-lr0.004-s0-to0.5"
    assert family_of(tight, "h32-l1-").trunk.branch_tokens is None
    flagged = expand(
        read(("train_tokens = 600000", "train_tokens = 25_000"),
             ("num_layers = [1]\ntokens", "num_layers = [1]\nmay_pass_one_epoch = true\ntokens"))
    )  # fmt: skip
    assert not flagged.dropped
    assert [row["cell"] for row in plan_rows(flagged) if row["passes_one_epoch"]] == ["h32-l1-lr0.004-s0-b1"]


def test_a_cell_stands_once(read: Callable[..., Grid]) -> None:
    again = '\n[[steps]]\nnumber = 3\ntitle = "again"\n[[steps.arms]]\nkind = "scratch"\ntokens_per_parameter = [1.0, 2.0]\n'
    design = expand(read(("timings = [0.3]\n", f"timings = [0.3]\n{again}")))
    assert [(cell.name, cell.reason) for cell in design.dropped] == [("h32-l2-lr0.004-s0-b1", "stands in step 1")]
    assert family_of(design, "h32-l2-lr0.004-s0-to2").cells[0].tokens_per_parameter == 2.0
    names = [cell.name for _, cell in design.cells()]
    assert len(set(names)) == len(names) == 6


def test_another_recipe_is_another_cohort(read: Callable[..., Grid]) -> None:
    design = expand(
        read(('title = "controls"\n[[steps.arms]]\nkind = "scratch"', 'title = "controls"\n[[steps.arms]]\nkind = "scratch"'
              '\nschedule = "cosine"'), ("timings = [0.3]", "timings = [0.3]\nrewarm = [true, false]"))
    )  # fmt: skip
    cosine = [family for family in design.families if family.schedule == "cosine"]
    assert [(family.cohort, len(family.cells), family.trunk.branch_tokens) for family in cosine] == [
        ("tiny-cosine", 1, None)
    ] * 2
    assert {family.cohort for family in design.families} == {"tiny", "tiny-cosine", "tiny-rewind"}


def test_bodies_of_a_trunk_and_its_leg(read: Callable[..., Grid]) -> None:
    grid = read()
    grown = family_of(expand(grid), "h32-l1to2")
    trunk, leg = grown.cells
    body = job_body(grid, grown, trunk, None)
    assert body["keep_checkpoints_at_tokens"] == [leg.branch_tokens]
    assert body["trunk"] is None
    assert body["growth"]["growth_timing_tokens"] == 6_144
    assert (body["init_seed"], body["data_seed"]) == (0, 0)
    decay = job_body(grid, grown, leg, "run_x")
    assert decay["trunk"] == {"run_id": "run_x", "branch_tokens": leg.branch_tokens}
    assert decay["training"] == body["training"] | {"tokens": leg.tokens}
    keys = {request_key(body, 0), request_key(body, 1), request_key(decay, 0)}
    assert len(keys) == 3
    assert request_key(json.loads(json.dumps(body)), 0) in keys


@pytest.mark.parametrize(
    ("old", "new", "field", "words"),
    [
        ('cohort = "tiny"', 'cohort = "Tiny!"', "cohort", "names match"),
        ("engine_numerics_version = 1", "engine_numerics_version = 99", "engine_numerics_version", "this engine"),
        ("vocab_size = 512", "vocab_size = 0", "corpus.vocab_size", "above 0"),
        ("batch_sequences = 8", "batch_sequences = -8", "recipe.batch_sequences", "above 0"),
        ("decay_fraction = 0.2", "decay_fraction = 1.0", "recipe.decay_fraction", "(0, 1)"),
        ("warmup_tokens = 1024", "warmup_tokens = -1", "recipe.warmup_tokens", "negative"),
        ("fewest_grown_tokens = 2048", "fewest_grown_tokens = 1024", "recipe.fewest_grown_tokens", "warm-up"),
        ("speeds = [{ hidden_size = 32, num_layers = 2, flops_per_core_second = 1e10 }]", "speeds = []", "costs.speeds",
         "empty"),
        ("flops_per_core_second = 1e10", "flops_per_core_second = 0.0", "costs.speeds[0].flops_per_core_second", "above 0"),
        ("num_heads = 2", "num_heads = 3", "sizes[0].hidden_size", "rotary"),
        ("tokens_per_parameter = [0.5, 1.0]", "tokens_per_parameter = [1.0, 0.5]", "sizes[0].tokens_per_parameter", "rise"),
        ("tokens_per_parameter = [0.5, 1.0]", "tokens_per_parameter = []", "sizes[0].tokens_per_parameter", "empty"),
        ("other_lrs = [2e-3]", "other_lrs = [4e-3]", "sizes[0].other_lrs", "all different"),
        ("number = 2", "number = 1", "steps", "must rise"),
        ('kind = "scratch"', 'kind = "scratch"\nsizes = ["h1"]', "step 1, arms[0].sizes", "h1"),
        ('kind = "scratch"', 'kind = "scratch"\nseeds = [0, 0]', "step 1, arms[0].seeds", "different"),
        ('kind = "scratch"', 'kind = "scratch"\nnum_layers = [1]', "step 1, arms[0].num_layers", "only there"),
        ("timings = [0.3]", "timings = []", "step 2, arms[0].timings", "only there"),
        ("timings = [0.3]", "timings = [-0.3]", "step 2, arms[0].timings", "scratch"),
        ("timings = [0.3]", "timings = [0.001]", "step 2, timings", "one batch"),
        ("timings = [0.3]", 'timings = [0.3]\noptimizer_state_policies = ["burn"]',
         "step 2, arms[0].optimizer_state_policies", "copy_v_only"),
        ("timings = [0.3]", "timings = [0.3]\nrewarm = []", "step 2, arms[0].rewarm", "empty"),
        ("steps = [2]", "steps = [9]", "first[0].steps", "no step"),
        ('sizes = ["h32"]', 'sizes = ["h99"]', "first[0].sizes", "no size"),
        ("num_layers = [1]\ntimings", "num_layers = [2]\ntimings", "step 2, cell", "num_base_layers"),
        ("timings = [0.3]", 'timings = [0.3]\norder = "sideways"', "step 2, cell", "order"),
        ('name = "h32"', f'name = "{"h" * 50}"', "first[0].sizes", "no size"),
        ("fewest_grown_tokens = 2048", "fewest_grown_tokens = 9_000_000", "steps", "no cell"),
    ],
)  # fmt: skip
def test_errors_name_field_limit_and_mend(
    read: Callable[..., Grid], old: str, new: str, field: str, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        check_design(expand(read((old, new))))
    assert caught.value.field.startswith(field), caught.value
    assert words in str(caught.value)
    assert caught.value.mend


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("context_length = 64", "context = 64", "context is not a field"),
        ("evaluations_a_run = 4", "", "evaluations_a_run is missing"),
        ("num_heads = 2", 'num_heads = "2"', "must be of type int"),
        ('kind = "alone"', 'kind = "lonely"', "one of 'scratch'"),
        ("[[steps]]", "[[steps", "not TOML"),
    ],
)
def test_a_malformed_file_is_refused(read: Callable[..., Grid], old: str, new: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read((old, new))


def test_a_name_that_is_too_long_for_a_file_is_refused(read: Callable[..., Grid]) -> None:
    grid = read()
    size = replace(grid.sizes[0], name="h" * 50)
    long = replace(grid, sizes=(size,), first=())
    with pytest.raises(InputError, match="shorten the size's name"):
        check_design(expand(long))


# --- the grid that ships ---------------------------------------------------------------------------------------


def test_the_shipped_grid_is_within_its_hours_and_one_epoch(shipped: Design) -> None:
    check_design(shipped)
    totals = step_totals(shipped)
    core_hours = sum(total.core_seconds for total in totals) / 3600
    assert 12 <= core_hours <= 16
    assert [total.step for total in totals] == [1, 2, 3, 4, 5, 6, 7]
    assert all(total.num_cells for total in totals)
    for family, cell in shipped.cells():
        never_stacks_in_step_4 = family.step == 4 and family.growth is None and family.shape.num_layers < 8
        assert cell.num_epochs <= 1 or never_stacks_in_step_4, cell.name
    assert any(cell.num_epochs > 1 for _, cell in shipped.cells())


def test_cells_of_a_budget_have_equal_flops(shipped: Design) -> None:
    by_budget: dict[tuple[str, float], list[float]] = {}
    for family, cell in shipped.cells():
        by_budget.setdefault((family.size.name, cell.tokens_per_parameter), []).append(cell.compute_flops)
    assert len(by_budget) == 3 + 2 + 3 + 2  # h48 goes on to 20 and 40
    for flops in by_budget.values():
        assert max(flops) / min(flops) - 1 < 0.002


def test_the_first_two_core_hours_hold_valleys_and_both_controls(shipped: Design) -> None:
    """Scratch, smaller depths alone and g = 4 at several timings, of both small sizes."""
    seconds, early = 0.0, []
    for family in shipped.families:
        seconds += sum(core_seconds(shipped.grid, family, cell) for cell in family.cells)
        if seconds > 2.25 * 3600:
            break
        early.append(family)
    for size in ("h48", "h64"):
        own = [family for family in early if family.size.name == size]
        alone = {family.shape.num_layers for family in own if family.growth is None}
        assert alone == {1, 2, 4, 8}
        assert sum(family.growth is not None for family in own) >= 5


def test_the_shipped_grid_asks_what_the_issue_asks(shipped: Design) -> None:
    def seeds(step: int, size: str, layers: int, grown: bool, rate: float = 4e-3) -> set[int]:
        return {
            family.seed
            for family in shipped.families
            if (family.step, family.size.name, family.shape.num_layers, family.growth is not None, family.peak_lr)
            == (step, size, layers, grown, rate)
        }

    for size in ("h48", "h64", "h96"):
        for layers in (1, 2, 4, 8):
            assert seeds(1, size, layers, False) == {0, 1, 2}
        assert seeds(1, size, 8, False, 2e-3) == seeds(1, size, 8, False, 8e-3) == {0}
        assert seeds(3, size, 8, True) == {1, 2}
        assert seeds(6, size, 8, True, 2e-3) == seeds(6, size, 8, True, 8e-3) == {0}
    ablation = [
        family for family in shipped.families
        if family.growth and family.base_tokens == 665_600 and family.size.name == "h48" and family.shape.num_layers == 8
        and family.growth.num_base_layers == 2 and family.growth.order == "stack" and family.peak_lr == 4e-3
        and any(cell.tokens_per_parameter == 5 for cell in family.cells)
    ]  # fmt: skip
    arms = {(f.growth.optimizer_state_policy, f.growth.rewarm, f.seed) for f in ablation if f.growth}
    assert len(arms) == len(ablation) == 4 * 2 * 5
    # Every grown run at a rate that scratch was trained at has its control.
    for family, cell in shipped.cells():
        if family.growth is not None and family.growth.rewarm and family.seed < 3:
            assert cell.control is not None, cell.name


def test_the_room_loads_no_torch() -> None:
    modules = "app.sweep.runner, app.sweep.live, app.sweep.collect, app.sweep.check, app.sweep.plan"
    code = f"import {modules}, sys; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout.strip() == "False"
