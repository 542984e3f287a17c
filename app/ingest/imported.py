"""What an import asks for and what it gives: plain values between the readers, the service and the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from app.ingest.logs.rows import ColumnMap, LogFile

Phase = Literal["base", "grown", "single"]
Status = Literal["finished", "diverged", "stopped", "running"]

# Columns of the run table that a user may state, as no log says them.
STATED_COLUMNS = (
    "operator", "order", "optimizer", "optimizer_state_policy", "peak_lr", "base_peak_lr", "lr_selection", "schedule",
    "warmup_tokens", "planned_tokens", "decay_tokens", "batch_tokens", "unique_tokens", "init_seed", "data_seed",
    "trunk_id", "control_id", "parent_run_id",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What the logs do not say themselves.

    Attributes:
        cohort, name: where the run belongs, and what people call it; the name is one run's within its cohort.
        format: of the files; recognised from their content where None.
        step: the column of the trainer's steps, where a table or a W&B run names it otherwise.
        columns: what columns mean, beside or instead of what the format says.
        tokens, base_tokens: a column or an expression of the tokens a run has seen; the base's is ``tokens`` where None.
        batch_ramp: (from_step, batch_tokens) instead; a growth's counts for both stages.
        config, base_config: transformers ``config.json``; ``target_params``, ``base_params``: N instead of them.
        base_layers: of a base that is the target with fewer layers.
        context_length: tokens of one sequence, where it is not the configuration's.
        corpus, tokenizer: what the run was trained on; losses compare only where both agree.
        bytes_per_token: of each validation set in bits per byte, which makes nats of them.
        decision_metric, decision_dataset: what the cohort's runs are judged by; the only set of a log where None.
        growth_timing_tokens: tokens of the base at which it was grown; its log's end where None.
        grown_counts: whether the grown stage's own count of tokens begins at its growth (``phase``) or goes on from the
            base's (``run``); where None it is told from the numbers, or refused where they allow both.
        status: finished and stopped are told apart by the log's planned end, diverged by its last loss, where None.
        is_final: False for a run whose last loss is a mid-schedule one.
        stated: further columns of the run table (`STATED_COLUMNS`).
        recipe: what else all runs of the cohort share.
    """

    cohort: str
    name: str
    format: str | None = None
    step: str | None = None
    columns: tuple[ColumnMap, ...] = ()
    tokens: str | None = None
    base_tokens: str | None = None
    batch_ramp: tuple[tuple[int, int], ...] = ()
    config: Mapping[str, Any] | None = None
    base_config: Mapping[str, Any] | None = None
    target_params: float | None = None
    base_params: float | None = None
    base_layers: int | None = None
    context_length: int | None = None
    corpus: str | None = None
    tokenizer: str | None = None
    bytes_per_token: Mapping[str, float] = field(default_factory=dict)
    decision_metric: str = "validation_loss"
    decision_dataset: str | None = None
    growth_timing_tokens: int | None = None
    grown_counts: Literal["phase", "run"] | None = None
    status: Status | None = None
    is_final: bool = True
    stated: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ImportFiles:
    """The files of one run, in the order they were written; a growth has its stages apart."""

    single: tuple[LogFile, ...] = ()
    base: tuple[LogFile, ...] = ()
    grown: tuple[LogFile, ...] = ()


class ImportedPoint(NamedTuple):
    """One value of a run; ``tokens`` counts inside the phase, ``compute_flops`` over the whole run.

    A tuple, as a run may have a million of them and a dataclass takes three times as long to make.
    """

    phase: Phase
    step: int
    tokens: int
    compute_flops: float
    metric: str
    dataset: str
    value: float
    unit: str
    time: str


@dataclass(frozen=True, kw_only=True)
class ImportedRun:
    """A run as it will be stored.

    Attributes:
        header: columns of the run table, without id, source and date.
        wasted_flops: trained, then rolled back; in no other number of the run.
        provenance: the files with their SHA-256, how tokens were counted, what was joined.
        warnings: sentences for whoever imports.
    """

    header: Mapping[str, Any]
    reason: str
    points: tuple[ImportedPoint, ...]
    wasted_flops: float
    recipe: Mapping[str, Any]
    decision_metric: str
    decision_dataset: str
    provenance: Mapping[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return str(self.header["name"])

    @property
    def content_hash(self) -> str:
        """SHA-256 of what was measured: the same for the same log, whatever it is called and whenever it comes."""
        header = {name: value for name, value in self.header.items() if name != "name"}
        digest = hashlib.sha256(json.dumps([header, self.reason, self.wasted_flops], sort_keys=True).encode())
        for point in self.points:
            digest.update(repr(point[:-1]).encode())  # all but the time
        return digest.hexdigest()
