"""Growth in width: direct growth as explicit expansion matrices in float64, and logits that stay to rounding."""

import itertools

import numpy as np
import pytest
import torch
from tiny_models import TINY_FAMILIES, random_model, tiny_config
from transformers import PreTrainedModel

from app.engine.growth import grow_model
from app.engine.operators.base import Growth
from app.engine.operators.mask import attach_mask
from app.engine.operators.width import head_maps

LLAMA_FAMILY = ("llama", "mistral", "qwen2", "qwen3")
TOKENS = torch.randint(0, 40, (2, 16), generator=torch.Generator().manual_seed(0))
# float32 sums of some hundred terms, over a few layers
ROUNDING = 1e-5
VARIANTS = [
    (family, tied, num_kv_heads, biases)
    for family in LLAMA_FAMILY
    for tied in (False, True)
    for num_kv_heads in (4, 2, 1)
    for biases in ((False, True) if TINY_FAMILIES[family].biases else (False,))
]


def base_of(family: str, tied: bool, num_kv_heads: int, biases: bool) -> PreTrainedModel:
    return random_model(tiny_config(family, num_layers=2, tied=tied, num_key_value_heads=num_kv_heads, biases=biases))


@torch.no_grad()
def logits_of(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=TOKENS, use_cache=False).logits


def error_of(grown: PreTrainedModel, base: PreTrainedModel) -> float:
    """Largest difference of logits, relative to the largest logit."""
    expected = logits_of(base)
    return float((logits_of(grown) - expected).abs().max() / expected.abs().max())


# --- the function stays ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "tied", "num_kv_heads", "biases"), VARIANTS)
def test_width_keeps_the_logits_to_rounding(family: str, tied: bool, num_kv_heads: int, biases: bool) -> None:
    base = base_of(family, tied, num_kv_heads, biases)
    growths = [
        Growth(width_factor=2),
        Growth(width_factor=3, operator="zero"),
        Growth(width_factor=2, operator="random", mask=0.0),
    ]
    for growth in growths:
        grown, k = grow_model(base, growth), growth.width_factor
        assert error_of(grown, base) < ROUNDING, growth
        config = grown.config
        assert config.hidden_size == 16 * k
        assert (config.num_attention_heads, config.num_key_value_heads) == (4 * k, num_kv_heads * k)
        assert config.head_dim == (8 if family == "qwen3" else 4)
        assert (grown.lm_head.weight is grown.model.embed_tokens.weight) == tied
    open_mask = grow_model(base, Growth(width_factor=2, operator="random"))
    assert error_of(open_mask, base) > 100 * ROUNDING


def test_width_in_float64_is_exact_to_the_norms_own_float32() -> None:
    # transformers' RMSNorm and rotary embedding compute in float32 whatever the model's type: their floor is 1e-7.
    base = base_of("qwen3", True, 2, True).double()
    for operator in ("direct", "zero"):
        assert error_of(grow_model(base, Growth(width_factor=2, operator=operator)), base) < 2e-6


def test_eps_of_zero_growth_counts_where_activations_are_small() -> None:
    """With activations near sqrt(eps), QK-norms included, a wrong eps or gain shows in the first digit."""
    base = random_model(tiny_config("qwen3", num_layers=2, rms_norm_eps=0.5, tied=True, biases=True))
    assert error_of(grow_model(base, Growth(width_factor=2, operator="zero")), base) < ROUNDING
    assert error_of(grow_model(base, Growth(width_factor=2, operator="direct")), base) < ROUNDING


# --- direct growth as matrices -----------------------------------------------------------------------------


def copies(num: int, num_target: int, block: int = 1) -> np.ndarray:
    """Expansion matrix (num_target block, num block) that tiles blocks one behind the other, built entry by entry."""
    matrix = np.zeros((num_target * block, num * block))
    for i in range(num_target):
        for j in range(block):
            matrix[i * block + j, i % num * block + j] = 1.0
    return matrix


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tied", [False, True])
def test_direct_growth_is_left_times_weight_times_right(num_kv_heads: int, tied: bool) -> None:
    k = 2
    base = base_of("qwen3", tied, num_kv_heads, True).double()
    grown = grow_model(base, Growth(width_factor=k)).state_dict()
    d, q = copies(16, 16 * k), copies(4, 4 * k, block=8)
    kv, f = copies(num_kv_heads, num_kv_heads * k, block=8), copies(24, 24 * k)
    # A matrix that reads copies takes the right inverse of the map that made them: R = pinv(L_in).
    spaces = {"q_proj": (q, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, q)} | {
        "gate_proj": (f, d), "up_proj": (f, d), "down_proj": (d, f), "lm_head": (np.eye(40), d)
    }  # fmt: skip
    for name, tensor in base.state_dict().items():
        module, kind, weight = name.split(".")[-2], name.split(".")[-1], tensor.numpy()
        if module == "embed_tokens" or (tied and module == "lm_head"):
            expected = weight @ d.T
        elif module in spaces:
            left, source = spaces[module]
            expected = left @ weight @ np.linalg.pinv(source) if kind == "weight" else left @ weight
        elif module in ("q_norm", "k_norm"):
            expected = weight
        else:
            expected = d @ weight / (k if tied and module == "norm" else 1)
        np.testing.assert_allclose(grown[name].numpy(), expected, rtol=1e-12, atol=1e-14, err_msg=name)


def test_heads_go_where_their_groups_go() -> None:
    for num_kv_heads, group, k, k_kv in itertools.product((1, 2, 3), (1, 2, 4), (1, 2, 3), (1, 2, 3)):
        num_heads = num_kv_heads * group
        if num_heads * k % (num_kv_heads * k_kv):
            continue
        heads, kv_heads = head_maps(num_heads, num_kv_heads, num_heads * k, num_kv_heads * k_kv)
        target_group = num_heads * k // (num_kv_heads * k_kv)
        assert torch.equal(kv_heads[torch.arange(len(heads)) // target_group], heads // group)
        if target_group % group == 0:
            assert torch.all(heads.bincount(minlength=num_heads) == k), "every head needs as many copies as any other"


def test_only_query_heads_scaled_follows_the_reference() -> None:
    """g_h(i) = floor(i / (k r)) r + ((i mod k r) mod r), where plain tiling is wrong."""
    h_kv, r, k = 2, 2, 2
    heads, _ = head_maps(h_kv * r, h_kv, k * h_kv * r, h_kv)
    assert heads.tolist() == [i // (k * r) * r + i % (k * r) % r for i in range(k * h_kv * r)]
    assert heads.tolist() != [i % (h_kv * r) for i in range(k * h_kv * r)]


# --- symmetry and noise ------------------------------------------------------------------------------------


def loss_gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    logits = model(input_ids=TOKENS[:, :-1], use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    ("family", "tied", "num_kv_heads"), list(itertools.product(LLAMA_FAMILY, (False, True), (4, 1)))
)
def test_noise_keeps_the_function_and_breaks_the_symmetry(family: str, tied: bool, num_kv_heads: int) -> None:
    base = base_of(family, tied, num_kv_heads, False)
    equal = grow_model(base, Growth(width_factor=2))
    parted = grow_model(base, Growth(width_factor=2, noise=0.3))
    assert error_of(parted, base) < ROUNDING
    name = "model.layers.0.mlp.up_proj.weight"
    top, bottom = loss_gradients(equal)[name].chunk(2)
    torch.testing.assert_close(top, bottom, rtol=1e-3, atol=1e-8)  # copies would learn the same for ever
    top, bottom = loss_gradients(parted)[name].chunk(2)
    assert float((top - bottom).norm()) > 0.01 * float(top.norm())


# --- zero and random: old block, new blocks, first step ----------------------------------------------------


def test_all_that_zero_growth_leaves_at_zero_can_learn() -> None:
    base = base_of("llama", False, 2, True)
    grown = grow_model(base, Growth(width_factor=2, operator="zero"))
    gradients, state = loss_gradients(grown), grown.state_dict()
    for name, tensor in base.state_dict().items():
        old = tuple(slice(size) for size in tensor.shape)
        is_new = torch.ones_like(state[name], dtype=torch.bool)
        is_new[old] = False
        if not name.endswith("norm.weight"):
            assert torch.equal(state[name][old], tensor), name
        if not any(module in name for module in ("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            continue
        assert not state[name][is_new].any(), name
        if "embed_tokens" in name:
            is_new[[token for token in range(40) if token not in TOKENS[:, :-1]]] = False  # does not occur
        assert gradients[name][is_new].all(), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("m", [0.0, 0.25, 1.0])
def test_a_folded_mask_computes_what_the_live_mask_does(m: float, tied: bool) -> None:
    base = base_of("qwen3", tied, 2, True)
    growth = Growth(operator="random", width_factor=2, seed=3)
    live = grow_model(base, growth)
    attach_mask(live, growth).set(m)
    folded = grow_model(base, Growth(operator="random", width_factor=2, seed=3, mask=m))
    torch.testing.assert_close(logits_of(folded), logits_of(live), rtol=1e-4, atol=1e-4)
