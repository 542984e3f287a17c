"""AdamW's state at growth against real gradients, and every policy against its own words."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from llama_models import FAMILIES, model_of
from transformers.modeling_utils import PreTrainedModel

from app.contract import TrainingSpec
from app.engine.growth import grow_model
from app.engine.loss import next_token_loss
from app.engine.operators.base import Growth
from app.engine.operators.mask import attach_mask
from app.engine.operators.optimizer_state import check_policy, grow_optimizer_tensors
from app.engine.optimizer import apply_gradients, build_optimizer, load_optimizer_tensors, optimizer_tensors
from fitting.errors import InputError

STACK = Growth(layers=(0, 1, 0, 1))
TRAINING = TrainingSpec(tokens=10_000, peak_lr=1e-3, batch_sequences=1)


def windows() -> torch.Tensor:
    return torch.randint(0, 61, (3, 17), generator=torch.Generator().manual_seed(1))


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    model.zero_grad()
    next_token_loss(model, windows(), precision="fp32").backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def as_state(grads: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The state of an AdamW whose betas are 0: its moments are the gradient and its square."""
    return {name: {"step": torch.tensor(3.0), "exp_avg": grad, "exp_avg_sq": grad**2} for name, grad in grads.items()}


def names_of(model: PreTrainedModel) -> list[str]:
    return [name for name, _ in model.named_parameters()]


# --- rules against gradients -------------------------------------------------------------------------------


@pytest.mark.parametrize("width_factor", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_width_direct_maps_moments_as_gradients_go(family: str, width_factor: int) -> None:
    base, growth = model_of(family).double(), Growth(width_factor=width_factor)
    target = grow_model(base, growth)
    expected = gradients(target)
    state = grow_optimizer_tensors(as_state(gradients(base)), growth, base.config.to_dict(), names_of(target), "copy")
    assert state.keys() == expected.keys()
    for name, grad in expected.items():
        # RMSNorm works in float32 whatever the model's type: its 1e-7 is the floor.
        scale = float(grad.abs().max())
        torch.testing.assert_close(state[name]["exp_avg"], grad, rtol=1e-5, atol=1e-6 * scale, msg=name)
        torch.testing.assert_close(state[name]["exp_avg_sq"], grad**2, rtol=1e-5, atol=1e-6 * scale**2, msg=name)
        assert state[name]["step"] == 3


@pytest.mark.parametrize("operator", ["zero", "random"])
@pytest.mark.parametrize("family", FAMILIES)
def test_width_zero_and_masked_random_keep_the_gradients_of_old_entries(family: str, operator: Any) -> None:
    base, growth = model_of(family).double(), Growth(operator=operator, width_factor=2)
    target = grow_model(base, growth)
    if operator == "random":
        attach_mask(target, growth)
    expected, before = gradients(target), gradients(base)
    state = grow_optimizer_tensors(
        as_state(before), growth, base.config.to_dict(), names_of(target), "keep_old_zero_new"
    )
    for name, grad in expected.items():
        old = tuple(slice(size) for size in before[name].shape)
        scale = float(before[name].abs().max())
        for key, value in (("exp_avg", grad), ("exp_avg_sq", grad**2)):
            assert state[name][key].shape == grad.shape
            torch.testing.assert_close(state[name][key][old], value[old], rtol=1e-5, atol=1e-6 * scale, msg=name)
            state[name][key][old] = 0
            assert not state[name][key].any(), name
        assert state[name]["step"] == 3


@pytest.mark.parametrize("operator", ["zero", "random"])
def test_depth_zero_and_masked_random_keep_the_gradients_of_old_layers(operator: Any) -> None:
    base, growth = model_of("qwen3").double(), Growth(operator=operator, layers=STACK.layers)
    target = grow_model(base, growth)
    if operator == "random":
        attach_mask(target, growth)
    expected, before = gradients(target), gradients(base)
    state = grow_optimizer_tensors(
        as_state(before), growth, base.config.to_dict(), names_of(target), "keep_old_zero_new"
    )
    num_old = 0
    for name, grad in expected.items():
        if name.startswith(("model.layers.2.", "model.layers.3.")):
            assert not any(tensor.any() for tensor in state[name].values()), name
        else:
            torch.testing.assert_close(state[name]["exp_avg"], grad, rtol=0, atol=0, msg=name)
            num_old += 1
    assert num_old == len(before)


# --- policies ----------------------------------------------------------------------------------------------


def trained(family: str = "llama") -> tuple[PreTrainedModel, dict[str, dict[str, torch.Tensor]]]:
    model = model_of(family)
    optimizer = build_optimizer(model, TRAINING)
    for _ in range(2):
        next_token_loss(model, windows(), precision="fp32").backward()
        apply_gradients(model, optimizer, learning_rate=1e-3, gradient_clip=1.0)
    return model, optimizer_tensors(model, optimizer)


def test_depth_policies_do_what_they_say() -> None:
    base, tensors = trained()
    target = grow_model(base, STACK)
    states = {
        policy: grow_optimizer_tensors(tensors, STACK, base.config.to_dict(), names_of(target), policy)
        for policy in ("reset", "copy", "copy_v_only", "keep_old_zero_new")
    }
    assert states.pop("reset") == {}
    for name in names_of(target):
        is_new = name.startswith(("model.layers.2.", "model.layers.3."))
        source = tensors[name.replace("layers.2.", "layers.0.").replace("layers.3.", "layers.1.")]
        zeros = {key: torch.zeros_like(tensor) for key, tensor in source.items()}
        expected = {
            "copy": source,
            "copy_v_only": {**source, "exp_avg": zeros["exp_avg"]},
            "keep_old_zero_new": zeros if is_new else source,
        }
        for policy, state in states.items():
            assert state[name].keys() == {"step", "exp_avg", "exp_avg_sq"}
            for key, tensor in state[name].items():
                assert torch.equal(tensor, expected[policy][key]), (policy, name, key)
    storages = [t.data_ptr() for states_of in (tensors, states["copy"]) for s in states_of.values() for t in s.values()]
    assert len(set(storages)) == len(storages), "base and layers must not share storage"


@pytest.mark.parametrize("growth", [STACK, Growth(width_factor=2)], ids=["depth", "width"])
@pytest.mark.parametrize("policy", ["reset", "copy", "copy_v_only", "keep_old_zero_new"])
def test_every_policy_trains_on(growth: Growth, policy: Any) -> None:
    base, tensors = trained()
    target = grow_model(base, growth)
    optimizer = build_optimizer(target, TRAINING)
    grown = grow_optimizer_tensors(tensors, growth, base.config.to_dict(), names_of(target), policy)
    load_optimizer_tensors(target, optimizer, grown)
    before = {name: parameter.detach().clone() for name, parameter in target.named_parameters()}
    next_token_loss(target, windows(), precision="fp32").backward()
    apply_gradients(target, optimizer, learning_rate=1e-3, gradient_clip=1.0)
    for name, parameter in target.named_parameters():
        moved = (parameter.detach() - before[name]).abs().max()
        # Whatever the state, no policy may move a weight by more than a few learning rates.
        assert 0 < moved < 2e-3, name


def test_new_layers_step_as_in_a_new_run() -> None:
    base, tensors = trained()
    target = grow_model(base, STACK)
    optimizer = build_optimizer(target, TRAINING)
    state = grow_optimizer_tensors(tensors, STACK, base.config.to_dict(), names_of(target), "keep_old_zero_new")
    load_optimizer_tensors(target, optimizer, state)
    gain = target.model.layers[2].input_layernorm.weight  # not decayed
    before = gain.detach().clone()
    next_token_loss(target, windows(), precision="fp32").backward()
    expected = before - 1e-3 * gain.grad.sign()  # m^ / sqrt(v^) of a first step
    apply_gradients(target, optimizer, learning_rate=1e-3, gradient_clip=1e9)
    torch.testing.assert_close(gain.detach(), expected, rtol=0, atol=1e-6)


def test_uncorrected_first_updates_stay_below_what_is_documented() -> None:
    for betas, documented in (((0.9, 0.95), 1.1), ((0.9, 0.999), 6.6)):
        ratios = [(1 - betas[0] ** t) / math.sqrt(1 - betas[1] ** t) for t in range(1, 5000)]
        assert documented - 0.1 < max(ratios) < documented


@pytest.mark.parametrize(
    ("growth", "refused"),
    [
        (Growth(operator="learn", layers=(0, 1, 0, 1)), ("copy", "copy_v_only", "keep_old_zero_new")),
        (Growth(operator="learn", width_factor=2), ("copy", "copy_v_only", "keep_old_zero_new")),
        (Growth(operator="random", layers=(0, 1, 0, 1)), ("copy", "copy_v_only")),
        (Growth(operator="random", width_factor=2), ("copy", "copy_v_only")),
        (Growth(operator="zero", width_factor=2), ("copy", "copy_v_only")),
        (Growth(operator="zero", layers=(0, 1, 0, 1)), ()),
        (Growth(layers=(0, 1, 0, 1), noise=0.2), ()),
        (Growth(width_factor=2), ()),
    ],
    ids=lambda value: f"{value.operator} {value.direction}" if isinstance(value, Growth) else "",
)
def test_policies_without_meaning_are_refused_by_name(growth: Growth, refused: tuple[Any, ...]) -> None:
    for policy in ("reset", "copy", "copy_v_only", "keep_old_zero_new"):
        if policy in refused:
            with pytest.raises(InputError, match=f"'{policy}', but operator '{growth.operator}' in {growth.direction}"):
                check_policy(growth, policy)
        else:
            check_policy(growth, policy)
    with pytest.raises(InputError, match="known are reset, copy"):
        check_policy(growth, "halve")  # type: ignore[arg-type]
