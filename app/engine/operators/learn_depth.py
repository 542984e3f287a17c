"""LiGO's maps in depth: every weight of a target layer is a learned sum of the base layers' weights of its kind.

    W'_i = sum_j w[kind]_ij W_j          (Wang et al., "Learning to grow pretrained models", arXiv 2303.00980)
    w[kind] = onehot(pi) + s e, rows then divided by their sum                             (at the start)

==========  ========================================================================================  =====
symbol      meaning                                                                                   unit
==========  ========================================================================================  =====
L, L'       layers of base and target                                                                 -
W_j, W'_i   a tensor of base layer j, of target layer i                                               -
kind        q, k, v, o, gate, up, down, n1, n2; a bias goes with its matrix, a QK-norm's gain with    -
            q or k
w[kind]     the learned matrix (L', L), fp32                                                          -
pi          source layer of a target layer: what direct growth copies                                 -
s, e        spread of the start's noise, e ~ N(0, 1)                                                  -
==========  ========================================================================================  =====

With s = 0 the start is direct growth, bit for bit: a row of w is one 1 and zeros. Embeddings, final norm and head stay
the base's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from app.engine.operators.base import LAYER_NAME


class DepthMaps:
    """The matrices w, and target tensors as functions of them.

    Args:
        base: the base's parameters by name.
        layers: pi, the base layer behind each target layer, (L',).
        noise_std: s.
        generator: where e comes from, on the CPU, so that a seed means the same start everywhere.
        device: where the maps live.
    """

    def __init__(
        self,
        base: Mapping[str, torch.Tensor],
        layers: tuple[int, ...],
        *,
        noise_std: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self._base = base
        self._num_target_layers = len(layers)
        self._num_base_layers = 1 + max(int(match["layer"]) for match in map(LAYER_NAME.match, base) if match)
        self._parts = sorted({match["after"] for match in map(LAYER_NAME.match, base) if match})
        one_hot = torch.nn.functional.one_hot(torch.tensor(layers), self._num_base_layers).float()  # (L', L)
        self.maps: dict[str, torch.Tensor] = {}
        for kind in sorted({_kind(part) for part in self._parts}):
            start = one_hot + noise_std * torch.randn(one_hot.shape, generator=generator)
            self.maps[kind] = (start / start.sum(dim=1, keepdim=True)).to(device).requires_grad_()

    def groups(self) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
        """Names of target parameters and their values stacked, (L', ...), one part of a layer at a time."""
        for part in self._parts:
            sources = torch.stack([self._base[f"model.layers.{j}{part}"] for j in range(self._num_base_layers)])
            grown = self.maps[_kind(part)] @ sources.float().flatten(1)  # (L', L) @ (L, numel)
            names = tuple(f"model.layers.{i}{part}" for i in range(self._num_target_layers))
            yield names, grown.view(-1, *sources.shape[1:])


def _kind(part: str) -> str:
    """Whose matrix a part of a layer takes.

    >>> _kind(".self_attn.q_proj.bias"), _kind(".self_attn.q_norm.weight"), _kind(".mlp.up_proj.weight")
    ('q_proj', 'q_proj', 'up_proj')
    """
    module = part.split(".")[-2]
    return {"q_norm": "q_proj", "k_norm": "k_proj"}.get(module, module)
