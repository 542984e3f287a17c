"""Growth in depth on live models: the base's function where it must stay, and first gradients that do not explode."""

import math

import pytest
import torch
from tiny_models import TINY_FAMILIES, random_model, tiny_config
from transformers import PreTrainedModel

from app.engine.growth import grow_model
from app.engine.operators.base import Growth
from app.engine.operators.mask import attach_mask
from fitting.errors import InputError
from fitting.orders import source_layers

POST_NORM_FAMILIES = ("gemma2", "gemma3_text", "olmo2")
LLAMA_FAMILY = ("llama", "mistral", "qwen2", "qwen3")
TOKENS = torch.randint(0, 40, (2, 16), generator=torch.Generator().manual_seed(0))
VARIANTS = [(family, False) for family in TINY_FAMILIES] + [
    (family, True) for family, tiny in TINY_FAMILIES.items() if tiny.biases
]


def base_of(family: str, *, num_layers: int = 4, biases: bool = False) -> PreTrainedModel:
    return random_model(tiny_config(family, num_layers=num_layers, biases=biases))


@torch.no_grad()
def logits_of(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=TOKENS, use_cache=False).logits


# --- zero --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "biases"), VARIANTS)
def test_zero_growth_keeps_the_logits_bit_for_bit(family: str, biases: bool) -> None:
    base = base_of(family, biases=biases)
    layers = source_layers("stack", 4, 8)
    for dtype, noise in ((torch.float32, 0.2), (torch.bfloat16, 0.0)):
        base.to(dtype)
        grown = grow_model(base, Growth(operator="zero", layers=layers, noise=noise))
        assert grown.dtype == dtype
        assert torch.equal(logits_of(grown), logits_of(base))
    # The logits stay because new layers are silent, not because nothing was stacked: copies alone change them.
    assert not torch.allclose(logits_of(grow_model(base, Growth(layers=layers))), logits_of(base), atol=0.1)


def test_zero_growth_in_any_order_keeps_the_logits() -> None:
    base = base_of("qwen3", biases=True)
    for order, num_layers in (("interpose", 6), ("solar:1", 6), ("1-23*3-4", 8), ("list:3,2,1,0,0", 5)):
        layers = source_layers(order, 4, num_layers)
        # Where the list reverses the layers, the first copies are another function; further copies still add nothing.
        expected = grow_model(base, Growth(layers=layers[:4])) if order.startswith("list") else base
        grown = grow_model(base, Growth(operator="zero", layers=layers))
        assert torch.equal(logits_of(grown), logits_of(expected)), order


def gradient_norm(model: PreTrainedModel) -> float:
    model.zero_grad()
    logits = model(input_ids=TOKENS[:, :-1], use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_the_first_step_after_zero_growth_is_a_step_like_any_other(family: str) -> None:
    base = base_of(family)
    grown = grow_model(base, Growth(operator="zero", layers=source_layers("stack", 4, 8)))
    norm = gradient_norm(grown)
    assert math.isfinite(norm)
    # Added to the base's gradient are those of the zeroed tensors, at most as many again as the base has.
    assert norm < 4 * gradient_norm(base)
    silent = {
        name: parameter
        for name, parameter in grown.named_parameters()
        if len(parameter.detach().unique()) == 1 and parameter.detach().flatten()[0] in (0, -1)
    }
    assert silent, "new layers must hold silenced tensors"
    for name, parameter in silent.items():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), f"{name} would never learn"
    before = logits_of(base)
    torch.optim.AdamW(grown.parameters(), lr=1e-4).step()
    after = logits_of(grown)
    assert torch.isfinite(after).all()
    assert not torch.equal(after, before)
    assert float((after - before).abs().max()) < 0.5 * float(before.abs().max())


@pytest.mark.parametrize("family", POST_NORM_FAMILIES)
def test_why_a_post_norm_family_silences_its_gain(family: str) -> None:
    """A zeroed projection keeps the logits as well, but the norm behind it multiplies its gradient by 1 / sqrt(eps)."""
    base = base_of(family)
    layers = source_layers("stack", 4, 8)
    by_gain = grow_model(base, Growth(operator="zero", layers=layers))
    by_projection = grow_model(base, Growth(layers=layers))
    with torch.no_grad():
        for block in by_projection.model.layers[4:]:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    assert torch.equal(logits_of(by_projection), logits_of(base))
    assert torch.equal(logits_of(by_gain), logits_of(base))
    assert gradient_norm(by_gain) < 4 * gradient_norm(base)
    assert gradient_norm(by_projection) > 20 * gradient_norm(base)


# --- noise -------------------------------------------------------------------------------------------------


def test_noise_is_the_papers() -> None:
    config = tiny_config("llama", num_layers=2, hidden_size=64, intermediate_size=160, biases=True)
    base = random_model(config)
    a, layers = 0.2, (0, 1, 0, 1)
    grown = grow_model(base, Growth(layers=layers, noise=a, seed=7)).state_dict()
    draws = {}
    for name, source in grow_model(base, Growth(layers=layers)).state_dict().items():
        is_matrix = ".layers." in name and source.ndim == 2
        assert torch.equal(grown[name], source) == (not is_matrix), name
        if not is_matrix:
            continue
        e = (grown[name].double() - (1 - a) * source.double()) / a
        is_output = "o_proj" in name or "down_proj" in name
        variance = 1 / (64 * 4**2) if is_output else 2 / (5 * 64)
        n = e.numel()
        # A sample's standard deviation spreads by std / sqrt(2 n), its mean by std / sqrt(n); 5 sigma for each.
        assert float(e.std()) == pytest.approx(math.sqrt(variance), abs=5 * math.sqrt(variance / (2 * n))), name
        assert abs(float(e.mean())) < 5 * math.sqrt(variance / n), name
        assert abs(float((e * source.double()).mean())) < 5 * math.sqrt(variance / n) * float(source.std()), name
        draws[name] = e.flatten()[:128]
    largest = max(
        abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1]))
        for i, first in enumerate(draws.values())
        for second in list(draws.values())[i + 1 :]
    )
    assert largest < 5 / math.sqrt(128), "two tensors share their noise"


def test_a_seed_decides_all_that_is_drawn() -> None:
    base = base_of("llama", num_layers=2)
    for values in ({"noise": 0.2}, {"operator": "random"}):
        first, again, other = (
            grow_model(base, Growth(layers=(0, 1, 0, 1), seed=seed, **values)).state_dict() for seed in (1, 1, 2)
        )
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not all(torch.equal(first[name], other[name]) for name in first)


# --- random ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", LLAMA_FAMILY)
def test_random_growth_draws_new_layers_and_keeps_old_ones(family: str) -> None:
    base = base_of(family, num_layers=2, biases=bool(TINY_FAMILIES[family].biases))
    grown = grow_model(base, Growth(operator="random", layers=(0, 0, 1, 1)))
    state, source = grown.state_dict(), base.state_dict()
    for name, tensor in source.items():
        if ".layers." not in name:
            assert torch.equal(state[name], tensor)
            continue
        for old, new in ((0, 1), (2, 3)):
            part = name.split(".layers.")[1][2:]
            assert torch.equal(state[f"model.layers.{old}.{part}"], source[f"model.layers.{old // 2}.{part}"])
            drawn = state[f"model.layers.{new}.{part}"]
            if tensor.ndim == 2:
                n = drawn.numel()
                assert float(drawn.std()) == pytest.approx(0.02, abs=5 * 0.02 / math.sqrt(2 * n)), name
            else:
                assert torch.all(drawn == (1 if "norm" in name else 0)), name


@pytest.mark.parametrize("m", [0.0, 0.25, 1.0])
def test_a_folded_mask_computes_what_the_live_mask_does(m: float) -> None:
    base = base_of("llama", num_layers=2, biases=True)
    growth = Growth(operator="random", layers=(0, 1, 0, 1), seed=3)
    live = grow_model(base, growth)
    attach_mask(live, growth).set(m)
    folded = grow_model(base, Growth(operator="random", layers=(0, 1, 0, 1), seed=3, mask=m))
    torch.testing.assert_close(logits_of(folded), logits_of(live), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits_of(folded), logits_of(base)) == (m == 0)


# --- copies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_grown_model_is_plain_and_shares_nothing(family: str) -> None:
    base = base_of(family)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    grown = grow_model(base, Growth(layers=source_layers("stack", 4, 8)))
    assert type(grown) is type(base)
    assert not any(tensor.is_meta for tensor in (*grown.parameters(), *grown.buffers()))
    pointers = [p.data_ptr() for p in grown.parameters()] + [p.data_ptr() for p in base.parameters()]
    assert len(set(pointers)) == len(pointers)
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"layers": (0, 0), "width_factor": 2}, "width_factor"),
        ({}, "width_factor"),
        ({"width_factor": 0}, "width_factor"),
        ({"layers": (0, 0), "operator": "clever"}, "operator"),
        ({"layers": (0, 0), "noise": 1.0}, "noise"),
        ({"layers": (0, 0), "noise": 0.2, "operator": "random"}, "noise"),
        ({"width_factor": 2, "noise": 0.2, "operator": "zero"}, "noise"),
        ({"layers": (0, 0), "mask": 0.5}, "mask"),
        ({"layers": (0, 0), "mask": -0.5, "operator": "random"}, "mask"),
    ],
)
def test_a_growth_that_contradicts_itself_is_refused(values: dict[str, object], field: str) -> None:
    with pytest.raises(InputError) as refusal:
        Growth(**values)  # type: ignore[arg-type]
    assert refusal.value.field == field
