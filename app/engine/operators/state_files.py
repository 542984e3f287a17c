"""Growing a training checkpoint of this engine: weights and optimizer state of one run become the start of another's
grown phase.

    RUN_A/checkpoints/tokens-<d>-single   ->   RUN_B/checkpoints/tokens-<d>-grown        (0 steps into the grown phase)

RUN_B holds a `spec.json` with growth, whose base is what RUN_A trained: the engine started on RUN_B goes on where the
grown phase begins, without training the base again. So one base, kept at several ages, serves growths of several
timings, factors, operators and policies. Growth and policy are the spec's; the data goes on at the base's next token.
"""

from __future__ import annotations

from pathlib import Path

import torch

from app.contract import CHECKPOINTS_DIR, METRICS_FILE, Spec, read_spec
from app.engine.checkpoints import Checkpoint, CheckpointFolder, Progress, fingerprint, open_checkpoint
from app.engine.data import open_corpus
from app.engine.models import build_model
from app.engine.operators.base import growth_from_spec
from app.engine.operators.optimizer_state import check_policy, grow_optimizer_tensors
from app.engine.operators.tensors import grow_tensors
from app.engine.plan import plan_phases
from fitting.errors import InputError


def grow_training_checkpoint(src: Path, run_dir: Path) -> Path:
    """Write the checkpoint that a run's grown phase starts from; complete or not at all.

    Base and target are held in host memory, weights and moments.

    Args:
        src: a checkpoint folder below the `checkpoints/` of the run that trained the base.
        run_dir: the run directory that goes on, with its spec.json and neither checkpoints nor metrics of its own.

    Returns:
        The new checkpoint's folder.

    Raises:
        InputError: the two runs do not fit together, or the growth cannot be made without training; names the field.
        BadDataError: ``src`` is no whole checkpoint, or the corpus is missing or damaged.
        OSError: it could not be written; nothing half-written is left.
    """
    spec = _growing_spec(run_dir)
    assert spec.growth is not None
    growth, policy = growth_from_spec(spec), spec.growth.optimizer_state_policy
    check_policy(growth, policy)
    content_hash = open_corpus(spec).content_hash
    checkpoint = open_checkpoint(src)
    _require_same_base(checkpoint, spec, content_hash)
    with torch.device("meta"):
        assert spec.base_model is not None
        base = build_model(spec.base_model, num_layers=spec.base_model.num_layers)
        target = build_model(spec.model, num_layers=spec.model.num_layers)
    _require_same_shapes(checkpoint, base)
    base_config, names = base.config.to_dict(), [name for name, _ in target.named_parameters()]
    folder = CheckpointFolder(run_dir, fingerprint(spec, content_hash))
    model, optimizer = checkpoint.read_whole()
    # Copies, since layers must not share storage.
    grown = {
        name: tensor.to(torch.float32, copy=True)
        for name, tensor in grow_tensors(growth, base_config, model.__getitem__, names)
    }
    progress = Progress(
        phase="grown",
        num_steps=0,
        run_tokens=checkpoint.progress.run_tokens,
        next_seq=1,
        loss_sum=0.0,
        grad_norm_sum=0.0,
        num_summed_steps=0,
        num_high_lines=0,
        validation_loss_nats=None,
        elapsed_seconds=0.0,
    )
    try:
        folder.save(progress, grown, grow_optimizer_tensors(optimizer, growth, base_config, names, policy), keep="run")
        folder.wait()
    finally:
        folder.close()
    return run_dir / CHECKPOINTS_DIR / progress.name


def _growing_spec(run_dir: Path) -> Spec:
    spec = read_spec(run_dir)
    if spec.growth is None:
        raise InputError("growth", f"is absent from the spec in {run_dir}", "name the run directory of a growth")
    if spec.growth.operator == "learn":
        raise InputError(
            "growth.operator",
            "is 'learn', which trains on tokens and so belongs to a run",
            "give the base as growth.base_checkpoint, or grow by direct, zero or random",
        )
    for name in (CHECKPOINTS_DIR, METRICS_FILE):
        if (run_dir / name).exists():
            raise InputError("run_dir", f"is {str(run_dir)!r}, but it holds {name} already", "start in a new directory")
    return spec


def _require_same_base(checkpoint: Checkpoint, spec: Spec, content_hash: str) -> None:
    base_phase = plan_phases(spec)[0]
    trained, planned = checkpoint.progress.run_tokens, base_phase.run_tokens(base_phase.num_steps)
    if trained != planned:
        raise InputError(
            "growth.growth_timing_tokens",
            f"means a base of {planned} tokens, but {checkpoint.path} has seen {trained}",
            f"set it to {trained} or take another checkpoint",
        )
    base_run_dir = checkpoint.path.absolute().parent.parent
    base_spec = read_spec(base_run_dir)
    for field, ours, theirs in (
        ("data_seed", spec.data_seed, base_spec.data_seed),
        ("model.context_length", spec.model.context_length, base_spec.model.context_length),
        ("model.family", spec.model.family, base_spec.model.family),
    ):
        if ours != theirs:
            raise InputError(
                field,
                f"is {ours!r}, but {base_run_dir} trained the base with {theirs!r}",
                "use the base's, so that no token is read twice",
            )
    if checkpoint.fingerprint != fingerprint(base_spec, content_hash):
        raise InputError(
            "corpus_dir",
            f"is {spec.corpus_dir!r}, but {checkpoint.path} was written on another corpus, or its spec.json has changed",
            "use the base's corpus",
        )


def _require_same_shapes(checkpoint: Checkpoint, base: torch.nn.Module) -> None:
    stored = {
        name.removeprefix("model."): shape for name, shape in checkpoint.shapes().items() if name.startswith("model.")
    }
    expected = {name: parameter.shape for name, parameter in base.named_parameters()}
    for name in sorted(stored.keys() | expected.keys()):
        if stored.get(name) != expected.get(name):
            raise InputError(
                "growth.num_base_layers",
                f"and the model make {name} {_words(expected.get(name))} in the base, but {checkpoint.path} holds "
                f"{_words(stored.get(name))}",
                "name the base's own shape",
            )


def _words(shape: torch.Size | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape))
