"""AdamW's state at growth: moments follow the gradients whose averages they are.

    m' = a m,   v' = a^2 v           wherever the target's gradient is  g' = a g  of the entry behind it

    width direct          a = 1 / k where the output's space grows: rows of matrices, biases, gains, the columns of E
                          a = 1     the head; the final norm of a tied model, whose copies the whole E reads
    width zero, random    old entries: a = sqrt(k) where the operator divided by sqrt(k) (gains, and Wq, Wk under a
                          QK-norm), else 1
    depth                 a = 1     exact for old layers of zero and of masked random growth; a guess for the others

======  =============================================================================================  =====
symbol  meaning                                                                                        unit
======  =============================================================================================  =====
m, v    ``exp_avg``, ``exp_avg_sq``; primes: the target's                                              -
g       gradient of the loss on one batch                                                              -
k       how many times wider                                                                           -
E       embedding (V, d)                                                                               -
======  =============================================================================================  =====

Why 1 / k: each of the k copies of an output feeds weights that were divided by k, so it gets a k-th of the gradient; a
head's outputs, tokens, have one copy. The rules hold gradients to rounding, and are tested against them.

======================  =============================================================================================
policy                  state of the target
======================  =============================================================================================
``reset``               none: every parameter starts as in a new run (the paper); needs a warm-up
``copy``                m and v of the source, step kept
``copy_v_only``         v of the source, m = 0, step kept. The step is one for both: kept, it leaves v without bias and
                        m rises over its first 1 / (1 - b1) steps, a short warm-up; restarted, it would scale v up by
                        1 / (1 - b2) and shrink steps by its root
``keep_old_zero_new``   what is old keeps its state; what is new starts at m = v = 0. New layers have a step of their
                        own, from 0, so bias correction serves them as a new run. New entries of a widened tensor share
                        the tensor's step, kept: uncorrected, their first updates reach
                        max_t (1 - b1^t) / sqrt(1 - b2^t) of the learning rate, 1.1 at betas (0.9, 0.95) but 6.6 at
                        (0.9, 0.999): warm up there
======================  =============================================================================================

Old are first copies of layers, and in width the leading block, which is the base. A policy that asks for the state of
something that has no source is refused: drawn weights have no moments, and maps trained on other tokens move all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import torch

from app.contract.specs import OptimizerStatePolicy
from app.engine.distributed import whole
from app.engine.operators.base import Growth
from app.engine.operators.depth import source_name
from app.engine.operators.width import spaces_of, width_indices
from app.engine.surgery.families import family_of
from fitting.errors import InputError

State = Mapping[str, torch.Tensor]


def check_policy(growth: Growth, policy: OptimizerStatePolicy) -> None:
    """Refuse a policy that has no meaning for a growth.

    Raises:
        InputError: names the pair and the policies that do.
    """
    if policy not in get_args(OptimizerStatePolicy):
        known = ", ".join(get_args(OptimizerStatePolicy))
        raise InputError("optimizer_state_policy", f"is {policy!r}, but known are {known}", "use one of them")
    meaningful = _meaningful_policies(growth)
    if policy not in meaningful:
        why = (
            "trains every weight anew, which leaves the base's moments without meaning"
            if growth.operator == "learn"
            else "draws its new weights, which have no source to take moments from"
        )
        raise InputError(
            "optimizer_state_policy",
            f"is {policy!r}, but operator {growth.operator!r} in {growth.direction} {why}",
            f"use {' or '.join(map(repr, meaningful))}",
        )


def grow_optimizer_tensors(
    base_tensors: Mapping[str, State],
    growth: Growth,
    base_config: dict[str, Any],
    target_names: Iterable[str],
    policy: OptimizerStatePolicy,
) -> dict[str, dict[str, torch.Tensor]]:
    """Optimizer state of the target, to be loaded or saved as that of any model.

    Args:
        base_tensors: per parameter of the base its ``step``, ``exp_avg`` and ``exp_avg_sq``
            (:func:`app.engine.optimizer.optimizer_tensors`); parameters without a step yet may be absent. Sharded ones are
            gathered one at a time, by all ranks alike.
        growth: the growth that makes the target.
        base_config: the base's config, as config.json holds it.
        target_names: the target's parameter names.
        policy: what becomes of the state.

    Returns:
        State by target parameter name, in new storage and in the base state's types; absent where there is none.

    Raises:
        InputError: the policy has no meaning for this growth.
    """
    check_policy(growth, policy)
    if policy == "reset":
        return {}
    grown = {}
    for name in target_names:
        source = name if growth.layers is None else source_name(family_of(base_config), name, growth.layers)
        if source in base_tensors:
            state = {key: whole(tensor) for key, tensor in base_tensors[source].items()}
            if growth.layers is None:
                grown[name] = _in_width(state, growth, base_config, name, policy)
            else:
                grown[name] = _in_depth(state, growth, base_config, name, policy)
    return grown


def _meaningful_policies(growth: Growth) -> tuple[OptimizerStatePolicy, ...]:
    if growth.operator == "learn":
        return ("reset",)
    if growth.operator == "random" or (growth.operator == "zero" and growth.direction == "width"):
        return ("reset", "keep_old_zero_new")
    return get_args(OptimizerStatePolicy)


def _in_depth(
    state: State, growth: Growth, base_config: dict[str, Any], name: str, policy: OptimizerStatePolicy
) -> dict[str, torch.Tensor]:
    found = family_of(base_config).split(name)
    if policy == "keep_old_zero_new" and found is not None and growth.is_new_layer[found[0]]:
        return {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    grown = {key: tensor.clone() for key, tensor in state.items()}
    if policy == "copy_v_only":
        grown["exp_avg"].zero_()
    return grown


def _in_width(
    state: State, growth: Growth, base_config: dict[str, Any], name: str, policy: OptimizerStatePolicy
) -> dict[str, torch.Tensor]:
    scale = gradient_scale(growth, base_config, name)
    grown = {"step": state["step"].clone()}
    for key, factor in (("exp_avg", scale), ("exp_avg_sq", scale**2)):
        if policy == "keep_old_zero_new":
            grown[key] = _leading_block(state[key] * factor, growth.width_factor, name)
        else:
            grown[key] = _copied(state[key] * factor, growth.width_factor, base_config, name)
    if policy == "copy_v_only":
        grown["exp_avg"].zero_()
    return grown


def gradient_scale(growth: Growth, base_config: dict[str, Any], name: str) -> float:
    """a = g' / g of a tensor in width: of every copy of direct growth, of the old entries of zero and random growth."""
    spaces, module, k = spaces_of(name), name.split(".")[-2], growth.width_factor
    family = family_of(base_config)
    if growth.operator != "direct":
        is_gain = module.endswith("norm") and spaces != (None,)
        is_normed = module in ("q_proj", "k_proj") and "self_attn.q_norm" in family.modules
        return math.sqrt(k) if is_gain or is_normed else 1.0
    if module == "norm" and family.is_tied(base_config):
        return 1.0
    out_space = "residual" if module == "embed_tokens" else spaces[0]
    return 1.0 / k if out_space else 1.0


def _copied(tensor: torch.Tensor, width_factor: int, base_config: dict[str, Any], name: str) -> torch.Tensor:
    indices = width_indices(base_config, width_factor)
    for dimension, space in enumerate(spaces_of(name)):
        if space is not None:
            tensor = tensor.index_select(dimension, getattr(indices, space).to(tensor.device))
    return tensor


def _leading_block(tensor: torch.Tensor, width_factor: int, name: str) -> torch.Tensor:
    spaces = spaces_of(name)
    shape = [size * width_factor if space else size for size, space in zip(tensor.shape, spaces, strict=True)]
    grown = tensor.new_zeros(shape)
    grown[tuple(slice(size) for size in tensor.shape)] = tensor
    return grown
