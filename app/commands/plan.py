"""`growthlaw plan export`: what a growth asks of a trainer of one's own, as that trainer's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.commands.output import emit_json, json_option, print_table, short, url_option
from app.commands.plan_next import next_runs
from app.commands.plan_replay import replay
from app.commands.question import QUESTION_OPTIONS, ask, question_options, read_json

if TYPE_CHECKING:
    from app.export import Question, TrainingPlan

_FILE = click.Path(path_type=Path)


@click.group()
def plan() -> None:
    """What to run next; and a growth as files of a trainer of your own (torchtitan, Megatron-LM, transformers)."""


plan.add_command(next_runs)
plan.add_command(replay)


@plan.command()
@click.option(
    "--for",
    "trainer",
    type=click.Choice(["torchtitan", "megatron", "transformers"]),
    required=True,
    help="The trainer.",
)
@click.option("--out", type=_FILE, required=True, metavar="DIR", help="A new folder.")
@click.option("--recommendation", type=_FILE, metavar="FILE", help="What `growthlaw recommend --json` printed.")
@click.option("--design", type=_FILE, metavar="FILE", help="The body of POST /grow; its grown arm is exported.")
@click.option(
    "--target-config", type=_FILE, metavar="FILE",
    help="config.json of the target (transformers); with --recommendation and where the question is asked here.",
)  # fmt: skip
@click.option(
    "--context-length", type=click.IntRange(2), help="Tokens of a sequence; the config's maximum if left out."
)
@click.option("--vocab-size", type=click.IntRange(2), help="With --design, whose corpus has the vocabulary otherwise.")
@click.option("--batch-sequences", type=click.IntRange(1), help="Of both stages, instead of the recipe's batch.")
@click.option("--peak-lr", type=float, help="Of the grown stage, instead of the recipe's.")
@click.option("--base-peak-lr", type=float, help="Of the base stage, instead of the recipe's.")
@click.option("--schedule", type=click.Choice(["wsd", "cosine"]), help="Of the grown stage, instead of the recipe's.")
@question_options(target=False)
@url_option
@json_option
def export(
    trainer: Any,
    out: Path,
    recommendation: Path | None,
    design: Path | None,
    target_config: Path | None,
    context_length: int | None,
    vocab_size: int | None,
    url: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write a plan into the new folder DIR: from --recommendation, from --design, or from a question asked here."""
    from app.export import build_plan, plan_files, write_files

    wishes = {name: options.pop(name) for name in ("batch_sequences", "peak_lr", "base_peak_lr", "schedule")}
    asked = [name for name in QUESTION_OPTIONS if options[name]]
    if (recommendation is not None) + (design is not None) + bool(asked) != 1:
        raise click.UsageError(
            "give one of --recommendation FILE, --design FILE, and a budget such as --token-budget 2e12"
        )
    if design is not None:
        unused = [name for name, value in (wishes | {"target_config": target_config}).items() if value is not None]
        if unused or context_length:
            name = (unused or ["context_length"])[0].replace("_", "-")
            raise click.UsageError(f"--{name} stands beside --design, which says it itself; change the design")
        question = _from_design(design, vocab_size)
    else:
        if target_config is None:
            raise click.UsageError(
                "give --target-config FILE, the target's config.json: a trainer needs its whole shape"
            )
        question = _from_answer(recommendation, target_config, context_length, wishes, url, options)
    made = build_plan(trainer, question)
    write_files(out, plan_files(made))
    if as_json:
        emit_json(json.loads(made.to_json()))
    else:
        _print(made, out)


def _from_answer(
    recommendation: Path | None,
    target_config: Path,
    context_length: int | None,
    wishes: dict[str, Any],
    url: str | None,
    options: dict[str, Any],
) -> Question:
    from app.export import Wishes, question_of, target_of

    target, details = target_of(read_json(target_config, "--target-config"), context_length)
    if recommendation is not None:
        answer = read_json(recommendation, "--recommendation")
    else:
        shape = {
            name: getattr(target, name)
            for name in (
                "num_layers", "hidden_size", "num_heads", "num_kv_heads", "intermediate_size", "vocab_size", "context_length",
            )
        }  # fmt: skip
        answer = ask(url, options.pop("guideline"), options | {"target_shape": shape})
    return question_of(answer, target, details, Wishes(**wishes))


def _from_design(path: Path, vocab_size: int | None) -> Question:
    from types import SimpleNamespace

    from pydantic import ValidationError

    from app.api.grow import GrowBody
    from app.api.problems import Problem
    from app.api.run_bodies import growth_spec, model_spec
    from app.contract import EvaluationSpec, TrainingSpec
    from app.export import design_question
    from app.export.stages import ModelDetails
    from app.jobs.design import GrowthDesign, arm_spec
    from fitting.flops import flops_per_token

    if vocab_size is None:
        raise click.UsageError("give --vocab-size N with --design: the body of POST /grow leaves it to the corpus")
    try:
        body = GrowBody.model_validate(read_json(path, "--design"))
        target = model_spec(body.target_model, SimpleNamespace(vocab_size=vocab_size), "/target_model")  # type: ignore[arg-type]
        growth = growth_spec(body, target, "")
    except ValidationError as error:
        first = error.errors()[0]
        raise click.UsageError(f"--design: {'.'.join(map(str, first['loc']))}: {first['msg']}; mend the file") from None
    except Problem as problem:
        raise click.UsageError(f"--design: {problem}") from None
    design = GrowthDesign(
        name=body.name,
        cohort=body.cohort,
        corpus=body.corpus,
        corpus_dir=".",
        target_model=target,
        growth=growth,
        token_budget=body.token_budget,
        training=TrainingSpec(**body.training.model_dump(), tokens=body.token_budget),
        evaluation=EvaluationSpec(every_tokens=body.token_budget),
        init_seed=body.init_seed,
        data_seed=body.data_seed,
        device="auto",
        precision="fp32",
        checkpoint_every_tokens=body.token_budget,
        num_processes=1,
    )
    spec = arm_spec(design, "grown", "plan")
    assert spec.growth is not None
    base_flops = spec.growth.growth_timing_tokens * flops_per_token(design.base_model)
    left = (design.budget_flops - base_flops) / flops_per_token(target)
    return design_question(spec, growth.growth_timing_tokens, left, ModelDetails())


def _print(made: TrainingPlan, out: Path) -> None:
    columns = (
        "stage",
        "layers",
        "batch",
        "steps",
        "tokens",
        "FLOPs",
        "peak lr",
        "warm-up",
        "hold",
        "decay",
        "reads from",
    )
    rows = [
        (
            stage.name, stage.model.num_layers, stage.batch_sequences, stage.num_steps, stage.num_tokens, stage.compute_flops,
            stage.schedule.peak_lr, stage.schedule.warmup_steps, stage.schedule.hold_steps, stage.schedule.decay_steps,
            stage.data_offset.tokens,
        )
        for stage in made.stages
    ]  # fmt: skip
    print_table(columns, rows)
    for sentence in made.rounding:
        click.echo(f"rounded: {sentence}")
    for sentence in made.notes:
        click.echo(f"! {sentence}")
    click.echo(
        f"{out} is complete, for {made.trainer_version}: {short(made.total_tokens)} tokens; begin with {out}/README.md"
    )
