"""What growing needs to know of one model family: names, roles and the tensors that close a layer's residual branches.

A layer of a pre-norm family adds W_o a(n(x)) and W_d m(n(x)) to the residual stream: zero W_o, W_d and their biases, and
the layer is the identity. A post-norm family adds n(W_o a(x)) and n(W_d m(x)): a zeroed projection would feed zeros to a
norm whose gradient there is 1 / sqrt(eps), so the gain of that last norm is what becomes zero. A family whose norm
multiplies by 1 + w (Gemma) holds a zero gain as w = -1.

===========  ====================================================================================================
role         tensor of a layer
===========  ====================================================================================================
q k v o      projections of attention; ``qkv`` where one weight holds three
gate up down projections of the MLP, of every expert where there are experts; ``gate_up`` where one weight holds two;
             an MLP without a gate has ``up`` and ``down``
norm         gain (and bias) of a norm before a branch
post_norm    gain of a norm that closes a branch
qk_norm      gain of a norm on queries or keys
router sink  an MoE router; gpt_oss's learned attention sinks
buffer       what old versions of transformers stored beside the parameters (causal masks, rotary frequencies)
===========  ====================================================================================================

Standard library only: the byte copy imports this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fitting.errors import InputError

Role = Literal[
    "q", "k", "v", "o", "qkv", "gate", "up", "down", "gate_up", "norm", "post_norm", "qk_norm", "router", "sink", "buffer"
]  # fmt: skip

# Masks that gpt2 and gpt_neox once stored; gpt_neox's "attention.bias" is one, "attention.dense.bias" is a parameter.
_BUFFERS = {
    "gpt2": ("attn.bias", "attn.masked_bias", "crossattention.bias", "crossattention.masked_bias"),
    "gpt_neox": ("attention.bias", "attention.masked_bias"),
}
_EXPERT = re.compile(r"(?<=\bexperts\.)\d+(?=\.)")
_LEAF = re.compile(r"(?P<module>.+?)(?:\.(?P<leaf>weight|bias)|(?P<packed_bias>_bias))?")


@dataclass(frozen=True, kw_only=True)
class LayerTensor:
    """One tensor of a layer.

    Attributes:
        role: see the table above; a bias has the role of its weight.
        is_bias: whether it is the bias.
        input_axis: the axis that is summed over, counted from the end: -1 for [out, in] (``torch.nn.Linear``), -2 for
            [in, out] (gpt2's ``Conv1D``, gpt_oss's experts).
    """

    role: Role
    is_bias: bool
    input_axis: int

    @property
    def is_matrix(self) -> bool:
        """Whether it is a weight that multiplies activations: no bias, no norm, no sink, no buffer."""
        return not self.is_bias and self.role not in ("norm", "post_norm", "qk_norm", "sink", "buffer")


@dataclass(frozen=True, kw_only=True)
class Fused:
    """Several projections in one weight.

    Attributes:
        parts: roles, in order along the output axis.
        arrangement: ``blocks`` (all of the first part, then all of the second), ``heads`` (per attention head, the head's
            rows of each part) or ``alternating`` (one row of each in turn).
    """

    parts: tuple[Role, ...]
    arrangement: Literal["blocks", "heads", "alternating"]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A tensor that the live model holds under another name, or as one for all experts, than the checkpoint.

    Attributes:
        live: suffix in the live model.
        stored: suffixes in the checkpoint, ``*`` for the expert's number. The live tensor is the stored ones of an expert
            joined along their first axis, stacked over the experts; without ``*`` it is the one stored tensor.
    """

    live: str
    stored: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture, by transformers' ``model_type``.

    Attributes:
        model_type: as in config.json.
        layer_prefix: what a layer's number follows in tensor names; the part up to its first dot may be missing from a
            checkpoint that was saved without the head (the hub's gpt2).
        embeddings: modules outside the layers that cost no matrix product: token and position embeddings.
        final_norm: module of the norm after the last layer.
        heads: names of the output head's weight, the stored one first; none is stored where it is tied.
        modules: role of each module of a layer (``*`` for an expert's number), named without ``.weight`` or ``.bias``.
        transposed: modules whose weight is [..., in, out].
        fused: what a weight of several projections holds, by role.
        packed: tensors that differ between live model and checkpoint.
        norm_kind: ``rmsnorm`` or ``layernorm``.
        norm_offset: a norm's gain is the stored value plus this.
        branch_ends: role of the tensors that close the residual branches.
        own_names: the family's own names of config fields that others share.
        tied_by_default: whether the head is tied where config.json does not say.
        depth_multipliers: config fields that scale every residual branch, chosen for the base's number of layers.
    """

    model_type: str
    layer_prefix: str = "model.layers."
    embeddings: tuple[str, ...] = ("model.embed_tokens",)
    final_norm: str = "model.norm"
    heads: tuple[str, ...] = ("lm_head.weight",)
    modules: Mapping[str, Role]
    transposed: frozenset[str] = frozenset()
    fused: Mapping[Role, Fused] = field(default_factory=dict)
    packed: tuple[Packed, ...] = ()
    norm_kind: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_offset: float = 0.0
    branch_ends: frozenset[Role] = frozenset({"o", "down"})
    own_names: Mapping[str, str] = field(default_factory=dict)
    tied_by_default: bool = False
    depth_multipliers: tuple[str, ...] = ()

    @property
    def num_layers_field(self) -> str:
        """The config's own name for the number of layers."""
        return self.own_names.get("num_hidden_layers", "num_hidden_layers")

    def num_layers(self, config: Mapping[str, Any]) -> int:
        """Layers a config asks for.

        Raises:
            InputError: the field is missing or no positive whole number.
        """
        name = self.num_layers_field
        value = config.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(
                f"config.json: {name}",
                f"is {value!r}, but {self.model_type} needs a whole number from 1",
                "mend the file",
            )
        return value

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        """Whether the output head shares the token embedding."""
        return bool(config.get("tie_word_embeddings", self.tied_by_default))

    def split(self, name: str) -> tuple[int, str] | None:
        """Layer and suffix of a tensor name; None for a tensor outside the layers.

        >>> FAMILIES["gpt2"].split("h.3.attn.c_proj.bias")
        (3, 'attn.c_proj.bias')
        """
        short = self.layer_prefix.partition(".")[2]
        match = re.fullmatch(rf"(?:{re.escape(self.layer_prefix)}|{re.escape(short)})(\d+)\.(.+)", name)
        return (int(match[1]), match[2]) if match else None

    def with_layer(self, name: str, layer: int) -> str:
        """The same tensor of another layer.

        >>> FAMILIES["llama"].with_layer("model.layers.3.mlp.up_proj.weight", 14)
        'model.layers.14.mlp.up_proj.weight'
        """
        found = self.split(name)
        if found is None:
            raise ValueError(f"{name} belongs to no layer")
        number, suffix = found
        return f"{name[: -len(f'{number}.{suffix}')]}{layer}.{suffix}"

    def tensor(self, suffix: str) -> LayerTensor:
        """What a tensor of a layer is, by its suffix in a checkpoint or in a live model.

        Raises:
            InputError: no tensor of this family has that name.
        """
        match = _LEAF.fullmatch(_EXPERT.sub("*", suffix))
        module = match["module"] if match else suffix
        role = self.modules.get(module)
        is_bias = match is not None and (match["leaf"] == "bias" or match["packed_bias"] is not None)
        if suffix in _BUFFERS.get(self.model_type, ()) or suffix.endswith("rotary_emb.inv_freq"):
            role, is_bias = "buffer", False
        if role is None:
            raise InputError(
                "tensor",
                f"{suffix} is in a layer, but {self.model_type} has no tensor of that name",
                "give a plain checkpoint: adapters merged, quantized weights dequantized",
            )
        return LayerTensor(role=role, is_bias=is_bias, input_axis=-2 if module in self.transposed else -1)

    def identity_value(self, suffix: str) -> float | None:
        """The value that closes a residual branch when it fills this tensor of a layer; None if it closes none.

        >>> FAMILIES["llama"].identity_value("mlp.down_proj.weight")
        0.0
        >>> FAMILIES["gemma2"].identity_value("post_feedforward_layernorm.weight")
        -1.0
        """
        found = self.tensor(suffix)
        if found.role not in self.branch_ends:
            return None
        return -self.norm_offset if found.role == "post_norm" else 0.0

    def stored_suffixes(self, live: str, num_experts: int) -> tuple[tuple[str, ...], ...]:
        """Checkpoint tensors behind a live tensor of a layer, an entry an expert (one entry where it is not packed).

        >>> FAMILIES["mixtral"].stored_suffixes("mlp.gate.weight", 8)
        (('block_sparse_moe.gate.weight',),)
        """
        for packed in self.packed:
            if packed.live == live:
                num_entries = num_experts if "*" in packed.stored[0] else 1
                return tuple(tuple(name.replace("*", str(i)) for name in packed.stored) for i in range(num_entries))
        return ((live,),)
