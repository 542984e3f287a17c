"""The file contract between the service and the engine.

A run is a directory. The service writes `spec.json` and starts ``python -m app.engine RUN_DIR`` (or
``python -m app.corpus RUN_DIR``); that process appends `metrics.jsonl` and `events.jsonl`, keeps
`checkpoints/`, and ends with `result.json` and an exit code. Nothing else passes between them, so any
scheduler that can run a command on a shared file system can run a growth job.

========================  =====================================================================
file                      what it holds
========================  =====================================================================
``spec.json``             one :class:`Spec`, written once by the service
``metrics.jsonl``         one :class:`MetricLine` a line, append-only, ``seq`` strictly monotone
``events.jsonl``          one :class:`EventLine` a line, append-only: started, growth, checkpoint...
``checkpoints/``          what a restart needs, written beside and renamed
``exports/NAME/``         transformers folders (``base`` where a run grows, ``final`` always)
``result.json``           one :class:`Result`, written once at the very end
``engine.log``            whatever the process prints
========================  =====================================================================

After a restart the engine appends only lines whose ``seq`` is not in the file yet, so a reader that
stores rows by (run id, seq) sees every point exactly once.
"""

from __future__ import annotations

import enum
import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.records import from_dict, read_json

CONTRACT_VERSION = 1
# No length, size or rate of a run comes near; beyond it a number is a slip.
LARGEST_NUMBER = 1e18
MAX_SEED = 2**63 - 1
# Names of corpora, cohorts and designs: they become file names, so they cannot leave a folder.
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
# Bumped by any change that alters the numbers a spec produces; stored with every run.
ENGINE_NUMERICS_VERSION = 1

SPEC_FILE = "spec.json"
METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
RESULT_FILE = "result.json"
LOG_FILE = "engine.log"
CHECKPOINTS_DIR = "checkpoints"
EXPORTS_DIR = "exports"

Phase = Literal["base", "growth", "grown", "single"]
RunStatus = Literal["finished", "diverged", "stopped", "running"]


class ExitCode(enum.IntEnum):
    """How a run's process ends; the values follow sysexits.h where one fits."""

    DONE = 0
    BUG = 1
    BAD_SPEC = 64
    BAD_DATA = 65
    DIVERGED = 70
    OUT_OF_MEMORY = 71
    NO_SPACE = 73
    PAUSED = 75


class SpecError(ValueError):
    """A field of a spec is wrong; ``field`` names it, the message also the limit and the mend."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field


def _require(condition: bool, field: str, value: object, limit: str, mend: str) -> None:
    if not condition:
        raise SpecError(field, f"is {value!r}, but {limit}; {mend}")


def _require_version(version: int) -> None:
    _require(
        version == CONTRACT_VERSION,
        "version",
        version,
        f"this program reads {CONTRACT_VERSION}",
        "run it with the growthlaw that wrote it",
    )


def _require_positive(owner: object, *fields: str) -> None:
    for field in fields:
        value = getattr(owner, field)
        ok = isinstance(value, (int, float)) and 0 < value < LARGEST_NUMBER
        _require(ok, field, value, f"it must lie above 0 and below {LARGEST_NUMBER:g}", f"give a positive {field}")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Shape of the model at the end of the run (the target, or the single size)."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int
    context_length: int
    family: Literal["llama"] = "llama"
    tie_embeddings: bool = False

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    def __post_init__(self) -> None:
        _require_positive(
            self,
            "num_layers",
            "hidden_size",
            "num_heads",
            "num_kv_heads",
            "intermediate_size",
            "vocab_size",
            "context_length",
        )
        _require(
            self.family == "llama", "family", self.family, "this engine trains 'llama' only", "set family to 'llama'"
        )
        _require(
            self.hidden_size % (2 * self.num_heads) == 0,
            "hidden_size",
            self.hidden_size,
            f"it must be a multiple of 2 x num_heads ({2 * self.num_heads}) for rotary heads",
            "change hidden_size or num_heads",
        )
        _require(
            self.num_heads % self.num_kv_heads == 0,
            "num_kv_heads",
            self.num_kv_heads,
            f"it must divide num_heads ({self.num_heads})",
            "use a divisor",
        )


@dataclass(frozen=True, kw_only=True)
class GrowthSpec:
    """How the base becomes the target."""

    num_base_layers: int
    growth_timing_tokens: int
    order: str = "stack"
    operator: Literal["direct"] = "direct"
    optimizer_state_policy: Literal["reset", "copy"] = "reset"

    def __post_init__(self) -> None:
        _require_positive(self, "num_base_layers", "growth_timing_tokens")
        _require(self.operator == "direct", "operator", self.operator, "only 'direct' is supported", "use 'direct'")
        _require(
            self.optimizer_state_policy in ("reset", "copy"),
            "optimizer_state_policy",
            self.optimizer_state_policy,
            "it must be 'reset' or 'copy'",
            "use one of them",
        )


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """Optimization of one run. Every length is in tokens; the engine turns them into steps.

    ``tokens`` is what the last phase sees: grown tokens D where there is growth, else all of the run's.
    The base phase always holds its peak rate after warm-up (it is a trunk); the last phase warms up
    again and follows ``schedule``.
    """

    tokens: int
    peak_lr: float
    base_peak_lr: float | None = None
    batch_sequences: int = 8
    schedule: Literal["wsd", "cosine"] = "wsd"
    warmup_tokens: int = 0
    decay_fraction: float = 0.2
    final_lr_fraction: float = 0.1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    gradient_clip: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self, "tokens", "peak_lr", "batch_sequences", "gradient_clip")
        if self.base_peak_lr is not None:
            _require_positive(self, "base_peak_lr")
        _require(
            self.schedule in ("wsd", "cosine"),
            "schedule",
            self.schedule,
            "it must be 'wsd' or 'cosine'",
            "use one of them",
        )
        _require(
            self.warmup_tokens >= 0, "warmup_tokens", self.warmup_tokens, "it must not be negative", "use 0 or more"
        )
        for field in ("decay_fraction", "final_lr_fraction"):
            value = getattr(self, field)
            _require(0 <= value <= 1, field, value, "it must lie between 0 and 1", "use a fraction")
        for field in ("beta1", "beta2"):
            value = getattr(self, field)
            _require(0 <= value < 1, field, value, "it must lie in [0, 1)", "use 0.9 and 0.95 if unsure")
        _require(
            0 <= self.weight_decay < math.inf,
            "weight_decay",
            self.weight_decay,
            "it must be finite and not negative",
            "use 0.1 if unsure",
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec:
    """Validation on fixed windows: the same ones at every evaluation of every run of a corpus."""

    every_tokens: int
    num_windows: int = 64

    def __post_init__(self) -> None:
        _require_positive(self, "every_tokens", "num_windows")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One run of the engine, complete: two equal specs give the same numbers on the same device."""

    run_id: str
    name: str
    cohort: str
    corpus: str
    corpus_dir: str
    model: ModelSpec
    training: TrainingSpec
    evaluation: EvaluationSpec
    growth: GrowthSpec | None = None
    init_seed: int = 0
    data_seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    num_threads: int = 1
    checkpoint_every_tokens: int = 200_000
    version: int = CONTRACT_VERSION

    @property
    def batch_tokens(self) -> int:
        return self.training.batch_sequences * self.model.context_length

    def __post_init__(self) -> None:
        _require_version(self.version)
        _require_positive(self, "num_threads", "checkpoint_every_tokens")
        _require(
            self.device in ("auto", "cpu", "cuda"), "device", self.device, "it must be auto, cpu or cuda", "use 'auto'"
        )
        _require(
            self.precision in ("fp32", "bf16"), "precision", self.precision, "it must be fp32 or bf16", "use 'fp32'"
        )
        _require(
            self.training.tokens >= self.batch_tokens,
            "training.tokens",
            self.training.tokens,
            f"one batch is {self.batch_tokens} tokens",
            "raise the token budget or shrink the batch",
        )
        for field in ("init_seed", "data_seed"):
            seed = getattr(self, field)
            _require(0 <= seed <= MAX_SEED, field, seed, "it must lie between 0 and 2**63 - 1", "use a seed such as 0")
        self._check_warmup()
        if self.growth is not None:
            _require(
                self.growth.growth_timing_tokens >= self.batch_tokens,
                "growth.growth_timing_tokens",
                self.growth.growth_timing_tokens,
                f"one batch is {self.batch_tokens} tokens",
                "grow later or shrink the batch",
            )
            source_layers(self.growth.order, self.growth.num_base_layers, self.model.num_layers)

    def _check_warmup(self) -> None:
        # A target that never reaches its peak rate is an untuned control, and untuned controls flatter growth.
        # The base may grow inside its warm-up: a very early growth timing is a fair question.
        training = self.training
        tokens = training.tokens // self.batch_tokens * self.batch_tokens
        decays_from = int(tokens * (1 - training.decay_fraction)) if training.schedule == "wsd" else tokens
        _require(
            training.warmup_tokens == 0 or training.warmup_tokens < decays_from,
            "training.warmup_tokens",
            training.warmup_tokens,
            f"the last phase starts to decay after {decays_from} tokens",
            "shorten the warm-up or raise the token budget",
        )


@dataclass(frozen=True, kw_only=True)
class CorpusSpec:
    """One corpus preparation: documents -> tokenizer -> token shards in ``corpus_dir``.

    ``sources`` are files or folders of .txt, .jsonl, .parquet; empty means the corpus that ships with the package.
    """

    run_id: str
    name: str
    corpus_dir: str
    sources: tuple[str, ...] = ()
    vocab_size: int = 1024
    tokenizer: str | None = None
    text_column: str = "text"
    validation_fraction: float = 0.05
    version: int = CONTRACT_VERSION

    def __post_init__(self) -> None:
        _require_version(self.version)
        _require(
            re.fullmatch(NAME_PATTERN, self.name) is not None,
            "name",
            self.name,
            f"names match {NAME_PATTERN}",
            "choose such a name",
        )
        _require(
            257 <= self.vocab_size <= 1_000_000,
            "vocab_size",
            self.vocab_size,
            "a byte-level vocabulary holds 256 bytes and an end-of-text mark, and at most 1,000,000 tokens",
            "choose 257 or more",
        )
        _require(
            0 < self.validation_fraction <= 0.5,
            "validation_fraction",
            self.validation_fraction,
            "it must lie in (0, 0.5]",
            "hold out 0.05 if unsure",
        )


@dataclass(frozen=True, kw_only=True)
class MetricLine:
    """One point of a run. ``tokens`` counts inside the phase, ``compute_flops`` over the whole run."""

    seq: int
    phase: Phase
    tokens: int
    compute_flops: float
    metric: str
    dataset: str
    value: float
    unit: str
    time: str


@dataclass(frozen=True, kw_only=True)
class EventLine:
    """One thing that happened, for people and for the job's story."""

    seq: int
    time: str
    event: str
    message: str
    phase: Phase | None = None
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended. ``final_loss_nats`` is the validation loss after the last step, None if it has none."""

    run_id: str
    status: RunStatus
    final_loss_nats: float | None
    base_tokens: int
    final_phase_tokens: int
    compute_flops: float
    base_flops_per_token: float | None
    target_flops_per_token: float
    duration_seconds: float
    reason: str = ""
    engine_numerics_version: int = ENGINE_NUMERICS_VERSION
    version: int = CONTRACT_VERSION

    def __post_init__(self) -> None:
        _require_version(self.version)


def source_layers(order: str, num_base_layers: int, num_target_layers: int) -> tuple[int, ...]:
    """Source layer of every target layer.

    Args:
        order: ``stack`` (G_stack: 012012), ``interpose`` (001122) or ``list:0,1,...``.
        num_base_layers: layers of the base, L.
        num_target_layers: layers of the target, L'.

    Returns:
        L' indices into the base's layers.

    Raises:
        ValueError: the order is unknown, the target is not deeper, or an index does not exist.
    """
    L, L_target = num_base_layers, num_target_layers
    _require(
        0 < L < L_target,
        "num_base_layers",
        L,
        f"it must be below the target's {L_target} layers",
        "choose a shallower base",
    )
    if order == "stack":
        layers = tuple(i % L for i in range(L_target))
    elif order == "interpose":
        layers = tuple(i * L // L_target for i in range(L_target))
    elif order.startswith("list:"):
        try:
            layers = tuple(int(part) for part in order.removeprefix("list:").split(","))
        except ValueError:
            raise SpecError("order", f"is {order!r}, but a list holds integers; write list:0,1,0,1") from None
        _require(len(layers) == L_target, "order", order, f"it must name {L_target} layers", "name one a target layer")
        _require(
            all(0 <= layer < L for layer in layers),
            "order",
            order,
            f"the base has layers 0 to {L - 1}",
            "use indices that exist",
        )
    else:
        raise SpecError("order", f"is {order!r}, but known orders are stack, interpose and list:...; use one of them")
    return layers


def connection_rate(layers: tuple[int, ...]) -> float:
    """Share of the target's neighbour links that the base had (R_c, arXiv 2405.15319, appendix on how to stack)."""
    links = list(itertools.pairwise(layers))
    return sum(after == before + 1 for before, after in links) / len(links) if links else 1.0


def read_corpus_spec(run_dir: Path) -> CorpusSpec:
    """The corpus preparation's spec, checked; errors as :func:`read_spec`."""
    return from_dict(CorpusSpec, read_json(run_dir / SPEC_FILE))


def read_spec(run_dir: Path) -> Spec:
    """The run's spec, checked.

    Raises:
        ValueError: the file is missing, is not JSON, or a field is wrong.
    """
    return from_dict(Spec, read_json(run_dir / SPEC_FILE))


def read_result(run_dir: Path) -> Result | None:
    """The run's result, None while it has none."""
    path = run_dir / RESULT_FILE
    return from_dict(Result, read_json(path)) if path.exists() else None
