"""The README.md of an exported plan: what to run, in order, and where to look."""

from __future__ import annotations

from app.export.plan import DecisionPoint, Stage, TrainingPlan


def readme(plan: TrainingPlan, start_commands: tuple[str, str], file_names: tuple[str, ...]) -> str:
    """The page for a person; every number stands in `plan.json` too."""
    base, grown, growth = plan.base, plan.grown, plan.growth
    how = (
        f"{growth.num_base_layers} layers become {growth.num_target_layers}, order {growth.order}"
        if growth.direction == "depth"
        else f"{growth.width_factor} times wider"
    )
    steps = "\n".join(f"# {command.what}\n{command.run}" for command in growth.commands)
    lines = [
        f"# A growth for {plan.trainer}",
        "",
        f"From {plan.source}. Written for {plan.trainer_version}. Run everything in this folder; the growth is complete when "
        "the logs of both stages are stored.",
        "",
        "```sh",
        "# 1. the base",
        start_commands[0],
        f"# 2. the growth: {how}, operator {growth.operator}, a fresh optimizer",
        steps,
        "# 3. the grown stage",
        start_commands[1],
        "```",
        "",
        f"Conversion: {growth.conversion}",
        "",
        *_stage_table(base, grown),
        "",
        f"In all {plan.total_tokens:,} tokens and {plan.total_compute_flops:.6g} training FLOPs (attention and head in full, "
        "embedding look-up 0).",
        "",
        f"**Data.** The grown stage reads on where the base stopped: from sequence {grown.data_offset.sequences:,} of "
        f"{grown.model.context_length:,} tokens, that is token {grown.data_offset.tokens:,}, or "
        f"{grown.data_offset.steps:g} of its own steps. No token is seen twice.",
        "",
        "**Learning rate.** Linear warm-up from 0, step k of w at k / w of the peak; then the peak; then the decay, which ends "
        "on the final rate at the last step. Both stages start with a fresh optimizer, so the grown one warms up again.",
        "",
        "## When to look at what",
        "",
        *_point_table(plan.decision_points),
        "",
    ]
    lines += ["## Storing the run", "", *_storing(base, grown), ""]
    if not any(point.expected_loss_nats for point in plan.decision_points):
        lines += ["No losses are expected here: nothing fitted to runs like these stood behind this plan.", ""]
    lines += ["## Rounded", "", *_list(plan.rounding, "Nothing: every length is a whole number of steps."), ""]
    lines += ["## Told", "", *_list(plan.notes, "Nothing else."), ""]
    lines += ["## Files", "", *_list(tuple(f"`{name}`" for name in file_names), "None."), ""]
    return "\n".join(lines)


def _storing(base: Stage, grown: Stage) -> list[str]:
    return [
        "```sh",
        f"growthlaw runs import --base {base.run_log} --grown {grown.run_log} --plan plan.json --cohort NAME \\",
        "  --name THIS_RUN --corpus CORPUS --tokenizer TOKENIZER",
        "```",
        "",
        "Both logs become one growth run of the cohort: tokens are steps times the batches above, FLOPs those of "
        "`fitting.flops` with the base's included, what a restart repeated is stored as wasted. The cohort is judged by "
        "the validation loss that the trainer logs; where it logs none, add `--decision-metric train_loss`.",
    ]


def _stage_table(base: Stage, grown: Stage) -> list[str]:
    rows: list[tuple[str, str, str]] = [
        (
            name,
            *(f"{value:,}" if isinstance(value, int) else f"{value:g}" for value in values),
        )  # type: ignore[misc]
        for name, values in (
            ("layers", (base.model.num_layers, grown.model.num_layers)),
            ("hidden size", (base.model.hidden_size, grown.model.hidden_size)),
            ("heads", (base.model.num_heads, grown.model.num_heads)),
            ("key-value heads", (base.model.num_kv_heads, grown.model.num_kv_heads)),
            ("MLP width", (base.model.intermediate_size, grown.model.intermediate_size)),
            ("vocabulary", (base.model.vocab_size, grown.model.vocab_size)),
            ("context", (base.model.context_length, grown.model.context_length)),
            ("batch, sequences", (base.batch_sequences, grown.batch_sequences)),
            ("batch, tokens", (base.batch_tokens, grown.batch_tokens)),
            ("steps", (base.num_steps, grown.num_steps)),
            ("tokens", (base.num_tokens, grown.num_tokens)),
            ("training FLOPs", (base.compute_flops, grown.compute_flops)),
            ("peak learning rate", (base.schedule.peak_lr, grown.schedule.peak_lr)),
            ("final learning rate", (base.schedule.final_lr, grown.schedule.final_lr)),
            ("warm-up, steps", (base.schedule.warmup_steps, grown.schedule.warmup_steps)),
            ("hold, steps", (base.schedule.hold_steps, grown.schedule.hold_steps)),
            ("decay, steps", (base.schedule.decay_steps, grown.schedule.decay_steps)),
            ("reads from sequence", (base.data_offset.sequences, grown.data_offset.sequences)),
        )
    ]
    rows.append(("schedule", base.schedule.kind, grown.schedule.kind))
    rows.append(("starts from", base.start_checkpoint or "random weights", grown.start_checkpoint or "random weights"))
    rows.append(("checkpoints", base.checkpoint_dir, grown.checkpoint_dir))
    rows.append(("log", base.run_log, grown.run_log))
    head = ["| | base | grown |", "|---|---|---|"]
    return head + [f"| {name} | {first} | {second} |" for name, first, second in rows]


def _point_table(points: tuple[DecisionPoint, ...]) -> list[str]:
    lines = [
        "| stage | step | tokens of the run | FLOPs | expected loss | band | stop above | what |",
        "|" + "---|" * 8,
    ]
    for point in points:
        band = "-" if point.expected_band is None else f"{point.expected_band[0]:.4f} to {point.expected_band[1]:.4f}"
        lines.append(
            f"| {point.stage} | {point.step:,} | {point.run_tokens:,} | {point.compute_flops:.4g} | "
            f"{_nats(point.expected_loss_nats)} | {band} | {_nats(point.stop_above_nats)} | {point.what} |"
        )
    return lines


def _nats(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"


def _list(sentences: tuple[str, ...], none: str) -> list[str]:
    return [f"- {sentence}" for sentence in sentences] if sentences else [none]
