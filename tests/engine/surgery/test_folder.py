"""Reading checkpoint folders: what is whole is read as the safetensors library reads it, what is not is refused by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_checkpoints import shard_bytes, write_llama
from safetensors import safe_open

from app.engine.surgery.folder import MAX_HEADER_BYTES, read_folder, read_shard
from app.engine.surgery.grow import prepare
from app.engine.surgery.plan import Request
from fitting.errors import InputError

INDEX = "model.safetensors.index.json"
FIRST = "model-00001-of-00002.safetensors"


@pytest.mark.parametrize("num_shards", [1, 3])
def test_tensors_are_those_the_library_finds(tmp_path: Path, num_shards: int) -> None:
    source = write_llama(tmp_path / "base", num_shards)
    folder = read_folder(source)
    assert folder.config["num_hidden_layers"] == 3
    names = set()
    for shard in folder.shards.values():
        assert shard.num_bytes == (source / shard.name).stat().st_size
        with safe_open(source / shard.name, framework="np") as file:
            assert file.metadata() == shard.metadata
            for name in file.keys():  # noqa: SIM118  (the library's handle is no dict)
                tensor = folder.tensors[name]
                stored = (source / tensor.file).read_bytes()[tensor.begin : tensor.end]
                values = np.frombuffer(stored, dtype="<f4").reshape(tensor.shape)
                np.testing.assert_array_equal(values, file.get_tensor(name))
                names.add(name)
    assert names == set(folder.tensors)


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    blobs = write_llama(tmp_path / "blobs", 2)
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        os.symlink(os.path.relpath(path, snapshot), snapshot / path.name)
    assert read_folder(snapshot).tensors == read_folder(blobs).tensors


Damage = Callable[[Path], Any]


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def remap(file: str) -> Damage:
    return lambda base: edit_json(base / INDEX, lambda index: index["weight_map"].update({"lm_head.weight": file}))


def swap_header(entry: dict[str, Any]) -> Damage:
    """One tensor of 16 floats whose header says something else."""

    def damage(base: Path) -> None:
        (base / INDEX).unlink()
        data = shard_bytes({"a": [4], "b": [12]}, np.random.default_rng(0), b=entry)
        (base / "model.safetensors").write_bytes(data)

    return damage


def cut(num_bytes: int) -> Damage:
    return lambda base: os.truncate(base / FIRST, (base / FIRST).stat().st_size + num_bytes)


def begin_with(data: bytes) -> Damage:
    return lambda base: (base / FIRST).write_bytes(data)


def only_pickle(base: Path) -> None:
    for path in base.glob("model*"):
        path.unlink()
    (base / "pytorch_model.bin").write_bytes(b"\x80\x02")


def f32(shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


REFUSED: dict[str, tuple[Damage, str]] = {
    "a truncated shard": (cut(-1), "is truncated"),
    "a shard that is too long": (cut(1), "is too long"),
    "an empty shard": (begin_with(b""), "is truncated"),
    "a header longer than the file": (begin_with((500).to_bytes(8, "little") + b"{}"), "is truncated"),
    "a header over the limit": (begin_with((MAX_HEADER_BYTES + 1).to_bytes(8, "little")), "above the limit"),
    "a header that is no JSON": (begin_with((2).to_bytes(8, "little") + b"{,"), "not JSON"),
    "a header with a name twice": (begin_with((14).to_bytes(8, "little") + b'{"a":1,"a":2} '), "occurs twice"),
    "a header that is a list": (begin_with((2).to_bytes(8, "little") + b"[]"), "no JSON object"),
    "offsets that overlap": (swap_header(f32([12], 12, 60)), "b overlaps the tensor before it"),
    "offsets that leave a hole": (swap_header(f32([12], 20, 68)), "b leaves unclaimed bytes"),
    "offsets out of the file": (swap_header(f32([13], 16, 68)), "is truncated"),
    "offsets that go backwards": (swap_header(f32([12], 64, 16)), "its offsets give -48"),
    "a negative offset": (swap_header(f32([12], -48, 0)), "not lists of counts"),
    "a size that does not fit the shape": (swap_header(f32([11], 16, 64)), "needs 44 bytes"),
    "an unknown dtype": (swap_header({"dtype": "F33", "shape": [12], "data_offsets": [16, 64]}), "dtype 'F33'"),
    "a shape that is no list": (swap_header({"dtype": "F32", "shape": 12, "data_offsets": [16, 64]}), "not lists"),
    "an index with a missing file": (remap("model-00009-of-00002.safetensors"), "which is missing"),
    "an index out of the folder": (remap("../other.safetensors"), "leads out of the folder"),
    "an index with an absolute path": (remap("/etc/passwd"), "leads out of the folder"),
    "an index that names a pickle": (remap("pytorch_model.bin"), "no safetensors file"),
    "an index with a tensor too many": (
        lambda base: edit_json(base / INDEX, lambda index: index["weight_map"].update({"x.weight": FIRST})),
        "but it is not there",
    ),
    "an index with a tensor too few": (
        lambda base: edit_json(base / INDEX, lambda index: index["weight_map"].pop("lm_head.weight")),
        "misses lm_head.weight",
    ),
    "an index that puts a tensor elsewhere": (
        lambda base: edit_json(
            base / INDEX,
            lambda index: index["weight_map"].update({"lm_head.weight": FIRST, "model.embed_tokens.weight": FIRST,
                                                      "model.norm.weight": FIRST}),
        ),
        "but it is in model-00002",
    ),
    "an index without a map": (lambda base: (base / INDEX).write_text("{}"), "names no files"),
    "pickled weights alone": (only_pickle, "loading a pickle runs code"),
    "no weights": (lambda base: [path.unlink() for path in base.glob("model*")], "no safetensors weights"),
    "an adapter": (lambda base: (base / "adapter_config.json").write_text("{}"), "merge it into its base"),
    "no config": (lambda base: (base / "config.json").unlink(), "config.json is missing"),
    "a broken config": (lambda base: (base / "config.json").write_text("{"), "config.json is not JSON"),
    "a config of another depth": (
        lambda base: edit_json(base / "config.json", lambda config: config.update(num_hidden_layers=4)),
        "is 4, but the weights hold 3 layers",
    ),
    "an untied model without a head": (
        lambda base: (
            [path.unlink() for path in base.glob("model*")],
            (base / "model.safetensors").write_bytes(
                shard_bytes(
                    {f"model.layers.{i}.input_layernorm.weight": [16] for i in range(3)}, np.random.default_rng(0)
                )
            ),
        ),
        "lm_head.weight is not among the weights",
    ),
    "weights quantized by columns": (
        lambda base: edit_json(
            base / "config.json", lambda config: config.update(quantization_config={"quant_method": "gptq"})
        ),
        "dequantize",
    ),
    "an unknown architecture": (
        lambda base: edit_json(base / "config.json", lambda config: config.update(model_type="mamba")),
        "'mamba'",
    ),
    "adapter weights inside the layers": (
        lambda base: (
            (base / INDEX).unlink(),
            (base / "model.safetensors").write_bytes(
                shard_bytes({"model.layers.0.self_attn.q_proj.lora_A.weight": [2]}, np.random.default_rng(0))
            ),
        ),
        "adapters merged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_is_refused_with_the_reason_and_nothing_written(tmp_path: Path, what: str) -> None:
    damage, words = REFUSED[what]
    source = write_llama(tmp_path / "base", 2)
    damage(source)
    with pytest.raises(InputError) as refused:
        prepare(Request(source=source, target=tmp_path / "grown", factor=2))
    assert words in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_a_scalar_and_an_empty_tensor_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(shard_bytes({"scalar": [], "empty": [0, 4]}, np.random.default_rng(0)))
    shapes = {tensor.name: (tensor.shape, tensor.num_bytes) for tensor in read_shard(path)[1]}
    assert shapes == {"scalar": ((), 4), "empty": ((0, 4), 0)}
