"""What is loaded is the checkpoint, every tensor in its place, and never its code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.modeling_utils import PreTrainedModel

from app.engine.assess.checkpoint import find_checkpoint, load_checkpoint
from fitting.errors import InputError


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def pickle_instead(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def bring_code(folder: Path) -> None:
    """A model of a type of its own, its code beside it; the code writes a file when it is run."""
    (folder / "modeling_mine.py").write_text(f"open({str(folder / 'it ran')!r}, 'w')\n")
    edit_config(
        folder,
        model_type="mine",
        auto_map={"AutoModelForCausalLM": "modeling_mine.Mine", "AutoConfig": "modeling_mine.C"},
    )


BAD: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / "config.json").unlink(), "has no config.json; give a transformers folder, or a run directory"),
    (lambda f: (f / "config.json").write_text("[]"), "holds no JSON object"),
    (lambda f: (f / "model.safetensors").unlink(), "holds no safetensors weights"),
    (pickle_instead, "pickled weights, and loading a pickle runs code"),
    (bring_code, "cannot be loaded"),
    (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-64]),
        "model.safetensors",
    ),
    (lambda f: edit_weights(f, lambda t: t.pop("model.norm.weight")), "1 missing tensors, such as model.norm.weight"),
    (lambda f: edit_weights(f, lambda t: t.update(extra=torch.zeros(2))), "1 unexpected tensors, such as extra"),
    (lambda f: edit_config(f, num_hidden_layers=2), "9 unexpected tensors, such as model.layers.2"),
    (lambda f: edit_config(f, num_hidden_layers=4), "9 missing tensors, such as model.layers.3"),
    (lambda f: edit_config(f, vocab_size=300), "cannot be loaded|mismatched tensors"),
    (lambda f: (f / "growth.json").write_text('{"layers": [0, 1, 0]}'), "format_version"),
]


@pytest.mark.parametrize(("spoil", "words"), BAD, ids=[words[:24] for _, words in BAD])
def test_what_is_not_the_checkpoint_is_refused(
    checkpoint: Path, tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "spoiled")
    spoil(folder)
    with pytest.raises(InputError, match=words):
        load_checkpoint(find_checkpoint(folder), device="cpu", precision="fp32")
    assert not (folder / "it ran").exists()


def test_a_whole_checkpoint_gives_its_own_logits(make_llama: Callable[..., PreTrainedModel], checkpoint: Path) -> None:
    loaded = load_checkpoint(find_checkpoint(checkpoint), device="cpu", precision="auto")
    assert loaded.precision == "fp32"
    assert not loaded.model.training
    ids = torch.arange(60).view(2, 30)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, make_llama()(ids).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("stored", "precision", "expected"),
    [
        (torch.bfloat16, "auto", torch.float32),  # on the CPU
        (torch.bfloat16, "bf16", torch.bfloat16),
        (torch.float16, "bf16", torch.float32),
        (torch.float32, "bf16", torch.float32),
    ],
)
def test_weights_are_held_as_the_precision_wants(
    make_llama: Callable[..., PreTrainedModel],
    tmp_path: Path,
    stored: torch.dtype,
    precision: str,
    expected: torch.dtype,
) -> None:
    make_llama().to(stored).save_pretrained(tmp_path / "m")
    loaded = load_checkpoint(find_checkpoint(tmp_path / "m"), device="cpu", precision=precision)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {expected}


def test_tied_weights_are_not_missing(make_llama: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    make_llama(tie_word_embeddings=True).save_pretrained(tmp_path / "m")
    assert "lm_head.weight" not in load_file(tmp_path / "m" / "model.safetensors")
    model = load_checkpoint(find_checkpoint(tmp_path / "m"), device="cpu", precision="fp32").model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_run_without_its_export_is_refused(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="is a run without exports/final; wait until it has finished"):
        find_checkpoint(write_run(tmp_path / "run"))
