"""`growthlaw audit`: who did what on a service."""

from __future__ import annotations

from itertools import islice
from typing import Any

import click

from app.commands.output import emit_json, json_option, print_table, url_option


@click.command()
@click.option("--actor", default=None, help="Only deeds of this key (its id; local: without a key).")
@click.option(
    "--action", default=None, help="Only these deeds, such as job.launch, job.cancel, run.import, key.create."
)
@click.option("--subject", default=None, help="Only what was done to this job, run, cohort, guideline or key.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1))
@url_option
@json_option
def audit(url: str | None, as_json: bool, limit: int, **query: Any) -> None:
    """Who launched, cancelled, imported and all else that changes something; newest first. Needs scope admin."""
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        deeds = list(islice(client.audit(limit=min(limit, 1000), **query), limit))
    if as_json:
        emit_json(deeds)
        return
    columns = ("time", "actor_name", "action", "subject", "detail")
    print_table(columns, [[deed[name] for name in columns] for deed in deeds])
