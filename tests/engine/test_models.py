"""Weights, losses and FLOPs of the models, and the growth step, against independent references."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_utils import PreTrainedModel

from app.contract import ModelSpec
from app.engine.evaluation import evaluate
from app.engine.growth import grow_model
from app.engine.models import build_model, initialize, next_token_loss
from app.engine.operators.base import Growth
from fitting.flops import Shape, flops_per_token, non_embedding_params
from fitting.orders import source_layers

SHAPE = ModelSpec(
    num_layers=6, hidden_size=64, num_heads=4, num_kv_heads=2, intermediate_size=176, vocab_size=1024, context_length=48
)


def model_of(num_layers: int, *, seed: int = 0, shape: ModelSpec = SHAPE) -> PreTrainedModel:
    model = build_model(shape, num_layers=num_layers)
    initialize(model, seed=seed)
    return model


def family_shape(family: str) -> ModelSpec:
    return ModelSpec(**{**SHAPE.__dict__, "family": family})


def windows_of(num: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 1024, (num, 49), generator=torch.Generator().manual_seed(seed))


# --- weights -----------------------------------------------------------------------------------------------


def test_initial_spread_follows_width_and_depth() -> None:
    for name, parameter in model_of(6).state_dict().items():
        if "norm" in name:
            assert torch.all(parameter == 1), name
            continue
        std = 0.5 / math.sqrt(64)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std /= math.sqrt(2 * 6)
        n = parameter.numel()
        # A sample's standard deviation spreads by std / sqrt(2 n), its mean by std / sqrt(n); 5 sigma for each.
        assert float(parameter.std()) == pytest.approx(std, abs=5 * std / math.sqrt(2 * n)), name
        assert abs(float(parameter.mean())) < 5 * std / math.sqrt(n), name


def test_weights_are_a_function_of_the_seed() -> None:
    first, again, other = model_of(2, seed=1), model_of(2, seed=1), model_of(2, seed=2)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        assert "norm" in name or not torch.equal(parameter, other.get_parameter(name))


def test_parameter_count_is_that_of_the_accounting() -> None:
    counted = sum(parameter.numel() for parameter in model_of(6).parameters())
    assert counted - 2 * 1024 * 64 == non_embedding_params(SHAPE)


def test_tied_embeddings_are_one_tensor() -> None:
    tied = ModelSpec(**{**SHAPE.__dict__, "tie_embeddings": True})
    model = model_of(2, shape=tied)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    grown = grow_model(model, Growth(layers=(0, 1, 0, 1)))
    assert grown.lm_head.weight is grown.model.embed_tokens.weight
    assert torch.equal(grown.lm_head.weight, model.lm_head.weight)


# --- losses ------------------------------------------------------------------------------------------------


def test_a_new_model_guesses() -> None:
    loss = next_token_loss(model_of(6), windows_of(16), precision="fp32").detach()
    assert float(loss) == pytest.approx(math.log(1024), abs=0.3)


def test_validation_loss_is_the_mean_over_all_targets() -> None:
    model, windows = model_of(2), windows_of(7)
    total = 0.0
    with torch.no_grad():
        for window in windows:  # one at a time, in float64: no batch, no remainder
            log_p = torch.log_softmax(model(input_ids=window[None, :-1]).logits[0].double(), dim=-1)
            total -= sum(float(log_p[i, target]) for i, target in enumerate(window[1:]))
    loss = evaluate(model, windows, batch_sequences=3, precision="fp32")
    assert loss == pytest.approx(total / (7 * 48), rel=1e-6)


def test_bf16_is_close_to_fp32_and_not_equal() -> None:
    model, windows = model_of(2), windows_of(4)
    exact, rounded = (evaluate(model, windows, batch_sequences=4, precision=p) for p in ("fp32", "bf16"))
    assert exact != rounded
    assert rounded == pytest.approx(exact, abs=0.02)


# --- FLOPs -------------------------------------------------------------------------------------------------


# Parameters of a layer that the accounting of N leaves out: none of them takes part in a matrix product.
EXTRA_PARAMS = {
    "llama": 0,
    "mistral": 0,
    "qwen2": (4 + 2 * 2) * 16,  # biases of queries, keys and values: (h_q + 2 h_kv) d_h
    "qwen3": 2 * 16,  # gains of each query's and each key's head: 2 d_h
}


@pytest.mark.parametrize(
    ("family", "num_layers"), [("llama", 2), ("llama", 6), ("mistral", 2), ("qwen2", 2), ("qwen3", 2)]
)
def test_flops_equal_torchs_count(family: str, num_layers: int) -> None:
    model, windows = model_of(num_layers, shape=family_shape(family)), windows_of(3)
    assert model.config.model_type == family
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        next_token_loss(model, windows, precision="fp32").backward()
    shape = Shape(
        num_layers=num_layers, hidden_size=64, num_heads=4, num_kv_heads=2, intermediate_size=176, vocab_size=1024,
        context_length=48,
    )  # fmt: skip
    # The one term the accounting leaves out: some releases of transformers make the rotary angles, frequencies
    # (head size / 2) x positions (S), as a matrix product, once a forward pass. All others: exactly equal.
    rotary_table = 2 * (16 // 2) * 1 * 48
    assert counter.get_total_flops() - flops_per_token(shape) * 3 * 48 in (0, rotary_table)


@pytest.mark.parametrize("chunk", [7, 50])
def test_the_chunked_head_costs_what_the_plain_one_does(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    counts = []
    for max_logits in (2**26, 1024 * chunk):
        monkeypatch.setattr("app.engine.loss.MAX_LOGITS", max_logits)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            next_token_loss(model_of(2), windows_of(3), precision="fp32").backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


@pytest.mark.parametrize("family", EXTRA_PARAMS)
def test_every_family_starts_as_a_guess_with_its_listed_parameters(family: str) -> None:
    model = model_of(6, shape=family_shape(family))
    counted = sum(parameter.numel() for parameter in model.parameters()) - 2 * 1024 * 64
    assert counted == non_embedding_params(SHAPE) + 6 * EXTRA_PARAMS[family]
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert torch.all(parameter == (0.0 if name.endswith(".bias") else 1.0)), name
    loss = next_token_loss(model, windows_of(16), precision="fp32").detach()
    assert float(loss) == pytest.approx(math.log(1024), abs=0.3)


# --- the growth step ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["stack", "interpose", "list:0,1,1,1,2,2"])
def test_every_tensor_of_a_layer_comes_from_its_source(order: str) -> None:
    base = model_of(3)
    for parameter in base.parameters():  # gains too must tell layers apart
        parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    for layer, block in enumerate(base.model.layers):
        for parameter in block.parameters():
            parameter.data += layer
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    layers = source_layers(order, 3, 6)
    grown = grow_model(base, Growth(layers=layers))
    state = grown.state_dict()
    per_layer = [name.removeprefix("model.layers.0.") for name in before if name.startswith("model.layers.0.")]
    assert len(per_layer) == 9
    expected = {name: before[name] for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")}
    for i, source in enumerate(layers):
        expected |= {f"model.layers.{i}.{name}": before[f"model.layers.{source}.{name}"] for name in per_layer}
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    storages = {tensor.data_ptr() for tensor in state.values()} | {t.data_ptr() for t in base.state_dict().values()}
    assert len(storages) == len(state) + len(before), "layers must not share storage"


def test_the_grown_model_computes_the_bases_layers_in_order() -> None:
    base, tokens = model_of(3), windows_of(2)[:, :-1]
    layers = source_layers("stack", 3, 6)
    with torch.no_grad():
        hidden = base.model.embed_tokens(tokens)
        positions = torch.arange(48)[None]
        rotary = base.model.rotary_emb(hidden, position_ids=positions)
        for source in layers:
            hidden = base.model.layers[source](hidden, position_embeddings=rotary, position_ids=positions)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        expected = base.lm_head(base.model.norm(hidden))
        logits = grow_model(base, Growth(layers=layers))(input_ids=tokens).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    assert [block.self_attn.layer_idx for block in grow_model(base, Growth(layers=layers)).model.layers] == list(
        range(6)
    )
