"""The story of a run, from its spec to its result.

1. Stand where the last checkpoint was taken, or make new weights from the seed.
2. Train the phases in order. Between base and grown: export the base, grow it, go on with the data where it stopped.
3. Export the final weights, write the result, drop the checkpoints.

A pause leaves after a saved step; the same command goes on. Everything a reader of the run directory sees is a
function of the spec and the corpus but for times and speeds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from app.contract import RESULT_FILE, ExitCode, Result, RunStatus, Spec
from app.engine.checkpoints import CheckpointFolder, fingerprint
from app.engine.data import Corpus
from app.engine.errors import DivergedError
from app.engine.exports import export_model
from app.engine.metrics import EventsWriter, MetricsWriter
from app.engine.models import resolve_device
from app.engine.plan import PhasePlan
from app.engine.trainer import RunFiles, Trainer
from app.records import to_dict, write_json_atomically
from fitting.flops import non_embedding_params
from fitting.orders import connection_rate, source_layers


def run(
    run_dir: Path,
    spec: Spec,
    phases: tuple[PhasePlan, ...],
    corpus: Corpus,
    events: EventsWriter,
    pause_requested: Callable[[], bool],
) -> ExitCode:
    """Train a run to its end or to a pause.

    Args:
        run_dir: the run directory; holds what an earlier life of the run left.
        spec: what to train.
        phases: the spec in steps (:func:`app.engine.plan.plan_phases`).
        corpus: its tokens, checked (:func:`app.engine.data.open_corpus`).
        events: where its story goes.
        pause_requested: asked between two steps.

    Returns:
        DONE with a result written, or PAUSED with a checkpoint saved.

    Raises:
        DivergedError: after the result is written; the last good checkpoint stays.
        Exception: whatever else :func:`app.engine.errors.explain` knows.
    """
    device = resolve_device(spec.device)
    _make_repeatable(spec, device)
    metrics = MetricsWriter(run_dir)
    checkpoints = CheckpointFolder(run_dir, fingerprint(spec, corpus.content_hash))
    trainer = Trainer(
        spec, corpus, phases[0], RunFiles(metrics=metrics, events=events, checkpoints=checkpoints), device
    )
    try:
        _resume_or_begin(trainer, phases, checkpoints, metrics, events, _introduce(spec, phases, device))
        if (num_epochs := _num_epochs(spec, phases, corpus)) > 1:
            events.write("epochs", f"the run reads {spec.corpus} more than once: {num_epochs:.2f} epochs")
        for phase in phases[phases.index(trainer.phase) :]:
            if phase is not trainer.phase:
                _grow(trainer, phase, spec, run_dir, corpus, events)
            if not trainer.train(pause_requested):
                events.write("paused", "stopped on request after a saved step; the same command goes on from here")
                return ExitCode.PAUSED
        export_model(trainer.model, run_dir, "final", corpus_directory=corpus.directory)
        events.write("finished", f"final validation loss {trainer.validation_loss_nats:.4f} nats")
        _write_result(run_dir, spec, phases, trainer, "finished")
        checkpoints.remove()
        return ExitCode.DONE
    except DivergedError as error:
        events.write("diverged", str(error))
        _write_result(run_dir, spec, phases, trainer, "diverged", reason=str(error))
        raise
    finally:
        metrics.close()


def _resume_or_begin(
    trainer: Trainer,
    phases: tuple[PhasePlan, ...],
    checkpoints: CheckpointFolder,
    metrics: MetricsWriter,
    events: EventsWriter,
    introduction: str,
) -> None:
    checkpoint, refusals = checkpoints.load_latest(last_seq=metrics.last_seq)
    for refusal in refusals:
        events.write("checkpoint_damaged", refusal)
    if checkpoint is None:
        trainer.begin()
        events.move_to(trainer.phase.name, 0)
        events.write("started", introduction)
        return
    phase = next(phase for phase in phases if phase.name == checkpoint.progress.phase)
    trainer.restore(checkpoint, phase)
    events.move_to(phase.name, trainer.tokens)
    events.write("resumed", f"from {checkpoint.progress.name}; {introduction}")


def _grow(trainer: Trainer, phase: PhasePlan, spec: Spec, run_dir: Path, corpus: Corpus, events: EventsWriter) -> None:
    assert spec.growth is not None, "only a spec with growth has a second phase"
    export_model(trainer.model, run_dir, "base", corpus_directory=corpus.directory)
    loss_before = trainer.validation_loss_nats
    layers = source_layers(spec.growth.order, spec.growth.num_base_layers, spec.model.num_layers)
    policy = spec.growth.optimizer_state_policy
    trainer.grow_into(phase, layers, copy_optimizer_state=policy == "copy")
    events.write(
        "growth",
        f"{spec.growth.num_base_layers} to {spec.model.num_layers} layers by order {spec.growth.order} "
        f"(sources {','.join(map(str, layers))}; connection rate {connection_rate(layers):.1%}), optimizer state "
        f"{policy}; validation loss {loss_before:.4f} to {trainer.validation_loss_nats:.4f} nats",
    )


def _introduce(spec: Spec, phases: tuple[PhasePlan, ...], device: torch.device) -> str:
    lengths = ", ".join(f"{phase.name} {phase.num_layers} layers {phase.num_tokens:,} tokens" for phase in phases)
    last = phases[-1]
    return (
        f"{lengths}; target {non_embedding_params(spec.model):,} non-embedding parameters; "
        f"{last.compute_flops(last.num_steps):.3g} FLOPs in all; {device.type} {spec.precision}, "
        f"torch {torch.__version__}"
    )


def _num_epochs(spec: Spec, phases: tuple[PhasePlan, ...], corpus: Corpus) -> float:
    """How often the whole run reads the train split."""
    last, context_length = phases[-1], spec.model.context_length
    return last.run_tokens(last.num_steps) / context_length / corpus.train.num_windows(context_length)


def _make_repeatable(spec: Spec, device: torch.device) -> None:
    """Two equal specs give equal numbers on a device: one thread count, and on CUDA kernels with one order of sums."""
    torch.set_num_threads(spec.num_threads)
    if device.type == "cuda":
        # cuBLAS reads this when its first handle is made, which is after this line.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def _write_result(
    run_dir: Path, spec: Spec, phases: tuple[PhasePlan, ...], trainer: Trainer, status: RunStatus, reason: str = ""
) -> None:
    grows, is_last = len(phases) > 1, trainer.phase is phases[-1]
    result = Result(
        run_id=spec.run_id,
        status=status,
        final_loss_nats=trainer.validation_loss_nats if status == "finished" else None,
        base_tokens=(phases[0].num_tokens if is_last else trainer.tokens) if grows else 0,
        final_phase_tokens=trainer.tokens if is_last else 0,
        compute_flops=trainer.compute_flops,
        base_flops_per_token=phases[0].flops_per_token if grows else None,
        target_flops_per_token=phases[-1].flops_per_token,
        duration_seconds=trainer.duration_seconds,
        reason=reason,
    )
    write_json_atomically(run_dir / RESULT_FILE, to_dict(result))
