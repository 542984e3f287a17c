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
    assert (single.name, single.num_layers, single.steps_before, single.flops_before) == ("single", 4, 0, 0.0)


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
