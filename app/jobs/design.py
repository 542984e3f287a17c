"""A growth design and its controls at equal FLOPs, as engine specs.

    C = B f_target          B token budget, f training FLOPs a token (fitting.flops)
    D = (C - d f_base) / f_target          grown tokens
    D_base = C / f_base                    the base alone, a smaller model given the same compute

Every length is rounded to whole batches, so arms differ by at most one batch of the target each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from app.contract import EvaluationSpec, GrowthSpec, ModelSpec, Spec, TrainingSpec
from app.corpus.shards import Manifest
from fitting.errors import InputError
from fitting.flops import flops_per_token


@dataclass(frozen=True, kw_only=True)
class GrowthDesign:
    """What a user asks of `POST /grow`, with the corpus resolved.

    ``training.tokens`` is ignored: every arm gets its own from the token budget.
    """

    name: str
    cohort: str
    corpus: str
    corpus_dir: str
    target_model: ModelSpec
    growth: GrowthSpec
    token_budget: int
    training: TrainingSpec
    evaluation: EvaluationSpec
    init_seed: int
    data_seed: int
    device: str
    precision: str
    checkpoint_every_tokens: int
    num_processes: int = 1
    min_processes: int | None = None

    @property
    def base_model(self) -> ModelSpec:
        return self.growth.base_model(self.target_model)

    @property
    def budget_flops(self) -> float:
        return self.token_budget * flops_per_token(self.target_model)


def arm_spec(design: GrowthDesign, role: str, run_id: str) -> Spec:
    """The spec of one arm.

    Raises:
        InputError: the budget cannot pay for the base, or a length is below one batch.
    """
    batch_tokens = design.training.batch_sequences * design.target_model.context_length
    f_target, f_base = flops_per_token(design.target_model), flops_per_token(design.base_model)
    budget_tokens = _whole_batches(design.token_budget, batch_tokens, "token_budget")
    asked_timing = design.growth.growth_timing_tokens
    base_batch_sequences = design.training.base_batch_sequences or design.training.batch_sequences
    base_batch_tokens = base_batch_sequences * design.target_model.context_length
    timing_tokens = _whole_batches(asked_timing, base_batch_tokens, "growth_timing_tokens")
    growth: GrowthSpec | None = None
    model = design.target_model
    if role == "grown":
        base_flops = timing_tokens * f_base
        tokens = (design.budget_flops - base_flops) / f_target
        if tokens < batch_tokens:
            latest = (design.budget_flops - batch_tokens * f_target) / f_base
            raise InputError(
                "growth_timing_tokens",
                f"is {asked_timing:,}, but a base trained that long costs {base_flops:.3g} of the budget's "
                f"{design.budget_flops:.3g} FLOPs and leaves no batch for the target",
                f"grow before {max(latest, 0):,.0f} tokens or raise token_budget",
            )
        growth = replace(design.growth, growth_timing_tokens=timing_tokens)
    elif role == "scratch":
        tokens = float(budget_tokens)
    else:
        assert role == "base_only", role
        model = design.base_model
        tokens = design.budget_flops / f_base
    return Spec(
        run_id=run_id,
        name=f"{design.name}-{role.replace('_', '-')}",
        cohort=design.cohort,
        corpus=design.corpus,
        corpus_dir=design.corpus_dir,
        model=model,
        growth=growth,
        training=replace(design.training, tokens=_whole_batches(tokens, batch_tokens, "token_budget")),
        evaluation=design.evaluation,
        init_seed=design.init_seed,
        data_seed=design.data_seed,
        device=design.device,  # type: ignore[arg-type]
        precision=design.precision,  # type: ignore[arg-type]
        checkpoint_every_tokens=design.checkpoint_every_tokens,
        num_processes=design.num_processes,
        min_processes=design.min_processes,
    )


def in_whole_batches(spec: Spec) -> Spec:
    """The same run with its lengths cut to the whole batches that the engine trains, so that plan and result agree.

    Raises:
        SpecError: what is left of a length contradicts another.
    """
    batch_tokens = spec.batch_tokens
    growth, trunk = spec.growth, spec.trunk
    if growth is not None:
        timing_tokens = _cut(growth.growth_timing_tokens, spec.base_batch_sequences * spec.model.context_length)
        growth = replace(growth, growth_timing_tokens=timing_tokens)
    if trunk is not None:
        trunk = replace(trunk, branch_tokens=_cut(trunk.branch_tokens, batch_tokens))
    return replace(
        spec,
        training=replace(spec.training, tokens=_cut(spec.training.tokens, batch_tokens)),
        growth=growth,
        trunk=trunk,
        keep_checkpoints_at_tokens=tuple(sorted({_cut(at, batch_tokens) for at in spec.keep_checkpoints_at_tokens})),
    )


def check_corpus(spec: Spec, manifest: Manifest) -> None:
    """Refuse a run whose corpus is too small for one batch or for its validation windows.

    Raises:
        InputError: names the field, what the corpus holds and the mend.
    """
    needed = {"train": ("batch_sequences", spec.training.batch_sequences)}
    needed["validation"] = ("num_validation_windows", spec.evaluation.num_windows)
    for split, (field, num_windows) in needed.items():
        available = (manifest.splits[split].num_tokens - 1) // spec.model.context_length
        if available < num_windows:
            raise InputError(
                field,
                f"is {num_windows:,}, but the {split} split of {spec.corpus} holds {available:,} windows of "
                f"{spec.model.context_length:,} tokens",
                "lower it, shorten context_length, or prepare a larger corpus",
            )


def total_tokens(spec: Spec) -> int:
    """Tokens that a run reads from its corpus, all phases together; a decay leg's include its trunk's part."""
    return spec.training.tokens + (spec.growth.growth_timing_tokens if spec.growth else 0)


def total_flops(spec: Spec) -> float:
    """Training FLOPs of a whole run; a decay leg's include its trunk's part."""
    flops = spec.training.tokens * flops_per_token(spec.model)
    if spec.growth is not None:
        flops += spec.growth.growth_timing_tokens * flops_per_token(spec.growth.base_model(spec.model))
    return flops


def _cut(tokens: int, batch_tokens: int) -> int:
    return tokens // batch_tokens * batch_tokens


def _whole_batches(tokens: float, batch_tokens: int, field: str) -> int:
    batches = round(tokens / batch_tokens)
    if batches < 1:
        raise InputError(
            field,
            f"is {tokens:,.0f} tokens, but one batch (batch_sequences x context_length) is {batch_tokens:,}",
            "raise it or make the batch smaller",
        )
    return batches * batch_tokens
