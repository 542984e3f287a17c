"""Growing a checkpoint: what is asked for, checked and planned, then a folder that appears whole.

    direct in depth   tensor' = bytes of its source tensor, copied between the files
    all else          tensor' = f(growth, config, source tensor), :mod:`app.engine.surgery.rewrite`

The two differ in who makes a tensor's bytes and share all else. The byte copy imports neither torch nor transformers and
holds no tensor in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.engine.surgery.config import check_depth, grow_config
from app.engine.surgery.copying import Progress, Sink, no_progress
from app.engine.surgery.families import family_of
from app.engine.surgery.folder import Folder
from app.engine.surgery.layout import TargetTensor
from app.engine.surgery.manifest import MANIFEST_FILE, growth_history, make_manifest
from app.engine.surgery.plan import Plan, Request, depth_tensors, make_plan, read_source, target_layers
from app.engine.surgery.writing import Produce, write_folder

if TYPE_CHECKING:
    from app.engine.surgery.rewrite import Rewrite

# Tokens in a training sequence of ``learn``, or the model's context where that is shorter.
LEARN_CONTEXT_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class Growing:
    """A growth ready to be written: its plan, who makes its tensors' bytes, and what growth.json adds to the request."""

    plan: Plan
    produce: Produce
    details: Mapping[str, Any] = field(default_factory=dict)


def prepare(request: Request) -> Growing:
    """Check a growth and plan its target; nothing is written.

    Raises:
        InputError: names what cannot be used and the mend.
    """
    folder = read_source(request)
    growth_history(folder.path)  # an unreadable growth.json of the source is told before the first byte
    if request.width_factor > 1:
        rewrite = _rewrite(request, folder, None)
        plan = make_plan(request, folder, None, rewrite.config, rewrite.tensors, ())
        return Growing(plan=plan, produce=rewrite.produce, details=rewrite.record)
    family = family_of(folder.config)
    layers, notes = target_layers(request, family.num_layers(folder.config))
    rescale = request.rescale_multipliers
    warnings = [*notes, *check_depth(folder.config, layers, rescale_multipliers=rescale)]
    config = grow_config(folder.config, layers, rescale_multipliers=rescale)
    if request.is_byte_copy:
        plan = make_plan(request, folder, layers, config, depth_tensors(folder, layers), warnings)
        return Growing(plan=plan, produce=_copier(folder))
    rewrite = _rewrite(request, folder, layers)
    multipliers = {name: config[name] for name in family.depth_multipliers if name in config}
    plan = make_plan(request, folder, layers, rewrite.config | multipliers, rewrite.tensors, warnings)
    return Growing(plan=plan, produce=rewrite.produce, details=rewrite.record)


def grow(growing: Growing, progress: Progress = no_progress) -> Path:
    """Write a planned target; returns its folder.

    Args:
        growing: from :func:`prepare`.
        progress: told the bytes of each step; they add up to ``growing.plan.num_bytes``.

    Raises:
        InputError: the source changed meanwhile, or the target appeared.
        OSError: the disk is full or fails. Nothing is left behind.
    """
    plan = growing.plan
    write_folder(
        plan.request.target,
        source=plan.folder.path,
        config=plan.config,
        shards=plan.shards,
        produce=growing.produce,
        manifest=lambda written: make_manifest(plan, written, growing.details),
        manifest_name=MANIFEST_FILE,
        checksums=plan.request.checksums,
        progress=progress,
    )
    return plan.request.target


def _copier(folder: Folder) -> Produce:
    def produce(tensor: TargetTensor, sink: Sink) -> None:
        sink.copy(folder.tensors[tensor.source])

    return produce


def _rewrite(request: Request, folder: Folder, layers: tuple[int, ...] | None) -> Rewrite:
    from app.engine.operators.base import Growth
    from app.engine.surgery.rewrite import Learning, plan_rewrite

    growth = Growth(
        operator=request.operator,
        layers=layers,
        width_factor=request.width_factor,
        noise=request.noise,
        seed=request.seed,
        mask=request.mask if request.operator == "random" else 1.0,
    )
    learning = None
    if request.corpus is not None:
        context_tokens = folder.config.get("max_position_embeddings") or LEARN_CONTEXT_TOKENS
        learning = Learning(
            corpus_dir=request.corpus,
            num_steps=request.learn_steps,
            context_length=min(context_tokens, LEARN_CONTEXT_TOKENS),
        )
    return plan_rewrite(folder, growth, dtype=request.dtype, learning=learning)
