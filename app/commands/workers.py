"""`growthlaw workers`: what jobs run on."""

from __future__ import annotations

import click

from app.commands.output import emit_json, json_option, print_table, short, url_option


@click.command()
@url_option
@json_option
def workers(url: str | None, as_json: bool) -> None:
    """Each machine and its GPUs and CPU slots: free, or which job; memory, versions, when it was last seen."""
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        nodes = client.workers()
    if as_json:
        emit_json(nodes)
        return
    for node in nodes:
        versions = ", ".join(f"{name} {version}" for name, version in node["versions"].items())
        memory = f"{short(node['memory_free_bytes'], 'B')} of {short(node['memory_bytes'], 'B')} free"
        click.echo(f"{node['name']}  {node['engine']}  memory {memory}  seen {node['heartbeat_at'][:19]}  {versions}")
        columns = ("device", "name", "memory free", "memory", "job")
        rows = [
            (
                f"{device['kind']} {device['index']}",
                device["name"],
                short(device["memory_free_bytes"], "B"),
                short(device["memory_bytes"], "B"),
                device["job_id"] or "free",
            )
            for device in node["devices"]
        ]
        print_table(columns, rows)
