"""Checkpoints of random weights large enough to matter, over the corpus `tiny`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.modeling_utils import PreTrainedModel

VOCAB_SIZE = 512
CONTEXT_LENGTH = 64


def random_llama(*, num_layers: int = 3, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Weights of standard deviation 0.2: each layer and each token changes the loss."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=num_layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT_LENGTH, initializer_range=0.2, bos_token_id=None,
        eos_token_id=None, **changes,
    )  # fmt: skip
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="session")
def save_checkpoint(tiny_corpus: Path) -> Callable[[PreTrainedModel, Path], Path]:
    """A function that writes a model as a transformers folder with the tokenizer of the corpus `tiny`."""

    def save(model: PreTrainedModel, folder: Path) -> Path:
        model.save_pretrained(folder)
        shutil.copyfile(tiny_corpus / "tokenizer.json", folder / "tokenizer.json")
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
        return folder

    return save


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., PreTrainedModel]:
    return random_llama


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: Callable[..., Path]) -> Path:
    return save_checkpoint(random_llama(), tmp_path_factory.mktemp("checkpoints") / "first")


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: Callable[..., Path]) -> Path:
    return save_checkpoint(random_llama(seed=1), tmp_path_factory.mktemp("checkpoints") / "second")
