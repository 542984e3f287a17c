"""Tokenizers: the JSON file of the `tokenizers` library, any of them; how texts are encoded and how many bytes a token is.

    bytes of text of tokens t_1..t_n = sum_i b(t_i)

======  ==================================================================================  =====
symbol  meaning                                                                             unit
======  ==================================================================================  =====
b(t)    bytes that token t decodes to; 0 for special tokens, which are no text              bytes
======  ==================================================================================  =====

The sum holds exactly for byte-level tokenizers (GPT-2, Llama 3, Qwen, OLMo and those trained here): each character of a
token stands for one byte. Others (SentencePiece's) add and drop spaces around tokens; for them no table is given.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from app.corpus.documents import CorpusError

END_OF_TEXT = "<|endoftext|>"
# What tokenizers call the token that closes a document: GPT-2, Qwen, OLMo; Llama 3; Llama 2, Mistral; Gemma.
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")


def load_tokenizer(path: str) -> Any:
    """The tokenizer, set to encode a document whole and as mere text.

    Truncation and padding that were left on would cut or fill every document; the name of a special token inside a text
    would become that token.

    Raises:
        CorpusError: the file is no tokenizers JSON.
    """
    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:  # the library raises bare Exception for a missing or damaged file
        raise CorpusError(f"tokenizer: {path} cannot be read ({error}); give a tokenizers JSON file") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def end_of_text_id(tokenizer: Any) -> int | None:
    """Id of the token that closes a document, by its usual names; None where the tokenizer has none of them."""
    for name in END_OF_TEXT_NAMES:
        if (token_id := tokenizer.token_to_id(name)) is not None:
            return int(token_id)
    return None


def encode_texts(tokenizer: Any, texts: list[str]) -> Iterator[list[int]]:
    """Token ids of each text, with no special token among them."""
    tokenizer.encode_special_tokens = True
    for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
        yield encoding.ids


def vocab_size_of(tokenizer: Any) -> int:
    """The highest token id plus one: ids may have gaps, and what must fit a model is the highest."""
    return int(max(tokenizer.get_vocab(with_added_tokens=True).values())) + 1


def token_byte_lengths(tokenizer: Any) -> npt.NDArray[np.int64] | None:
    """b above, by token id, (vocabulary,); None where the tokenizer is not byte-level."""
    decoder = json.loads(tokenizer.to_str())["decoder"]
    if decoder is None or decoder["type"] != "ByteLevel":
        return None
    lengths = np.zeros(vocab_size_of(tokenizer), dtype=np.int64)
    for token, token_id in tokenizer.get_vocab(with_added_tokens=False).items():
        lengths[token_id] = len(token)
    # Added tokens are kept as they are written, not byte by byte.
    for token_id, token in tokenizer.get_added_tokens_decoder().items():
        lengths[token_id] = 0 if token.special else len(token.content.encode())
    return lengths
