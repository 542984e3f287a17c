"""One step's loss and gradients: in chunks, in micro batches, recomputed, compiled; against the plain way."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.modeling_utils import PreTrainedModel

from app.contract import ModelSpec, Spec
from app.engine import loss as loss_module
from app.engine.evaluation import evaluate
from app.engine.loss import next_token_loss
from app.engine.models import build_model, initialize
from app.engine.step import accumulate_gradients, make_ready
from app.records import from_dict

SHAPE = ModelSpec(
    num_layers=2, hidden_size=32, num_heads=2, num_kv_heads=1, intermediate_size=48, vocab_size=97, context_length=24
)


def model_of(*, tied: bool = False) -> PreTrainedModel:
    shape = ModelSpec(**{**SHAPE.__dict__, "tie_embeddings": tied})
    model = build_model(shape, num_layers=2)
    initialize(model, seed=1)
    return model


def windows_of(num: int) -> torch.Tensor:
    return torch.randint(0, 97, (num, 25), generator=torch.Generator().manual_seed(7))


def gradients_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return gradients


def plain(
    model: PreTrainedModel, windows: torch.Tensor, precision: str = "fp32"
) -> tuple[float, dict[str, torch.Tensor]]:
    loss = accumulate_gradients(model, windows, micro_batch_sequences=None, precision=precision)
    return float(loss), gradients_of(model)


def in_float64(model: PreTrainedModel, windows: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    """The reference: torch's own cross-entropy in double precision."""
    model.double()
    logits = model(input_ids=windows[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    loss.backward()
    return float(loss.detach()), gradients_of(model)


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name].double() - theirs[name].double()).norm() / theirs[name].norm()) for name in theirs)


# --- the loss in chunks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chunk", [1, 17, 72])
def test_the_chunked_loss_is_as_exact_as_the_plain_one(monkeypatch: pytest.MonkeyPatch, tied: bool, chunk: int) -> None:
    windows = windows_of(4)
    exact_loss, exact = in_float64(model_of(tied=tied), windows)
    plain_loss, plain_gradients = plain(model_of(tied=tied), windows)
    monkeypatch.setattr(loss_module, "MAX_LOGITS", 97 * chunk)
    chunked_loss, chunked = plain(model_of(tied=tied), windows)
    assert chunked_loss == pytest.approx(exact_loss, rel=3e-7)
    assert plain_loss == pytest.approx(exact_loss, rel=3e-7)
    assert distance(chunked, exact) < 1.5e-6
    assert distance(plain_gradients, exact) < 1.5e-6


def test_the_chunked_loss_in_bf16_is_as_near_as_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = windows_of(4)
    exact_loss, exact = in_float64(model_of(), windows)
    plain_loss, plain_gradients = plain(model_of(), windows, "bf16")
    monkeypatch.setattr(loss_module, "MAX_LOGITS", 97 * 17)
    chunked_loss, chunked = plain(model_of(), windows, "bf16")
    assert abs(chunked_loss - exact_loss) < 2 * abs(plain_loss - exact_loss) + 1e-5
    assert distance(chunked, exact) < 1.1 * distance(plain_gradients, exact)


def test_small_batches_keep_torchs_own_bits_and_large_ones_never_hold_all_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, windows = model_of(), windows_of(4)
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    direct = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
    assert torch.equal(next_token_loss(model, windows, precision="fp32"), direct)
    heads: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda _, __, output: heads.append(output.shape))
    monkeypatch.setattr(loss_module, "MAX_LOGITS", 97 * 10)
    next_token_loss(model, windows, precision="fp32").backward()
    assert heads == []


def test_validation_in_chunks_keeps_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model, windows = model_of(), windows_of(6)
    whole = evaluate(model, windows, batch_sequences=4, precision="fp32")
    monkeypatch.setattr(loss_module, "MAX_LOGITS", 97 * 10)
    assert evaluate(model, windows, batch_sequences=4, precision="fp32") == pytest.approx(whole, rel=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


# --- accumulation, recomputation, compilation ----------------------------------------------------------------


@pytest.mark.parametrize("micro_batch_sequences", [1, 2, 4])  # 4 leaves a remainder
def test_accumulation_is_the_mean_over_the_whole_batch(micro_batch_sequences: int) -> None:
    model, windows = model_of(), windows_of(6)
    exact_loss, exact = in_float64(model_of(), windows)
    loss = accumulate_gradients(model, windows, micro_batch_sequences=micro_batch_sequences, precision="fp32")
    assert float(loss) == pytest.approx(exact_loss, rel=3e-7)
    assert distance(gradients_of(model), exact) < 1.5e-6


def test_activation_checkpointing_changes_no_bit(spec_values: Callable[..., dict[str, Any]]) -> None:
    windows = windows_of(4)
    loss, gradients = plain(model_of(), windows)
    model = model_of()
    make_ready(model, from_dict(Spec, spec_values(activation_checkpointing=True)))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        recomputed_loss = next_token_loss(model, windows, precision="fp32")
    recomputed_loss.backward()
    assert float(recomputed_loss.detach()) == loss
    assert all(torch.equal(gradient, gradients[name]) for name, gradient in gradients_of(model).items())
    # Of a layer only its input is kept: nothing as wide as the MLP survives the forward pass.
    assert 4 * 24 * 48 not in kept


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",  # all but the code generation, which takes a CPU's compiler most of a minute
        pytest.param(
            "inductor",
            marks=[pytest.mark.long, pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")],
        ),
    ],
)
def test_a_compiled_step_is_the_plain_one_up_to_rounding(
    spec_values: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    windows = windows_of(4)
    loss, gradients = plain(model_of(), windows)
    model = model_of()
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: compile_module(self, backend=backend, **options)
    )
    torch._dynamo.reset()
    make_ready(model, from_dict(Spec, spec_values(compile=True)))
    compiled_loss, compiled = plain(model, windows)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    # Checkpoints and exports know parameters by these names.
    assert list(compiled) == list(gradients)
    assert compiled_loss == pytest.approx(loss, rel=1e-6)
    assert distance(compiled, gradients) < 1e-5
