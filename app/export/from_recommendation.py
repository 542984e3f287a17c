"""From an answer of `growthlaw recommend` and the target's shape to the spec that a plan is made of.

What the answer's recipe leaves open is filled with the engine's defaults, each named in ``notes``: the base's warm-up (the
rewarm's, at most a tenth of the base), AdamW (0.9, 0.95), weight decay 0.1, clipping at 1.0, decay over the last fifth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app.contract import EvaluationSpec, GrowthSpec, ModelSpec, Spec, TrainingSpec
from app.export.stages import ModelDetails
from fitting.errors import InputError
from fitting.flops import non_embedding_params

_SAME_SIZE = 0.02
_BASE_WARMUP_SHARE = 0.1
_SCHEDULES = ("wsd", "cosine")


@dataclass(frozen=True, kw_only=True)
class Look:
    """A decision point of the answer: tokens after growth, and the losses it names."""

    tokens_after_growth: float
    expected_loss_nats: float
    expected_band: tuple[float, float]
    stop_above_nats: float
    fallback: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a plan is asked to hold: the spec, where it comes from, what was moved on the way, where to look."""

    spec: Spec
    details: ModelDetails
    source: str
    rounding: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    looks: tuple[Look, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a user sets against the recipe; None leaves the recipe's."""

    batch_sequences: int | None = None
    peak_lr: float | None = None
    base_peak_lr: float | None = None
    schedule: Literal["wsd", "cosine"] | None = None


def question_of(answer: Mapping[str, Any], target: ModelSpec, details: ModelDetails, wishes: Wishes) -> Question:
    """The question that an answer (the body of ``POST /recommend``) asks of a trainer.

    Raises:
        InputError: the answer is not to grow, is of another target, or leaves out what a run needs.
    """
    _check(answer, target)
    recipe = {name: setting["value"] for name, setting in answer["recipe"].items()}
    notes: list[str] = [f"recommendation: {warning}" for warning in answer["warnings"]]
    rounding: list[str] = []
    batch = wishes.batch_sequences or _batch(recipe["batch_tokens"], target.context_length, rounding)
    batch_tokens = batch * target.context_length
    timing = _whole_batches("growth_timing_tokens", answer["growth_timing_tokens"], batch_tokens, rounding)
    grown = _whole_batches("grown_tokens", answer["grown_tokens"], batch_tokens, rounding)
    rewarm = round(recipe["rewarmup_tokens"])
    base_warmup = min(rewarm, round(_BASE_WARMUP_SHARE * timing))
    notes.append(
        f"the recommendation names no warm-up of the base: {base_warmup:,} tokens, the rewarm's or a tenth of the base; AdamW "
        "(0.9, 0.95), weight decay 0.1, clipping at 1.0 and, for wsd, decay over the last fifth are this plan's defaults"
    )
    if recipe["optimizer_state_policy"] != "reset":
        notes.append(
            f"the recommendation's optimizer_state_policy is {recipe['optimizer_state_policy']!r}; no other trainer's "
            "moments are carried over, so the grown stage starts with a fresh optimizer (reset)"
        )
    training = TrainingSpec(
        tokens=grown,
        peak_lr=wishes.peak_lr or recipe["target_peak_lr"],
        base_peak_lr=wishes.base_peak_lr or recipe["base_peak_lr"],
        batch_sequences=batch,
        schedule=wishes.schedule or recipe["schedule"],
        warmup_tokens=base_warmup,
    )
    growth = GrowthSpec(
        num_base_layers=_num_base_layers(answer, target),
        growth_timing_tokens=timing,
        order=answer["order"],
        rewarm_tokens=rewarm,
    )
    return Question(
        spec=plan_spec(target, training, growth),
        details=details,
        source=f"recommendation of {answer['guideline']['name']} (support: {answer['support']['grade']})",
        rounding=tuple(rounding),
        notes=tuple(notes),
        looks=tuple(_look(point) for point in answer["decision_points"]),
    )


def plan_spec(target: ModelSpec, training: TrainingSpec, growth: GrowthSpec) -> Spec:
    """A spec that only a plan is made of: the corpus is the trainer's own."""
    if training.schedule not in _SCHEDULES:
        raise InputError(
            "schedule", f"is {training.schedule!r}, but a plan writes {' or '.join(_SCHEDULES)}", "give --schedule wsd"
        )
    return Spec(
        run_id="plan",
        name="plan",
        cohort="plan",
        corpus="own",
        corpus_dir=".",
        model=target,
        training=training,
        growth=growth,
        evaluation=EvaluationSpec(every_tokens=training.tokens),
    )


def design_question(
    design: Spec, asked_timing_tokens: int, asked_grown_tokens: float, details: ModelDetails
) -> Question:
    """The question of the grown arm of a design (the body of ``POST /grow``), as the service would run it."""
    assert design.growth is not None
    rounding: list[str] = []
    for name, asked, tokens, batch_tokens in (
        (
            "growth_timing_tokens",
            asked_timing_tokens,
            design.growth.growth_timing_tokens,
            design.base_batch_sequences * design.model.context_length,
        ),
        ("grown_tokens", asked_grown_tokens, design.training.tokens, design.batch_tokens),
    ):
        _tell(rounding, name, asked, tokens, batch_tokens)
    return Question(
        spec=design,
        details=details,
        source=f"design {design.name}",
        rounding=tuple(rounding),
    )


def _check(answer: Mapping[str, Any], target: ModelSpec) -> None:
    for field in ("decision", "target_model", "recipe", "decision_points", "guideline", "support", "warnings"):
        if field not in answer:
            raise InputError(field, "is missing", "give the JSON that growthlaw recommend --json printed")
    if answer["decision"] != "grow" or not answer["recipe"]:
        raise InputError(
            "decision", f"is {answer['decision']!r}, so there is no growth to export",
            "train what it says, ask with another budget, or export a --design of your own",
        )  # fmt: skip
    asked, own = answer["target_model"]["params"], non_embedding_params(target)
    if abs(asked / own - 1) > _SAME_SIZE:
        raise InputError(
            "target_params", f"is {asked:g}, but the target's config has {own:,} non-embedding parameters",
            "give the config of the target that was asked about, or ask again",
        )  # fmt: skip
    layers = answer["target_model"]["num_layers"]
    if layers is not None and layers != target.num_layers:
        raise InputError(
            "num_target_layers", f"is {layers}, but the target's config has {target.num_layers} layers",
            "give the config of the target that was asked about, or ask again",
        )  # fmt: skip


def _num_base_layers(answer: Mapping[str, Any], target: ModelSpec) -> int:
    named = answer["base_model"]["num_layers"]
    if named is not None:
        return int(named)
    factor = answer["growth_factor"]
    layers = target.num_layers / factor
    if layers != round(layers) or layers < 1:
        raise InputError(
            "growth_factor", f"is {factor:g}, which does not divide the target's {target.num_layers} layers",
            "ask with --num-target-layers, so that the answer names the base's layers",
        )  # fmt: skip
    return round(layers)


def _batch(batch_tokens: float, context_length: int, rounding: list[str]) -> int:
    sequences = max(1, round(batch_tokens / context_length))
    if abs(sequences * context_length - batch_tokens) >= 1:
        rounding.append(
            f"batch_tokens of {batch_tokens:,.0f} becomes {sequences * context_length:,} ({sequences:,} sequences of "
            f"{context_length:,})"
        )
    return sequences


def _whole_batches(field: str, tokens: float, batch_tokens: int, rounding: list[str]) -> int:
    steps = round(tokens / batch_tokens)
    if steps < 1:
        raise InputError(
            field, f"is {tokens:,.0f} tokens, but one batch is {batch_tokens:,}", "give a smaller --batch-sequences"
        )
    _tell(rounding, field, tokens, steps * batch_tokens, batch_tokens)
    return steps * batch_tokens


def _tell(rounding: list[str], field: str, asked: float, tokens: int, batch_tokens: int) -> None:
    if abs(asked - tokens) >= 1:
        rounding.append(
            f"{field} of {asked:,.0f} becomes {tokens:,} ({tokens // batch_tokens:,} steps of {batch_tokens:,} tokens)"
        )


def _look(point: Mapping[str, Any]) -> Look:
    low, high = point["expected_band"]
    return Look(
        tokens_after_growth=point["tokens_after_growth"],
        expected_loss_nats=point["expected_loss_nats"],
        expected_band=(low, high),
        stop_above_nats=point["stop_above_nats"],
        fallback=point["fallback"],
    )
