"""Losses against sums made by hand, and their errors against scipy and the jackknife."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy import stats
from tokenizers import Tokenizer
from transformers.modeling_utils import PreTrainedModel

from app.corpus.evaluation_sets import EvaluationSet, encode_files, open_corpus_split
from app.engine.assess import losses as losses_module
from app.engine.assess.checkpoint import LoadedModel
from app.engine.assess.losses import estimate, summarize, token_losses, window_bytes, window_losses
from app.engine.data import TokenStream, validation_windows
from app.engine.evaluation import evaluate
from fitting.errors import InputError

S = 64
MakeLlama = Callable[..., PreTrainedModel]


@pytest.fixture(scope="module")
def held_out(tiny_corpus: Path) -> EvaluationSet:
    return open_corpus_split("held out", tiny_corpus)


@pytest.fixture(scope="module")
def stream(held_out: EvaluationSet) -> TokenStream:
    return TokenStream(list(held_out.files), held_out.dtype)


def test_the_loss_is_the_trainers_and_the_one_by_hand(make_llama: MakeLlama, stream: TokenStream) -> None:
    model = make_llama()
    windows = validation_windows(num_available=stream.num_windows(S), num_windows=12)
    ours = window_losses(
        LoadedModel(model=model, precision="fp32"), stream, windows, context_length=S, batch_sequences=5
    )
    ids = torch.from_numpy(stream.windows(windows, S))
    assert ours.mean() == pytest.approx(evaluate(model, ids, batch_sequences=4, precision="fp32"), abs=1e-6)
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1]).logits.double().numpy()
    by_hand = np.empty(12)
    for k in range(12):
        probability = np.exp(logits[k] - logits[k].max(axis=1, keepdims=True))
        probability /= probability.sum(axis=1, keepdims=True)
        by_hand[k] = np.mean([-math.log(probability[i, int(ids[k, i + 1])]) for i in range(S)])
    np.testing.assert_allclose(ours, by_hand, atol=2e-6)
    assert ours.std() > 0.01
    assert summarize(ours, context_length=S, num_bytes=None).perplexity == pytest.approx(
        math.exp(by_hand.mean()), rel=1e-6
    )


def test_bits_per_byte_are_a_sum_over_decoded_bytes(
    make_llama: MakeLlama, tmp_path: Path, tiny_corpus: Path, documents: list[str]
) -> None:
    """Of ASCII text every token decodes alone, so its bytes can be counted one by one by the library itself."""
    (tmp_path / "a.txt").write_text("\n\n".join(text for text in documents if text.isascii())[:60_000])
    chosen = encode_files("a", tmp_path / "a.txt", tokenizer_file=tiny_corpus / "tokenizer.json", scratch=tmp_path)
    stream = TokenStream(list(chosen.files), chosen.dtype)
    windows = validation_windows(num_available=stream.num_windows(S), num_windows=20)
    losses = window_losses(LoadedModel(model=make_llama(), precision="fp32"), stream, windows, context_length=S)
    sizes = window_bytes(
        stream, windows, context_length=S, byte_lengths=chosen.byte_lengths, bytes_per_token=chosen.bytes_per_token
    )
    tokenizer = Tokenizer.from_file(str(tiny_corpus / "tokenizer.json"))
    num_bytes = sum(
        len(tokenizer.decode([int(token)], skip_special_tokens=True).encode())
        for window in stream.windows(windows, S)
        for token in window[1:]
    )
    found = summarize(losses, context_length=S, num_bytes=sizes).bits_per_byte
    assert found is not None
    assert found.value == pytest.approx(losses.sum() * S / math.log(2) / num_bytes, rel=1e-12)


def test_bits_per_byte_of_a_whole_split_are_loss_over_bytes_per_token(
    make_llama: MakeLlama, stream: TokenStream, held_out: EvaluationSet
) -> None:
    losses = np.random.default_rng(0).normal(3, 0.1, stream.num_windows(S))
    windows = np.arange(stream.num_windows(S))
    exact = window_bytes(stream, windows, context_length=S, byte_lengths=held_out.byte_lengths, bytes_per_token=None)
    mean = window_bytes(stream, windows, context_length=S, byte_lengths=None, bytes_per_token=held_out.bytes_per_token)
    assert held_out.bytes_per_token is not None
    by_mean = summarize(losses, context_length=S, num_bytes=mean).bits_per_byte
    by_windows = summarize(losses, context_length=S, num_bytes=exact).bits_per_byte
    assert by_mean is not None
    assert by_windows is not None
    assert by_mean.value == pytest.approx(losses.mean() / math.log(2) / held_out.bytes_per_token, rel=1e-12)
    # Windows cover all of the split but its first token and its last few.
    assert by_windows.value == pytest.approx(by_mean.value, rel=1e-3)
    assert window_bytes(stream, windows, context_length=S, byte_lengths=None, bytes_per_token=None) is None
    assert summarize(losses, context_length=S, num_bytes=None).bits_per_byte is None


def test_errors_are_scipys_and_the_jackknifes() -> None:
    rng = np.random.default_rng(3)
    first = rng.normal(3.0, 0.4, 40)
    second = first + rng.normal(-0.05, 0.1, 40)
    num_bytes = rng.integers(150, 350, 40).astype(float)
    loss = estimate(first)
    assert loss.standard_error == pytest.approx(stats.sem(first), rel=1e-12)
    paired = stats.ttest_rel(second, first).confidence_interval(0.95)
    assert estimate(second - first).interval == pytest.approx((paired.low, paired.high), rel=1e-9)
    found = summarize(first, context_length=S, num_bytes=num_bytes).bits_per_byte
    bits = first * S / math.log(2)
    left_out = np.array([np.delete(bits, k).sum() / np.delete(num_bytes, k).sum() for k in range(40)])
    jackknife = math.sqrt(39 / 40 * ((left_out - left_out.mean()) ** 2).sum())
    assert found is not None
    assert found.value == pytest.approx(bits.sum() / num_bytes.sum(), rel=1e-12)
    assert found.standard_error == pytest.approx(jackknife, rel=0.03)
    assert estimate(first[:1]).standard_error is None


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen3": {"head_dim": 8}, "granite": {"logits_scaling": 7.0}, "mixtral": {"num_local_experts": 3},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 2.0}, "gemma3_text": {"head_dim": 8}, "olmo2": {},
    "gpt_neox": {}, "phi3": {"pad_token_id": 0}, "starcoder2": {}, "cohere": {"logit_scale": 0.3},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}  # fmt: skip


def model_of_family(family: str, **changes: Any) -> PreTrainedModel:
    shape = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    own = FAMILIES[family]
    values = {"vocab_size": 512, "initializer_range": 0.3} | (own if family == "gpt2" else shape | own) | changes
    config = transformers.AutoConfig.for_model(family, **values)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_head_on_slices_gives_the_same_losses(
    family: str, stream: TokenStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = LoadedModel(model=model_of_family(family), precision="fp32")
    ids = torch.from_numpy(stream.windows(np.arange(3), 48))
    whole = token_losses(loaded, ids)
    layers = getattr(loaded.model, loaded.model.base_model_prefix)
    monkeypatch.setattr(losses_module, "MAX_LOGITS", 3 * 512 * 7)  # seven targets at a time, the last time six
    sliced = token_losses(loaded, ids)
    assert sliced.shape == (3, 48)
    torch.testing.assert_close(sliced, whole, atol=1e-5, rtol=1e-5)
    assert getattr(loaded.model, loaded.model.base_model_prefix) is layers


def test_bf16_is_the_trainers_autocast(make_llama: MakeLlama, stream: TokenStream) -> None:
    model = make_llama()
    windows = np.arange(4)
    ids = torch.from_numpy(stream.windows(windows, S))
    ours = window_losses(LoadedModel(model=model, precision="bf16"), stream, windows, context_length=S)
    assert ours.mean() == pytest.approx(evaluate(model, ids, batch_sequences=4, precision="bf16"), abs=1e-6)
    exact = window_losses(LoadedModel(model=model, precision="fp32"), stream, windows, context_length=S)
    assert 0 < abs(ours - exact).max() < 0.1


def test_what_cannot_be_evaluated_is_refused(make_llama: MakeLlama, stream: TokenStream) -> None:
    small = LoadedModel(model=model_of_family("llama", vocab_size=100), precision="fp32")
    with pytest.raises(InputError, match="vocabulary of 100, but the set holds id"):
        window_losses(small, stream, np.arange(4), context_length=S)
    broken = make_llama()
    with torch.no_grad():
        broken.get_output_embeddings().weight[7] = math.nan
    with pytest.raises(InputError, match="is no number on 4 of 4 windows"):
        window_losses(LoadedModel(model=broken, precision="fp32"), stream, np.arange(4), context_length=S)
