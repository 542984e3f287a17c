"""A base that was trained elsewhere: a transformers folder of safetensors, checked against the spec before it is read.

`exports/base` and `exports/final` of an earlier run are such folders, and so is a model from anywhere that this engine
could have trained: the same shape, and the same settings of the model family (rotary base, norm epsilon, biases), since
the target is built with them. A checkpoint is data: pickled weights and code are not read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig
from transformers.modeling_utils import PreTrainedModel

from app.contract import ModelSpec
from app.engine.errors import BadDataError, BadSpecError
from app.engine.models import build_model

FIELD = "growth.base_checkpoint"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# What a config says beside the function that the weights compute; the context is checked apart.
FREE_CONFIG_KEYS = frozenset(
    (
        "_name_or_path", "architectures", "attn_implementation", "bos_token_id", "dtype", "eos_token_id",
        "initializer_range", "max_position_embeddings", "max_window_layers", "pad_token_id", "pretraining_tp",
        "torch_dtype", "transformers_version", "use_cache",
    )
)  # fmt: skip


def load_base(folder: Path, shape: ModelSpec) -> PreTrainedModel:
    """The folder's model in fp32 on the CPU.

    Args:
        folder: the checkpoint.
        shape: the base's, as the spec has it.

    Raises:
        BadSpecError: there is no such folder, it holds no safetensors, or its config is of another base.
        BadDataError: a weight file is missing, damaged, or not the config's.
    """
    model = build_model(shape, num_layers=shape.num_layers)
    _check_config(folder, model, shape)
    tensors = _read_tensors(folder)
    expected = dict(model.named_parameters())  # a tied tensor once, under its first name
    tied = model.state_dict().keys() - expected.keys()
    for name in sorted(expected.keys() ^ (tensors.keys() - tied)):
        problem = "lacks" if name in expected else "holds"
        raise BadDataError(f"{folder} {problem} the tensor {name}, unlike its config; write the checkpoint again")
    with torch.no_grad():
        for name, parameter in expected.items():
            if parameter.shape != tensors[name].shape:
                raise BadDataError(
                    f"{folder} holds {name} as {tuple(tensors[name].shape)}, but its config makes it "
                    f"{tuple(parameter.shape)}; write the checkpoint again"
                )
            parameter.copy_(tensors[name])
    return model


def _check_config(folder: Path, model: PreTrainedModel, shape: ModelSpec) -> None:
    if not (folder / "config.json").is_file():
        raise BadSpecError(
            f"{FIELD} is {str(folder)!r}, but there is no config.json; name a transformers folder such as an earlier "
            "run's exports/base"
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BadSpecError(f"{FIELD} is {str(folder)!r}, but its config.json cannot be read ({error})") from None
    ours, theirs = model.config.to_dict(), config.to_dict()
    for key in ["model_type", *sorted(ours.keys() - FREE_CONFIG_KEYS)]:
        if _plain(ours[key]) != _plain(theirs.get(key)):
            raise BadSpecError(
                f"{FIELD} is {str(folder)!r}, whose config has {key} {theirs.get(key)!r}, but the spec's base has "
                f"{ours[key]!r}; describe that base in the spec or name another checkpoint"
            )
    if config.max_position_embeddings < shape.context_length:
        raise BadSpecError(
            f"model.context_length is {shape.context_length}, but the base of {FIELD} was made for "
            f"{config.max_position_embeddings} (max_position_embeddings); shorten the context"
        )


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = [WEIGHTS_FILE]
    try:
        if (folder / INDEX_FILE).exists():
            index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
            files = sorted(set(index["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise BadDataError(f"{folder / INDEX_FILE} is damaged ({error!r}); write the checkpoint again") from None
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise BadDataError(f"{folder / INDEX_FILE} names {file!r}, which is no safetensors file beside it")
        if not (folder / file).is_file():
            raise BadSpecError(
                f"{FIELD} is {str(folder)!r}, but it holds no {file}; only safetensors are read: save the model with "
                "save_pretrained"
            )
        try:
            tensors |= load_file(folder / file)
        except SafetensorError as error:
            raise BadDataError(f"{folder / file} is damaged ({error}); write the checkpoint again") from None
    return tensors
