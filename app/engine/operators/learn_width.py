"""LiGO's maps in width: learned matrices between the spaces of base and target.

    E' = E B_d^T                           Wq' = B_q (Wq / k) B_d^T,  bq' = B_q bq;  k and v alike
    n' = B_d n                             Wg' = B_m (Wg / k) B_d^T;  up alike
    U' = (U / k) B_d^T   (untied)          Wd' = B_d (Wd / k) B_m^T
    nf' = B_d nf   (tied: / k)             Wo' = B_d (Wo / k) B_o^T,  B_o = B_v for each query head of a group

    B = onehot(gamma) + s e / sqrt(columns)         (at the start)

==============  ====================================================================================  =====
symbol          meaning                                                                               unit
==============  ====================================================================================  =====
B_d             residual map (D, d); the same for embeddings, norms, and both sides of matrices       -
B_q, B_k, B_v   maps of the rows of q, k, v: (target rows, base rows); the head size never changes    -
B_o             map of the columns of Wo, made of B_v                                                 -
B_m             MLP map (F, f)                                                                        -
gamma           index map of direct growth (:func:`app.engine.operators.width.width_indices`)          -
k               how many times wider; also the copies direct growth makes of each base index          -
s, e            spread of the start's noise, e ~ N(0, 1)                                              -
==============  ====================================================================================  =====

All layers share the maps. LiGO (arXiv 2303.00980) writes B W A^T with A made of the B before it; the fixed
division by k is ours, and makes the start direct growth, bit for bit, where s = 0. The noise breaks the symmetry of
equal copies, which get equal gradients. QK-norm gains act inside a head, whose size never changes, and stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from app.engine.operators.width import spaces_of, width_indices

# Keys and values lie in one space and have maps of their own.
ROW_MAPS = {"k_proj": "key", "v_proj": "value"}


class WidthMaps:
    """The matrices B, and target tensors as functions of them.

    Args:
        base: the base's parameters by name; the head absent where it is tied.
        config: the base's config.
        width_factor: k.
        noise_std: s.
        generator: where e comes from, on the CPU, so that a seed means the same start everywhere.
        device: where the maps live.
    """

    def __init__(
        self,
        base: Mapping[str, torch.Tensor],
        config: Mapping[str, Any],
        width_factor: int,
        *,
        noise_std: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self._base = base
        self._width_factor = width_factor
        self._num_kv_heads = config.get("num_key_value_heads") or config["num_attention_heads"]
        self._group_size = config["num_attention_heads"] // self._num_kv_heads  # query heads that share one
        self._is_tied = "lm_head.weight" not in base
        indices = width_indices(dict(config), width_factor)
        self.maps: dict[str, torch.Tensor] = {}
        for name, index in (
            ("residual", indices.residual),
            ("query", indices.query),
            ("key", indices.key_value),
            ("value", indices.key_value),
            ("mlp", indices.mlp),
        ):
            one_hot = torch.nn.functional.one_hot(index).float()
            noise = torch.randn(one_hot.shape, generator=generator) / one_hot.shape[1] ** 0.5
            self.maps[name] = (one_hot + noise_std * noise).to(device).requires_grad_()

    def groups(self) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
        """Name of a target parameter and its value, (1, ...), one at a time."""
        for name, tensor in self._base.items():
            if any(space is not None for space in spaces_of(name)):
                yield (name,), self._grown(name, tensor.float())[None]

    def _grown(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        module = name.split(".")[-2]
        out_space, *in_spaces = spaces_of(name)
        if module == "embed_tokens":
            return tensor @ self.maps["residual"].T
        if in_spaces:
            columns = self._head_columns() if module == "o_proj" else self.maps[str(in_spaces[0])]
            tensor = (tensor / self._width_factor) @ columns.T
        if module == "norm" and self._is_tied:
            tensor = tensor / self._width_factor
        return tensor if out_space is None else self.maps[ROW_MAPS.get(module, out_space)] @ tensor

    def _head_columns(self) -> torch.Tensor:
        """B_o: the value map's blocks, target kv head by base kv head, once for each query head of a group."""
        num_rows, num_columns = self.maps["value"].shape
        head_size = num_columns // self._num_kv_heads
        blocks = self.maps["value"].view(-1, head_size, self._num_kv_heads, head_size)
        same_place = torch.eye(self._group_size, device=blocks.device)  # place in the group, target by base
        repeated = torch.einsum("aibj,st->asibtj", blocks, same_place)
        return repeated.reshape(num_rows * self._group_size, num_columns * self._group_size)
