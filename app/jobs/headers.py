"""The canonical run-table row of an engine run, from its spec before it starts and its result when it ends.

**Trunks and legs.** A trunk keeps checkpoints that decay legs leave from; both are runs of one cohort. A trunk on
``constant`` ends before any decay, so its loss never counts as final; one on ``wsd`` or ``power`` decays behind its last
branch and is a final run like any other. A leg is the undivided run that it equals bit for bit: its tokens and
``compute_flops`` hold the trunk's part up to the branch, so that legs, undivided runs and controls compare at equal
FLOPs. What a family really cost is therefore less than the sum of its rows: the trunk once, and of each leg what lies
behind its branch. Rows of one ``trunk_id`` share that stretch of training and are no independent evidence of each other.
"""

from __future__ import annotations

from typing import Any

from app.contract import Result, Spec
from app.corpus.shards import Manifest
from app.store.tables import RunRow
from fitting.flops import flops_per_token, non_embedding_params

DECISION_METRIC = "validation_loss"


def decision_dataset(corpus: str) -> str:
    return f"{corpus}/validation"


def never_decays(spec: Spec) -> bool:
    """Whether the run is a trunk and no more, so that its last loss is a mid-schedule one."""
    return spec.training.schedule == "constant"


def recipe_of(spec: Spec, manifest: Manifest) -> dict[str, Any]:
    """What all runs of a cohort must share for their losses to be compared; sizes, lengths and rates may differ.

    A run on ``constant`` counts as the legs that leave it: its rate is ``wsd``'s before the decay, whose share and
    floor its spec names too. Precision is named where it is not fp32: recipes from before it was named stay the same.
    """
    training = spec.training
    recipe = {
        "corpus_hash": manifest.content_hash,
        "vocab_size": spec.model.vocab_size,
        "family": spec.model.family,
        "context_length": spec.model.context_length,
        "tie_embeddings": spec.model.tie_embeddings,
        "optimizer": "adamw",
        "beta1": training.beta1,
        "beta2": training.beta2,
        "weight_decay": training.weight_decay,
        "gradient_clip": training.gradient_clip,
        "schedule": "wsd" if never_decays(spec) else training.schedule,
        "decay_fraction": training.decay_fraction,
        "final_lr_fraction": training.final_lr_fraction,
        "num_validation_windows": spec.evaluation.num_windows,
    }
    return recipe if spec.precision == "fp32" else recipe | {"precision": spec.precision}


def run_row(spec: Spec, manifest: Manifest, control_run_id: str | None) -> RunRow:
    """The row of a run that has not ended: status `running`, also while it waits; no result yet."""
    model, training, growth = spec.model, spec.training, spec.growth
    target_params = non_embedding_params(model)
    row = RunRow(
        run_id=spec.run_id,
        cohort=spec.cohort,
        source="job",
        name=spec.name,
        status="running",
        target_params=target_params,
        num_target_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        intermediate_size=model.intermediate_size,
        vocab_size=model.vocab_size,
        context_length=model.context_length,
        growth_factor=1.0,
        growth_timing_tokens=0.0,
        grown_tokens=training.tokens,
        optimizer="adamw",
        peak_lr=training.peak_lr,
        lr_selection="shared",
        schedule=training.schedule,
        warmup_tokens=training.warmup_tokens,
        planned_tokens=training.tokens,
        decay_tokens=(1.0 - training.decay_starts_at) * training.tokens,
        is_final=False,
        batch_tokens=spec.batch_tokens,
        tokenizer=f"{spec.corpus}@{manifest.content_hash[:12]}",
        corpus=spec.corpus,
        unique_tokens=manifest.splits["train"].num_tokens,
        init_seed=spec.init_seed,
        data_seed=spec.data_seed,
        trunk_id=spec.run_id if spec.trunk is None else spec.trunk.trunk_id,
        parent_run_id=None if spec.trunk is None else spec.trunk.trunk_id,
        control_id=control_run_id,
        target_flops_per_token=flops_per_token(model),
    )
    if growth is not None:
        base = growth.base_model(model)
        row.base_params = non_embedding_params(base)
        row.num_base_layers = growth.num_base_layers
        grows_in_depth = growth.direction == "depth"
        row.growth_factor = (
            model.num_layers / growth.num_base_layers if grows_in_depth else target_params / row.base_params
        )
        row.growth_timing_tokens = growth.growth_timing_tokens
        row.operator = growth.operator if grows_in_depth else f"width-{growth.operator}"
        row.order = growth.order if grows_in_depth else None
        row.optimizer_state_policy = growth.optimizer_state_policy
        row.base_peak_lr = training.base_peak_lr or training.peak_lr
        row.lr_selection = "shared" if row.base_peak_lr == training.peak_lr else "untuned"
        row.base_flops_per_token = flops_per_token(base)
    return row


def result_columns(spec: Spec, result: Result) -> dict[str, Any]:
    """The columns that a run's end decides."""
    trunk = {} if result.trunk_id is None else {"trunk_id": result.trunk_id}
    return trunk | {
        "status": result.status,
        "is_final": result.status == "finished" and not never_decays(spec),
        "final_loss": result.final_loss_nats,
        "grown_tokens": result.final_phase_tokens,
        "growth_timing_tokens": result.base_tokens,
        "compute_flops": result.compute_flops,
        "engine_numerics_version": result.engine_numerics_version,
        "reason": result.reason,
    }
