"""`growthlaw guidelines`: the versions of a cohort's guideline, what changed, and which one answers."""

from __future__ import annotations

import time
from typing import Any

import click

from app.commands.output import emit_json, json_option, print_table, short, url_option

COLUMNS = ("id", "cohort", "version", "is_active", "is_pinned", "outcome", "num_runs", "created_at")
ENDED = ("succeeded", "unchanged", "impossible", "failed")
_SECONDS_BETWEEN_LOOKS = 0.5


@click.group()
def guidelines() -> None:
    """List versions of guidelines, show why each answers or not, compare two, put one in charge, refit."""


@guidelines.command("list")
@click.option("--cohort", default=None)
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000))
@url_option
@json_option
def list_versions(url: str | None, as_json: bool, **query: Any) -> None:
    """Versions, newest first."""
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        page = client.guidelines(**{name: value for name, value in query.items() if value is not None})
    if as_json:
        emit_json(page)
    else:
        print_table(COLUMNS, [[_word(row[name]) for name in COLUMNS] for row in page["data"]])


@guidelines.command()
@click.argument("guideline_id")
@url_option
@json_option
def show(url: str | None, as_json: bool, guideline_id: str) -> None:
    """One version: why it answers or not, and how it and the rules stand on runs they had not seen."""
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        version = client.guideline(guideline_id)
    if as_json:
        emit_json(version)
        return
    print_version(version)
    for sentence in (*version["body"]["warnings"], *version["body"]["cannot_identify"]):
        click.echo(f"  ! {sentence}")


@guidelines.command()
@click.argument("guideline_id")
@click.argument("other_id")
@url_option
@json_option
def diff(url: str | None, as_json: bool, guideline_id: str, other_id: str) -> None:
    """What changed from GUIDELINE_ID to OTHER_ID, and what both answer."""
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        found = client.guideline_diff(guideline_id, other_id)
    if as_json:
        emit_json(found)
        return
    changes = found["changes"]
    click.echo(f"version {found['before']['version']} -> {found['after']['version']} of {found['after']['cohort']}")
    click.echo(f"  runs           {len(changes['runs_added'])} added, {len(changes['runs_removed'])} removed")
    for name, weight in changes["weights"].items():
        click.echo(f"  weight         {name}: {weight['before']:.0%} -> {weight['after']:.0%}")
    rows = [
        [one["law"], one["name"], _range(one["before"]), _range(one["after"])] for one in changes["parameters"]
    ]  # fmt: skip
    if rows:
        print_table(("law", "parameter", "before (80%)", "after (80%)"), rows)
    rows = [
        [short(one["target_params"]), f"{one['compute_flops']:.3g}", _answer(one["before"]), _answer(one["after"])]
        for one in changes["questions"]
    ]
    if rows:
        print_table(("target", "FLOPs", "before", "after"), rows)


@guidelines.command()
@click.argument("guideline_id")
@click.option("--until-promoted", is_flag=True, help="Do not hold it: a refit that does no worse replaces it.")
@url_option
@json_option
def activate(url: str | None, as_json: bool, guideline_id: str, until_promoted: bool) -> None:
    """Let a version answer, also an older one. It stays until released (--until-promoted) or another one is activated."""
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        version = client.activate_guideline(guideline_id, pinned=not until_promoted)
    if as_json:
        emit_json(version)
        return
    held = "until a refit does no worse" if until_promoted else "until it is released or another one is activated"
    click.echo(f"version {version['version']} of {version['cohort']} answers now, {held}")


@guidelines.command()
@click.argument("cohort")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it has ended.")
@url_option
@json_option
def refit(url: str | None, as_json: bool, cohort: str, wait: bool) -> None:
    """Refit COHORT now; by itself it is refitted when its runs change."""
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        found = client.refit(cohort)
        while wait and found["state"] not in ENDED:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            found = client.refit_state(found["id"])
    if as_json:
        emit_json(found)
    else:
        click.echo(f"{found['state']}  {found['detail'] or found['id']}")
    if found["state"] == "failed":
        raise click.exceptions.Exit(1)


def print_version(version: dict[str, Any]) -> None:
    """A version as a person reads it: whether it answers and why, then the scores."""
    answers = "answers" if version["is_active"] else "does not answer"
    pinned = ", activated by hand" if version["is_pinned"] else ""
    click.echo(f"{version['cohort']} version {version['version']} ({version['id']}) {answers}{pinned}")
    click.echo(f"  {version['outcome']:14} {version['reason']}")
    click.echo(f"  law            {version['body']['law']} ({version['num_runs']} runs)")
    scores = version["scores"]
    if scores["num_deltas"]:
        click.echo(
            f"  since          {scores['num_deltas']} pairs predicted unseen: score {scores['delta_score_nats']:.4f} nats, "
            f"{scores['delta_coverage']:.0%} inside the 80% interval"
        )
    waiting = version["report"].get("waiting_run_ids") or []
    if waiting:
        click.echo(f"  waiting        {len(waiting)} grown run(s) without a control at equal FLOPs")
    rows = [
        [
            name, one["num_cases"], "-" if one["score_nats"] is None else f"{one['score_nats']:.4f}",
            f"{one['wrong_signs']} of {one['sign_cases']}", f"{one['regret_nats']:.4f}",
        ]
        for name, one in sorted((version["report"].get("standings") or {}).items(), key=lambda item: item[1]["regret_nats"])
    ]  # fmt: skip
    if rows:
        print_table(("predictor", "unseen pairs", "score (nats)", "wrong signs", "regret (nats, sum)"), rows)


def _word(value: Any) -> Any:
    return {True: "yes", False: ""}.get(value, value) if isinstance(value, bool) else value


def _range(one: dict[str, Any] | None) -> str:
    return "-" if one is None else f"{one['median']:.4g} ({one['low']:.4g} to {one['high']:.4g})"


def _answer(one: dict[str, Any]) -> str:
    text = str(one["decision"])
    if one["growth_timing_tokens"]:
        text += f" x{one['growth_factor']:g} after {short(one['growth_timing_tokens'])}"
    if one["delta_nats"] is not None:
        text += f", {one['delta_nats']:+.4f} nats"
    return f"{text} ({one['grade']})"
