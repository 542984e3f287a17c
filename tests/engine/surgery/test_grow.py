"""Grown folders: every tensor its source's, loaded by transformers and safetensors with nothing missing; and the refusals."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from raw_checkpoints import contents, write_llama
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from app.engine.surgery import plan as planning
from app.engine.surgery.folder import read_folder
from app.engine.surgery.grow import grow, prepare
from app.engine.surgery.layout import TargetTensor, index_of, lay_out
from app.engine.surgery.manifest import growth_history
from app.engine.surgery.plan import Request
from app.engine.surgery.show import describe
from app.engine.surgery.verify import bytes_to_read, verify
from fitting.errors import InputError
from fitting.flops import Shape, flops_per_token, non_embedding_params


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "base", 2)


def grown(base: Path, **options: Any) -> Path:
    return grow(prepare(Request(source=base, target=base.with_name("grown"), **({"factor": 2} | options))))


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """All tensors as the safetensors library reads them."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


@pytest.mark.parametrize("max_shard_bytes", [5e9, 9000, 1])
@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({"factor": 2}, (0, 1, 2, 0, 1, 2)),
        ({"num_layers": 7, "factor": None}, (0, 1, 2, 0, 1, 2, 2)),
        ({"order": "interpose"}, (0, 0, 1, 1, 2, 2)),
        ({"order": "list:2,0,1,1", "factor": None}, (2, 0, 1, 1)),
        ({"order": "1-2*3-3", "factor": None}, (0, 1, 1, 1, 2)),
        ({"order": "solar:1", "factor": None}, (0, 1, 1, 2)),
    ],
)
def test_layers_are_their_sources(
    base: Path, options: dict[str, Any], layers: tuple[int, ...], max_shard_bytes: float
) -> None:
    before = contents(base)
    target = grown(base, max_shard_bytes=int(max_shard_bytes), **options)
    model, info = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.num_hidden_layers == len(layers)
    state, source = model.state_dict(), arrays(base)
    assert len(state) == 3 + 9 * len(layers)
    for name, value in state.items():
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(layers[int(parts[2])])
        np.testing.assert_array_equal(value.numpy(), source[".".join(parts)])
    assert contents(base) == before
    assert verify(target, base).is_good
    assert {"tokenizer_config.json", "generation_config.json"} <= contents(target).keys()


def test_files_are_bounded_aligned_and_indexed_as_transformers_does(base: Path) -> None:
    target = grown(base, max_shard_bytes=9000)
    shards = sorted(target.glob("*.safetensors"))
    num = len(shards)
    assert num > 2
    assert [path.name for path in shards] == [f"model-{i + 1:05d}-of-{num:05d}.safetensors" for i in range(num)]
    index = json.loads((target / "model.safetensors.index.json").read_text())
    total = 0
    for path in shards:
        data = path.read_bytes()
        num_header_bytes = int.from_bytes(data[:8], "little")
        assert (8 + num_header_bytes) % 8 == 0
        header = json.loads(data[8 : 8 + num_header_bytes])
        assert header.pop("__metadata__") == {"format": "pt"}
        assert all(index["weight_map"][name] == path.name for name in header)
        assert len(data) - 8 - num_header_bytes <= 9000
        total += len(data) - 8 - num_header_bytes
    assert index["metadata"]["total_size"] == total
    # transformers' own writer agrees on both totals.
    model = AutoModelForCausalLM.from_pretrained(target)
    model.save_pretrained(target.with_name("again"), max_shard_size="9KB")
    again = json.loads((target.with_name("again") / "model.safetensors.index.json").read_text())
    assert index["metadata"] == again["metadata"]
    assert index["weight_map"].keys() == again["weight_map"].keys()


def test_wider_types_come_first_so_that_all_are_aligned() -> None:
    tensors = [
        TargetTensor(name=name, dtype=dtype, shape=(3,), source=name)
        for name, dtype in (("a", "U8"), ("b", "F32"), ("c", "BF16"), ("d", "I64"))
    ]
    (shard,) = lay_out(tensors)
    assert [tensor.name for tensor in shard.tensors] == ["d", "b", "c", "a"]
    assert index_of([shard])["metadata"] == {"total_parameters": 12, "total_size": 45}


@pytest.mark.parametrize("stored_twice", [False, True])
def test_tied_stays_tied(tiny_model_folder: Any, stored_twice: bool) -> None:
    base = tiny_model_folder("llama", tied=True)
    if stored_twice:  # as some programs save it
        tensors = {name: torch.from_numpy(value) for name, value in arrays(base).items()}
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, base / "model.safetensors", {"format": "pt"})
    assert ("lm_head.weight" in arrays(base)) == stored_twice
    target = grown(base)
    assert ("lm_head.weight" in arrays(target)) == stored_twice
    model, info = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    assert not any(info.values()), info
    assert model.lm_head.weight is model.model.embed_tokens.weight
    facts = describe(target)
    assert facts["is_tied"]
    assert facts["total_params"] == sum(parameter.numel() for parameter in model.parameters())


def test_growth_json_tells_the_growth_and_the_history(base: Path) -> None:
    target = grown(base, base_tokens=1000)
    manifest = json.loads((target / "growth.json").read_text())
    assert manifest["operator"] == "direct"
    assert manifest["layers"] == [0, 1, 2, 0, 1, 2]
    assert manifest["connection_rate"] == 0.8
    assert manifest["growth_factor"] == 2
    assert manifest["base_tokens"] == 1000
    assert manifest["source"]["name"] == "base"
    assert manifest["source"]["config_sha256"] == hashlib.sha256((base / "config.json").read_bytes()).hexdigest()
    assert manifest["tensor_sha256"] == {}
    assert str(base.parent) not in (target / "growth.json").read_text()
    for name, facts in manifest["files"].items():
        assert facts["num_bytes"] == (target / name).stat().st_size
    again = grow(prepare(Request(source=target, target=base.with_name("again"), num_layers=9, order="interpose")))
    history = growth_history(again)
    assert [(entry["num_base_layers"], entry["num_target_layers"]) for entry in history] == [(3, 6), (6, 9)]
    assert describe(again)["growth_history"] == history
    assert "files" not in history[0]


def test_two_growths_give_the_same_bytes(base: Path) -> None:
    one = grow(prepare(Request(source=base, target=base.with_name("one"), factor=2)))
    two = grow(prepare(Request(source=base, target=base.with_name("two"), factor=2)))
    assert contents(one) == contents(two)


def test_checksums_are_the_tensors_own(base: Path) -> None:
    target = grown(base, checksums=True)
    hashes = json.loads((target / "growth.json").read_text())["tensor_sha256"]
    expected = {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in arrays(target).items()}
    assert hashes == expected
    read: Counter[str] = Counter()
    assert verify(target, base, lambda count: read.update(bytes=count)).is_good
    assert read["bytes"] == bytes_to_read(target, with_source=True)


def test_code_is_not_copied_and_that_is_told(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base", auto_map={"AutoModelForCausalLM": "modeling.Mine"})
    (base / "modeling.py").write_text("raise SystemExit")
    (base / "tokenizer_code.py").write_text("raise SystemExit")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool.jinja").write_text("{{ x }}")
    growing = prepare(Request(source=base, target=tmp_path / "grown", factor=2))
    assert any("auto_map" in warning for warning in growing.plan.warnings)
    grow(growing)
    assert "auto_map" not in json.loads((tmp_path / "grown" / "config.json").read_text())
    assert set(contents(tmp_path / "grown")) == {
        "model.safetensors", "config.json", "growth.json", "generation_config.json", "tokenizer_config.json",
        "additional_chat_templates/tool.jinja",
    }  # fmt: skip


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "checksums", "with_source", "words"),
    [
        (lambda target: flip(target / "model.safetensors", -1), True, False, "SHA-256 differs"),
        (lambda target: flip(target / "model.safetensors", -1), False, True, "of the base"),
        (lambda target: flip(target / "model.safetensors", 40), False, False, "header"),
        (lambda target: flip(target / "config.json", 5), False, False, "config.json: its content"),
        (lambda target: (target / "tokenizer_config.json").unlink(), False, False, "tokenizer_config.json is missing"),
        (lambda target: os.truncate(target / "model.safetensors", 9000), False, False, "bytes, growth.json says"),
    ],
)
def test_verify_finds_what_was_changed(base: Path, damage: Any, checksums: bool, with_source: bool, words: str) -> None:
    target = grown(base, checksums=checksums)
    damage(target)
    verdict = verify(target, base if with_source else None)
    assert not verdict.is_good
    assert any(words in problem for problem in verdict.problems)


def test_verify_knows_another_base(base: Path) -> None:
    target = grown(base)
    other = write_llama(base.with_name("other"), max_position_embeddings=64)
    assert "is not the base that was grown" in verify(target, other).problems[0]
    with pytest.raises(InputError, match=r"growth\.json is missing"):
        verify(base)


REFUSED = {
    "an existing target": ({"target": "taken"}, "exists already"),
    "a missing parent": ({"target": "no/where"}, "is no folder"),
    "a target in the source": ({"target": "base/grown"}, "lies in the source"),
    "no depth": ({"factor": None}, "fits any depth"),
    "factor and layers": ({"num_layers": 6}, "say the same thing"),
    "a factor of one": ({"factor": 1.0}, "above 1"),
    "no factor at all": ({"factor": math.nan}, "above 1"),
    "fewer layers": ({"factor": None, "num_layers": 2}, "has 3 already"),
    "an unknown order": ({"order": "up"}, "known orders are"),
    "an order of another length": ({"order": "list:0,1,2,2,2"}, "makes 5 layers"),
    "depth and width": ({"width_factor": 2}, "one after the other"),
    "no width": ({"width_factor": 0}, "--width"),
    "negative tokens": ({"base_tokens": -1}, "--base-tokens"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_is_refused_before_the_first_byte(base: Path, what: str) -> None:
    (base.parent / "taken").mkdir()
    options, words = REFUSED[what]
    options = {"factor": 2} | options
    target = base.parent / str(options.pop("target", "grown"))
    with pytest.raises(InputError) as refused:
        prepare(Request(source=base, target=target, **options))
    assert words in str(refused.value)
    assert sorted(path.name for path in base.parent.iterdir()) == ["base", "taken"]


def test_a_full_disk_is_told_before(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = planning.DISK_MARGIN_BYTES

    monkeypatch.setattr(planning.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(InputError, match="are free"):
        prepare(Request(source=base, target=base.with_name("grown"), factor=2))


def test_quantized_layers_are_copied_whole(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    assert prepare(Request(source=base, target=base.with_name("grown"), factor=2)).plan.request.is_byte_copy
    with pytest.raises(InputError, match="only direct growth in depth"):
        prepare(Request(source=base, target=base.with_name("grown"), factor=2, noise=0.2))


def test_multipliers_are_kept_or_rescaled_and_told(tiny_model_folder: Any, tmp_path: Path) -> None:
    base = tiny_model_folder("granite", num_layers=2)
    kept = prepare(Request(source=base, target=tmp_path / "grown", factor=4)).plan
    assert kept.multipliers() == {"residual_multiplier": "kept at 0.4"}
    rescaled = prepare(Request(source=base, target=tmp_path / "grown", factor=4, rescale_multipliers=True)).plan
    assert rescaled.multipliers() == {"residual_multiplier": "0.4 -> 0.2"}
    assert rescaled.config["residual_multiplier"] == pytest.approx(0.2)
    assert rescaled.config_changes()["num_hidden_layers"] == (2, 8)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox", "mixtral", "gpt_oss"])
def test_show_counts_what_the_live_model_has(tiny_model_folder: Any, family: str) -> None:
    folder = tiny_model_folder(family)
    model = AutoModelForCausalLM.from_pretrained(folder)
    facts = describe(folder)
    assert facts["total_params"] == sum(parameter.numel() for parameter in model.parameters())
    outside = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    if family == "gpt2":
        outside.add(id(model.transformer.wpe.weight))
    assert facts["non_embedding_params"] == sum(p.numel() for p in model.parameters() if id(p) not in outside)
    assert facts["num_bytes"] == sum(tensor.num_bytes for tensor in read_folder(folder).tensors.values())


def test_flops_are_the_accountings_own(base: Path) -> None:
    shape = Shape(
        num_layers=3,
        hidden_size=16,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=24,
        vocab_size=40,
        context_length=32,
    )
    facts = describe(base)
    assert facts["flops_per_token"] == flops_per_token(shape)
    assert facts["non_embedding_params"] == non_embedding_params(shape)


@pytest.mark.parametrize(("family", "share"), [("gpt2", 1.0), ("mixtral", 0.5)])
def test_flops_of_other_layers_are_six_a_weight_used(tiny_model_folder: Any, family: str, share: float) -> None:
    """Counted from the live model's modules: linear layers whole, of experts the share that a token is sent to."""
    folder = tiny_model_folder(family)
    model = AutoModelForCausalLM.from_pretrained(folder)
    layers = model.transformer.h if family == "gpt2" else model.model.layers
    matmul = 0.0
    for name, parameter in layers.named_parameters():
        if parameter.ndim >= 2:
            matmul += parameter.numel() * (share if "experts" in name else 1.0)
    vocab, hidden = model.get_input_embeddings().weight.shape
    expected = 6 * (matmul + vocab * hidden) + 12 * len(layers) * 16 * 32
    assert describe(folder)["flops_per_token"] == pytest.approx(expected, rel=1e-12)


def test_bf16_weights_keep_their_bits(tiny_model_folder: Any, tmp_path: Path) -> None:
    base = tiny_model_folder("llama", dtype=torch.bfloat16)
    target = grow(prepare(Request(source=base, target=tmp_path / "grown", factor=3)))
    one, two = (AutoModelForCausalLM.from_pretrained(folder, dtype="auto") for folder in (base, target))
    assert two.dtype == torch.bfloat16
    assert torch.equal(one.model.layers[3].mlp.up_proj.weight, two.model.layers[11].mlp.up_proj.weight)
