"""Every family's checkpoint, grown in depth and loaded again: all tensors there, each its source's, logits a live model's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TINY_FAMILIES, grown_reference, token_ids
from transformers import AutoModelForCausalLM, PreTrainedModel

from app.engine.surgery.families import FAMILIES
from app.engine.surgery.grow import grow, prepare
from app.engine.surgery.plan import Request
from fitting.orders import source_layers


def load(folder: Path) -> PreTrainedModel:
    """The model as users load it; nothing missing, unexpected or of another shape."""
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype="auto", output_loading_info=True
    )
    assert {what: names for what, names in found.items() if names} == {}
    return model.eval()


def assert_grows(source: Path, num_base_layers: int, num_layers: int, order: str) -> None:
    layers = source_layers(order, num_base_layers, num_layers)
    target = source.with_name(f"{source.name}-grown")
    grow(prepare(Request(source=source, target=target, num_layers=num_layers, order=order)))
    base, grown = load(source), load(target)
    family = FAMILIES[base.config.model_type]
    state = base.state_dict()
    for name, value in grown.state_dict().items():
        found = family.split(name)
        origin = name if found is None else family.with_layer(name, layers[found[0]])
        assert torch.equal(value, state[origin]), name
    located = [family.split(name) for name in grown.state_dict()]
    assert {found[0] for found in located if found} == set(range(len(layers)))
    head, embedding = grown.get_output_embeddings().weight, grown.get_input_embeddings().weight
    assert (head is embedding) == (base.get_output_embeddings().weight is base.get_input_embeddings().weight)
    ids = token_ids()
    with torch.no_grad():
        logits = grown(ids, use_cache=False).logits
        assert torch.equal(logits, grown_reference(base, layers)(ids, use_cache=False).logits)
        assert torch.isfinite(logits).all()
        # The cache has one slot a layer, of the layer's own kind.
        cache = grown(ids[:, :8], use_cache=True).past_key_values
        continued = grown(ids[:, 8:], past_key_values=cache).logits
    tolerance = 0.1 if logits.dtype == torch.bfloat16 else 1e-4
    assert torch.allclose(continued, logits[:, 8:], atol=tolerance, rtol=tolerance)


def variants() -> list[Any]:
    """Tied, untied and biased; each with another order and number of shards, so that all three meet every family."""
    found = []
    for family, tiny in TINY_FAMILIES.items():
        found.append(pytest.param(family, {"tied": True, "num_layers": 3}, "stack", 6, id=f"{family}-tied-stack"))
        found.append(pytest.param(family, {"tied": False, "num_layers": 3, "biases": False if tiny.biases else None,
                                           "max_shard_size": "8KB"}, "interpose", 6,
                                  id=f"{family}-untied-sharded-interpose"))  # fmt: skip
        biases = {"biases": True if tiny.biases else None}
        found.append(pytest.param(family, {**biases, "num_layers": 4, "dtype": torch.bfloat16}, "stack", 7,
                                  id=f"{family}-biased-bf16-partial"))  # fmt: skip
    return found


@pytest.mark.parametrize(("family", "options", "order", "num_layers"), variants())
def test_a_grown_checkpoint_is_the_grown_model(
    family: str,
    options: dict[str, Any],
    order: str,
    num_layers: int,
    tiny_model_folder: Callable[..., Path],
) -> None:
    assert_grows(tiny_model_folder(family, **options), options["num_layers"], num_layers, order)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
        ("gemma3_text", {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
        ("smollm3", {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 4}),
        ("qwen3_moe", {"decoder_sparse_step": 2}),
        ("qwen3_moe", {"mlp_only_layers": [0]}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("gpt_oss", {"tied": True}),
    ],
)
@pytest.mark.parametrize("order", ["stack", "interpose", "solar:1"])
def test_layers_that_differ_stay_what_they_were(
    family: str, fields: dict[str, Any], order: str, tiny_model_folder: Callable[..., Path]
) -> None:
    assert_grows(tiny_model_folder(family, num_layers=3, **fields), 3, 4 if order == "solar:1" else 6, order)


def test_the_hubs_gpt2_grows_without_its_prefix_and_with_its_buffers(tiny_model_folder: Callable[..., Path]) -> None:
    """openai-community/gpt2 names its layers h.0... and stores causal masks as attn.bias."""
    source = tiny_model_folder("gpt2", num_layers=2)
    tensors = {
        name.removeprefix("transformer."): value for name, value in load_file(source / "model.safetensors").items()
    }
    mask = torch.ones(1, 1, 32, 32).tril()
    tensors |= {f"h.{i}.attn.bias": mask.clone() for i in range(2)}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert_grows(source, 2, 4, "stack")
