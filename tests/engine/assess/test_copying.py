"""The copying gain against a model that looks up what it saw, and against losses taken one token at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.modeling_utils import PreTrainedModel

from app.corpus.evaluation_sets import open_corpus_split
from app.engine.assess.checkpoint import LoadedModel
from app.engine.assess.copying import copying
from app.engine.data import TokenStream
from fitting.errors import InputError

VOCAB_SIZE = 512
CONFIDENCE = 5.0


class LooksUp(torch.nn.Module):
    """An induction head and nothing else: favours what followed the last occurrence of the token it stands on."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCAB_SIZE, 1)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        logits = torch.zeros(*input_ids.shape, VOCAB_SIZE)
        for row, ids in enumerate(input_ids.tolist()):
            for at, token in enumerate(ids):
                before = [place for place in range(at) if ids[place] == token]
                if before:
                    logits[row, at, ids[before[-1] + 1]] = CONFIDENCE
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("context_length", [64, 33, 4])
def test_a_model_that_looks_up_gains_what_its_confidence_is_worth(tmp_path: Path, context_length: int) -> None:
    """Text without a repetition: nothing to look up in the first copy, all of the second."""
    file = tmp_path / "tokens.bin"
    np.random.default_rng(0).permutation(VOCAB_SIZE).astype("<u2").tofile(file)
    loaded = LoadedModel(model=LooksUp(), precision="fp32")  # type: ignore[arg-type]
    found = copying(loaded, TokenStream([file], "<u2"), np.arange(5), context_length=context_length, batch_sequences=2)
    sure = math.log(1 + (VOCAB_SIZE - 1) * math.exp(-CONFIDENCE))
    assert found.first_nats.value == pytest.approx(math.log(VOCAB_SIZE), abs=1e-5)
    assert found.second_nats.value == pytest.approx(sure, abs=1e-5)
    assert found.gain_nats.value == pytest.approx(math.log(VOCAB_SIZE) - sure, abs=1e-5)
    assert found.gain_nats.standard_error == pytest.approx(0, abs=1e-6)


def test_token_by_token_it_is_the_same(make_llama: Callable[..., PreTrainedModel], tiny_corpus: Path) -> None:
    chosen = open_corpus_split("tiny", tiny_corpus)
    stream, windows, half = TokenStream(list(chosen.files), chosen.dtype), np.array([0, 3, 4]), 32
    model = make_llama()
    found = copying(LoadedModel(model=model, precision="fp32"), stream, windows, context_length=2 * half)
    first, second = [], []
    for text in stream.windows(windows, 2 * half)[:, :half]:
        ids = torch.from_numpy(np.concatenate([text, text]))
        with torch.no_grad():
            log_p = model(input_ids=ids[None]).logits[0].double().log_softmax(dim=-1)
        loss = {place: -float(log_p[place - 1, ids[place]]) for place in range(1, len(ids))}
        latter = range(half // 2, half)
        first.append(np.mean([loss[place] for place in latter]))
        second.append(np.mean([loss[half + place] for place in latter]))
    gains = np.array(first) - np.array(second)
    assert found.first_nats.value == pytest.approx(np.mean(first), abs=1e-5)
    assert found.second_nats.value == pytest.approx(np.mean(second), abs=1e-5)
    assert found.gain_nats.value == pytest.approx(gains.mean(), abs=1e-5)
    assert found.gain_nats.standard_error == pytest.approx(gains.std(ddof=1) / math.sqrt(3), abs=1e-5)
    assert abs(found.gain_nats.value) < 1  # random weights look nothing up


def test_a_context_without_room_for_two_copies_is_refused(make_llama: Callable[..., PreTrainedModel]) -> None:
    with pytest.raises(InputError, match="context_length is 3, but two copies of two tokens need 4"):
        copying(
            LoadedModel(model=make_llama(), precision="fp32"), TokenStream([], "<u2"), np.arange(1), context_length=3
        )
