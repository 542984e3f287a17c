"""The random operator's mask: the base's function at 0, the plain model at 1, one function through folding."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from llama_models import FAMILIES, model_of
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_utils import PreTrainedModel

from app.engine import loss as loss_module
from app.engine.growth import grow_model
from app.engine.loss import next_token_loss
from app.engine.operators.base import Growth
from app.engine.operators.mask import attach_mask
from fitting.errors import InputError

DEPTH = Growth(operator="random", layers=(0, 1, 0, 1), seed=3)
WIDTH = Growth(operator="random", width_factor=2, seed=3)
GROWTHS = pytest.mark.parametrize("growth", [DEPTH, WIDTH], ids=["depth", "width"])


def scatter(model: PreTrainedModel) -> PreTrainedModel:
    """New weights as if trained: none 0 or 1, biases of new layers above all."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def windows() -> torch.Tensor:
    return torch.randint(0, 61, (3, 17), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=windows()[:, :-1]).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_closed_mask_is_the_base(family: str) -> None:
    base = model_of(family)
    deeper, wider = grow_model(base, DEPTH), grow_model(base, WIDTH)
    expected = logits(base)
    assert (logits(deeper) - expected).abs().max() > 0.01
    attach_mask(deeper, DEPTH)
    torch.testing.assert_close(logits(deeper), expected, rtol=0, atol=0)
    assert (logits(wider) - expected).abs().max() > 0.01
    attach_mask(wider, WIDTH)
    torch.testing.assert_close(logits(wider), expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))


@GROWTHS
@pytest.mark.parametrize("family", FAMILIES)
def test_folding_keeps_the_function_and_leaves_a_plain_model(family: str, growth: Growth) -> None:
    target = scatter(grow_model(model_of(family), growth))
    names = list(target.state_dict())
    mask = attach_mask(target, growth)
    assert list(target.state_dict()) == names, "exports, optimizer and checkpoints keep their names"
    previous = logits(target)
    for m in (0.0, 0.37, 1.0):
        mask.set(m)
        masked = logits(target)
        assert (m == 0.0) == torch.equal(masked, previous)
        plain = type(target)(target.config)
        plain.load_state_dict(target.state_dict() | mask.folded(), strict=True)
        torch.testing.assert_close(logits(plain), masked, rtol=1e-4, atol=1e-5 * float(masked.abs().max()))
    mask.set(0.37)
    masked = logits(target)
    mask.fold()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in target.modules())
    torch.testing.assert_close(logits(target), masked, rtol=1e-4, atol=1e-5 * float(masked.abs().max()))


@GROWTHS
def test_an_open_mask_changes_no_bit(growth: Growth) -> None:
    target = grow_model(model_of("qwen3"), growth)
    before, expected = copy.deepcopy(target.state_dict()), logits(target)
    mask = attach_mask(target, growth)
    mask.set(1.0)
    assert torch.equal(logits(target), expected)
    mask.fold()
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


@GROWTHS
def test_live_and_folded_growth_agree(growth: Growth) -> None:
    base = model_of("qwen3")
    target = grow_model(base, growth)
    mask = attach_mask(target, growth)
    mask.set(0.25)
    folded = grow_model(base, Growth(**{**growth.__dict__, "mask": 0.25})).state_dict()
    mask.fold()
    for name, tensor in target.state_dict().items():
        torch.testing.assert_close(tensor, folded[name], rtol=1e-6, atol=0, msg=name)


@pytest.mark.parametrize("growth", [DEPTH, WIDTH], ids=["depth", "width"])
@pytest.mark.parametrize("family", ["llama", "llama tied"])
def test_gradients_are_those_of_the_masked_function(family: str, growth: Growth) -> None:
    """Central differences along the gradient."""
    target = scatter(grow_model(model_of(family), growth)).double()
    mask = attach_mask(target, growth)
    mask.set(0.37)
    loss = next_token_loss(target, windows(), precision="fp32")
    loss.backward()
    parameters = list(target.parameters())
    norm = sum(float(p.grad.square().sum()) for p in parameters) ** 0.5
    losses = []
    for step in (1e-3, -2e-3):
        with torch.no_grad():
            for p in parameters:
                p.add_(p.grad, alpha=step / norm)
            losses.append(float(next_token_loss(target, windows(), precision="fp32")))
    assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(norm, rel=2e-3)


@pytest.mark.parametrize("family", ["llama", "llama tied"])
def test_a_loss_in_chunks_meets_the_mask(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = scatter(grow_model(model_of(family), WIDTH))
    attach_mask(target, WIDTH).set(0.37)
    with torch.no_grad():
        whole = float(next_token_loss(target, windows(), precision="fp32"))
        monkeypatch.setattr(loss_module, "MAX_LOGITS", 200)
        chunked = float(next_token_loss(target, windows(), precision="fp32"))
    assert chunked == pytest.approx(whole, rel=1e-5)


@GROWTHS
def test_compiled_layers_follow_the_mask(growth: Growth) -> None:
    """Layers share compiled code, though only some are masked; folding leaves the code as it is."""
    target = scatter(grow_model(model_of("llama"), growth))
    plain = copy.deepcopy(target)
    masks = [attach_mask(model, growth) for model in (target, plain)]
    torch.compiler.reset()
    for layer in target.model.layers:
        layer.compile(dynamic=False, backend="eager")
    for m in (0.0, 0.37, 0.8):
        for mask in masks:
            mask.set(m)
        torch.testing.assert_close(logits(target), logits(plain), rtol=1e-5, atol=1e-5)
    for mask in masks:
        mask.fold()
    torch.testing.assert_close(logits(target), logits(plain), rtol=1e-5, atol=1e-5)
    torch.compiler.reset()


@GROWTHS
def test_recomputation_meets_the_mask(growth: Growth) -> None:
    target = scatter(grow_model(model_of("llama"), growth)).train()
    attach_mask(target, growth).set(0.37)
    grads = []
    for recompute in (False, True):
        if recompute:
            # The name changed in the course of transformers 5.
            enable = getattr(target, "activation_checkpointing_enable", None) or target.gradient_checkpointing_enable
            enable({"use_reentrant": False, "preserve_rng_state": False})
        target.zero_grad()
        next_token_loss(target, windows(), precision="fp32").backward()
        grads.append([parameter.grad.clone() for parameter in target.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_autocast_keeps_its_type() -> None:
    target = grow_model(model_of("llama"), WIDTH)
    attach_mask(target, WIDTH).set(0.5)
    seen = []
    target.model.layers[0].mlp.down_proj.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    next_token_loss(target, windows(), precision="bf16")
    assert seen == [torch.bfloat16]


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@GROWTHS
def test_sharded_parameters_fold(growth: Growth, one_rank: None) -> None:
    target = scatter(grow_model(model_of("llama"), growth))
    plain = copy.deepcopy(target)
    masks = [attach_mask(model, growth) for model in (target, plain)]
    mesh = init_device_mesh("cpu", (1,))
    for layer in target.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(target, mesh=mesh)
    for mask in masks:
        mask.set(0.37)
    torch.testing.assert_close(logits(target), logits(plain), rtol=1e-5, atol=1e-5)
    for mask in masks:
        mask.fold()
    state = plain.state_dict()
    for name, tensor in target.state_dict().items():
        assert isinstance(tensor, DTensor)
        assert torch.equal(tensor.full_tensor(), state[name]), name


def test_only_random_growth_has_a_mask() -> None:
    base = model_of("llama")
    growth = Growth(operator="zero", layers=(0, 1, 0, 1))
    with pytest.raises(InputError, match="operator is 'zero', but only 'random'"):
        attach_mask(grow_model(base, growth), growth)
    mask = attach_mask(grow_model(base, DEPTH), DEPTH)
    with pytest.raises(ValueError, match="between 0 and 1"):
        mask.set(1.5)
