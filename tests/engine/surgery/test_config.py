"""The grown config.json against transformers' own config classes."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
from tiny_models import tiny_config
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from app.engine.surgery.config import check_depth, grow_config, layer_lists
from app.engine.surgery.families import FAMILIES
from fitting.errors import InputError
from fitting.orders import source_layers

LISTS = ("layer_types", "no_rope_layers")
# What makes layers differ from one another, family by family; 6 layers have both kinds under each.
PATTERNS: list[tuple[str, dict[str, Any]]] = [
    ("gemma2", {}),
    ("gpt_oss", {}),
    ("gemma3_text", {}),
    ("gemma3_text", {"sliding_window_pattern": 4}),
    *(
        (model_type, {"use_sliding_window": use, "sliding_window": 4, "max_window_layers": first})
        for model_type in ("qwen2", "qwen3")
        for use in (True, False)
        for first in (0, 2, 6, 28)
    ),
    ("smollm3", {}),
    ("smollm3", {"no_rope_layer_interval": 3}),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 4}),
    ("smollm3", {"use_sliding_window": True}),
]
ORDERS = ("stack", "interpose", "middle:1:2", "list:5,5,0,1,2,3,4,0,1")
NUM_LAYERS = {"stack": 12, "interpose": 12, "middle:1:2": 11, "list:5,5,0,1,2,3,4,0,1": 9}


def without_lists(config: dict[str, Any]) -> dict[str, Any]:
    """The config as a version of transformers that knew no lists would have saved it."""
    return {name: value for name, value in config.items() if name not in LISTS}


def loaded(config: dict[str, Any]) -> PretrainedConfig:
    return CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))


def saved(model_type: str, num_layers: int, **fields: Any) -> dict[str, Any]:
    """What config.json holds: the class's own fields, and an argument that it takes and does not keep."""
    config = tiny_config(model_type, num_layers=num_layers, **fields).to_dict()
    return config | {name: value for name, value in fields.items() if name == "sliding_window_pattern"}


# --- per-layer lists ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model_type", "fields"), PATTERNS)
@pytest.mark.parametrize("num_layers", [1, 6, 13])
def test_derived_lists_are_the_classes_own(model_type: str, fields: dict[str, Any], num_layers: int) -> None:
    config = saved(model_type, num_layers, **fields)
    own = {name: config[name] for name in LISTS if config.get(name) is not None}
    assert own
    assert layer_lists(without_lists(config)) == own
    assert layer_lists(config) == own


@pytest.mark.parametrize("fields", [{}, {"use_sliding_window": True}])
@pytest.mark.parametrize("model_type", sorted({name for name, _ in PATTERNS}))
def test_derived_lists_know_the_classes_defaults(model_type: str, fields: dict[str, Any]) -> None:
    """A config.json may leave out what is the class's default; 30 layers reach past qwen's default of 28."""
    config = {"model_type": model_type, "num_hidden_layers": 30, **fields}
    own = loaded(config).to_dict()
    assert layer_lists(config) == {name: own[name] for name in LISTS if name in own}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("lists", ["written out", "derived"])
@pytest.mark.parametrize(("model_type", "fields"), PATTERNS)
def test_every_layer_keeps_its_kind(model_type: str, fields: dict[str, Any], lists: str, order: str) -> None:
    """Field by field what the class holds when it is given the base's kinds in the new order."""
    base = saved(model_type, 6, **fields)
    layers = source_layers(order, 6, NUM_LAYERS[order])
    kinds = {name: [base[name][layer] for layer in layers] for name in LISTS if base.get(name) is not None}
    grown = grow_config(base if lists == "written out" else without_lists(base), layers)
    expected = loaded(base | {"num_hidden_layers": len(layers)} | kinds).to_dict()
    found = loaded(grown).to_dict()
    expected["max_window_layers"] = found["max_window_layers"] = None  # has tests of its own
    assert found == expected


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in {name for name, _ in PATTERNS}])
def test_families_of_equal_layers_change_in_their_number_alone(model_type: str, order: str) -> None:
    base = tiny_config(model_type, num_layers=6).to_dict()
    layers = source_layers(order, 6, NUM_LAYERS[order])
    grown = grow_config(base, layers)
    assert loaded(grown).to_dict() == tiny_config(model_type, num_layers=len(layers)).to_dict()
    assert {name for name in grown if grown[name] != base[name]} == {FAMILIES[model_type].num_layers_field}
    assert list(grown) == list(base)


def test_a_list_is_written_out_only_where_the_rule_fails() -> None:
    base = without_lists(saved("gemma2", 3))
    assert "layer_types" not in grow_config(base, (0, 1, 2, 1, 2))
    grown = grow_config(base, (0, 1, 2, 0, 1, 2))
    assert grown["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"] * 2
    null = grow_config(base | {"layer_types": None}, (0, 1, 2, 1, 2))
    assert null["layer_types"] is None


def test_the_base_config_stays_as_it_was() -> None:
    base = saved("smollm3", 6)
    before = copy.deepcopy(base)
    grown = grow_config(base, (0, 1, 2, 3, 4, 5) * 2)
    grown["rope_parameters"]["rope_theta"] = -1
    assert base == before


def test_the_shared_name_beside_the_familys_own_grows_with_it() -> None:
    grown = grow_config(saved("gpt2", 2) | {"num_hidden_layers": 2}, (0, 1, 0, 1))
    assert (grown["n_layer"], grown["num_hidden_layers"]) == (4, 4)


# --- fields that count or name layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize(("order", "num_layers"), [("interpose", 12), ("interpose", 9), ("list:0,1,1,2,3,4,5", 7)])
@pytest.mark.parametrize("first", [0, 2, 5, 6, 28])
def test_max_window_layers_alone_says_the_same(model_type: str, order: str, num_layers: int, first: int) -> None:
    """Where full attention stays below the windows, a reader without lists gets every layer's kind too."""
    base = saved(model_type, 6, use_sliding_window=True, sliding_window=4, max_window_layers=first)
    layers = source_layers(order, 6, num_layers)
    grown = grow_config(base, layers)
    assert layer_lists(without_lists(grown)) == {"layer_types": grown["layer_types"]}
    assert check_depth(base | {"hidden_size": 4096}, layers) == []


def test_windows_that_are_off_stay_off_when_they_are_switched_on() -> None:
    base = saved("qwen2", 6, use_sliding_window=False, max_window_layers=6)
    assert grow_config(base, (0, 1, 2, 3, 4, 5) * 2)["max_window_layers"] == 12
    base["max_window_layers"] = 28
    assert grow_config(base, (0, 1, 2, 3, 4, 5) * 2)["max_window_layers"] == 28
    assert grow_config(base, (0, 1, 2, 3, 4, 5) * 6)["max_window_layers"] == 36


def test_a_leading_count_that_the_order_breaks_needs_a_list() -> None:
    base = saved("qwen3_moe", 6) | {"first_k_dense_replace": 2}
    assert grow_config(base, source_layers("interpose", 6, 12))["first_k_dense_replace"] == 4
    with pytest.raises(InputError, match=r"first_k_dense_replace is 2: only the first layers.*take order interpose"):
        grow_config(base, source_layers("stack", 6, 12))
    kinds = ["dense"] * 2 + ["sparse"] * 4
    grown = grow_config(base | {"mlp_layer_types": kinds}, source_layers("stack", 6, 12))
    assert grown["mlp_layer_types"] == kinds * 2
    # Windows that are switched off decide nothing, so they refuse nothing.
    assert grow_config(saved("qwen3_moe", 6) | {"max_window_layers": 4}, source_layers("stack", 6, 12))
    windowed = saved("qwen3_moe", 6, use_sliding_window=True) | {"max_window_layers": 4}
    with pytest.raises(InputError, match="max_window_layers is 4"):
        grow_config(windowed, source_layers("stack", 6, 12))


def is_sparse(config: dict[str, Any], layer: int) -> bool:
    """The condition in transformers' Qwen3MoeDecoderLayer."""
    own = loaded(config)
    return layer not in own.mlp_only_layers and own.num_experts > 0 and (layer + 1) % own.decoder_sparse_step == 0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("dense", [[], [0], [0, 5], [1, 3]])
def test_every_layer_of_a_mixture_stays_dense_or_sparse(dense: list[int], step: int, order: str) -> None:
    base = saved("qwen3_moe", 6, mlp_only_layers=dense, decoder_sparse_step=step)
    layers = source_layers(order, 6, NUM_LAYERS[order])
    grown = grow_config(base, layers)
    assert [is_sparse(grown, i) for i in range(len(layers))] == [is_sparse(base, layer) for layer in layers]
    changed = grown["decoder_sparse_step"] != step
    told = [warning for warning in check_depth(base, layers) if "decoder_sparse_step" in warning]
    assert len(told) == changed
    assert not (changed and order == "stack"), "6 layers are a multiple of every step here"


def test_absent_mixture_fields_stay_absent() -> None:
    base = {
        key: value
        for key, value in saved("qwen3_moe", 2).items()
        if key not in ("mlp_only_layers", "decoder_sparse_step")
    }
    assert grow_config(base, (0, 1, 0, 1)).keys() == base.keys()
    assert grow_config(base | {"mlp_only_layers": None}, (0, 1, 0, 1))["mlp_only_layers"] is None


# --- residual multipliers -------------------------------------------------------------------------------------------------


def test_a_residual_multiplier_is_kept_and_told_or_rescaled_and_told() -> None:
    base = saved("granite", 4, residual_multiplier=0.22) | {"hidden_size": 4096}
    layers = source_layers("stack", 4, 16)
    assert grow_config(base, layers)["residual_multiplier"] == 0.22
    (kept,) = check_depth(base, layers)
    assert kept.startswith("residual_multiplier stays 0.22, chosen for 4 layers")
    assert kept.endswith("would make it 0.11")
    grown = grow_config(base, layers, rescale_multipliers=True)
    assert grown["residual_multiplier"] == pytest.approx(0.11)
    # L' branches of variance m'^2 each add up to what L branches of m^2 did.
    assert 16 * grown["residual_multiplier"] ** 2 == pytest.approx(4 * 0.22**2)
    (rescaled,) = check_depth(base, layers, rescale_multipliers=True)
    assert "residual_multiplier 0.22 becomes 0.11 (times sqrt(4 / 16))" in rescaled
    assert {name for name in grown if grown[name] != base[name]} == {"num_hidden_layers", "residual_multiplier"}


def test_a_multiplier_of_one_or_none_is_not_told() -> None:
    base = saved("granite", 4, residual_multiplier=1.0) | {"hidden_size": 4096}
    assert check_depth(base, (0, 1, 2, 3) * 2) == []
    del base["residual_multiplier"]
    assert check_depth(base, (0, 1, 2, 3) * 2) == []
    assert "residual_multiplier" not in grow_config(base, (0, 1, 2, 3) * 2, rescale_multipliers=True)


# --- warnings and refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "period", "field", "reader"),
    [
        ("gemma2", 2, "layer_types", "llama.cpp"),
        ("gemma3_text", 6, "layer_types", "llama.cpp"),
        ("gpt_oss", 2, "layer_types", "vLLM"),
        ("smollm3", 4, "no_rope_layers", "llama.cpp"),
    ],
)
def test_a_broken_period_is_told_with_who_minds(model_type: str, period: int, field: str, reader: str) -> None:
    """A stack keeps the period exactly when the base's layers are a multiple of it."""
    for num_layers in range(1, 2 * period + 1):
        base = saved(model_type, num_layers) | {"hidden_size": 4096}
        layers = source_layers("stack", num_layers, 2 * num_layers)
        warnings = check_depth(base, layers)
        kinds = [(i + 1) % period == 0 for i in layers]
        wrong = [i for i, kind in enumerate(kinds) if kind != ((i + 1) % period == 0)]
        assert len(warnings) == bool(wrong)
        if wrong:
            assert warnings[0].startswith(f"{field} no longer follows the rule of {model_type}")
            assert reader in warnings[0]
            assert f"run layers {', '.join(map(str, wrong[:6]))}" in warnings[0]
        if num_layers % period == 0:
            assert not wrong


def test_a_base_off_the_rule_is_not_told_again() -> None:
    base = saved("gemma2", 4, layer_types=["full_attention"] * 4) | {"hidden_size": 4096}
    assert check_depth(base, (0, 1, 2, 3, 2, 3, 3)) == []


def test_stacked_windows_are_told() -> None:
    base = saved("qwen2", 4, use_sliding_window=True, sliding_window=4, max_window_layers=2) | {"hidden_size": 4096}
    (warning,) = check_depth(base, source_layers("stack", 4, 8))
    assert "transformers before 4.53 would go by the index and run layers 4, 5 as another kind" in warning


def test_a_shape_far_from_those_that_were_compared_is_told() -> None:
    base = saved("llama", 24) | {"hidden_size": 1600}
    assert check_depth(base, source_layers("stack", 24, 48)) == []  # 33.3, the edge itself
    (warning,) = check_depth(base, source_layers("stack", 24, 49))
    assert warning.startswith("hidden size / layers becomes 32.7; below 33.3")
    assert "hidden size / layers becomes 8" in check_depth(saved("gpt2", 1), (0, 0))[0]


@pytest.mark.parametrize("architectures", [["LlamaModel"], ["LlamaForSequenceClassification"]])
def test_another_head_is_told(architectures: list[str]) -> None:
    base = saved("llama", 2) | {"hidden_size": 4096, "architectures": architectures}
    assert f"architectures is {architectures[0]}" in check_depth(base, (0, 1, 0, 1))[0]
    assert check_depth(base | {"architectures": ["LlamaForCausalLM"]}, (0, 1, 0, 1)) == []
    assert check_depth(base | {"architectures": None}, (0, 1, 0, 1)) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"layer_types": ["full_attention"]},
            r"layer_types has 1 entries, but the model has 4 layers; give it one entry",
        ),
        ({"layer_types": "full_attention"}, r"layer_types has no entries"),
        ({"no_rope_layers": [1] * 5}, r"no_rope_layers has 5 entries"),
        ({"kv_shared_layers": [0, 1, 1, 1]}, r"kv_shared_layers has an entry a layer, but qwen3 is not known"),
        ({"quantization_config": {"ignore": ["lm_head", "model.layers.2.mlp.gate"]}}, r"single layer \(layers\.2\)"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(fields: dict[str, Any], message: str) -> None:
    for call in (grow_config, check_depth):
        with pytest.raises(InputError, match=message):
            call(saved("qwen3", 4) | fields, (0, 1, 2, 3) * 2)


def test_quantization_of_all_layers_alike_is_followed() -> None:
    quantized = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    assert grow_config(saved("gpt_oss", 2) | {"quantization_config": quantized}, (0, 1, 0, 1))["num_hidden_layers"] == 4


def test_attention_scaled_by_the_layers_index_is_refused() -> None:
    base = saved("gpt2", 2, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(
        InputError, match="divided by i \\+ 1, so a copied layer would compute something else; divide each"
    ):
        grow_config(base, (0, 1, 0, 1))


@pytest.mark.parametrize("layers", [(), (0, 4), (-1, 0)])
def test_layers_that_do_not_exist_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"layers (are none|name base layer (4|-1), but the base has 0 to 3)"):
        grow_config(saved("llama", 4), layers)


def test_variance_of_the_residual_stream_by_hand() -> None:
    """The rule for every pair of depths, against the closed form m' = m sqrt(L / L')."""
    for num_base, num_target in itertools.product((1, 3), (4, 9)):
        grown = grow_config(
            saved("granite", num_base), source_layers("stack", num_base, num_target), rescale_multipliers=True
        )
        assert grown["residual_multiplier"] == pytest.approx(0.4 * math.sqrt(num_base / num_target))
