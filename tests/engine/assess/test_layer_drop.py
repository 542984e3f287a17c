"""A dropped layer against a model that never had it; identity layers are worth exactly nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_utils import PreTrainedModel

from app.corpus.evaluation_sets import open_corpus_split
from app.engine.assess.checkpoint import LoadedModel
from app.engine.assess.layer_drop import drop_layers, dropped, layers_of
from app.engine.assess.losses import window_losses
from app.engine.data import TokenStream
from fitting.errors import InputError

S = 64
WINDOWS = np.arange(6)


@pytest.fixture(scope="module")
def stream(tiny_corpus: Path) -> TokenStream:
    chosen = open_corpus_split("tiny", tiny_corpus)
    return TokenStream(list(chosen.files), chosen.dtype)


def losses_of(model: PreTrainedModel, stream: TokenStream) -> np.ndarray:
    return window_losses(LoadedModel(model=model, precision="fp32"), stream, WINDOWS, context_length=S)


def test_dropping_a_layer_is_a_model_without_it(
    make_llama: Callable[..., PreTrainedModel], stream: TokenStream
) -> None:
    model = make_llama(num_layers=3)
    whole = losses_of(model, stream)
    drops = drop_layers(
        LoadedModel(model=model, precision="fp32"), stream, WINDOWS, whole, context_length=S, source_layers=(0, 1, 0)
    )
    assert [(drop.source_layer, drop.copy) for drop in drops] == [(0, 1), (1, 1), (0, 2)]
    for i in range(3):
        shorter = make_llama(num_layers=2)
        kept = [layer for layer in range(3) if layer != i]
        state = {name: value for name, value in model.state_dict().items() if ".layers." not in name}
        for place, layer in enumerate(kept):
            for name, value in model.model.layers[layer].state_dict().items():
                state[f"model.layers.{place}.{name}"] = value
        shorter.load_state_dict(state)
        assert drops[i].rise_nats.value == pytest.approx(float((losses_of(shorter, stream) - whole).mean()), abs=1e-9)
        assert abs(drops[i].rise_nats.value) > 1e-3
    np.testing.assert_array_equal(losses_of(model, stream), whole)  # nothing is left behind


def test_an_identity_layer_is_worth_exactly_nothing(
    make_llama: Callable[..., PreTrainedModel], stream: TokenStream
) -> None:
    """The zero operator's layer: both of its branches add zeros."""
    model = make_llama(num_layers=3)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    whole = losses_of(model, stream)
    drops = drop_layers(
        LoadedModel(model=model, precision="fp32"), stream, WINDOWS, whole, context_length=S, source_layers=None
    )
    assert drops[1].rise_nats.value == 0
    assert drops[1].rise_nats.standard_error == 0
    assert drops[0].rise_nats.value != 0
    assert (drops[1].source_layer, drops[1].copy) == (None, None)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2", "mixtral"])
def test_layers_of_other_families_are_found_and_dropped(family: str, stream: TokenStream) -> None:
    shape = {"n_embd": 32, "n_layer": 3, "n_head": 4} if family == "gpt2" else {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 3,
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, vocab_size=512, initializer_range=0.3, **shape)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    layers = layers_of(model)
    assert len(layers) == 3
    seen: list[torch.Tensor] = []
    for layer in layers:  # what enters each layer
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    ids = torch.from_numpy(stream.windows(WINDOWS, S))[:, :-1]
    with torch.no_grad(), dropped(layers[1]):
        model(input_ids=ids, use_cache=False)
    torch.testing.assert_close(seen[2], seen[1], rtol=0, atol=0)
    assert not torch.equal(seen[1], seen[0])


def test_a_growth_record_of_another_depth_is_refused(
    make_llama: Callable[..., PreTrainedModel], stream: TokenStream
) -> None:
    model = make_llama(num_layers=3)
    with pytest.raises(InputError, match="has 3 layers, but its growth record tells of 2"):
        drop_layers(
            LoadedModel(model=model, precision="fp32"), stream, WINDOWS, losses_of(model, stream), context_length=S,
            source_layers=(0, 1),
        )  # fmt: skip
