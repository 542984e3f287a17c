"""`growthlaw train`: start one run on the service."""

from __future__ import annotations

from typing import IO

import click

from app.commands.output import emit_json, json_option, print_table, read_body, url_option


@click.command()
@click.argument("body", type=click.File("r"))
@click.option("--idempotency-key", default=None, help="The same key starts nothing twice.")
@url_option
@json_option
def train(url: str | None, as_json: bool, body: IO[str], idempotency_key: str | None) -> None:
    """Start the one run of BODY (a JSON file with the body of POST /jobs; - reads standard input).

    A single size, a growth run, a trunk at constant rate, or a decay leg off a trunk.
    """
    from app.client import Growthlaw

    asked = read_body(body)
    with Growthlaw(url) as client:
        job = client.train(asked, idempotency_key=idempotency_key)
    if as_json:
        emit_json(job)
        return
    columns = ("role", "id", "run_id", "state", "tokens", "compute_flops")
    print_table(columns, [[job[name] for name in columns]])
    for warning in job["warnings"]:
        click.echo(f"! {warning}")
    click.echo(f"watch it with: growthlaw jobs watch {job['id']}")
