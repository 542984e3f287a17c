"""A whole plan from a question: stages, growth command, decision points, what was moved and what departs."""

from __future__ import annotations

import json
import shlex
from types import ModuleType

from app.export import for_megatron, for_torchtitan, for_transformers
from app.export.from_recommendation import Look, Question
from app.export.hf_config import hf_config
from app.export.plan import Command, DecisionPoint, GrowthStep, Stage, Trainer, TrainingPlan
from app.export.readme import readme
from app.export.stages import BASE_HF, GROWN_START, stages_of
from fitting.errors import InputError

TRAINERS: dict[Trainer, ModuleType] = {
    "torchtitan": for_torchtitan,
    "megatron": for_megatron,
    "transformers": for_transformers,
}
PLAN_FILE = "plan.json"


def build_plan(trainer: Trainer, question: Question) -> TrainingPlan:
    """The plan of ``question`` for ``trainer``.

    Raises:
        InputError: the trainer cannot train this model, or the stages cannot be written (:func:`stages_of`).
    """
    writer = TRAINERS[trainer]
    base, grown, moved = stages_of(question.spec, question.details)
    family = grown.model.family
    if family not in writer.FAMILIES:
        raise InputError(
            "model_type", f"is {family!r}, but plans for {trainer} write {', '.join(writer.FAMILIES)}",
            "use --for transformers, or such a model",
        )  # fmt: skip
    rounding = (*question.rounding, *moved)
    if grown.data_offset.steps != int(grown.data_offset.steps):
        rounding += (
            f"the data offset of {grown.data_offset.sequences:,} sequences is {grown.data_offset.steps:.2f} steps of the "
            "grown stage's batch: count sequences or tokens, not steps",
        )
    return TrainingPlan(
        trainer=trainer,
        trainer_version=writer.VERSION,
        source=question.source,
        base=base,
        grown=grown,
        growth=_growth(question, base, grown, writer),
        decision_points=_decision_points(question, base, grown),
        total_tokens=base.num_tokens + grown.num_tokens,
        total_compute_flops=base.compute_flops + grown.compute_flops,
        rounding=rounding,
        notes=(*question.notes, *writer.NOTES),
    )


def plan_files(plan: TrainingPlan) -> dict[str, str]:
    """Path below the plan's folder -> content, of everything that is exported."""
    writer = TRAINERS[plan.trainer]
    written: dict[str, str] = dict(writer.files(plan))
    written[PLAN_FILE] = plan.to_json()
    written["README.md"] = readme(plan, writer.start_commands(), tuple(sorted(written)))
    written["hf/base/config.json"] = json.dumps(hf_config(plan.base.model), indent=1) + "\n"
    written["hf/target/config.json"] = json.dumps(hf_config(plan.grown.model), indent=1) + "\n"
    return written


def _growth(question: Question, base: Stage, grown: Stage, writer: ModuleType) -> GrowthStep:
    growth = question.spec.growth
    assert growth is not None
    grow = ["growthlaw", "checkpoint", "grow", BASE_HF, GROWN_START]
    if growth.direction == "width":
        grow += ["--width", str(growth.width_factor)]
    else:
        grow += ["--layers", str(grown.model.num_layers), "--order", growth.order]
    grow += ["--operator", growth.operator]
    if growth.noise:
        grow += ["--noise", repr(growth.noise)]
    grow += ["--seed", str(growth.operator_seed), "--base-tokens", str(base.num_tokens)]
    verify = ["growthlaw", "checkpoint", "verify", GROWN_START, "--source", BASE_HF]
    return GrowthStep(
        direction=growth.direction,
        num_base_layers=base.model.num_layers,
        num_target_layers=grown.model.num_layers,
        width_factor=growth.width_factor,
        order=growth.order,
        operator=growth.operator,
        noise=growth.noise,
        operator_seed=growth.operator_seed,
        optimizer_state="reset",
        source=BASE_HF,
        target=GROWN_START,
        commands=(
            *writer.to_hf(base),
            Command(what="grow", run=shlex.join(grow)),
            Command(what="prove it", run=shlex.join(verify)),
            *writer.from_hf(grown),
        ),
        conversion=writer.CONVERSION,
    )


def _decision_points(question: Question, base: Stage, grown: Stage) -> tuple[DecisionPoint, ...]:
    def point(stage: Stage, step: int, what: str, look: Look | None = None) -> DecisionPoint:
        tokens = step * stage.batch_tokens
        before = stage.data_offset.tokens
        spent = 0.0 if stage.name == "base" else base.compute_flops
        return DecisionPoint(
            stage=stage.name,
            step=step,
            tokens=tokens,
            run_tokens=before + tokens,
            compute_flops=spent + tokens * stage.flops_per_token,
            what=what,
            expected_loss_nats=look.expected_loss_nats if look else None,
            expected_band=look.expected_band if look else None,
            stop_above_nats=look.stop_above_nats if look else None,
        )

    warm, held = grown.schedule.warmup_steps, grown.schedule.warmup_steps + grown.schedule.hold_steps
    points = [
        point(base, base.num_steps, "the base ends here: evaluate it, keep its checkpoint, grow"),
        point(grown, max(1, warm), "the loss after growth should be back below the base's last one by about here"),
    ]
    if warm < held < grown.num_steps:
        points.append(point(grown, held, "the decay begins: keep this checkpoint, a longer run can branch from it"))
    for look in question.looks:
        step = min(grown.num_steps, max(1, round(look.tokens_after_growth / grown.batch_tokens)))
        what = (
            "compare the validation loss with the band; it is for a run whose schedule ends here, and a run at its full rate "
            f"reads higher. Above the stop: {look.fallback}"
        )
        points.append(point(grown, step, what, look))
    points.append(point(grown, grown.num_steps, "the end: evaluate, and store both stages' logs as one run"))
    return tuple(sorted(points, key=lambda one: one.run_tokens))
