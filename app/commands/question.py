"""What `growthlaw recommend` and `growthlaw plan` ask: one set of options, answered here or by the service."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from app.commands.output import number_option

_FILE = click.Path(path_type=Path)
# Options that make the budget; of the last it is the answer.
BUDGET_OPTIONS = ("token_budget", "compute_flops", "gpu_hours", "loss_to_match_nats")
QUESTION_OPTIONS = (
    *BUDGET_OPTIONS, "peak_flops_per_second", "utilisation", "base_utilisation", "growth_factors", "cohort",
    "existing_base_tokens", "base_config", "base_checkpoint", "base_params", "base_tokens",
)  # fmt: skip

_TARGET: tuple[Callable[[Any], Any], ...] = (
    number_option("--target-params", help="Non-embedding parameters of the target, e.g. 7e9; or give --config."),
    click.option("--config", type=_FILE, metavar="FILE", help="The target's transformers config.json."),
    click.option(
        "--context-length", type=click.IntRange(1), help="Tokens of a sequence; the config's maximum if left out."
    ),
    click.option("--num-target-layers", type=click.IntRange(1), default=None, help="Where no config says it."),
)
_SHARED: tuple[Callable[[Any], Any], ...] = (
    number_option(
        "--token-budget", help="Tokens a from-scratch run would get, e.g. 2e12; or one of the next three instead."
    ),
    number_option("--compute-flops", help="The budget in FLOPs."),
    number_option("--gpu-hours", help="The budget in GPU-hours; needs --peak-flops-per-second and --utilisation."),
    number_option("--loss-to-match", "loss_to_match_nats", help="Ask what budget reaches this loss (nats)."),
    number_option("--peak-flops-per-second", help="Of one GPU, e.g. 989e12."),
    number_option("--utilisation", help="Share of the peak that training the target reaches, e.g. 0.4."),
    number_option("--base-utilisation", help="The same for the base; --utilisation where left out."),
    click.option("--base-config", type=_FILE, metavar="FILE", help="config.json of a base that is there already."),
    click.option("--base-checkpoint", metavar="FOLDER", help="Such a base's folder, below the service's --checkpoints-dir."),
    number_option("--base-params", help="Such a base's non-embedding parameters."),
    number_option("--base-tokens", help="Tokens that it has seen; its compute is sunk unless --base-compute charged."),
    number_option("--existing-base-tokens", help="Tokens that a base of any size on offer has seen."),
    click.option(
        "--objective", type=click.Choice(["lowest_loss", "fewest_flops"]), default="lowest_loss", show_default=True,
        help="Lowest loss of the budget, or fewest FLOPs to the loss that scratch reaches with it.",
    ),
    click.option(
        "--guideline", default="active", show_default=True, help="active | published:NAME | version id | FILE.json"
    ),
    click.option("--cohort", default=None, help="Whose losses are meant."),
    click.option("--growth-factor", "growth_factors", type=float, multiple=True, help="Factors to consider; repeatable."),
    click.option(
        "--base-compute", type=click.Choice(["charged", "sunk"]), default=None,
        help="Which accounting stands on top (default: charged, sunk for a base that is there).",
    ),
)  # fmt: skip


def question_options(*, target: bool) -> Callable[[Any], Any]:
    """The options of a question; `target` adds those that name the target, which a plan takes from its own config."""

    def add(command: Any) -> Any:
        for option in reversed((*(_TARGET if target else ()), *_SHARED)):
            command = option(command)
        return command

    return add


def read_json(path: Path, option: str) -> dict[str, Any]:
    """The JSON object in a file that a user names."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise click.UsageError(f"{option} {path} does not exist; give a file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{option} {path} is not JSON ({error}); give a JSON file") from None
    if not isinstance(values, dict):
        raise click.UsageError(f"{option} {path} is no JSON object; give a JSON file")
    return values


def ask(url: str | None, guideline: str, options: dict[str, Any], *, keep: bool = False) -> dict[str, Any]:
    """The answer to a question given as options: of a file or published rule here, else of the service."""
    question = _body_of(options)
    if guideline.startswith("published:") or guideline.endswith(".json"):
        if keep:
            raise click.UsageError("--keep needs the service, but this guideline is answered here; leave it out")
        return _answer_locally(guideline, question)
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        return client.recommend(guideline=guideline, **question, **({"keep": True} if keep else {}))


def _body_of(options: dict[str, Any]) -> dict[str, Any]:
    """Options as fields of `POST /recommend`."""
    given = {name: value for name, value in options.items() if value is not None and value != ()}
    if "growth_factors" in given:
        given["growth_factors"] = list(given["growth_factors"])
    if "config" in given:
        given["target_config"] = read_json(given.pop("config"), "--config")
    base = {
        name: given.pop(f"base_{name}")
        for name in ("config", "checkpoint", "params", "tokens")
        if f"base_{name}" in given
    }
    if base:
        if "tokens" not in base:
            raise click.UsageError("--base-tokens is missing: say how many tokens the base has seen")
        if "config" in base:
            base["config"] = read_json(base["config"], "--base-config")
        given["existing_base"] = base
    return given


def _answer_locally(guideline: str, question: dict[str, Any]) -> dict[str, Any]:
    from app.questions import question_fields
    from fitting.guideline import Guideline
    from fitting.published import published_guideline
    from fitting.recommendation import question_of
    from fitting.recommendation import recommend as answer_from

    if guideline.startswith("published:"):
        loaded = published_guideline(guideline)
    else:
        try:
            text = Path(guideline).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise click.UsageError(f"--guideline {guideline} does not exist; give a file or published:NAME") from None
        loaded = Guideline.from_json(text)

    def read_config(checkpoint: str) -> dict[str, Any]:
        return read_json(Path(checkpoint) / "config.json", "--base-checkpoint")

    return answer_from(question_of(question_fields(question, read_config)), loaded).to_dict()
