"""Exports: transformers folders that ``AutoModelForCausalLM.from_pretrained`` loads as they are.

`exports/base` is the base as it was grown, `exports/final` the run's last weights; config and fp32 safetensors,
with the corpus's tokenizer beside them where it has one. Written beside and renamed, like everything else.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Literal

from transformers.modeling_utils import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from app.contract import EXPORTS_DIR
from app.records import fsync_dir

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"


def export_model(
    model: PreTrainedModel, run_dir: Path, name: Literal["base", "final"], *, corpus_directory: Path
) -> Path:
    """Write `exports/NAME` unless an earlier life of the run did; returns the folder.

    Raises:
        OSError, safetensors.SafetensorError: it could not be written; nothing half-written is left.
    """
    final = run_dir / EXPORTS_DIR / name
    if final.exists():
        return final
    final.parent.mkdir(exist_ok=True)
    beside = final.with_name(f".{name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        disable_progress_bar()
        model.save_pretrained(beside)
        _copy_tokenizer(corpus_directory, beside, context_length=model.config.max_position_embeddings)
        mode = (beside / "config.json").stat().st_mode
        for path in beside.iterdir():
            path.chmod(mode)  # safetensors makes files for their owner alone; the service may be another user
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        os.replace(beside, final)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    fsync_dir(final.parent)
    return final


def _copy_tokenizer(corpus_directory: Path, folder: Path, *, context_length: int) -> None:
    if not (corpus_directory / TOKENIZER_FILE).exists():
        return
    shutil.copyfile(corpus_directory / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    if (corpus_directory / TOKENIZER_CONFIG_FILE).exists():
        shutil.copyfile(corpus_directory / TOKENIZER_CONFIG_FILE, folder / TOKENIZER_CONFIG_FILE)
        return
    # The class that reads any tokenizer.json; without this file AutoTokenizer guesses by the model's family.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context_length}
    (folder / TOKENIZER_CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
