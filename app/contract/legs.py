"""What a decay leg must share with the trunk it leaves: everything that decides a number, but how and when it decays.

Service and engine both ask: the one before a leg is queued, the other before it trains.
"""

from __future__ import annotations

from app.contract.checks import SpecError, require
from app.contract.specs import Spec
from app.records import to_dict

# Fields that do not change what a run learns; all others must be the same when it goes on. Another number of processes
# adds the same numbers up in another order, which a run must survive: machines come and go.
FREE_FIELDS = (
    "run_id", "name", "corpus_dir", "device", "num_threads", "num_processes", "min_processes",
    "checkpoint_every_tokens", "keep_checkpoints_at_tokens", "micro_batch_sequences", "compile", "activation_checkpointing",
)  # fmt: skip
# What a leg has of its own; of training, what only decides how and when it decays, which the rates themselves are
# compared for.
_OWN_FIELDS = (*FREE_FIELDS, "cohort", "corpus", "trunk", "evaluation")
_OWN_TRAINING_FIELDS = ("tokens", "schedule", "decay_fraction", "final_lr_fraction")


def check_leg(leg: Spec, trunk: Spec) -> None:
    """Whether ``leg`` goes on as ``trunk`` began, as far as the two specs tell.

    Raises:
        SpecError: a field differs from the trunk's, or the trunk itself decays before the branch.
    """
    assert leg.trunk is not None
    ours, theirs = to_dict(leg), to_dict(trunk)
    for field, value in ours.items():
        if field in _OWN_FIELDS:
            continue
        if isinstance(value, dict) and isinstance(theirs[field], dict):
            for name in value:
                if field != "training" or name not in _OWN_TRAINING_FIELDS:
                    _require_same(f"{field}.{name}", value[name], theirs[field][name])
        else:
            _require_same(field, value, theirs[field])
    decay_from = trunk.training.tokens * trunk.training.decay_starts_at
    require(
        leg.trunk.branch_tokens <= decay_from,
        "trunk.branch_tokens",
        leg.trunk.branch_tokens,
        f"the trunk itself decays from token {decay_from:,.0f} of {trunk.training.tokens:,} on",
        "branch earlier, or train a trunk with schedule 'constant'",
    )


def _require_same(field: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise SpecError(
            field,
            f"is {ours!r}, but the trunk was trained with {theirs!r}; a leg goes on as its trunk began: use the trunk's "
            "value",
        )
