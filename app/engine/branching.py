"""Decay legs: a run that goes on from a checkpoint its trunk kept, as if the two had been one run.

One trunk at a rate that does not decay gives final losses at several budgets: each leg leaves it at ``branch_tokens``
and decays over what is left of its own tokens (Haegele et al., arXiv 2405.18392). Position in the data, tokens and
compute go on where the trunk stood, so a leg ends bit for bit where one undivided run of its spec would. That holds
only where the trunk was trained as the leg would have been up to the branch: every field that decides a number must be
the same, and the learning rates of all steps up to there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from app.contract import Spec, SpecError, check_leg, read_spec
from app.engine.checkpoint_files import Checkpoint, fingerprint
from app.engine.checkpoints import CheckpointFolder
from app.engine.errors import BadSpecError
from app.engine.plan import PhasePlan, plan_phases

NUM_COMPARED_RATES = 1000


def open_branch(spec: Spec, phases: tuple[PhasePlan, ...], content_hash: str) -> Checkpoint:
    """The trunk's checkpoint that a leg starts from, with its curve's numbering begun anew.

    Raises:
        BadSpecError: there is no such checkpoint, or its trunk was trained otherwise; the message names the field.
        BadDataError: it is damaged.
    """
    assert spec.trunk is not None
    trunk_dir = Path(spec.trunk.trunk_run_dir)
    try:
        trunk = read_spec(trunk_dir)
    except ValueError as error:
        raise BadSpecError(
            f"trunk.trunk_run_dir is {str(trunk_dir)!r}, but its spec cannot be read ({error}); name the run directory "
            "of a trunk"
        ) from None
    try:
        check_leg(spec, trunk)
    except SpecError as error:
        raise BadSpecError(str(error)) from None
    last = phases[-1]
    branch_steps = spec.trunk.branch_tokens // last.batch_tokens
    _require_same_rates(phases, plan_phases(trunk), branch_steps)
    checkpoint = CheckpointFolder(trunk_dir, "").load_at(last.run_tokens(branch_steps))
    if checkpoint.fingerprint != fingerprint(trunk, content_hash):
        raise BadSpecError(
            f"trunk.trunk_run_dir is {str(trunk_dir)!r}, but its checkpoints were written under another spec or on "
            f"another corpus than {spec.corpus_dir}; train the leg on the trunk's corpus"
        )
    if (checkpoint.progress.phase, checkpoint.progress.num_steps) != (last.name, branch_steps):
        raise BadSpecError(
            f"trunk.branch_tokens is {spec.trunk.branch_tokens}, but {checkpoint.path} stands in phase "
            f"{checkpoint.progress.phase}; branch inside the last phase"
        )
    # A curve of its own: the trunk's lines are in the trunk's file.
    progress = replace(checkpoint.progress, next_seq=1, elapsed_seconds=0.0)
    return replace(checkpoint, progress=progress)


def _require_same_rates(leg: tuple[PhasePlan, ...], trunk: tuple[PhasePlan, ...], branch_steps: int) -> None:
    """The learning rates of up to :data:`NUM_COMPARED_RATES` steps a phase, the last before the branch among them."""
    for ours, theirs in zip(leg, trunk, strict=True):
        num_steps = branch_steps if ours is leg[-1] else ours.num_steps
        for i in range(1, NUM_COMPARED_RATES + 1):
            tokens = max(1, num_steps * i // NUM_COMPARED_RATES) * ours.batch_tokens
            rates = ours.schedule.learning_rate(tokens), theirs.schedule.learning_rate(tokens)
            if rates[0] != rates[1]:
                raise BadSpecError(
                    f"training.schedule gives a rate of {rates[0]:.6g} after {tokens} tokens of {ours.name}, but the "
                    f"trunk was trained at {rates[1]:.6g} there; give the leg the trunk's schedule up to the branch"
                )
