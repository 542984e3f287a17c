"""Training FLOPs per token, the one accounting that feasibility, pairing and speedup use.

    flops_per_token = 6 (L P_block + V h) + 12 L a S

========  ==================================================================  ==========
symbol    meaning                                                             unit
========  ==================================================================  ==========
L         layers                                                              -
P_block   matmul parameters of one block: q, k, v, o, gate, up, down          parameters
V, h      vocabulary, hidden size (the head; the embedding look-up costs 0)   -
a         num_heads x head_size, the width attention works in                 -
S         context length; attention counted in full, no causal discount       tokens
========  ==================================================================  ==========

6 = 2 FLOPs a multiply-add x (1 forward + 2 backward). The head is not divided by the growth factor: a
2-layer base of an 8-layer, hidden-64 target with vocabulary 1024 costs 0.33 of the target a token, not 0.25.
``6 N D`` (:func:`flops_by_6nd`) serves published formulas and targets known by their size alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol


class ModelShape(Protocol):
    """What the accounting needs to know of a model; any object with these attributes will do."""

    @property
    def num_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A dense decoder with gated MLPs (the Llama family). ``own_head_size`` is the heads' width where the family sets it
    apart from hidden size / heads."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int
    context_length: int
    own_head_size: int | None = None

    @property
    def head_size(self) -> int:
        return self.own_head_size or self.hidden_size // self.num_heads

    def with_layers(self, num_layers: int) -> Shape:
        return replace(self, num_layers=num_layers)


def block_matmul_params(shape: ModelShape) -> int:
    """Parameters of one block that take part in matrix products (biases and norms do not)."""
    query_width = shape.num_heads * shape.head_size
    kv_width = shape.num_kv_heads * shape.head_size
    attention = 2 * shape.hidden_size * query_width + 2 * shape.hidden_size * kv_width
    return attention + 3 * shape.hidden_size * shape.intermediate_size


def non_embedding_params(shape: ModelShape) -> int:
    """N: all parameters but the embedding and the head (two norm gains a block and the last norm included)."""
    return shape.num_layers * (block_matmul_params(shape) + 2 * shape.hidden_size) + shape.hidden_size


def flops_per_token(shape: ModelShape) -> float:
    """Training FLOPs (forward and backward) per token."""
    matmul_params = shape.num_layers * block_matmul_params(shape) + shape.vocab_size * shape.hidden_size
    attention_width = shape.num_heads * shape.head_size
    return float(6 * matmul_params + 12 * shape.num_layers * attention_width * shape.context_length)


def flops_by_6nd(params: float, tokens: float) -> float:
    """6 N D, the published papers' training compute in FLOPs."""
    return 6.0 * params * tokens
