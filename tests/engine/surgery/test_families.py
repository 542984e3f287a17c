"""Names, roles and branch ends of every family, against transformers' own models and what they write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import TINY_FAMILIES, layer_list, random_model, save_tiny_model, tiny_config, token_ids
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from app.engine.surgery.families import FAMILIES, family_of
from app.engine.surgery.family import Family
from fitting.errors import InputError

HIDDEN_SIZE = 16
MLP_SIZES = (24, 8)  # dense and expert


def biased_model(model_type: str, **overrides: object) -> PreTrainedModel:
    return random_model(
        tiny_config(model_type, num_layers=2, biases=bool(TINY_FAMILIES[model_type].biases), **overrides)
    )


def test_the_tests_cover_every_family() -> None:
    assert set(TINY_FAMILIES) == set(FAMILIES)


# --- names and roles -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_tensor_has_the_role_of_its_module(model_type: str) -> None:
    family, model = FAMILIES[model_type], biased_model(model_type)
    outside = [*(f"{name}.weight" for name in family.embeddings), *family.heads]
    outside += [f"{family.final_norm}.weight", f"{family.final_norm}.bias"]
    seen = set()
    for name, value in model.state_dict().items():
        found = family.split(name)
        if found is None:
            assert name in outside
            continue
        layer, suffix = found
        assert family.with_layer(name, layer) == name
        assert family.with_layer(name, 123) == f"{family.layer_prefix}123.{suffix}"
        tensor = family.tensor(suffix)
        seen.add(tensor.role)
        owner = model.get_submodule(name.rpartition(".")[0])
        assert (tensor.role in ("norm", "post_norm", "qk_norm")) == ("Norm" in type(owner).__name__), name
        assert tensor.is_bias == name.endswith("bias"), name
        if tensor.is_matrix:
            width = value.shape[tensor.input_axis]
            if tensor.role == "down":
                assert width in MLP_SIZES, name
            elif tensor.role == "o":
                assert width == model.config.num_attention_heads * layer_head_size(model), name
            else:
                assert width == HIDDEN_SIZE, name
        else:
            assert value.ndim == 1 or tensor.is_bias, name
    assert {"o", "down"} <= seen
    assert ({"q", "k", "v"} <= seen) != ("qkv" in seen)
    assert family.branch_ends <= seen


def layer_head_size(model: PreTrainedModel) -> int:
    return getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_checkpoint_holds_the_named_tensors(model_type: str, tied: bool, tmp_path: Path) -> None:
    """Every stored tensor is known; joined as ``stored_suffixes`` says, the stored tensors are the live ones, bit for bit."""
    family, config = FAMILIES[model_type], tiny_config(model_type, num_layers=2, tied=tied)
    model = random_model(config)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    taken = set()
    for name, value in model.state_dict().items():
        found = family.split(name)
        if found is None:
            if name in family.heads:
                assert (family.heads[0] in stored) != tied
                name = name if tied else family.heads[0]
                value = value if not tied else model.get_input_embeddings().weight
                name = name if not tied else f"{family.embeddings[0]}.weight"
            assert torch.equal(stored[name], value)
            taken.add(name)
            continue
        layer, suffix = found
        experts = []
        for suffixes in family.stored_suffixes(suffix, num_experts=4):
            names = [family.with_layer(name, layer).removesuffix(suffix) + part for part in suffixes]
            for part in suffixes:
                assert family.tensor(part).role in ("router", "gate", "up", "down") or part == suffix
            experts.append(torch.cat([stored[part] for part in names]))
            taken.update(names)
        assert torch.equal(torch.stack(experts) if len(experts) > 1 else experts[0], value), name
    assert taken == set(stored)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_config_names_are_the_classes_own(model_type: str) -> None:
    family, config_class = FAMILIES[model_type], CONFIG_MAPPING[model_type]
    shared = {"num_hidden_layers", "hidden_size", "num_attention_heads", "max_position_embeddings"}
    of_class = {name: own for name, own in config_class.attribute_map.items() if name in shared}
    assert {name: own for name, own in family.own_names.items() if name in shared} == of_class
    config = tiny_config(model_type, num_layers=3).to_dict()
    assert family.num_layers(config) == 3
    assert set(family.own_names.values()) <= set(config)
    assert family.is_tied({}) == config_class().tie_word_embeddings
    assert set(family.depth_multipliers) <= set(config)
    assert family_of(config) is family


@pytest.mark.parametrize("model_type", FAMILIES)
def test_norm_kind_and_offset(model_type: str) -> None:
    """A gain of -offset makes the last norm give zeros; an all-ones input tells a norm that takes the mean away."""
    family, model = FAMILIES[model_type], biased_model(model_type)
    norm = model.get_submodule(family.final_norm)
    with torch.no_grad():
        norm.weight.fill_(1.0 - family.norm_offset)
        if getattr(norm, "bias", None) is not None:
            norm.bias.zero_()
        ones = norm(torch.full((HIDDEN_SIZE,), 3.0))
        assert torch.allclose(
            ones, torch.full((HIDDEN_SIZE,), 0.0 if family.norm_kind == "layernorm" else 1.0), atol=1e-5
        )
        norm.weight.fill_(-family.norm_offset)
        assert not norm(torch.randn(HIDDEN_SIZE)).any()


def test_names_without_the_models_own_prefix() -> None:
    """The hub's gpt2 was saved from the model without its head."""
    gpt2 = FAMILIES["gpt2"]
    assert gpt2.split("h.11.mlp.c_fc.weight") == (11, "mlp.c_fc.weight")
    assert gpt2.with_layer("h.11.mlp.c_fc.weight", 3) == "h.3.mlp.c_fc.weight"
    assert FAMILIES["llama"].split("layers.1.mlp.up_proj.weight") == (1, "mlp.up_proj.weight")
    assert FAMILIES["llama"].split("visual.layers.1.mlp.up_proj.weight") is None
    assert FAMILIES["llama"].split("model.norm.weight") is None
    with pytest.raises(ValueError, match=r"model\.norm\.weight belongs to no layer"):
        FAMILIES["llama"].with_layer("model.norm.weight", 1)


@pytest.mark.parametrize(
    ("model_type", "suffix"),
    [
        ("gpt2", "attn.bias"),
        ("gpt2", "attn.masked_bias"),
        ("gpt_neox", "attention.bias"),
        ("gpt_neox", "attention.rotary_emb.inv_freq"),
        ("llama", "self_attn.rotary_emb.inv_freq"),
    ],
)
def test_buffers_of_old_checkpoints_are_no_parameters(model_type: str, suffix: str) -> None:
    tensor = FAMILIES[model_type].tensor(suffix)
    assert tensor.role == "buffer"
    assert not tensor.is_matrix
    assert FAMILIES[model_type].identity_value(suffix) is None


# --- zeroed branch ends make a layer the identity -----------------------------------------------------------------------


@pytest.mark.parametrize("model_type", FAMILIES)
def test_identity_values_make_every_layer_the_identity(model_type: str) -> None:
    family, model = FAMILIES[model_type], biased_model(model_type)
    seen = layer_inputs_and_outputs(model)
    assert all(not torch.equal(before, after) for before, after in seen)
    fill_branch_ends(family, model)
    seen = layer_inputs_and_outputs(model)
    assert len(seen) == 2
    assert all(torch.equal(before, after) for before, after in seen)


def test_cross_attention_is_a_branch_too() -> None:
    config = tiny_config("gpt2", num_layers=1, add_cross_attention=True)
    model = random_model(config)
    fill_branch_ends(FAMILIES["gpt2"], model)
    encoded = torch.randn(2, 5, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
    ((before, after),) = layer_inputs_and_outputs(model, encoder_hidden_states=encoded)
    assert torch.equal(before, after)


def test_dense_layers_of_a_mixture_end_their_branches() -> None:
    model = biased_model("qwen3_moe", mlp_only_layers=[1])
    fill_branch_ends(FAMILIES["qwen3_moe"], model)
    assert all(torch.equal(before, after) for before, after in layer_inputs_and_outputs(model))


def fill_branch_ends(family: Family, model: PreTrainedModel) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            found = family.split(name)
            value = family.identity_value(found[1]) if found else None
            if value is not None:
                parameter.fill_(value)


def layer_inputs_and_outputs(model: PreTrainedModel, **inputs: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(_: object, args: tuple[torch.Tensor, ...], output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        seen.append((args[0], output[0] if isinstance(output, tuple) else output))

    hooks = [layer.register_forward_hook(note) for layer in layer_list(model)]
    with torch.no_grad():
        model(token_ids(), use_cache=False, **inputs)
    for hook in hooks:
        hook.remove()
    return seen


# --- fused weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", [name for name, family in FAMILIES.items() if "qkv" in family.fused])
def test_values_lie_where_a_fused_attention_weight_says(model_type: str) -> None:
    """With the value part zero attention adds nothing but its output bias, as with the output weight zero."""

    def silence_values(family: Family, suffix: str, parameter: torch.Tensor) -> None:
        tensor = family.tensor(suffix)
        if tensor.role == "qkv":
            axis = -1 if tensor.is_bias else (-1 if tensor.input_axis == -2 else 0)
            part_of(family, "qkv", "v", parameter, axis).zero_()

    def silence_outputs(family: Family, suffix: str, parameter: torch.Tensor) -> None:
        tensor = family.tensor(suffix)
        if tensor.role == "o" and not tensor.is_bias:
            parameter.zero_()

    assert_same_change(model_type, silence_values, silence_outputs)


@pytest.mark.parametrize("model_type", [name for name, family in FAMILIES.items() if "gate_up" in family.fused])
def test_gates_lie_where_a_fused_mlp_weight_says(model_type: str) -> None:
    """With the gate part zero the MLP adds nothing but its output bias, as with the down weight zero."""

    def silence_gates(family: Family, suffix: str, parameter: torch.Tensor) -> None:
        tensor = family.tensor(suffix)
        if tensor.role == "gate_up":
            axis = -1 if tensor.is_bias or tensor.input_axis == -2 else -2
            part_of(family, "gate_up", "gate", parameter, axis).zero_()

    def silence_outputs(family: Family, suffix: str, parameter: torch.Tensor) -> None:
        tensor = family.tensor(suffix)
        if tensor.role == "down" and not tensor.is_bias:
            parameter.zero_()

    assert_same_change(model_type, silence_gates, silence_outputs)


def part_of(family: Family, role: str, part: str, tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """A view of one part of a fused tensor, its output axis last."""
    fused = family.fused[role]  # type: ignore[index]
    number, count = fused.parts.index(part), len(fused.parts)  # type: ignore[arg-type]
    rows = tensor.movedim(axis, -1)
    if fused.arrangement == "alternating":
        return rows[..., number::count]
    if fused.arrangement == "heads":
        return rows.unflatten(-1, (4, count, -1))[..., number, :]
    if role == "qkv" and rows.shape[-1] == 16 + 8 + 8:  # phi3's queries have more heads than its keys and values
        return rows.split((16, 8, 8), dim=-1)[number]
    return rows.chunk(count, dim=-1)[number]


def assert_same_change(model_type: str, *changes: Callable[[Family, str, torch.Tensor], None]) -> None:
    family, logits = FAMILIES[model_type], []
    for change in changes:
        model = biased_model(model_type)
        with torch.no_grad():
            before = model(token_ids(), use_cache=False).logits
            for name, parameter in model.named_parameters():
                if found := family.split(name):
                    change(family, found[1], parameter)
            logits.append(model(token_ids(), use_cache=False).logits)
        assert not torch.allclose(before, logits[-1], atol=1e-3)
    assert torch.allclose(*logits, atol=1e-6)


# --- refusals ----------------------------------------------------------------------------------------------------------


def test_a_multi_modal_wrapper_is_refused_by_name() -> None:
    config = CONFIG_MAPPING["gemma3"]().to_dict()
    with pytest.raises(InputError, match=r"'gemma3', which wraps .*; save its language model .* gemma3_text"):
        family_of(config)


@pytest.mark.parametrize("config", [{"model_type": "mamba"}, {}, {"model_type": None}])
def test_an_unknown_model_type_is_refused_with_those_that_grow(config: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"model_type is '(mamba|None)', but those that grow are llama, .*, gpt_oss"):
        family_of(config)


@pytest.mark.parametrize("value", [None, 0, -1, 2.0, "4", True])
def test_a_number_of_layers_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"config\.json: n_layer is .*whole number from 1"):
        FAMILIES["gpt2"].num_layers({"n_layer": value})


@pytest.mark.parametrize(
    "suffix", ["self_attn.q_proj.lora_A.weight", "mlp.down_proj.weight_scale_inv", "mlp.router.weight"]
)
def test_a_tensor_of_no_known_name_is_refused(suffix: str) -> None:
    with pytest.raises(InputError, match="llama has no tensor of that name; give a plain checkpoint"):
        FAMILIES["llama"].tensor(suffix)


def test_the_helper_makes_what_it_is_asked_for(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "qwen3", num_layers=3, tied=True, max_shard_size="8KB", dtype=torch.bfloat16)
    assert len(list(folder.glob("*.safetensors"))) > 2
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.num_hidden_layers == 3
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.bfloat16
