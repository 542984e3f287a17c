"""The growth step of a run: what the target starts with, made from the live base and the optimizer's state.

Weights come from the operator (:mod:`app.engine.growth`, for ``learn`` :mod:`app.engine.operators.learn`, which reads
batches), moments from the policy (:mod:`app.engine.operators.optimizer_state`). Nothing of the base is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from transformers.modeling_utils import PreTrainedModel

from app.contract import ModelSpec
from app.contract.specs import OptimizerStatePolicy
from app.engine.growth import grow_model
from app.engine.models import build_config, model_of_config
from app.engine.operators.base import Growth
from app.engine.operators.learn import learn
from app.engine.operators.optimizer_state import grow_optimizer_tensors
from app.engine.operators.tensors import target_config

OptimizerTensors = Mapping[str, Mapping[str, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class GrownState:
    """The target and its optimizer state by parameter name, empty where the policy drops it."""

    model: PreTrainedModel
    optimizer: OptimizerTensors


def build_target(base_shape: ModelSpec, growth: Growth) -> PreTrainedModel:
    """The model that a base of this shape grows into, its weights not ours yet.

    Its config is the operator's, which may say more than a shape does: zero growth in width changes the norms' epsilon.
    """
    base = build_config(base_shape, num_layers=base_shape.num_layers)
    return model_of_config(type(base).from_dict(target_config(growth, base.to_dict())))


def grow_state(
    base: PreTrainedModel,
    base_optimizer: OptimizerTensors,
    growth: Growth,
    *,
    optimizer_state_policy: OptimizerStatePolicy,
    batches: Iterator[torch.Tensor],
    num_learn_steps: int,
    precision: str,
    micro_batch_sequences: int | None,
    mean: Callable[[torch.Tensor], torch.Tensor],
) -> GrownState:
    """Grow a base with its optimizer state.

    Args:
        base: the base, whole, on its device.
        base_optimizer: its state by parameter name (:func:`app.engine.optimizer.optimizer_tensors`).
        growth: what to grow.
        optimizer_state_policy: what becomes of the moments.
        batches: windows (B, S + 1) for the operator ``learn``, one batch a step, of which each rank reads its share.
        num_learn_steps: steps that ``learn`` takes.
        precision: ``fp32`` or ``bf16`` autocast of those steps.
        micro_batch_sequences: sequences a forward pass of them takes; all where None.
        mean: mean over ranks (:meth:`app.engine.distributed.World.mean`).
    """
    if growth.operator == "learn":
        model = learn(
            base,
            growth,
            batches,
            num_learn_steps,
            precision=precision,
            micro_batch_sequences=micro_batch_sequences,
            mean=mean,
        )
    else:
        model = grow_model(base, growth)
    names = [name for name, _ in model.named_parameters()]
    optimizer = grow_optimizer_tensors(base_optimizer, growth, base.config.to_dict(), names, optimizer_state_policy)
    return GrownState(model=model, optimizer=optimizer)
