"""`growthlaw plan next`: the runs to make next, or that no pilot pays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.commands.output import emit_json, json_option, number_option, print_table, short, url_option
from app.commands.question import read_json

if TYPE_CHECKING:
    from app.client import Growthlaw

_COLUMNS = ("step", "run", "d", "tokens", "FLOPs", "regret after")


@click.command("next")
@click.option("--cohort", required=True, help="Whose guideline is asked, and whose sizes may be trained.")
@number_option("--flops-budget", required=True, help="Of all runs together, in FLOPs.")
@click.option(
    "--decision", metavar="FILE|ID",
    help="What the runs are for: a question as JSON (the body of POST /recommend), or the id of a kept answer. Then they must "
    "save more than they cost.",
)  # fmt: skip
@click.option("--guideline", default="active", show_default=True, help="A version of the cohort's guideline.")
@click.option("--max-steps", type=click.IntRange(1, 20), default=5, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Write each run as a body of `growthlaw train`."
)
@url_option
@json_option
def next_runs(
    cohort: str, flops_budget: float, decision: str | None, guideline: str, max_steps: int, out: Path | None,
    url: str | None, as_json: bool,
) -> None:  # fmt: skip
    """What to run next: the runs with the largest fall of expected regret for their price, ready to be started."""
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        body: dict[str, Any] = {
            "cohort": cohort, "flops_budget": flops_budget, "guideline": guideline, "max_steps": max_steps,
        }  # fmt: skip
        if decision is not None:
            body["decision"] = _question(client, decision)
        answer = client.plan(**body)
    if out is not None:
        write_bodies(answer, out)
    if as_json:
        emit_json(answer)
        return
    click.echo(answer["sentence"])
    rows = []
    for number, step in enumerate(answer["steps"], 1):
        for run in step["runs"]:
            timing = run["growth_timing_tokens"]
            rows.append(
                (
                    number, _told(run), short(timing) if timing else "-", short(run["tokens"]), f"{run['compute_flops']:.3g}",
                    f"{step['regret_after_nats']:.4f}",
                )
            )  # fmt: skip
    if rows:
        print_table(_COLUMNS, rows)
    for number, step in enumerate(answer["steps"], 1):
        click.echo(f"{number}  {step['why']}")


def _told(run: dict[str, Any]) -> str:
    size = f"{short(run['params'])} parameters"
    if run["kind"] == "grown":
        return f"grow x{run['growth_factor']:.3g} to {size}"
    return f"{size} from scratch" if run["kind"] == "scratch" else f"{size} alone"


def _question(client: Growthlaw, decision: str) -> dict[str, Any]:
    if decision.startswith("rec_"):
        question: dict[str, Any] = client.recommendation(decision)["question"]
    else:
        question = read_json(Path(decision), "--decision")
    # The plan names the guideline, and keeps nothing.
    return {name: value for name, value in question.items() if name not in ("guideline", "keep", "cohort")}


def write_bodies(answer: dict[str, Any], out: Path) -> None:
    """Each run of a plan as a file, numbered in the order in which to make them."""
    from app.records import write_json_atomically

    bodies = [run["job"] for step in answer["steps"] for run in step["runs"]]
    if None in bodies:
        raise click.ClickException(
            "--out: no run of these sizes was trained by this service, so there is no recipe to write; plan without --out"
        )
    if out.exists():
        raise click.ClickException(f"--out: {out} stands already; name a new folder")
    out.mkdir(parents=True)
    for number, body in enumerate(bodies, 1):
        write_json_atomically(out / f"{number:02d}-{body['name']}.json", body)
