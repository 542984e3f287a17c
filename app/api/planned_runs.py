"""Planned experiments as bodies of `POST /jobs`: like the cohort's own runs, in another size, length or growth."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy.orm import Session

from app.contract import Spec
from app.records import from_dict
from app.store import jobs as job_store
from app.store.tables import RunRow
from fitting.flops import Shape
from fitting.layers import Target
from fitting.planning import Experiment

# Of a spec's training, what the body of a planned run takes over.
_TAKEN_OVER = (
    "peak_lr", "base_peak_lr", "batch_sequences", "base_batch_sequences", "schedule", "warmup_tokens", "decay_fraction",
    "final_lr_fraction", "power_amplitude", "power_exponent", "weight_decay", "beta1", "beta2", "gradient_clip",
)  # fmt: skip
_SHAPE = {
    "num_layers": "num_target_layers", "hidden_size": "hidden_size", "num_heads": "num_heads",
    "num_kv_heads": "num_kv_heads", "intermediate_size": "intermediate_size", "vocab_size": "vocab_size",
    "context_length": "context_length",
}  # fmt: skip


def targets_of(runs: Sequence[RunRow]) -> list[Target]:
    """The sizes that runs were trained at and whose whole shape is known, by size.

    A smaller depth of a target that was grown is what it is grown from, no target of its own.
    """
    shapes = {shape for run in runs if (shape := _shape_of(run)) is not None}
    deepest: dict[tuple[Any, ...], Shape] = {}
    for shape in shapes:
        width = tuple(value for name, value in asdict(shape).items() if name != "num_layers")
        if width not in deepest or shape.num_layers > deepest[width].num_layers:
            deepest[width] = shape
    by_size = {run.target_params: shape for run in runs if (shape := _shape_of(run)) in deepest.values()}
    return [
        Target(params=params, num_layers=shape.num_layers, shape=shape)
        for params, shape in sorted(by_size.items(), key=lambda item: item[0])
        if shape is not None
    ]


def templates_of(session: Session, runs: Sequence[RunRow]) -> dict[Shape, Spec]:
    """The newest spec of every width that was trained here; runs that were imported have none."""
    found: dict[Shape, Spec] = {}
    for run in sorted(runs, key=lambda run: run.run_id, reverse=True):
        shape = _shape_of(run)
        if run.source != "job" or shape is None or shape.with_layers(1) in found:
            continue
        job = job_store.job_of_run(session, run.run_id)
        if job is not None:
            found[shape.with_layers(1)] = from_dict(Spec, json.loads(job.spec))
    return found


def fresh_seeds(runs: Sequence[RunRow]) -> Iterator[int]:
    """Seeds that no run of the cohort was trained with, the smallest first: a design trained again with the seed it had
    would end with the loss it had, and teach nothing."""
    used = {run.init_seed for run in runs}
    return (seed for seed in itertools.count() if seed not in used)


def job_body(experiment: Experiment, templates: Mapping[Shape, Spec], seed: int) -> dict[str, Any] | None:
    """The body that starts a run; None where no run of its width was trained here, to be like."""
    shape = experiment.target.shape
    like = templates.get(shape.with_layers(1)) if shape is not None else None
    if like is None or experiment.num_layers is None:
        return None
    training = asdict(like.training)
    model = asdict(like.model)
    body: dict[str, Any] = {
        "name": _name(experiment, like.model.hidden_size),
        "cohort": like.cohort,
        "corpus": like.corpus,
        "model": {name: model[name] for name in (*_SHAPE, "tie_embeddings") if name != "vocab_size"}
        | {"num_layers": experiment.num_layers},
        "training": {name: training[name] for name in _TAKEN_OVER} | {"tokens": round(experiment.tokens)},
        "num_validation_windows": like.evaluation.num_windows,
        "precision": like.precision,
        "init_seed": seed,
        "data_seed": seed,
    }
    if body["training"]["schedule"] == "constant":
        body["training"]["schedule"] = "wsd"
    if experiment.base is None:
        body["training"]["base_peak_lr"] = body["training"]["base_batch_sequences"] = None
    else:
        assert experiment.growth_timing_tokens is not None
        body["growth"] = {
            "num_base_layers": experiment.base.num_layers,
            "growth_timing_tokens": round(experiment.growth_timing_tokens),
            "order": experiment.base.order,
        }
    return body


def _name(experiment: Experiment, hidden_size: int) -> str:
    grown = ""
    if experiment.base is not None and experiment.growth_timing_tokens is not None:
        grown = f"l{experiment.base.num_layers}to"
    name = f"plan-h{hidden_size}-{grown or 'l'}{experiment.num_layers}"
    if experiment.growth_timing_tokens is not None:
        name += f"-d{round(experiment.growth_timing_tokens)}"
    return f"{name}-t{round(experiment.tokens)}"


def _shape_of(run: RunRow) -> Shape | None:
    values = {name: getattr(run, column) for name, column in _SHAPE.items()}
    if any(value is None for value in values.values()):
        return None
    return Shape(**values)
