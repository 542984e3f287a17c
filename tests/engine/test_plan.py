"""What a spec means in steps, tokens and FLOPs."""

from collections.abc import Callable
from typing import Any

import pytest

from app.contract import Spec, SpecError
from app.engine.plan import plan_phases
from app.records import from_dict
from fitting.flops import Shape, flops_per_token

MakeValues = Callable[..., dict[str, Any]]


def test_lengths_are_whole_steps_and_compute_includes_the_base(spec_values: MakeValues) -> None:
    base, grown = plan_phases(from_dict(Spec, spec_values()))
    assert (base.name, base.num_layers, base.num_steps, base.num_tokens) == ("base", 2, 156, 19_968)
    assert (grown.name, grown.num_layers, grown.num_steps, grown.num_tokens) == ("grown", 4, 312, 39_936)
    shape = Shape(
        num_layers=4, hidden_size=16, num_heads=2, num_kv_heads=1, intermediate_size=32, vocab_size=512,
        context_length=32,
    )  # fmt: skip
    total = 19_968 * flops_per_token(shape.with_layers(2)) + 39_936 * flops_per_token(shape)
    assert grown.compute_flops(312) == total
    assert base.compute_flops(156) == grown.compute_flops(0)
    assert grown.run_tokens(1) == 19_968 + 128


def test_base_is_a_trunk_with_its_own_peak(spec_values: MakeValues) -> None:
    base, grown = plan_phases(from_dict(Spec, spec_values(training__base_peak_lr=2e-2)))
    assert base.schedule.learning_rate(base.num_tokens) == 2e-2
    assert grown.schedule.learning_rate(128) == pytest.approx(1e-2 * 128 / 2_000)
    assert grown.schedule.learning_rate(grown.num_tokens) == pytest.approx(1e-3)


def test_without_growth_there_is_one_phase(spec_values: MakeValues) -> None:
    (single,) = plan_phases(from_dict(Spec, spec_values(growth=None)))
    assert (single.name, single.num_layers, single.sequences_before, single.flops_before) == ("single", 4, 0, 0.0)


def test_a_warmup_that_reaches_into_the_decay_is_refused(spec_values: MakeValues) -> None:
    with pytest.raises(SpecError, match=r"training\.warmup_tokens is 32000.*31948 tokens; shorten"):
        from_dict(Spec, spec_values(training__warmup_tokens=32_000))


def test_a_base_may_grow_inside_its_warmup(spec_values: MakeValues) -> None:
    base, _ = plan_phases(from_dict(Spec, spec_values(growth__growth_timing_tokens=1_024)))
    assert base.schedule.learning_rate(1_024) == pytest.approx(1e-2 * 1_024 / 2_000)


@pytest.mark.parametrize("field", ["init_seed", "data_seed"])
def test_a_negative_seed_is_refused(spec_values: MakeValues, field: str) -> None:
    with pytest.raises(SpecError, match=rf"{field} is -1.*use a seed"):
        from_dict(Spec, spec_values(**{field: -1}))


# --- rates, batches and shapes at growth -------------------------------------------------------------------


def rates(spec_values: MakeValues, **overrides: Any) -> tuple[float, float, float]:
    """Of the base's last step, of the grown phase's first and of its last."""
    base, grown = plan_phases(from_dict(Spec, spec_values(**overrides)))
    return (
        base.schedule.learning_rate(base.num_tokens), grown.schedule.learning_rate(128),
        grown.schedule.learning_rate(grown.num_tokens),
    )  # fmt: skip


def test_the_rate_rewarms_rewinds_or_is_kept(spec_values: MakeValues) -> None:
    end = pytest.approx(1e-3)
    assert rates(spec_values) == (1e-2, pytest.approx(1e-2 * 128 / 2_000), end)
    assert rates(spec_values, growth__rewarm_tokens=256) == (1e-2, pytest.approx(5e-3), end)
    assert rates(spec_values, growth__learning_rate_policy="rewind") == (1e-2, 1e-2, end)
    assert rates(spec_values, growth__learning_rate_policy="keep") == (1e-2, 1e-2, end)


def test_keep_is_one_schedule_over_both_phases(spec_values: MakeValues) -> None:
    kept = spec_values(growth__learning_rate_policy="keep", training__schedule="cosine")
    base, grown = plan_phases(from_dict(Spec, kept))
    alone = spec_values(growth=None, training__schedule="cosine", training__tokens=19_968 + 39_936)
    (single,) = plan_phases(from_dict(Spec, alone))
    both = [base.schedule.learning_rate(t) for t in range(128, 19_968 + 1, 128)]
    both += [grown.schedule.learning_rate(t) for t in range(128, 39_936 + 1, 128)]
    assert both == [single.schedule.learning_rate(t) for t in range(128, 59_904 + 1, 128)]


def test_a_power_base_stays_on_the_power_law(spec_values: MakeValues) -> None:
    values = spec_values(training__schedule="power", training__power_amplitude=0.5, training__warmup_tokens=0)
    base, grown = plan_phases(from_dict(Spec, values))
    assert base.schedule.learning_rate(19_968) == pytest.approx(0.5 * 128 / 4096 * 19_968**-0.51)
    assert grown.schedule.learning_rate(12_800) == pytest.approx(0.5 * 128 / 4096 * 12_800**-0.51)


def test_another_batch_for_the_base_keeps_the_place_in_the_data(spec_values: MakeValues) -> None:
    base, grown = plan_phases(from_dict(Spec, spec_values(training__base_batch_sequences=3)))
    assert (base.batch_sequences, base.num_steps, base.num_tokens) == (3, 208, 208 * 96)
    assert (grown.batch_sequences, grown.run_sequences(0), grown.run_sequences(1)) == (4, 208 * 3, 208 * 3 + 4)
    assert grown.run_tokens(1) == 208 * 96 + 128
    assert grown.flops_before == 208 * 96 * base.flops_per_token


def test_growth_in_width_costs_the_narrow_base(spec_values: MakeValues) -> None:
    values = spec_values(growth__num_base_layers=4, growth__width_factor=2, model__num_kv_heads=2)
    base, grown = plan_phases(from_dict(Spec, values))
    assert (base.shape.hidden_size, base.shape.num_heads, base.shape.num_kv_heads, base.num_layers) == (8, 1, 1, 4)
    narrow = Shape(
        num_layers=4, hidden_size=8, num_heads=1, num_kv_heads=1, intermediate_size=16, vocab_size=512,
        context_length=32,
    )  # fmt: skip
    assert base.flops_per_token == flops_per_token(narrow) < grown.flops_per_token


def test_a_given_base_counts_to_the_sequence(spec_values: MakeValues) -> None:
    values = spec_values(growth__base_checkpoint="somewhere", growth__growth_timing_tokens=20_010)
    base, grown = plan_phases(from_dict(Spec, values))
    assert base.is_given
    assert grown.run_tokens(0) == base.num_tokens == 625 * 32
    assert grown.flops_before == base.num_tokens * base.flops_per_token


def test_learned_maps_take_the_first_of_the_grown_tokens(spec_values: MakeValues) -> None:
    values = spec_values(growth__operator="learn", growth__learn_steps=10)
    base, grown = plan_phases(from_dict(Spec, values))
    assert (grown.num_learn_steps, grown.num_steps) == (10, 312)
    assert grown.schedule.learning_rate(11 * 128) == pytest.approx(1e-2 * 128 / 2_000)
    assert grown.schedule.learning_rate(grown.num_tokens) == pytest.approx(1e-3)
    assert grown.compute_flops(10) == base.compute_flops(base.num_steps) + 1_280 * grown.flops_per_token


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"growth__operator": "learn", "growth__learn_steps": 312}, r"learn_steps is 312.*first of training\.tokens"),
        ({"growth__operator": "random", "growth__mask_tokens": 39_937}, r"mask_tokens is 39937.*39936.*fade in"),
        ({"growth__learning_rate_policy": "keep", "training__base_peak_lr": 0.1}, r"base_peak_lr is 0\.1.*leave it"),
        ({"growth__rewarm_tokens": 39_000}, r"growth\.rewarm_tokens is 39000.*31948 tokens; shorten"),
        (
            {"growth__base_checkpoint": "x", "training__base_batch_sequences": 2},
            r"base_batch_sequences.*not trained here",
        ),
        (
            {"growth__base_checkpoint": "x", "growth__optimizer_state_policy": "copy"},
            r"optimizer_state_policy.*'reset'",
        ),
        ({"training__base_batch_sequences": 1000}, r"growth_timing_tokens is 20000.*one batch is 32000"),
        ({"micro_batch_sequences": 3}, r"micro_batch_sequences is 3.*use a divisor"),
        ({"keep_checkpoints_at_tokens": [100]}, r"keep_checkpoints_at_tokens is 100.*one batch \(128\)"),
        ({"training__schedule": "linear"}, r"schedule is 'linear'.*'wsd', 'cosine', 'power', 'constant'"),
        ({"training__schedule": "power", "training__power_exponent": 0.5}, r"power_exponent is 0\.5.*-0\.51"),
        ({"model__family": "gpt2"}, r"family is 'gpt2'.*'llama', 'mistral', 'qwen2', 'qwen3'"),
        (
            {"trunk": {"trunk_run_dir": "t", "trunk_id": "t", "branch_tokens": 32_128}},
            r"trunk\.branch_tokens is 32128.*decays from token 32,000 of 40,000.*branch earlier",
        ),
        (
            {"trunk": {"trunk_run_dir": "t", "trunk_id": "t", "branch_tokens": 128}, "training__schedule": "cosine"},
            r"schedule is 'cosine'.*use 'wsd' or 'power'",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(
    spec_values: MakeValues, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(Spec, spec_values(**overrides))
