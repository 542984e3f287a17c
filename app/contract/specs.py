"""Specs: what the service asks of the engine, checked field by field."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal, get_args

from app.contract.checks import (
    CONTRACT_VERSION,
    MAX_SEED,
    NAME_PATTERN,
    SpecError,
    require,
    require_positive,
    require_version,
)
from fitting.errors import InputError
from fitting.orders import source_layers

Operator = Literal["direct", "zero", "random", "learn"]
OptimizerStatePolicy = Literal["reset", "copy", "keep_old_zero_new", "copy_v_only"]
LearningRatePolicy = Literal["rewarm", "rewind", "keep"]
# What a width growth multiplies; the head size stays.
WIDTH_FIELDS = ("hidden_size", "num_heads", "num_kv_heads", "intermediate_size")


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
        require_positive(
            self,
            "num_layers",
            "hidden_size",
            "num_heads",
            "num_kv_heads",
            "intermediate_size",
            "vocab_size",
            "context_length",
        )
        require(
            self.family == "llama", "family", self.family, "this engine trains 'llama' only", "set family to 'llama'"
        )
        require(
            self.hidden_size % (2 * self.num_heads) == 0,
            "hidden_size",
            self.hidden_size,
            f"it must be a multiple of 2 x num_heads ({2 * self.num_heads}) for rotary heads",
            "change hidden_size or num_heads",
        )
        require(
            self.num_heads % self.num_kv_heads == 0,
            "num_kv_heads",
            self.num_kv_heads,
            f"it must divide num_heads ({self.num_heads})",
            "use a divisor",
        )


@dataclass(frozen=True, kw_only=True)
class GrowthSpec:
    """How the base becomes the target: in depth (fewer base layers) or in width (``width_factor`` above 1).

    A width growth multiplies hidden size, heads, key-value heads and MLP width by ``width_factor``; the head size stays.

    Attributes:
        operator: how new weights are made (:mod:`app.engine.operators`).
        noise: share a of fresh noise mixed into every matrix, W <- (1 - a) W + a e; 0 is none.
        operator_seed: seed of all that the operator draws.
        mask_tokens: tokens over which the masked branches of ``random`` fade in; only with ``random``, which needs them.
        learn_steps: steps for which ``learn`` trains its maps on the tokens that follow; only with ``learn``.
        learning_rate_policy: ``rewarm`` warms up over ``rewarm_tokens`` (``training.warmup_tokens`` where None) to the
            peak, ``rewind`` starts at the peak, ``keep`` lets one schedule run over both phases.
    """

    num_base_layers: int
    growth_timing_tokens: int
    order: str = "stack"
    width_factor: int = 1
    operator: Operator = "direct"
    noise: float = 0.0
    operator_seed: int = 0
    mask_tokens: int | None = None
    learn_steps: int | None = None
    optimizer_state_policy: OptimizerStatePolicy = "reset"
    learning_rate_policy: LearningRatePolicy = "rewarm"
    rewarm_tokens: int | None = None

    @property
    def direction(self) -> Literal["depth", "width"]:
        return "width" if self.width_factor > 1 else "depth"

    def base_model(self, target: ModelSpec) -> ModelSpec:
        """Shape of the base that grows into ``target``.

        Raises:
            SpecError: ``width_factor`` does not divide one of the target's widths.
        """
        sizes = {field: getattr(target, field) for field in WIDTH_FIELDS}
        for field, size in sizes.items():
            require(
                size % self.width_factor == 0,
                "width_factor",
                self.width_factor,
                f"it must divide the target's {field} ({size})",
                "choose another factor or target",
            )
        narrowed = {field: size // self.width_factor for field, size in sizes.items()}
        return replace(target, num_layers=self.num_base_layers, **narrowed)

    def __post_init__(self) -> None:
        require_positive(self, "num_base_layers", "growth_timing_tokens", "width_factor")
        for field, choices in (
            ("operator", get_args(Operator)),
            ("optimizer_state_policy", get_args(OptimizerStatePolicy)),
            ("learning_rate_policy", get_args(LearningRatePolicy)),
        ):
            value = getattr(self, field)
            require(value in choices, field, value, f"it must be one of {', '.join(choices)}", "use one of them")
        require(0 <= self.noise < 1, "noise", self.noise, "it must lie in [0, 1)", "use 0.2 as the paper or 0 for none")
        require(
            0 <= self.operator_seed <= MAX_SEED,
            "operator_seed",
            self.operator_seed,
            "it must lie between 0 and 2**63 - 1",
            "use a seed such as 0",
        )
        for field, operator in (("mask_tokens", "random"), ("learn_steps", "learn")):
            if self.operator == operator:
                value = getattr(self, field)
                require(value is not None, field, value, f"operator {operator!r} needs it", f"give a positive {field}")
                require_positive(self, field)
            else:
                require(
                    getattr(self, field) is None,
                    field,
                    getattr(self, field),
                    f"it belongs to operator {operator!r} alone",
                    "leave it out",
                )
        if self.rewarm_tokens is not None:
            require(
                self.learning_rate_policy == "rewarm",
                "rewarm_tokens",
                self.rewarm_tokens,
                "it belongs to learning_rate_policy 'rewarm' alone",
                "leave it out",
            )
            require(
                self.rewarm_tokens >= 0, "rewarm_tokens", self.rewarm_tokens, "it must not be negative", "use 0 or more"
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
        require_positive(self, "tokens", "peak_lr", "batch_sequences", "gradient_clip")
        if self.base_peak_lr is not None:
            require_positive(self, "base_peak_lr")
        require(
            self.schedule in ("wsd", "cosine"),
            "schedule",
            self.schedule,
            "it must be 'wsd' or 'cosine'",
            "use one of them",
        )
        require(
            self.warmup_tokens >= 0, "warmup_tokens", self.warmup_tokens, "it must not be negative", "use 0 or more"
        )
        for field in ("decay_fraction", "final_lr_fraction"):
            value = getattr(self, field)
            require(0 <= value <= 1, field, value, "it must lie between 0 and 1", "use a fraction")
        for field in ("beta1", "beta2"):
            value = getattr(self, field)
            require(0 <= value < 1, field, value, "it must lie in [0, 1)", "use 0.9 and 0.95 if unsure")
        require(
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
        require_positive(self, "every_tokens", "num_windows")


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
        require_version(self.version)
        require_positive(self, "num_threads", "checkpoint_every_tokens")
        require(
            self.device in ("auto", "cpu", "cuda"), "device", self.device, "it must be auto, cpu or cuda", "use 'auto'"
        )
        require(
            self.precision in ("fp32", "bf16"), "precision", self.precision, "it must be fp32 or bf16", "use 'fp32'"
        )
        require(
            self.training.tokens >= self.batch_tokens,
            "training.tokens",
            self.training.tokens,
            f"one batch is {self.batch_tokens} tokens",
            "raise the token budget or shrink the batch",
        )
        for field in ("init_seed", "data_seed"):
            seed = getattr(self, field)
            require(0 <= seed <= MAX_SEED, field, seed, "it must lie between 0 and 2**63 - 1", "use a seed such as 0")
        self._check_warmup()
        if self.growth is not None:
            require(
                self.growth.growth_timing_tokens >= self.batch_tokens,
                "growth.growth_timing_tokens",
                self.growth.growth_timing_tokens,
                f"one batch is {self.batch_tokens} tokens",
                "grow later or shrink the batch",
            )
            self._check_growth(self.growth)

    @property
    def base_model(self) -> ModelSpec | None:
        """Shape of the base; None where nothing grows."""
        return self.growth.base_model(self.model) if self.growth is not None else None

    def _check_growth(self, growth: GrowthSpec) -> None:
        if growth.direction == "depth":
            try:
                source_layers(growth.order, growth.num_base_layers, self.model.num_layers)
            except InputError as error:
                raise SpecError(f"growth.{error.field}", f"{error.problem}; {error.mend}") from None
            return
        require(
            growth.num_base_layers == self.model.num_layers,
            "growth.num_base_layers",
            growth.num_base_layers,
            f"a width growth keeps the target's {self.model.num_layers} layers",
            "grow in depth and in width one after the other",
        )
        growth.base_model(self.model)

    def _check_warmup(self) -> None:
        # A target that never reaches its peak rate is an untuned control, and untuned controls flatter growth.
        # The base may grow inside its warm-up: a very early growth timing is a fair question.
        training = self.training
        tokens = training.tokens // self.batch_tokens * self.batch_tokens
        decays_from = int(tokens * (1 - training.decay_fraction)) if training.schedule == "wsd" else tokens
        require(
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
        require_version(self.version)
        require(
            re.fullmatch(NAME_PATTERN, self.name) is not None,
            "name",
            self.name,
            f"names match {NAME_PATTERN}",
            "choose such a name",
        )
        require(
            257 <= self.vocab_size <= 1_000_000,
            "vocab_size",
            self.vocab_size,
            "a byte-level vocabulary holds 256 bytes and an end-of-text mark, and at most 1,000,000 tokens",
            "choose 257 or more",
        )
        require(
            0 < self.validation_fraction <= 0.5,
            "validation_fraction",
            self.validation_fraction,
            "it must lie in (0, 0.5]",
            "hold out 0.05 if unsure",
        )
