"""Specs: what the service asks of the engine, checked field by field."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from app.contract.checks import (
    CONTRACT_VERSION,
    MAX_SEED,
    SpecError,
    require,
    require_positive,
    require_version,
)
from app.contract.training import TrainingSpec, TrunkSpec
from fitting.errors import InputError
from fitting.orders import source_layers

Operator = Literal["direct", "zero", "random", "learn"]
OptimizerStatePolicy = Literal["reset", "copy", "keep_old_zero_new", "copy_v_only"]
LearningRatePolicy = Literal["rewarm", "rewind", "keep"]
Family = Literal["llama", "mistral", "qwen2", "qwen3"]
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
    family: Family = "llama"
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
        families = get_args(Family)
        require(
            self.family in families,
            "family",
            self.family,
            f"this engine trains {', '.join(families)}",
            "use one of them",
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
        base_checkpoint: a transformers folder of safetensors holding a base that saw ``growth_timing_tokens`` already:
            it is grown at once and only the grown phase trains; its tokens count in compute and as read from the corpus.
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
    base_checkpoint: str | None = None

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
        takes_noise = self.operator == "direct" or (self.operator == "zero" and self.direction == "depth")
        require(
            self.noise == 0 or takes_noise,
            "noise",
            self.noise,
            f"operator {self.operator!r} in {self.direction} draws its new weights or must keep them at zero",
            "use noise with 'direct', or with 'zero' in depth",
        )
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
        require(
            self.base_checkpoint is None or self.optimizer_state_policy == "reset",
            "optimizer_state_policy",
            self.optimizer_state_policy,
            "a base_checkpoint holds no optimizer state",
            "use 'reset'",
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
class EvaluationSpec:
    """Validation on fixed windows: the same ones at every evaluation of every run of a corpus."""

    every_tokens: int
    num_windows: int = 64

    def __post_init__(self) -> None:
        require_positive(self, "every_tokens", "num_windows")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One run of the engine, complete: two equal specs give the same numbers on the same device.

    Attributes:
        trunk: where the run is a decay leg: the kept checkpoint of another run that it goes on from.
        keep_checkpoints_at_tokens: tokens of the last phase at which a checkpoint is kept for good, for legs to leave.
        micro_batch_sequences: sequences a forward pass takes; a batch is the mean over its micro batches. All where None.
        compile: compile the layers with torch.compile.
        activation_checkpointing: keep a layer's input alone for the backward pass and compute the rest again.
        num_processes: processes that share the model and every batch; a run may be resumed with another number.
        min_processes: fewest that the run may go on with by itself where a node is lost; ``num_processes`` where None.
    """

    run_id: str
    name: str
    cohort: str
    corpus: str
    corpus_dir: str
    model: ModelSpec
    training: TrainingSpec
    evaluation: EvaluationSpec
    growth: GrowthSpec | None = None
    trunk: TrunkSpec | None = None
    keep_checkpoints_at_tokens: tuple[int, ...] = ()
    init_seed: int = 0
    data_seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    micro_batch_sequences: int | None = None
    compile: bool = False
    activation_checkpointing: bool = False
    num_threads: int = 1
    num_processes: int = 1
    min_processes: int | None = None
    checkpoint_every_tokens: int = 200_000
    version: int = CONTRACT_VERSION

    @property
    def batch_tokens(self) -> int:
        return self.training.batch_sequences * self.model.context_length

    def __post_init__(self) -> None:
        require_version(self.version)
        require_positive(self, "num_threads", "num_processes", "checkpoint_every_tokens")
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
        self._check_batches()
        if self.growth is not None:
            self._check_growth(self.growth)
        self._check_warmup()
        for tokens in self.keep_checkpoints_at_tokens:
            require(
                self.batch_tokens <= tokens <= self.training.tokens,
                "keep_checkpoints_at_tokens",
                tokens,
                f"the last phase goes from one batch ({self.batch_tokens}) to {self.training.tokens} tokens",
                "choose tokens in between",
            )
        if self.trunk is not None:
            require(
                self.trunk.branch_tokens >= self.batch_tokens,
                "trunk.branch_tokens",
                self.trunk.branch_tokens,
                f"one batch is {self.batch_tokens} tokens",
                "branch at a checkpoint that the trunk kept",
            )
            self.trunk.check(self.training)

    @property
    def base_model(self) -> ModelSpec | None:
        """Shape of the base; None where nothing grows."""
        return self.growth.base_model(self.model) if self.growth is not None else None

    @property
    def base_batch_sequences(self) -> int:
        return self.training.base_batch_sequences or self.training.batch_sequences

    def _check_batches(self) -> None:
        for name, count in (
            ("training.batch_sequences", self.training.batch_sequences),
            ("training.base_batch_sequences", self.base_batch_sequences),
            ("evaluation.num_windows", self.evaluation.num_windows),
        ):
            require(
                count % self.num_processes == 0,
                "num_processes",
                self.num_processes,
                f"every process takes an equal share, so it must divide {name} ({count})",
                f"use a divisor or change {name}",
            )
        if self.min_processes is not None:
            require_positive(self, "min_processes")
            require(
                self.min_processes <= self.num_processes,
                "min_processes",
                self.min_processes,
                f"the run starts with num_processes ({self.num_processes})",
                "use at most as many",
            )
        if self.micro_batch_sequences is None:
            return
        require_positive(self, "micro_batch_sequences")
        for sequences in (self.training.batch_sequences, self.base_batch_sequences):
            require(
                sequences // self.num_processes % self.micro_batch_sequences == 0,
                "micro_batch_sequences",
                self.micro_batch_sequences,
                f"it must divide a process's share of a batch, {sequences // self.num_processes} sequences",
                "use a divisor",
            )

    def _check_growth(self, growth: GrowthSpec) -> None:
        self._check_growth_tokens(growth)
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

    def _check_growth_tokens(self, growth: GrowthSpec) -> None:
        training, batch_tokens = self.training, self.batch_tokens
        base_batch_tokens = self.base_batch_sequences * self.model.context_length
        require(
            growth.base_checkpoint is not None or growth.growth_timing_tokens >= base_batch_tokens,
            "growth.growth_timing_tokens",
            growth.growth_timing_tokens,
            f"one batch is {base_batch_tokens} tokens",
            "grow later or shrink the batch",
        )
        learn_tokens = (growth.learn_steps or 0) * batch_tokens
        require(
            learn_tokens + batch_tokens <= training.tokens,
            "growth.learn_steps",
            growth.learn_steps,
            f"its {learn_tokens} tokens are the first of training.tokens ({training.tokens})",
            "learn for fewer steps or raise training.tokens",
        )
        grown_tokens = training.tokens // batch_tokens * batch_tokens
        require(
            growth.mask_tokens is None or growth.mask_tokens <= grown_tokens,
            "growth.mask_tokens",
            growth.mask_tokens,
            f"the grown phase has {grown_tokens} tokens",
            "let the new branches fade in before the run ends",
        )
        for field in ("base_peak_lr", "base_batch_sequences"):
            require(
                growth.base_checkpoint is None or getattr(training, field) is None,
                f"training.{field}",
                getattr(training, field),
                "the base of growth.base_checkpoint is not trained here",
                "leave it out",
            )
        require(
            growth.learning_rate_policy != "keep" or training.base_peak_lr is None,
            "training.base_peak_lr",
            training.base_peak_lr,
            "under growth.learning_rate_policy 'keep' one schedule with one peak runs over both phases",
            "leave it out",
        )

    def _check_warmup(self) -> None:
        # A target that never reaches its peak rate is an untuned control, and untuned controls flatter growth.
        # The base may grow inside its warm-up: a very early growth timing is a fair question.
        training, growth = self.training, self.growth
        field, warmup_tokens = "training.warmup_tokens", training.warmup_tokens
        tokens = training.tokens // self.batch_tokens * self.batch_tokens
        if growth is not None:
            tokens -= (growth.learn_steps or 0) * self.batch_tokens
            if growth.learning_rate_policy == "rewind":
                warmup_tokens = 0
            elif growth.learning_rate_policy == "keep":
                tokens += growth.growth_timing_tokens
            elif growth.rewarm_tokens is not None:
                field, warmup_tokens = "growth.rewarm_tokens", growth.rewarm_tokens
        decays_from = int(tokens * training.decay_starts_at)
        require(
            warmup_tokens == 0 or warmup_tokens < decays_from,
            field,
            warmup_tokens,
            f"the last phase starts to decay after {decays_from} tokens",
            "shorten the warm-up or raise the token budget",
        )
