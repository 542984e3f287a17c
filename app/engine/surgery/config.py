"""config.json of a deeper model: every per-layer list and every field that counts layers says of layer i what it said of
its source layer pi(i).

    list'[i] = list[pi(i)]                        layer_types, no_rope_layers, mlp_layer_types
    mlp_only_layers' = {i : pi(i) in mlp_only_layers},   and with decoder_sparse_step = s, layer i is dense where s does
                                                  not divide i + 1
    k' = |{i : pi(i) < k}|                        max_window_layers, first_k_dense_replace: the first k layers are of one
                                                  kind; only where those i come first
    m' = m sqrt(L / L')                           residual multipliers, if asked: with L' branches of the same size the
                                                  residual stream's variance stays what it was (depth-muP,
                                                  Yang et al., arXiv 2310.02244)

======  ==========================================================  =====
symbol  meaning                                                     unit
======  ==========================================================  =====
L, L'   layers of base and target                                   -
pi(i)   base layer that target layer i is copied from               -
k       layers of the first kind                                    -
m       what every residual branch is multiplied by                 -
======  ==========================================================  =====

A family whose class derives a list from the layer's index (gemma2: every second layer attends in full) gets the list written
out where the grown model's layers no longer follow the rule: transformers reads the list first. Programs that assume the
rule are named by :func:`check_depth`. Standard library only: the byte copy imports this.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app.engine.surgery.families import family_of
from app.engine.surgery.family import Family
from fitting.errors import InputError

PER_LAYER_LISTS = ("layer_types", "mlp_layer_types", "no_rope_layers")
# Fields that count leading layers of one kind, and the list that decides instead where a config has it.
LEADING_COUNTS = {"max_window_layers": "layer_types", "first_k_dense_replace": "mlp_layer_types"}
# Kaplan et al. (arXiv 2001.08361), figure 5: hidden / layers from 1600 / 48 to 4288 / 6 moves the loss by 3% at most.
MIN_HIDDEN_PER_LAYER = 1600 / 48
# Programs that go by a layer's index and not by the list, by field that the list is in.
_INDEX_READERS = {
    ("gemma2", "layer_types"): "llama.cpp and transformers before 4.53",
    ("gemma3_text", "layer_types"): "llama.cpp and transformers before 4.53",
    ("gpt_oss", "layer_types"): "llama.cpp, vLLM and TensorRT-LLM",
    ("smollm3", "no_rope_layers"): "llama.cpp",
    ("qwen2", "layer_types"): "transformers before 4.53",
    ("qwen3", "layer_types"): "transformers before 4.53",
}


def grow_config(
    config: Mapping[str, Any], layers: tuple[int, ...], *, rescale_multipliers: bool = False
) -> dict[str, Any]:
    """The config.json of a model whose layer i is the base's layer ``layers[i]``.

    Args:
        config: the base's config.json; not changed.
        layers: pi, the base layer of each target layer, (L',).
        rescale_multipliers: divide the family's depth-dependent residual multipliers by sqrt(L' / L).

    Returns:
        A new dict; fields that do not depend on depth are as they were.

    Raises:
        InputError: the family does not grow, a list does not fit the base's number of layers, or a layer would become another
            layer than its source with no field to say so.
    """
    family = family_of(config)
    num_base_layers = family.num_layers(config)
    _require_layers(layers, num_base_layers)
    _require_no_single_layers(config, family, num_base_layers)
    grown = copy.deepcopy(dict(config))
    for name in {family.num_layers_field, "num_hidden_layers"} & config.keys():
        grown[name] = len(layers)
    _map_dense_layers(grown, config, layers)
    for name, deciding_list in LEADING_COUNTS.items():
        if isinstance(config.get(name), int):
            grown[name] = _leading_count(config, layers, name, deciding_list)
    for name, values in layer_lists(config).items():  # those of the config first: others may derive from them
        mapped = [values[layer] for layer in layers]
        if config.get(name) is not None or mapped != layer_lists(grown)[name]:
            grown[name] = mapped
    if rescale_multipliers:
        for name in family.depth_multipliers:
            if name in config:
                grown[name] = config[name] * math.sqrt(num_base_layers / len(layers))
    return grown


def check_depth(config: Mapping[str, Any], layers: tuple[int, ...], *, rescale_multipliers: bool = False) -> list[str]:
    """What a user should know before a model is made deeper, a sentence each; empty where there is nothing.

    Raises:
        InputError: as :func:`grow_config`.
    """
    family = family_of(config)
    grown = grow_config(config, layers, rescale_multipliers=rescale_multipliers)
    num_base_layers = family.num_layers(config)
    warnings = [
        *_shape_warnings(family, config, layers),
        *_multiplier_warnings(family, config, grown, num_base_layers, len(layers)),
        *_pattern_warnings(family, config, grown),
    ]
    architectures = config.get("architectures") or []
    if architectures and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        warnings.append(
            f"architectures is {', '.join(architectures)}: loaded with AutoModelForCausalLM, a head that is not in the "
            "checkpoint is drawn at random, and another head is left out"
        )
    return warnings


def layer_lists(config: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Every per-layer list of a model: those the config holds, and those its class derives from the layer's index.

    Raises:
        InputError: a list has another length than the model has layers.
    """
    family = family_of(config)
    num_layers = family.num_layers(config)
    lists: dict[str, list[Any]] = {}
    for name in PER_LAYER_LISTS:
        values = config.get(name)
        if values is None:
            continue
        if not isinstance(values, list) or len(values) != num_layers:
            length = len(values) if isinstance(values, list) else "no"
            raise InputError(
                f"config.json: {name}",
                f"has {length} entries, but the model has {num_layers} layers",
                "give it one entry a layer, or remove it where the class derives it",
            )
        lists[name] = values
    for name, rule in _DERIVED.get(family.model_type, {}).items():
        if name not in lists:
            lists[name] = rule(config, num_layers, lists)
    return lists


# --- rules of the config classes of transformers 5 for lists a config does not hold ------------------------------------


def _alternating(default_period: int, period_field: str | None = None) -> Callable[..., list[Any]]:
    """Every ``period``-th layer attends in full, the others within the window."""

    def rule(config: Mapping[str, Any], num_layers: int, _: Mapping[str, list[Any]]) -> list[Any]:
        period = config.get(period_field, default_period) if period_field else default_period
        return ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(num_layers)]

    return rule


def _windows_above(config: Mapping[str, Any], num_layers: int, _: Mapping[str, list[Any]]) -> list[Any]:
    first = config.get("max_window_layers", 28)
    windowed = _uses_windows(config, default_window=4096)
    return ["sliding_attention" if windowed and i >= first else "full_attention" for i in range(num_layers)]


def _rotary_but_every_nth(config: Mapping[str, Any], num_layers: int, _: Mapping[str, list[Any]]) -> list[Any]:
    interval = config.get("no_rope_layer_interval", 4)
    return [int((i + 1) % interval != 0) for i in range(num_layers)]


def _windows_without_rotary(config: Mapping[str, Any], num_layers: int, lists: Mapping[str, list[Any]]) -> list[Any]:
    windowed = _uses_windows(config, default_window=None)
    return ["sliding_attention" if windowed and not rope else "full_attention" for rope in lists["no_rope_layers"]]


def _uses_windows(config: Mapping[str, Any], *, default_window: int | None) -> bool:
    return bool(config.get("use_sliding_window", False)) and config.get("sliding_window", default_window) is not None


# In the order in which the class derives them: smollm3's layer types come from its rotary layers.
_DERIVED: dict[str, dict[str, Callable[..., list[Any]]]] = {
    "gemma2": {"layer_types": _alternating(2)},
    "gemma3_text": {"layer_types": _alternating(6, "sliding_window_pattern")},
    "gpt_oss": {"layer_types": _alternating(2)},
    "qwen2": {"layer_types": _windows_above},
    "qwen3": {"layer_types": _windows_above},
    "smollm3": {"no_rope_layers": _rotary_but_every_nth, "layer_types": _windows_without_rotary},
}


# --- fields that hold layer numbers -----------------------------------------------------------------------------------


def _map_dense_layers(grown: dict[str, Any], config: Mapping[str, Any], layers: tuple[int, ...]) -> None:
    """``mlp_only_layers`` and ``decoder_sparse_step``: together they say which layers of a mixture of experts are dense.

    The step stays where it still gives the right layers; else it becomes 1 and the list names every dense layer.
    """
    if not {"mlp_only_layers", "decoder_sparse_step"} & config.keys():
        return
    named = set(config.get("mlp_only_layers") or [])
    step = config.get("decoder_sparse_step") or 1
    mapped = [i for i, layer in enumerate(layers) if layer in named]
    dense = [i for i, layer in enumerate(layers) if layer in named or (layer + 1) % step]
    if dense == [i for i in range(len(layers)) if i in mapped or (i + 1) % step]:
        if named:
            grown["mlp_only_layers"] = mapped
    else:
        grown["decoder_sparse_step"] = 1
        grown["mlp_only_layers"] = dense


def _leading_count(config: Mapping[str, Any], layers: tuple[int, ...], name: str, deciding_list: str) -> int:
    count: int = config[name]
    num_base_layers = family_of(config).num_layers(config)
    if count >= num_base_layers:  # no layer is of the second kind, and none may become so
        return max(count, len(layers))
    first_kind = [layer < count for layer in layers]
    in_effect = name != "max_window_layers" or config.get("use_sliding_window")
    if not in_effect or first_kind == sorted(first_kind, reverse=True) or deciding_list in layer_lists(config):
        return first_kind.index(False) if False in first_kind else len(layers)
    raise InputError(
        f"config.json: {name}",
        f"is {count}: only the first layers are of their kind, and in this order others would be too",
        "take order interpose, or write the field's per-layer list into config.json",
    )


# --- what cannot be said, and what should be told ---------------------------------------------------------------------


def _require_layers(layers: Sequence[int], num_base_layers: int) -> None:
    for layer in layers:
        if not 0 <= layer < num_base_layers:
            raise InputError(
                "layers",
                f"name base layer {layer}, but the base has 0 to {num_base_layers - 1}",
                "use layers that exist",
            )
    if not layers:
        raise InputError(
            "layers", "are none, but a model needs at least one", "name the base layer of each target layer"
        )


def _require_no_single_layers(config: Mapping[str, Any], family: Family, num_base_layers: int) -> None:
    if config.get("scale_attn_by_inverse_layer_idx"):
        raise InputError(
            "config.json: scale_attn_by_inverse_layer_idx",
            "is true: attention of layer i is divided by i + 1, so a copied layer would compute something else",
            "divide each layer's query weights and bias by i + 1, set the field to false, and grow that",
        )
    known = (*PER_LAYER_LISTS, "mlp_only_layers")
    for name, value in config.items():
        if isinstance(value, list) and len(value) == num_base_layers and "layer" in name and name not in known:
            raise InputError(
                f"config.json: {name}",
                f"has an entry a layer, but {family.model_type} is not known to have such a list",
                "remove it if the model does not read it",
            )
    named = re.search(r"\b(?:layers|h)\.\d+\b", _texts(config.get("quantization_config")))
    if named:
        raise InputError(
            "config.json: quantization_config",
            f"names a single layer ({named[0]}), which growing would not follow",
            "grow the model before it is quantized, or dequantize it",
        )


def _texts(value: Any) -> str:
    """All strings of a config, keys included, one a line."""
    if isinstance(value, Mapping):
        return "\n".join(f"{key}\n{_texts(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "\n".join(_texts(item) for item in value)
    return value if isinstance(value, str) else ""


def _shape_warnings(family: Family, config: Mapping[str, Any], layers: tuple[int, ...]) -> list[str]:
    hidden = config.get(family.own_names.get("hidden_size", "hidden_size"))
    if not isinstance(hidden, int) or hidden / len(layers) >= MIN_HIDDEN_PER_LAYER:
        return []
    return [
        f"hidden size / layers becomes {hidden / len(layers):.3g}; below {MIN_HIDDEN_PER_LAYER:.3g} lie shapes that "
        "were not compared where depth against width was found to matter little (Kaplan et al. 2020, figure 5: 3% of the "
        "loss at equal parameters): consider a wider base"
    ]


def _multiplier_warnings(
    family: Family, config: Mapping[str, Any], grown: Mapping[str, Any], num_base_layers: int, num_target_layers: int
) -> list[str]:
    warnings = []
    for name in family.depth_multipliers:
        value = config.get(name, 1.0)
        if grown.get(name, 1.0) != value:
            warnings.append(
                f"{name} {value:g} becomes {grown[name]:g} (times sqrt({num_base_layers} / {num_target_layers})): layers "
                "compute another function than before, so no operator preserves the model's function"
            )
        elif value != 1.0:
            warnings.append(
                f"{name} stays {value:g}, chosen for {num_base_layers} layers: the residual branches of {num_target_layers} "
                f"add up to more; rescaling would make it {value * math.sqrt(num_base_layers / num_target_layers):g}"
            )
    return warnings


def _pattern_warnings(family: Family, config: Mapping[str, Any], grown: Mapping[str, Any]) -> list[str]:
    warnings = []
    for name in layer_lists(grown):
        readers = _INDEX_READERS.get((family.model_type, name))
        if readers is None or _off_the_rule(config, name):
            continue  # nothing goes by the index, or it went wrong on the base already
        if wrong := _off_the_rule(grown, name):
            shown = ", ".join(map(str, wrong[:6])) + (", ..." if len(wrong) > 6 else "")
            warnings.append(
                f"{name} no longer follows the rule of {family.model_type}: the list in config.json keeps every layer's "
                f"own kind, and transformers 5 reads it, but {readers} would go by the index and run layers {shown} as "
                "another kind; an order that puts every layer on an index of its own kind avoids that"
            )
    if grown.get("decoder_sparse_step", 1) != config.get("decoder_sparse_step", 1):
        warnings.append(
            f"decoder_sparse_step {config['decoder_sparse_step']} becomes 1, and mlp_only_layers names the "
            f"{len(grown['mlp_only_layers'])} dense layers: the step alone no longer gives them"
        )
    return warnings


def _off_the_rule(config: Mapping[str, Any], name: str) -> list[int]:
    """Layers that are not what the rule by index would make them."""
    by_index = layer_lists({key: value for key, value in config.items() if key not in PER_LAYER_LISTS})
    return [i for i, value in enumerate(layer_lists(config)[name]) if value != by_index[name][i]]
