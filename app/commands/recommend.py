"""`growthlaw recommend`: from a service, or without one from a guideline file or a published rule."""

from __future__ import annotations

from typing import Any

import click

from app.commands.output import emit_json, json_option, print_table, short, url_option
from app.commands.question import ask, question_options


@click.command()
@question_options(target=True)
@click.option("--keep", is_flag=True, help="Let the service keep question and answer; the answer's id names them.")
@url_option
@json_option
def recommend(url: str | None, as_json: bool, guideline: str, keep: bool, **question: Any) -> None:
    """Whether, when and by how much to grow. Local for a guideline FILE or published:NAME, else it asks the service."""
    answer = ask(url, guideline, question, keep=keep)
    if as_json:
        emit_json(answer)
    else:
        print_answer(answer)


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
    rows += _reached(answer["to_reach"])
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
    if answer.get("kept"):
        click.echo(f"  kept            {answer['id']}")
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


def _reached(goal: dict[str, Any] | None) -> list[tuple[str, str]]:
    """What each arm needs for the loss that was asked for."""
    if goal is None:
        return []
    arms = {"scratch": goal["scratch"], "smaller": goal["smaller"]}
    arms |= {f"grown, {name}": reach for name, reach in goal["grown"].items()}
    rows = []
    for name, reach in arms.items():
        if reach is None:
            continue
        told = reach["reason"]
        if reach["compute_flops"] is not None:
            low, high = reach["compute_flops_interval"] or (None, None)
            span = f" (80% interval {low:.3g} to {f'{high:.3g}' if high else 'beyond what is known'})" if low else ""
            told = f"{reach['compute_flops']:.3g} FLOPs{span}, {reach['grade']}"
        rows.append((name, told))
    return rows


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
