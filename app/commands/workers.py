"""`growthlaw workers`: what jobs run on, and settings to begin with for a scheduler of one's own."""

from __future__ import annotations

from pathlib import Path

import click

from app.commands.output import emit_json, json_option, print_table, url_option


@click.group(invoke_without_command=True)
@url_option
@json_option
@click.pass_context
def workers(context: click.Context, url: str | None, as_json: bool) -> None:
    """Each machine and its GPUs and CPU slots: free, or which job; memory, versions, when it was last seen."""
    if context.invoked_subcommand is not None:
        return
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        nodes = client.workers()
    if as_json:
        emit_json(nodes)
        return
    for node in nodes:
        versions = ", ".join(f"{name} {version}" for name, version in node["versions"].items())
        memory = f"{_gigabytes(node['memory_free_bytes'])} of {_gigabytes(node['memory_bytes'])} free"
        click.echo(f"{node['name']}  {node['engine']}  memory {memory}  seen {node['heartbeat_at'][:19]}  {versions}")
        columns = ("device", "name", "memory free", "memory", "job")
        rows = [
            (
                f"{device['kind']} {device['index']}",
                device["name"],
                _gigabytes(device["memory_free_bytes"]),
                _gigabytes(device["memory_bytes"]),
                device["job_id"] or "free",
            )
            for device in node["devices"]
        ]
        print_table(columns, rows)


def _gigabytes(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 1e9:.4g} GB"


@workers.command()
@click.argument("scheduler", type=click.Choice(["slurm", "kubernetes"]))
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder to write them into."
)
def template(scheduler: str, out: Path) -> None:
    """Write the settings file and the job template for a scheduler, to edit and to serve with --exec-file."""
    from app.jobs.launchers.exec_template import write_shipped

    for path in write_shipped(scheduler, out):
        click.echo(path)
