"""A checkpoint to evaluate: a transformers folder of safetensors, or a run directory with `exports/final`.

A checkpoint is data: weights are read from safetensors alone (:mod:`app.engine.surgery.folder`), and code that a folder
brings along is never run. A tensor that is missing or left over is refused: transformers would draw the one at random
and drop the other, and the loss would be another model's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from app.contract import EXPORTS_DIR, SPEC_FILE, read_spec
from app.engine.models import resolve_device
from app.engine.surgery.folder import CONFIG_FILE, read_folder
from app.engine.surgery.manifest import read_manifest
from fitting.errors import InputError
from fitting.orders import source_layers

TOKENIZER_FILE = "tokenizer.json"
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class CheckpointFolder:
    """A folder that can be loaded. ``source_layers``: base layer of each layer where it was grown in depth, else None."""

    path: Path
    config: dict[str, Any]
    source_layers: tuple[int, ...] | None

    @property
    def tokenizer_file(self) -> Path | None:
        file = self.path / TOKENIZER_FILE
        return file if file.is_file() else None


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model on its device, to be run in ``precision`` (``bf16``: under autocast, as in training)."""

    model: PreTrainedModel
    precision: Precision

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def vocab_size(self) -> int:
        return int(self.model.get_input_embeddings().num_embeddings)


def find_checkpoint(path: Path) -> CheckpointFolder:
    """The folder behind ``path``, its index and headers checked before any weight is read.

    Raises:
        InputError: it is neither a finished run nor a whole transformers folder of safetensors.
    """
    folder, layers = path, None
    if not (path / CONFIG_FILE).is_file():
        folder = path / EXPORTS_DIR / "final"
        if not (path / SPEC_FILE).is_file():
            raise InputError(
                "checkpoint",
                f"{path} has no {CONFIG_FILE}",
                f"give a transformers folder, or a run directory with {EXPORTS_DIR}/final",
            )
        if not (folder / CONFIG_FILE).is_file():
            raise InputError("checkpoint", f"{path} is a run without {EXPORTS_DIR}/final", "wait until it has finished")
        layers = _layers_of_run(path)
    config = read_folder(folder).config
    return CheckpointFolder(path=folder, config=config, source_layers=layers or _layers_of_growth(folder))


def load_checkpoint(folder: CheckpointFolder, *, device: str, precision: str) -> LoadedModel:
    """The model, in evaluation mode, on ``device`` (auto, cpu, cuda).

    Args:
        precision: ``fp32``, ``bf16``, or ``auto``: bf16 where the device is CUDA and the weights are stored in 16 bits.

    Raises:
        InputError: the folder cannot be loaded as it is, every tensor in its place.
        BadSpecError: there is no such device.
    """
    torch_device = resolve_device(device)
    disable_progress_bar()
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder.path,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            dtype="auto",
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError("checkpoint", f"{folder.path} cannot be loaded ({reason})", "save or fetch it again") from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, loading[kind])):
            raise InputError(
                "checkpoint",
                f"{folder.path} has {len(names)} {kind.split('_')[0]} tensors, such as {names[0]}",
                f"mend {CONFIG_FILE} or save it again: the loss would be another model's",
            )
    stored = {parameter.dtype for parameter in model.parameters()}
    if precision == "auto":
        precision = "bf16" if torch_device.type == "cuda" and torch.float32 not in stored else "fp32"
    if precision == "fp32" or torch.float16 in stored:
        model = model.to(torch.float32)
    return LoadedModel(model=model.to(torch_device).eval(), precision="bf16" if precision == "bf16" else "fp32")


def _layers_of_run(run_dir: Path) -> tuple[int, ...] | None:
    spec = read_spec(run_dir)
    if spec.growth is None or spec.growth.direction != "depth":
        return None
    return tuple(source_layers(spec.growth.order, spec.growth.num_base_layers, spec.model.num_layers))


def _layers_of_growth(folder: Path) -> tuple[int, ...] | None:
    """The source map that ``growthlaw checkpoint grow`` leaves beside the weights."""
    manifest = read_manifest(folder)
    return tuple(manifest["layers"]) if manifest and manifest.get("layers") else None
