"""The learned operator against hand-made maps, autograd's own chain rule, direct growth's bits, and real text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from llama_models import FAMILIES, HEAD_SIZE, NUM_HEADS, NUM_KV_HEADS, model_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import PreTrainedModel

from app.contract import ModelSpec, TrainingSpec
from app.engine.data import open_train_split, train_windows
from app.engine.errors import BadDataError
from app.engine.evaluation import evaluate
from app.engine.growth import grow_model
from app.engine.loss import next_token_loss
from app.engine.models import build_model, initialize
from app.engine.operators.base import Growth
from app.engine.operators.learn import fold, learn, learn_flops_per_token, learn_on_corpus, pull_back, start_maps
from app.engine.optimizer import apply_gradients, build_optimizer
from fitting.errors import InputError
from fitting.flops import Shape

DEPTH = Growth(operator="learn", layers=(0, 1, 0, 1, 1))
WIDTH = Growth(operator="learn", width_factor=2)
KINDS = {"q_norm": "q_proj", "k_norm": "k_proj"}


def batches(seed: int = 1) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(0, 61, (3, 17), generator=generator)


def by_hand(base: PreTrainedModel, maps: dict[str, torch.Tensor], growth: Growth) -> dict[str, torch.Tensor]:
    """Every mapped tensor of the target in float64, from the formulas, one product at a time."""
    state = {name: tensor.detach().double() for name, tensor in base.named_parameters()}
    B = {name: tensor.double() for name, tensor in maps.items()}
    grown: dict[str, torch.Tensor] = {}
    if growth.layers is not None:
        for name in state:
            if not name.startswith("model.layers.0."):
                continue
            suffix = name.removeprefix("model.layers.0.")
            module = suffix.split(".")[-2]
            w = B[KINDS.get(module, module)]
            for i in range(len(growth.layers)):
                grown[f"model.layers.{i}.{suffix}"] = sum(  # type: ignore[assignment]
                    w[i, j] * state[f"model.layers.{j}.{suffix}"] for j in range(2)
                )
        return grown
    k, tied = growth.width_factor, "lm_head.weight" not in state
    group = NUM_HEADS // NUM_KV_HEADS
    B["o"] = torch.zeros(k * NUM_HEADS * HEAD_SIZE, NUM_HEADS * HEAD_SIZE, dtype=torch.float64)
    for i in range(k * NUM_HEADS):  # target head
        for j in range(NUM_HEADS):
            if i % group == j % group:
                rows, columns = i // group * HEAD_SIZE, j // group * HEAD_SIZE
                B["o"][i * HEAD_SIZE : (i + 1) * HEAD_SIZE, j * HEAD_SIZE : (j + 1) * HEAD_SIZE] = B["value"][
                    rows : rows + HEAD_SIZE, columns : columns + HEAD_SIZE
                ]
    sides = {
        "q_proj": ("query", "residual"), "k_proj": ("key", "residual"), "v_proj": ("value", "residual"),
        "o_proj": ("residual", "o"), "gate_proj": ("mlp", "residual"), "up_proj": ("mlp", "residual"),
        "down_proj": ("residual", "mlp"),
    }  # fmt: skip
    for name, W in state.items():
        module, kind = name.split(".")[-2:]
        if module in sides:
            out, read = sides[module]
            grown[name] = B[out] @ W if kind == "bias" else torch.einsum("oi,ij,pj->op", B[out], W / k, B[read])
        elif module == "embed_tokens":
            grown[name] = torch.einsum("vj,pj->vp", W, B["residual"])
        elif module == "lm_head":
            grown[name] = torch.einsum("vj,pj->vp", W / k, B["residual"])
        elif module == "norm":
            grown[name] = B["residual"] @ W / (k if tied else 1)
        elif module not in KINDS:
            grown[name] = B["residual"] @ W
    return grown


# --- the maps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "growth", [DEPTH, WIDTH, Growth(operator="learn", width_factor=3)], ids=["depth", "width 2", "width 3"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_without_noise_the_start_is_direct_growth_bit_for_bit(family: str, growth: Growth) -> None:
    base = model_of(family)
    learned = learn(base, growth, batches(), 0, noise_std=0.0)
    direct = grow_model(base, replace(growth, operator="direct"))
    expected = direct.state_dict()
    for name, tensor in learned.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    windows = next(batches())
    with torch.no_grad():
        assert torch.equal(learned(input_ids=windows).logits, direct(input_ids=windows).logits)


@pytest.mark.parametrize("growth", [DEPTH, WIDTH], ids=["depth", "width"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_the_formulas(family: str, growth: Growth) -> None:
    """Values by hand; gradients of the maps by autograd through all of them at once."""
    base = model_of(family)
    maps = start_maps(base, growth, noise_std=0.3, device=torch.device("cpu"))
    target = grow_model(base, replace(growth, operator="direct"))
    fold(target, maps)
    expected = by_hand(base, {name: tensor.detach() for name, tensor in maps.maps.items()}, growth)
    fixed = {name for name, _ in target.named_parameters()} - expected.keys()
    assert all(name.split(".")[-2] in ("embed_tokens", "norm", "lm_head", "q_norm", "k_norm") for name in fixed)
    for name, value in expected.items():
        torch.testing.assert_close(target.get_parameter(name).double(), value, rtol=1e-4, atol=1e-5, msg=name)

    windows = next(batches())
    next_token_loss(target, windows, precision="fp32").backward()
    pull_back(target, maps)
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in maps.maps.items()}
    grown = {name: value.float() for name, value in by_hand(base, leaves, growth).items()}
    logits = torch.func.functional_call(target, grown, kwargs={"input_ids": windows[:, :-1]}).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        assert leaf.grad.any()
        scale = float(leaf.grad.abs().max())
        torch.testing.assert_close(maps.maps[name].grad, leaf.grad, rtol=1e-3, atol=1e-4 * scale, msg=name)
    assert all(target.get_parameter(name).grad is None for name in grown), "gradients of the target are dropped"


def test_rows_of_depth_maps_start_with_sum_one() -> None:
    maps = start_maps(model_of("qwen3"), DEPTH, noise_std=0.3, device=torch.device("cpu")).maps
    assert maps.keys() == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "input_layernorm",
        "post_attention_layernorm",
    }  # fmt: skip
    for w in maps.values():
        assert w.shape == (5, 2)
        torch.testing.assert_close(w.sum(dim=1), torch.ones(5))
        assert (w - torch.nn.functional.one_hot(torch.tensor(DEPTH.layers or ()), 2)).abs().max() > 0.01


# --- learning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("growth", [DEPTH, WIDTH], ids=["depth", "width"])
def test_learning_is_repeatable_and_leaves_a_plain_model(growth: Growth) -> None:
    base = model_of("llama tied")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    losses: list[float] = []
    runs = [
        learn(base, replace(growth, seed=seed), batches(), 3, progress=lambda step, loss: losses.append(float(loss)))
        for seed in (0, 0, 1)
    ]
    states = [run.state_dict() for run in runs]
    assert len(losses) == 9
    assert losses[:3] == losses[3:6] != losses[6:]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert not all(torch.equal(tensor, states[2][name]) for name, tensor in states[0].items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in runs[0].parameters())
    assert runs[0].lm_head.weight is runs[0].model.embed_tokens.weight
    parameters = [*runs[0].parameters(), *base.parameters()]
    assert len({parameter.data_ptr() for parameter in parameters}) == len(parameters)


def test_ranks_that_share_a_batch_learn_what_one_does() -> None:
    """The mean over two ranks of half a batch each, by a stand-in that holds the other rank's gradients."""
    base, whole = model_of("llama"), [next(batches(seed))[:2] for seed in (1, 2)]
    expected = learn(base, DEPTH, iter(whole), 1)
    other: list[torch.Tensor] = []
    learn(base, DEPTH, iter([whole[0][1:]]), 1, mean=lambda grad: other.append(grad.clone()) or grad)
    pairs = iter(other)
    shared = learn(base, DEPTH, iter([whole[0][:1]]), 1, mean=lambda grad: (grad + next(pairs)) / 2)
    for name, tensor in shared.state_dict().items():
        # Adam's first step is a sign: only entries whose gradient is rounding may differ, and none does here.
        torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


def test_micro_batches_learn_what_the_batch_does() -> None:
    base = model_of("llama")
    whole, parts = (learn(base, WIDTH, batches(), 1, micro_batch_sequences=size).state_dict() for size in (None, 1))
    for name, tensor in parts.items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def trained_base(tiny_corpus: Path) -> PreTrainedModel:
    """Two layers of hidden 32, 150 steps on real text."""
    shape = ModelSpec(
        num_layers=2, hidden_size=32, num_heads=4, num_kv_heads=2, intermediate_size=64, vocab_size=512,
        context_length=32,
    )  # fmt: skip
    model = build_model(shape, num_layers=2)
    initialize(model, seed=0)
    optimizer = build_optimizer(model, TrainingSpec(tokens=10**6, peak_lr=1e-2))
    read = reader(tiny_corpus)
    for step in range(150):
        next_token_loss(model, read(step), precision="fp32").backward()
        apply_gradients(model, optimizer, learning_rate=1e-2 * min(1.0, step / 20), gradient_clip=1.0)
    return model


def reader(corpus: Path) -> Callable[[int], torch.Tensor]:
    """Batch of a step: 16 windows of 32 tokens, in the order of data seed 0."""
    stream = open_train_split(corpus, vocab_size=512)
    num_windows = stream.num_windows(32)

    def read(step: int) -> torch.Tensor:
        sequences = np.arange(step * 16, step * 16 + 16, dtype=np.int64)
        indices = train_windows(sequences, num_windows=num_windows, data_seed=0)
        return torch.from_numpy(stream.windows(indices, 32))

    return read


@pytest.mark.parametrize(
    ("growth", "gain_nats"),
    [(Growth(operator="learn", layers=(0, 1, 0, 1)), 0.05), (WIDTH, 0.03)],
    ids=["depth", "width"],
)
def test_learned_maps_beat_direct_growth_on_text_not_read_before(
    growth: Growth, gain_nats: float, trained_base: PreTrainedModel, tiny_corpus: Path
) -> None:
    read = reader(tiny_corpus)
    unread = torch.cat([read(step) for step in range(500, 508)])
    direct = evaluate(
        grow_model(trained_base, replace(growth, operator="direct")), unread, batch_sequences=64, precision="fp32"
    )
    learned = learn_on_corpus(trained_base, growth, tiny_corpus, 40, batch_sequences=16, context_length=32, data_seed=3)
    assert evaluate(learned, unread, batch_sequences=64, precision="fp32") < direct - gain_nats


def test_a_corpus_is_read_in_the_order_of_a_run(trained_base: PreTrainedModel, tiny_corpus: Path) -> None:
    growth, read = Growth(operator="learn", layers=(0, 1, 1)), reader(tiny_corpus)
    expected = learn(trained_base, growth, (read(step) for step in range(2)), 2).state_dict()
    learned = learn_on_corpus(trained_base, growth, tiny_corpus, 2, batch_sequences=16, context_length=32)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in learned.state_dict().items())


# --- cost and refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("growth", [DEPTH, WIDTH], ids=["depth", "width"])
def test_a_step_costs_what_is_charged(growth: Growth) -> None:
    base, windows = model_of("llama"), next(batches())
    target = grow_model(base, replace(growth, operator="direct")).config
    shape = Shape(
        num_layers=target.num_hidden_layers, hidden_size=target.hidden_size, num_heads=target.num_attention_heads,
        num_kv_heads=target.num_key_value_heads, intermediate_size=target.intermediate_size, vocab_size=61,
        context_length=16,
    )  # fmt: skip
    num_tokens = windows[:, 1:].numel()
    with sdpa_kernel(SDPBackend.MATH):
        counts = []
        for num_steps in (1, 2):
            with FlopCounterMode(display=False) as counter:
                learn(base, growth, iter([windows] * 2), num_steps)
            counts.append(counter.get_total_flops())
    step, charged = counts[1] - counts[0], learn_flops_per_token(shape) * num_tokens
    maps_share = 2 / num_tokens if growth.direction == "depth" else 2.2 * 24 / num_tokens
    head_gradient = 2 * 61 * target.hidden_size * num_tokens if growth.direction == "depth" else 0
    assert step + head_gradient == pytest.approx(
        charged * (1 + maps_share), rel=0.1 if growth.direction == "width" else 0.02
    )


def test_what_cannot_be_learned_is_refused(trained_base: PreTrainedModel, tiny_corpus: Path) -> None:
    base = model_of("llama")
    with pytest.raises(InputError, match="batches end after 2 of 3 learn steps"):
        learn(base, DEPTH, iter([next(batches())] * 2), 3)
    config = AutoConfig.for_model(
        "gemma2", vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6,
    )  # fmt: skip
    other = AutoModelForCausalLM.from_config(config)
    for growth in (Growth(operator="learn", layers=(0, 1, 0, 1)), WIDTH):
        with pytest.raises(InputError, match=f"'learn' in {growth.direction} is not defined for 'gemma2'"):
            learn(other, growth, batches(), 1)
    with pytest.raises(BadDataError, match=r"vocabulary has 61 tokens, but .*corpus.json was made with 512"):
        learn_on_corpus(base, DEPTH, tiny_corpus, 1, batch_sequences=2, context_length=32)
    with pytest.raises(
        BadDataError, match=r"batch_sequences is 4, but the train split of .* windows of 9999999 tokens"
    ):
        learn_on_corpus(trained_base, DEPTH, tiny_corpus, 1, batch_sequences=4, context_length=9_999_999)
