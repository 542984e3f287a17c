"""`growthlaw serve`: the service in the foreground."""

from __future__ import annotations

import os
from pathlib import Path

import click

from app.commands.output import emit_json, json_option
from app.loading import loading
from app.settings import DEFAULT_HOST, DEFAULT_PORT


@click.command()
@click.option(
    "--host",
    envvar="GROWTHLAW_HOST",
    default=DEFAULT_HOST,
    show_default=True,
    help="Address to listen on; beyond loopback every request needs a key.",
)
@click.option(
    "--port", envvar="GROWTHLAW_PORT", default=DEFAULT_PORT, show_default=True, type=click.IntRange(0, 65535),
    help="0 takes a free port.",
)  # fmt: skip
@click.option(
    "--data-dir", envvar="GROWTHLAW_DATA_DIR", default="growthlaw-data", show_default=True,
    type=click.Path(path_type=Path, file_okay=False), help="Database, corpora and run directories.",
)  # fmt: skip
@click.option(
    "--slots", envvar="GROWTHLAW_NUM_SLOTS", type=click.IntRange(1), help="Jobs side by side (default: one a core)."
)
@click.option(
    "--database-url",
    help="A PostgreSQL instead of SQLite; better in GROWTHLAW_DATABASE_URL, where `ps` does not show it.",
)
@click.option(
    "--runs-dir", type=click.Path(path_type=Path, file_okay=False),
    help="Run directories, if not under --data-dir; services that share a database and this folder share their jobs "
    "(GROWTHLAW_SHARED_RUNS_DIR).",
)  # fmt: skip
@click.option(
    "--export-to", multiple=True, metavar="URL",
    help="A URL below which runs may be exported, such as s3://bucket/models or file:///exports; repeatable "
    "(GROWTHLAW_EXPORT_URLS, parted by spaces).",
)  # fmt: skip
@click.option(
    "--exec-file", envvar="GROWTHLAW_EXEC_FILE", type=click.Path(path_type=Path, dir_okay=False),
    help="Commands of your own scheduler, for the engine exec; `growthlaw workers template` writes one.",
)  # fmt: skip
@click.option(
    "--stop-seconds", envvar="GROWTHLAW_STOP_SECONDS", type=click.IntRange(0, 3600),
    help="How long requests in flight may take once the service is asked to end (default 5).",
)  # fmt: skip
@click.option(
    "--checkpoints-dir", envvar="GROWTHLAW_CHECKPOINTS_DIR", type=click.Path(path_type=Path, file_okay=False),
    help="Transformers folders below it may be named as an existing base; only their config.json is read.",
)  # fmt: skip
@click.option(
    "--require-key",
    is_flag=True,
    default=None,
    help="Ask for a key on loopback too: behind a proxy, or where others use this machine (GROWTHLAW_REQUIRE_KEY).",
)
@click.option(
    "--allowed-host",
    multiple=True,
    metavar="HOST",
    help="Another name that requests may be for, such as growth.example or *.example; repeatable "
    "(GROWTHLAW_ALLOWED_HOSTS, parted by spaces).",
)
@click.option(
    "--cors-origin",
    multiple=True,
    metavar="ORIGIN",
    help="Whose pages may call the API from a browser, exactly: https://dash.example; repeatable "
    "(GROWTHLAW_CORS_ORIGINS, parted by spaces).",
)
@click.option(
    "--ssl-certfile",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Serve TLS with this PEM certificate (GROWTHLAW_SSL_CERTFILE).",
)
@click.option(
    "--ssl-keyfile", type=click.Path(path_type=Path, dir_okay=False), help="Its key (GROWTHLAW_SSL_KEYFILE)."
)  # fmt: skip
@json_option
def serve(
    host: str,
    port: int,
    data_dir: Path,
    slots: int | None,
    database_url: str | None,
    runs_dir: Path | None,
    export_to: tuple[str, ...],
    exec_file: Path | None,
    stop_seconds: int | None,
    checkpoints_dir: Path | None,
    require_key: bool | None,
    allowed_host: tuple[str, ...],
    cors_origin: tuple[str, ...],
    ssl_certfile: Path | None,
    ssl_keyfile: Path | None,
    as_json: bool,
) -> None:
    """Start the service. Stop it with Ctrl-C (twice: at once): running jobs go on and are taken up again by the next start.

    With --json the first line on stdout tells url, pid and data_dir.
    """
    with loading():
        from pydantic import ValidationError

        from app.main import StartError
        from app.main import serve as run_service
        from app.settings import Settings
        from app.stopping import leave

    given = {
        "num_slots": slots,
        "database_url": database_url,
        "shared_runs_dir": runs_dir,
        "export_urls": export_to or None,
        "exec_file": exec_file,
        "stop_seconds": stop_seconds,
        "checkpoints_dir": checkpoints_dir,
        "require_key": require_key,
        "allowed_hosts": allowed_host or None,
        "cors_origins": cors_origin or None,
        "ssl_certfile": ssl_certfile,
        "ssl_keyfile": ssl_keyfile,
    }
    values = {"host": host, "port": port, "data_dir": data_dir} | {
        name: value for name, value in given.items() if value is not None
    }
    try:
        settings = Settings(**values)  # type: ignore[arg-type]
    except ValidationError as error:
        (first, *_) = error.errors()
        setting = "_".join(("GROWTHLAW", *map(str, first["loc"]))).upper()
        raise click.ClickException(f"{setting}: {first['msg'].removeprefix('Value error, ')}") from None
    # Training processes inherit the environment, and have no business with the database or the API.
    for secret in ("GROWTHLAW_DATABASE_URL", "GROWTHLAW_API_KEY"):
        os.environ.pop(secret, None)
    try:
        run_service(settings, on_ready=emit_json if as_json else lambda service: None)
    except StartError as error:
        raise click.ClickException(str(error)) from None
    leave()
