"""One interface, the same numbers: a live model and a checkpoint grow to the same bits, in every operator and direction."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny_models import TINY_FAMILIES, random_model, save_tiny_model, tiny_config
from transformers import AutoModelForCausalLM, PreTrainedModel

from app.engine.growth import grow_model
from app.engine.operators.base import Growth
from app.engine.operators.learn import learn_on_corpus
from app.engine.operators.tensors import grow_tensors
from app.engine.surgery.folder import read_folder
from app.engine.surgery.grow import grow, prepare
from app.engine.surgery.plan import Request
from app.engine.surgery.rewrite import DTYPES
from app.engine.surgery.verify import verify
from fitting.errors import InputError
from fitting.orders import source_layers

STACK = (0, 1) * 2
ANY_FAMILY = {
    "direct": Growth(layers=STACK),
    "direct-noise": Growth(layers=STACK, noise=0.2, seed=5),
    "zero": Growth(operator="zero", layers=(0, 0, 1, 1)),
    "zero-noise": Growth(operator="zero", layers=STACK, noise=0.3),
}
LLAMA_ALONE = {
    "random": Growth(operator="random", layers=STACK, seed=2, mask=0.25),
    "learn-start": Growth(operator="learn", layers=STACK),
    "width": Growth(width_factor=2),
    "width-noise": Growth(width_factor=2, noise=0.2),
    "width-zero": Growth(operator="zero", width_factor=3, seed=4),
    "width-random": Growth(operator="random", width_factor=2, mask=0.25),
    "width-learn-start": Growth(operator="learn", width_factor=2),
}
# Copies are the byte copy's matter; what is computed is checked where families differ.
PAIRS = [(family, name) for family in TINY_FAMILIES for name in ("direct-noise", "zero")] + [
    ("mixtral", "zero-noise"),
    *((family, name) for family in ("llama", "qwen3") for name in LLAMA_ALONE if "learn" not in name),
]


def write(source: Path, target: Path, growth: Growth, **options: Any) -> PreTrainedModel:
    """Grow a stored checkpoint as the command does, and load the result."""
    request = Request(
        source=source,
        target=target,
        order="stack" if growth.layers is None else f"list:{','.join(map(str, growth.layers))}",
        operator=growth.operator,
        noise=growth.noise,
        seed=growth.seed,
        mask=growth.mask,
        width_factor=growth.width_factor,
        **options,
    )
    grow(prepare(request))
    model, loading = AutoModelForCausalLM.from_pretrained(
        target, output_loading_info=True, attn_implementation="eager", dtype="auto"
    )
    assert not any(loading.values()), loading
    return model.eval()


def assert_equal(stored: PreTrainedModel, live: PreTrainedModel) -> None:
    expected = dict(live.named_parameters())
    found = dict(stored.named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in expected.items():
        assert found[name].dtype == parameter.dtype, name
        assert torch.equal(found[name], parameter), name
    tokens = torch.randint(0, 40, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(*(model(input_ids=tokens, use_cache=False).logits for model in (stored, live)))


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_a_checkpoint_grows_to_the_bits_of_the_live_model(family: str, name: str, tmp_path: Path) -> None:
    growth = (ANY_FAMILY | LLAMA_ALONE)[name]
    biases = bool(TINY_FAMILIES[family].biases)
    source = save_tiny_model(tmp_path / "base", family, num_layers=2, biases=biases)
    stored = write(source, tmp_path / "grown", growth)
    live = grow_model(random_model(tiny_config(family, num_layers=2, biases=biases)), growth)
    assert_equal(stored, live)


@pytest.mark.parametrize("name", ["direct-noise", "zero", "width", "width-random"])
def test_so_it_does_in_bf16_tied_and_in_shards(name: str, tmp_path: Path) -> None:
    growth = (ANY_FAMILY | LLAMA_ALONE)[name]
    source = save_tiny_model(
        tmp_path / "base", "qwen3", num_layers=2, tied=True, dtype=torch.bfloat16, max_shard_size="8KB"
    )
    assert len(list(source.glob("*.safetensors"))) > 1
    stored = write(source, tmp_path / "grown", growth, max_shard_bytes=10_000)
    assert len(list((tmp_path / "grown").glob("*.safetensors"))) > 1
    base = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager", dtype="auto").eval()
    live = grow_model(base, growth)
    assert live.dtype == torch.bfloat16
    assert_equal(stored, live)


@pytest.mark.parametrize("name", LLAMA_ALONE)
def test_the_tensors_of_both_are_the_same_generator(name: str) -> None:
    growth, base = LLAMA_ALONE[name], random_model(tiny_config("qwen3", num_layers=2, tied=False, biases=True))
    live = grow_model(base, growth).state_dict()
    read: list[str] = []

    def reading(name: str) -> torch.Tensor:
        read.append(name)
        return base.state_dict()[name]

    made = grow_tensors(growth, base.config.to_dict(), reading, live)
    next(made)
    assert len(read) == 1, "a tensor is read when it is asked for"
    for target, tensor in grow_tensors(growth, base.config.to_dict(), reading, live):
        assert torch.equal(tensor, live[target]), target


@pytest.mark.parametrize("name", ["direct", "direct-noise", "width"])
def test_a_cast_rounds_once(name: str, tmp_path: Path) -> None:
    growth = (ANY_FAMILY | LLAMA_ALONE)[name]
    source = save_tiny_model(tmp_path / "base", "llama", num_layers=2)
    live = grow_model(random_model(tiny_config("llama", num_layers=2)), growth)
    for option, (stored_type, config_type) in DTYPES.items():
        stored = write(source, tmp_path / option, growth, dtype=option)
        assert json.loads((tmp_path / option / "config.json").read_text())["dtype"] == config_type
        assert {tensor.dtype for tensor in read_folder(tmp_path / option).tensors.values()} == {stored_type}
        dtype = getattr(torch, config_type)
        for parameter_name, parameter in live.named_parameters():
            assert torch.equal(stored.get_parameter(parameter_name), parameter.to(dtype)), parameter_name


def test_a_copied_tensor_is_not_rewritten_and_a_new_one_is_hashed(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "base", "llama", num_layers=2)
    write(source, tmp_path / "grown", Growth(operator="zero", layers=STACK))
    manifest = json.loads((tmp_path / "grown/growth.json").read_text())
    hashes = manifest["tensor_sha256"]
    assert (
        set(hashes)
        == set(manifest["new_tensors"])
        == {f"model.layers.{i}.{name}.weight" for i in (2, 3) for name in ("self_attn.o_proj", "mlp.down_proj")}
    )
    verdict = verify(tmp_path / "grown", source)
    assert not verdict.problems
    with safe_open(tmp_path / "grown/model.safetensors", "np") as file:
        for name, digest in hashes.items():
            assert hashlib.sha256(file.get_tensor(name).tobytes()).hexdigest() == digest


def test_the_record_says_what_was_done_and_the_seed_gives_the_open_weights_back(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "base", "llama", num_layers=2)
    silent = write(source, tmp_path / "silent", Growth(operator="random", layers=STACK, seed=2, mask=0.0))
    manifest = json.loads((tmp_path / "silent/growth.json").read_text())
    assert (manifest["operator"], manifest["seed"]) == ("random", 2)
    assert manifest["details"] == {"mask": 0.0, "mask_is_folded": True}
    opened = write(source, tmp_path / "open", Growth(operator="random", layers=STACK, seed=2))
    for name, parameter in silent.named_parameters():
        is_output = any(f"layers.{i}." in name for i in (2, 3)) and ("o_proj" in name or "down_proj" in name)
        assert torch.equal(parameter, opened.get_parameter(name)) != is_output, name


@pytest.mark.parametrize("tied", [False, True])
def test_the_byte_copy_is_the_live_growth(tied: bool, tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "base", "llama", num_layers=3, tied=tied)
    for order in ("stack", "interpose", "middle:1:1"):
        request = Request(source=source, target=tmp_path / order.replace(":", "-"), num_layers=7, order=order)
        assert request.is_byte_copy
        grow(prepare(request))
        stored = AutoModelForCausalLM.from_pretrained(request.target, attn_implementation="eager").eval()
        base = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager").eval()
        assert_equal(stored, grow_model(base, Growth(layers=source_layers(order, 3, 7))))


@pytest.mark.parametrize("width_factor", [1, 2])
def test_learn_on_a_checkpoint_is_learn_on_the_live_model(width_factor: int, corpus_dir: Path, tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "base", "llama", num_layers=2, vocab_size=512, dtype=torch.bfloat16)
    layers = STACK if width_factor == 1 else None
    growth = Growth(operator="learn", layers=layers, width_factor=width_factor, seed=3)
    stored = write(source, tmp_path / "grown", growth, corpus=corpus_dir, learn_steps=2)
    manifest = json.loads((tmp_path / "grown/growth.json").read_text())
    assert manifest["details"] == {"learn_steps": 2, "batch_sequences": 8, "context_length": 32}
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    live = learn_on_corpus(base, growth, corpus_dir, 2, batch_sequences=8, context_length=32, data_seed=3)
    for name, parameter in live.named_parameters():
        assert torch.equal(stored.get_parameter(name), parameter.to(torch.bfloat16)), name


def _quantized(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] = tensors["model.layers.1.mlp.down_proj.weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("family", "change", "growth", "options", "message"),
    [
        ("llama", None, Growth(layers=STACK), {"dtype": "fp8"}, "--dtype is 'fp8', but known are fp32"),
        ("llama", None, Growth(operator="learn", layers=STACK), {}, "corpus.* operator 'learn'"),
        ("llama", None, Growth(layers=STACK, noise=0.1), {"corpus": Path("text")}, "corpus.* operator 'learn'"),
        ("llama", _quantized, Growth(layers=STACK, noise=0.2), {}, "is stored as I8, which this operator does not"),
        ("gemma2", None, Growth(width_factor=2), {}, "'direct' in width is not defined for 'gemma2'"),
        ("gpt2", None, Growth(operator="random", layers=STACK), {}, "'random' in depth is not defined for 'gpt2'"),
    ],
)
def test_what_cannot_be_written_is_refused_before_it_starts(
    family: str,
    change: Callable[[Path], None] | None,
    growth: Growth,
    options: dict[str, Any],
    message: str,
    tmp_path: Path,
) -> None:
    source = save_tiny_model(tmp_path / "base", family, num_layers=2)
    if change is not None:
        change(source)
    with pytest.raises(InputError, match=message):
        write(source, tmp_path / "grown", growth, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]
