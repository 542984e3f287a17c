"""`growthlaw keys`: made, listed and revoked in the database itself, whether or not the service runs: the first key has to come
from somewhere. Whoever may write the data directory may do this; admins do it over `/keys` from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.commands.output import emit_json, json_option, print_table

if TYPE_CHECKING:
    from app.store.database import Database
    from app.store.tables import KeyRow

SHOWN = ("id", "name", "scope", "created_at", "revoked_at")


def _where(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say which database, as `growthlaw serve` has them."""
    data_dir = click.option(
        "--data-dir", envvar="GROWTHLAW_DATA_DIR", default="growthlaw-data", show_default=True,
        type=click.Path(path_type=Path, file_okay=False), help="As given to `growthlaw serve`.",
    )  # fmt: skip
    database_url = click.option(
        "--database-url", help="A PostgreSQL instead of SQLite; better in GROWTHLAW_DATABASE_URL."
    )
    return data_dir(database_url(command))


@click.group()
def keys() -> None:
    """Make, list and revoke the keys that a service beyond loopback asks for."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope", required=True, type=click.Choice(["read", "plan", "grow", "admin"]),
    help="read: see everything; plan: also ask for recommendations; grow: also start jobs and bring runs in; admin: also touch "
    "others' jobs, keys and the audit log.",
)  # fmt: skip
@_where
@json_option
def create(as_json: bool, name: str, scope: str, data_dir: Path, database_url: str | None) -> None:
    """Make a key. Its token is printed now and never again: only a hash of it is stored."""
    from app.store import keys as key_store
    from app.store.tables import LOCAL

    with _opened(data_dir, database_url) as database, database.write() as session:
        made = key_store.create_key(session, name=name, scope=scope, actor=LOCAL)
    if as_json:
        emit_json(_shown(made.row) | {"token": made.token})
        return
    click.echo(
        f"key {name} ({made.row.id}, scope {scope}); its token, shown this once, is for GROWTHLAW_API_KEY:", err=True
    )
    click.echo(made.token)


@keys.command("list")
@_where
@json_option
def list_keys(as_json: bool, data_dir: Path, database_url: str | None) -> None:
    """All keys, newest first; those revoked stay listed."""
    from app.store import keys as key_store

    with _opened(data_dir, database_url) as database, database.read() as session:
        rows = [_shown(row) for row in key_store.list_keys(session, limit=100_000)]
    if as_json:
        emit_json(rows)
    else:
        print_table(SHOWN, [[row[name] for name in SHOWN] for row in rows])


@keys.command()
@click.argument("name_or_id")
@_where
@json_option
def revoke(as_json: bool, name_or_id: str, data_dir: Path, database_url: str | None) -> None:
    """Revoke a key: its next request is refused. What it launched goes on."""
    from app.store import keys as key_store
    from app.store.tables import LOCAL

    with _opened(data_dir, database_url) as database, database.write() as session:
        row = key_store.revoke_key(session, name_or_id, actor=LOCAL)
    if row is None:
        raise click.ClickException(f"no key in use is {name_or_id!r}; `growthlaw keys list` shows them")
    if as_json:
        emit_json(_shown(row))
    else:
        click.echo(f"{row.name} ({row.id}) is revoked")


@contextmanager
def _opened(data_dir: Path, database_url: str | None) -> Iterator[Database]:
    from app.opening import StartError, open_database
    from app.settings import Settings

    url: dict[str, Any] = {"database_url": database_url} if database_url else {}
    settings = Settings(data_dir=data_dir, **url)
    data_dir.mkdir(parents=True, exist_ok=True)
    try:
        database = open_database(settings)
    except StartError as error:
        raise click.ClickException(str(error)) from None
    try:
        yield database
    finally:
        database.close()


def _shown(row: KeyRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in SHOWN}
