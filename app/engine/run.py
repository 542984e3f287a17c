"""The story of a run, from its spec to its result.

1. Stand where the last checkpoint was taken; else where the trunk of a decay leg kept one; else take the base that was
   given, or make new weights from the seed.
2. Train the phases in order. Between base and grown: export the base, grow it, go on with the data where it stopped.
3. Export the final weights, write the result, drop the checkpoints but those kept for decay legs.

A pause leaves after a saved step; the same command goes on. Everything a reader of the run directory sees is a
function of the spec and the corpus but for times and speeds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from app.contract import RESULT_FILE, ExitCode, Result, RunStatus, Spec
from app.engine.branching import open_branch
from app.engine.checkpoint_files import fingerprint
from app.engine.checkpoints import CheckpointFolder
from app.engine.data import Corpus
from app.engine.distributed import World
from app.engine.errors import DivergedError
from app.engine.exports import export_model
from app.engine.given_base import load_base
from app.engine.metrics import EventsWriter, MetricsWriter
from app.engine.operators.base import Growth, growth_from_spec
from app.engine.operators.optimizer_state import check_policy
from app.engine.operators.support import check_supported
from app.engine.plan import PhasePlan
from app.engine.trainer import PauseRequestedError, RunFiles, Trainer
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
    world: World,
) -> ExitCode:
    """Train a run to its end or to a pause.

    Args:
        run_dir: the run directory; holds what an earlier life of the run left.
        spec: what to train.
        phases: the spec in steps (:func:`app.engine.plan.plan_phases`).
        corpus: its tokens, checked (:func:`app.engine.data.open_corpus`).
        events: where its story goes.
        pause_requested: asked between two steps.
        world: the processes that train it.

    Returns:
        DONE with a result written, or PAUSED with a checkpoint saved.

    Raises:
        DivergedError: after the result is written; the last good checkpoint stays.
        Exception: whatever else :func:`app.engine.errors.explain` knows.
    """
    device = world.device
    _make_repeatable(spec, device)
    growth = _checked_growth(spec)
    metrics = MetricsWriter(run_dir if world.is_main else None)
    checkpoints = CheckpointFolder(run_dir, fingerprint(spec, corpus.content_hash), world)
    files = RunFiles(metrics=metrics, events=events, checkpoints=checkpoints)
    trainer = Trainer(spec, corpus, phases[0], growth, files, world)
    try:
        _resume_or_begin(trainer, spec, phases, corpus, files, _introduce(spec, phases, device, world.size), world)
        if (num_epochs := _num_epochs(spec, phases, corpus)) > 1:
            events.write("epochs", f"the run reads {spec.corpus} more than once: {num_epochs:.2f} epochs")
        for phase in phases[phases.index(trainer.phase) :]:
            if phase is not trainer.phase and not _grow(
                trainer, phase, spec, run_dir, corpus, events, pause_requested, world
            ):
                return _pause(trainer, files)
            if not trainer.train(pause_requested):
                return _pause(trainer, files)
        _export(trainer, run_dir, "final", corpus, world)
        checkpoints.wait()
        trainer.tell_saved()
        if trainer.healing is not None and trainer.healing.healing_tokens is None:
            events.write("not_healed", "the validation loss never came back to its level before growth")
        events.write("finished", f"final validation loss {trainer.validation_loss_nats:.4f} nats")
        world.main.from_main(lambda: _write_result(run_dir, spec, phases, trainer, "finished"))
        checkpoints.remove()
        return ExitCode.DONE
    except DivergedError as error:
        events.write("diverged", str(error))
        reason = str(error)
        world.main.from_main(lambda: _write_result(run_dir, spec, phases, trainer, "diverged", reason=reason))
        raise
    finally:
        checkpoints.close()
        metrics.close()


def _checked_growth(spec: Spec) -> Growth | None:
    """How the base will grow; refused before anything is trained where that is not defined."""
    if spec.growth is None:
        return None
    growth = growth_from_spec(spec)
    check_supported(spec.model.family, growth.direction, growth.operator)
    check_policy(growth, spec.growth.optimizer_state_policy)
    return growth


def _resume_or_begin(
    trainer: Trainer,
    spec: Spec,
    phases: tuple[PhasePlan, ...],
    corpus: Corpus,
    files: RunFiles,
    introduction: str,
    world: World,
) -> None:
    events = files.events
    last_seq = world.main.from_main(lambda: files.metrics.last_seq)
    checkpoint, refusals = files.checkpoints.load_latest(last_seq=last_seq)
    for refusal in refusals:
        events.write("checkpoint_damaged", refusal)
    is_branch = checkpoint is None and spec.trunk is not None
    if is_branch:
        checkpoint = open_branch(spec, phases, corpus.content_hash)
    if checkpoint is not None:
        phase = next(phase for phase in phases if phase.name == checkpoint.progress.phase)
        trainer.restore(checkpoint, phase)
        events.move_to(phase.name, trainer.tokens)
        if is_branch:
            events.write("started", f"off trunk {checkpoint.path}; {introduction}")
        else:
            events.write("resumed", f"from {checkpoint.progress.name}; {introduction}")
        return
    events.move_to(trainer.phase.name, 0)
    if not trainer.phase.is_given:
        trainer.begin()
        events.write("started", introduction)
        return
    assert spec.growth is not None
    assert spec.growth.base_checkpoint is not None
    base = load_base(Path(spec.growth.base_checkpoint), trainer.phase.shape)
    events.write("started", f"from the base in {spec.growth.base_checkpoint}; {introduction}")
    trainer.begin_with_base(base)
    events.move_to(trainer.phase.name, trainer.tokens)


def _export(trainer: Trainer, run_dir: Path, name: Literal["base", "final"], corpus: Corpus, world: World) -> None:
    model = trainer.whole_model()
    world.main.from_main(lambda: export_model(model, run_dir, name, corpus_directory=corpus.directory))


def _pause(trainer: Trainer, files: RunFiles) -> ExitCode:
    files.checkpoints.wait()
    trainer.tell_saved()
    files.events.write("paused", "stopped on request after a saved step; the same command goes on from here")
    return ExitCode.PAUSED


def _grow(
    trainer: Trainer,
    phase: PhasePlan,
    spec: Spec,
    run_dir: Path,
    corpus: Corpus,
    events: EventsWriter,
    pause_requested: Callable[[], bool],
    world: World,
) -> bool:
    """Grow the base; False where a pause was asked for meanwhile: the base's last checkpoint is where it goes on."""
    assert spec.growth is not None, "only a spec with growth has a second phase"
    if not trainer.phase.is_given:
        _export(trainer, run_dir, "base", corpus, world)
    loss_before = trainer.validation_loss_nats
    maps = f"; its maps train for {phase.num_learn_steps:,} steps first" if phase.num_learn_steps else ""
    events.write("growing", f"{_describe(spec)}{maps}")
    try:
        trainer.grow_into(phase, pause_requested)
    except PauseRequestedError:
        return False
    events.write(
        "growth",
        f"{_describe(spec)}, optimizer state {spec.growth.optimizer_state_policy}; validation loss {loss_before:.4f} "
        f"to {trainer.validation_loss_nats:.4f} nats",
    )
    return True


def _describe(spec: Spec) -> str:
    growth = spec.growth
    assert growth is not None
    operator = growth.operator + (f" with noise {growth.noise}" if growth.noise else "")
    if growth.direction == "width":
        return f"{growth.width_factor} times wider, {operator}"
    layers = source_layers(growth.order, growth.num_base_layers, spec.model.num_layers)
    return (
        f"{growth.num_base_layers} to {spec.model.num_layers} layers by order {growth.order} (sources "
        f"{','.join(map(str, layers))}; connection rate {connection_rate(layers):.1%}), {operator}"
    )


def _introduce(spec: Spec, phases: tuple[PhasePlan, ...], device: torch.device, num_processes: int) -> str:
    lengths = ", ".join(
        f"{phase.name} {phase.num_layers} layers of width {phase.shape.hidden_size} {phase.num_tokens:,} tokens"
        for phase in phases
    )
    last = phases[-1]
    return (
        f"{lengths}; target {non_embedding_params(spec.model):,} non-embedding parameters; "
        f"{last.compute_flops(last.num_steps):.3g} FLOPs in all; {num_processes} process{'es' if num_processes > 1 else ''}, "
        f"{device.type} {spec.precision}, torch {torch.__version__}"
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
        spike_height_nats=trainer.healing.spike_height_nats if trainer.healing else None,
        healing_tokens=trainer.healing.healing_tokens if trainer.healing else None,
        trunk_id=_trunk_id(spec),
    )
    write_json_atomically(run_dir / RESULT_FILE, to_dict(result))


def _trunk_id(spec: Spec) -> str | None:
    if spec.trunk is not None:
        return spec.trunk.trunk_id
    return spec.run_id if spec.keep_checkpoints_at_tokens else None
