"""`growthlaw grow`: start a design on the service."""

from __future__ import annotations

from typing import IO

import click

from app.commands.output import emit_json, json_option, print_table, read_body, url_option


@click.command()
@click.argument("design", type=click.File("r"))
@click.option("--idempotency-key", default=None, help="The same key starts nothing twice.")
@url_option
@json_option
def grow(url: str | None, as_json: bool, design: IO[str], idempotency_key: str | None) -> None:
    """Start the growth DESIGN (a JSON file with the body of POST /grow; - reads standard input)."""
    from app.client import Growthlaw

    body = read_body(design)
    with Growthlaw(url) as client:
        growth = client.grow(body, idempotency_key=idempotency_key)
    if as_json:
        emit_json(growth)
        return
    columns = ("role", "job", "run", "state", "tokens", "compute_flops")
    rows = [
        (arm["role"], arm["job"]["id"], arm["job"]["run_id"], arm["job"]["state"], arm["tokens"], arm["compute_flops"])
        for arm in growth["arms"]
    ]
    print_table(columns, rows)
    for warning in growth["warnings"]:
        click.echo(f"! {warning}")
    click.echo("watch one with: growthlaw jobs watch JOB")
