"""`growthlaw jobs`: what runs, and what can be asked of it."""

from __future__ import annotations

from typing import Any

import click

from app.commands.output import emit_json, json_option, print_table, url_option


@click.group()
def jobs() -> None:
    """List, watch, pause, resume, cancel, retry and export jobs; read their logs and checkpoints."""


@jobs.command("list")
@click.option("--state", multiple=True, help="Only jobs in this state; repeatable.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000))
@url_option
@json_option
def list_jobs(url: str | None, as_json: bool, state: tuple[str, ...], limit: int) -> None:
    """Jobs, newest first."""
    from app.client import Growthlaw

    query: dict[str, Any] = {"limit": limit} | ({"state": list(state)} if state else {})
    with Growthlaw(url) as client:
        page = client.jobs(**query)
    if as_json:
        emit_json(page)
        return
    columns = ("id", "name", "role", "state", "run_id", "created_at", "reason")
    print_table(columns, [[job[name] for name in columns] for job in page["data"]])


@jobs.command()
@click.argument("job_id")
@url_option
@json_option
def show(url: str | None, as_json: bool, job_id: str) -> None:
    """One job and how far it is."""
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        job = client.job(job_id)
    if as_json:
        emit_json(job)
        return
    progress = job.pop("progress") or {}
    for name, value in (job | progress).items():
        click.echo(f"{name:22}{value if value is not None else '-'}")


@jobs.command()
@click.argument("job_id")
@url_option
@json_option
def watch(url: str | None, as_json: bool, job_id: str) -> None:
    """Follow a job until it ends; exit 1 unless it succeeded."""
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        for event in client.events(job_id):
            data = event.data
            if as_json:
                emit_json({"event": event.event, "id": event.id, "data": data})
            elif event.event == "story":
                click.echo(f"{data['time'][:19]}  {data['event']:12}{data['message']}")
            elif event.event == "point" and data["metric"] in ("train_loss", "validation_loss"):
                click.echo(
                    f"{data['time'][:19]}  {data['phase']:12}{data['tokens']:>12,} tokens  {data['metric']} "
                    f"{data['value']:.4f} {data['unit']}"
                )
            elif event.event == "end":
                click.echo(f"{data['state']} {data['reason']}")
            if event.event == "end" and data["state"] != "succeeded":
                raise click.exceptions.Exit(1)


def _asking(verb: str, text: str) -> None:
    @jobs.command(verb, help=text)
    @click.argument("job_id")
    @url_option
    @json_option
    def ask(url: str | None, as_json: bool, job_id: str) -> None:
        from app.client import Growthlaw

        with Growthlaw(url) as client:
            job = getattr(client, verb)(job_id)
        if as_json:
            emit_json(job)
        else:
            click.echo(f"{job_id}: {job['state']}" + (f", {job['wish']} asked" if job["wish"] else ""))


_asking("cancel", "Stop a job for good; a running one saves first.")
_asking("pause", "Let a job save and stop.")
_asking("resume", "Let a paused job go on from its checkpoint.")
_asking("retry", "Let a failed or cancelled job go on from its last checkpoint.")


@jobs.command()
@click.argument("job_id")
@click.option("--max-bytes", default=65_536, show_default=True, type=click.IntRange(1, 16_000_000))
@url_option
@json_option
def logs(url: str | None, as_json: bool, job_id: str, max_bytes: int) -> None:
    """The end of what a job printed."""
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        log = client.logs(job_id, max_bytes=max_bytes)
    if as_json:
        emit_json(log)
    else:
        click.echo(log["text"])


@jobs.command()
@click.argument("job_id")
@click.argument("target")
@click.option(
    "--source", default="final", show_default=True, help="final, base (as it was grown), or a checkpoint's name."
)
@url_option
@json_option
def export(url: str | None, as_json: bool, job_id: str, target: str, source: str) -> None:
    """Send a run's weights to the URL TARGET; prints the export's own job, to be watched."""
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        job = client.export(job_id, target, source=source)
    if as_json:
        emit_json(job)
    else:
        click.echo(f"{job['id']}: {job['state']}; follow it with `growthlaw jobs watch {job['id']}`")


@jobs.command()
@click.argument("job_id")
@url_option
@json_option
def checkpoints(url: str | None, as_json: bool, job_id: str) -> None:
    """The checkpoints of a job, oldest first."""
    from app.client import Growthlaw

    with Growthlaw(url) as client:
        found = client.checkpoints(job_id)
    if as_json:
        emit_json(found)
        return
    columns = ("name", "phase", "run_tokens", "keep", "num_bytes", "created_at", "problem")
    print_table(columns, [[checkpoint[name] for name in columns] for checkpoint in found])
