"""`growthlaw recommend`: from a service, or without one from a guideline file or a published rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from app.commands.output import emit_json, json_option, number_option, print_table, short, url_option


@click.command()
@number_option("--target-params", required=True, help="Non-embedding parameters of the target, e.g. 7e9.")
@number_option(
    "--token-budget", help="Tokens a from-scratch run would get, e.g. 2e12; or give --compute-flops or --gpu-hours."
)
@number_option("--compute-flops", help="The budget in FLOPs.")
@number_option("--gpu-hours", help="The budget in GPU-hours; needs --peak-flops-per-second and --utilisation.")
@number_option("--peak-flops-per-second", help="Of one GPU, e.g. 989e12.")
@number_option("--utilisation", help="Share of the peak that training the target reaches, e.g. 0.4.")
@number_option("--base-utilisation", help="The same for the base; --utilisation where left out.")
@number_option("--existing-base-tokens", help="Tokens that a base which is there already has seen.")
@click.option(
    "--objective", type=click.Choice(["lowest_loss", "fewest_flops"]), default="lowest_loss", show_default=True,
    help="Lowest loss of the budget, or fewest FLOPs to the loss that scratch reaches with it.",
)  # fmt: skip
@click.option(
    "--guideline", default="active", show_default=True, help="active | published:NAME | version id | FILE.json"
)
@click.option("--cohort", default=None, help="Whose losses are meant.")
@click.option("--num-target-layers", type=click.IntRange(1), default=None)
@click.option("--growth-factor", "growth_factors", type=float, multiple=True, help="Factors to consider; repeatable.")
@click.option("--base-compute", type=click.Choice(["charged", "sunk"]), default="charged", show_default=True)
@url_option
@json_option
def recommend(url: str | None, as_json: bool, guideline: str, **question: Any) -> None:
    """Whether, when and by how much to grow. Local for a guideline FILE or published:NAME, else it asks the service."""
    answer = ask(url, guideline, question)
    if as_json:
        emit_json(answer)
    else:
        print_answer(answer)


def ask(url: str | None, guideline: str, question: dict[str, Any]) -> dict[str, Any]:
    """The answer to ``question`` (fields of ``POST /recommend``): of a file or published rule here, else of the service."""
    question["growth_factors"] = list(question["growth_factors"]) or None
    question = {name: value for name, value in question.items() if value is not None}
    if guideline.startswith("published:") or guideline.endswith(".json"):
        return _answer_locally(guideline, question)
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        return client.recommend(guideline=guideline, **question)


def _answer_locally(guideline: str, question: dict[str, Any]) -> dict[str, Any]:
    from fitting.flops import Shape
    from fitting.guideline import Guideline
    from fitting.published import published_guideline
    from fitting.recommendation import Request
    from fitting.recommendation import recommend as answer_from

    if guideline.startswith("published:"):
        loaded = published_guideline(guideline)
    else:
        try:
            text = Path(guideline).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise click.UsageError(f"--guideline {guideline} does not exist; give a file or published:NAME") from None
        loaded = Guideline.from_json(text)
    if "growth_factors" in question:
        question["growth_factors"] = tuple(question["growth_factors"])
    if "target_shape" in question:
        question["target_shape"] = Shape(**question["target_shape"])
    return answer_from(Request.from_fields(question), loaded).to_dict()


def print_answer(answer: dict[str, Any]) -> None:
    """An answer as a person reads it: the decision first, then what it rests on, then what is not known."""
    guideline = answer["guideline"]
    click.echo(f"{answer['decision'].upper()}  ({guideline['name']}, {guideline['num_runs']} runs)")
    rows = [("target", _model(answer["target_model"]))]
    if answer["base_model"]:
        rows.append(("base", _model(answer["base_model"])))
    if answer["growth_timing_tokens"]:
        low, high = answer["growth_timing_range"] or (None, None)
        near = f" (near-optimal {short(low)} to {short(high)})" if low else ""
        rows.append(
            ("grow", f"x{answer['growth_factor']:g} after {short(answer['growth_timing_tokens'])} tokens{near}")
        )
        rows.append(("then train", f"{short(answer['grown_tokens'])} tokens, layers in {answer['order']} order"))
    expected = answer["expected"]
    if expected["delta_nats"] is not None:
        rows.append(("grown - scratch", f"{expected['delta_nats']:+.4f} nats{_interval(expected['delta_interval'])}"))
    if expected["speedup"] is not None:
        rows.append(("speedup", f"{expected['speedup']:.1%}"))
    rows.append(("basis", expected["basis"]))
    rows.append(("support", f"{answer['support']['grade']}: {answer['support']['reason']}"))
    for accounting in ("charged", "sunk"):
        told = answer["by_accounting"][accounting]
        rows.append((f"base {accounting}", f"{told['decision'] or 'cannot tell'}: {told['reason']}"))
    for name, value in rows:
        click.echo(f"  {name:16}{value}")
    if answer.get("newer"):
        click.echo(f"  {'newer':16}{_newer(answer['newer'])}")
    for warning in answer["warnings"]:
        click.echo(f"  ! {warning}")
    if answer["alternatives"]:
        columns = ("growth_factor", "base_params", "growth_timing_tokens", "grown_tokens", "decision", "delta_nats")
        own = [row for row in answer["alternatives"] if not row["guideline"]]
        print_table(columns, [[row[name] for name in columns] for row in own])
    for row in answer["alternatives"]:
        if row["guideline"]:
            click.echo(
                f"  elsewhere       {row['guideline']['name']} ({row['grade']}): {row['decision']}, x{row['growth_factor']:g} "
                f"after {short(row['growth_timing_tokens'])} tokens: {row['delta_nats']:+.4f} nats"
                f"{_interval(row['delta_interval'])}"
            )


def _newer(newer: dict[str, Any]) -> str:
    """What the version that answers now says to the same question."""
    text = f"version {newer['version']} answers now and says {newer['decision']}"
    if newer["growth_timing_tokens"]:
        text += f", x{newer['growth_factor']:g} after {short(newer['growth_timing_tokens'])} tokens"
    if newer["delta_nats"] is not None:
        text += f": {newer['delta_nats']:+.4f} nats{_interval(newer['delta_interval'])}"
    return text


def _model(model: dict[str, Any]) -> str:
    layers = f", {model['num_layers']} layers" if model["num_layers"] else ""
    return f"{short(model['params'])} non-embedding parameters{layers}"


def _interval(interval: list[float] | None) -> str:
    return f" (80% interval {interval[0]:+.4f} to {interval[1]:+.4f})" if interval else ""
